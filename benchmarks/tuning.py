"""What tuning brings and costs: minutes of `lmr tune` on the unlabelled corpus against nDCG@10.

    python benchmarks/tuning.py --from lstm-base --minutes 0 --minutes 1 --minutes 5 --seed 1 corpora/cranfield

Each run starts from the same encoder, sees no label of the collection, and is evaluated on the test split. Wall time is
all of it: reading, the teacher, the closed-form start, the training. Rows are added to benchmarks/results/tuning.json
as they are finished; `--table` prints what is there.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from common import spread, stored_rows, write_results

from lm_retrieval.checkpoint import Checkpoint, find_checkpoint
from lm_retrieval.config import load_config
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.experiment import run_experiment
from lm_retrieval.runtime import configure_torch
from lm_retrieval.tuning.run import tune, tuning_config


@click.command()
@click.argument("collections", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--from", "start", default="lstm-base")
@click.option("--minutes", "budgets", multiple=True, type=float, default=[1.0, 2.0, 5.0, 10.0])
@click.option("--seed", "seeds", multiple=True, type=int, default=[1])
@click.option("--teacher", default="lsi", help="lsi, none, or the folder of a sentence-transformers model")
@click.option("--split", default="test")
@click.option("--set", "overrides", multiple=True)
@click.option("--table", is_flag=True, help="Only print the table of earlier runs.")
def main(
    collections: tuple[Path, ...],
    start: str,
    budgets: tuple[float, ...],
    seeds: tuple[int, ...],
    teacher: str,
    split: str,
    overrides: tuple[str, ...],
    table: bool,
) -> None:
    """Tunes and evaluates, one run after the other."""
    configure_torch()
    for path in () if table else collections:
        for minutes in budgets:
            for seed in seeds:
                add_row(measure(path, start, minutes, seed, teacher, split, overrides))
    print_rows()


def measure(
    path: Path, start: str, minutes: float, seed: int, teacher: str, split: str, overrides: tuple[str, ...]
) -> dict[str, Any]:
    """One run: tuned for so many minutes (0: the encoder as it is), then evaluated."""
    corpus = open_corpus(path)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint: Path = find_checkpoint(start)
        steps = 0
        if minutes:
            own = (f"training.max_time_seconds={60 * minutes}", f"training.seed={seed}", *overrides)
            result = tune(
                corpus,
                start=Checkpoint.load(checkpoint),
                config=load_config(overrides=own, defaults=tuning_config()),
                output=Path(folder) / "tuned",
                labels="none",
                teacher=teacher,
            )
            checkpoint, steps = Path(folder) / "tuned", result.position.step
        seconds = time.perf_counter() - began
        encoder = Encoder.load(checkpoint, dtype="bfloat16")
        part = run_experiment([corpus], split=split, encoders=[("x", encoder)]).report.collections[0]
    scores = {s.name.partition(":")[0]: round(s.evaluation.measures["nDCG@10"], 4) for s in part.systems}
    row = {"corpus": corpus.name, "split": split, "from": start, "teacher": teacher, "minutes": minutes, "seed": seed}
    row |= {"settings": list(overrides), "steps": steps, "wall_seconds": round(seconds, 1), "nDCG@10": scores}
    click.echo(json.dumps(row), err=True)
    return row


def add_row(row: dict[str, Any]) -> None:
    """Puts a row into the results, in place of an earlier one of the same run."""
    key = ("corpus", "split", "from", "teacher", "minutes", "seed", "settings")
    rows = [old for old in stored_rows("tuning") if any(old[name] != row[name] for name in key)]
    write_results("tuning", [*rows, row])


def print_rows() -> None:
    """Markdown: a line per corpus, start, teacher and budget; the median and the range over seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in stored_rows("tuning"):
        name = (row["corpus"], row["from"], row["teacher"], row["minutes"], " ".join(row["settings"]))
        groups.setdefault(name, []).append(row)
    print("| corpus | from | teacher | minutes | wall s | dense | hybrid | BM25 | LSI-256 | seeds |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for (corpus, start, teacher, minutes, settings), rows in sorted(groups.items()):
        scores = {name: [row["nDCG@10"][name] for row in rows] for name in ("dense", "hybrid", "bm25", "lsi-256")}
        cells = [spread(scores[name]) for name in ("dense", "hybrid")]
        cells += [f"{scores[name][0]:.3f}" for name in ("bm25", "lsi-256")]
        wall = statistics.median(row["wall_seconds"] for row in rows)
        how = f"{teacher} {settings}".strip()
        print(f"| {corpus} | {start} | {how} | {minutes:g} | {wall:.0f} | " + " | ".join(cells) + f" | {len(rows)} |")


if __name__ == "__main__":
    main()
