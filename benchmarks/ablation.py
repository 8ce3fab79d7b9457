r"""What each step of making a base encoder brings: nDCG@10 of encoders trained alike but for one thing.

    python benchmarks/ablation.py --pairs PAIRS --teacher TEACHER --language-model lstm=checkpoints/lstm-base-lm \
        --language-model transformer=checkpoints/transformer-base-lm --seed 1 \
        corpora/cranfield corpora/python-docs

Of each language model: a random one and the trained one as they are (mean of the states, centred, whitened); then the
token vectors alone, and the whole encoder from a random and from the trained language model, each with the same pairs
for the same number of steps of `lmr tune` (minutes would favour the rows that ran while the machine was idle) with the
settings of configs/base-words.toml; then that encoder tuned on the text of each collection, without its labels, with
the settings of `lmr tune`. Test split; dense search, and hybrid search of the last two. Rows are added to
benchmarks/results/ablation.json as they are finished, and not measured again; encoders in `--work` are not trained
again; `--table` prints what is there. `--row` takes some rows alone, such as those to repeat with `--seed 2 --seed 3`.
"""

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from common import print_rows, spread, stored_rows, write_results
from quality import searched

from lm_retrieval.checkpoint import Checkpoint, find_checkpoint
from lm_retrieval.config import EncoderConfig, RunConfig, load_config
from lm_retrieval.corpus import Corpus, open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.models import build_model
from lm_retrieval.runtime import configure_torch
from lm_retrieval.search import Mode
from lm_retrieval.tuning.run import tune, tuning_config

CONFIG = Path(__file__).parent.parent / "configs" / "base-words.toml"
# small enough for the language model to take its steps within minutes; the steps are the only limit
ALIKE = ("training.batch_size=256", "tuning.max_length_tokens=64", "tuning.spans_per_positive=0")
ALIKE += ("training.eval_interval_steps=50",)
STEPS_ONLY = ("training.max_time_seconds=1e6", "training.max_epochs=1000")
WITH_STATES = ("tuning.words_only=false", "tuning.train_language_model=true")
AS_IT_IS = {"as it is, mean": "none", "as it is, centred": "center", "as it is, whitened": "whiten"}
WORDS, DISTILLED, TUNED = "token vectors alone, distilled", "contrastive + distillation", "tuned on the corpus"
# what a row changes; all else is alike
TRAINED: dict[str, tuple[str, ...]] = {
    WORDS: (),
    "contrastive": (*WITH_STATES, "tuning.teacher_weight=0"),
    DISTILLED: WITH_STATES,
}
ROWS = (*AS_IT_IS, *TRAINED, TUNED)
Row = dict[str, Any]


@click.command()
@click.argument("collections", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--language-model", "models", multiple=True, metavar="NAME=CHECKPOINT", help="Repeatable.")
@click.option("--pairs", type=click.Path(path_type=Path, exists=True), help="Folder of (query, positive) files.")
@click.option("--teacher", help="Folder of a sentence-transformers model.")
@click.option("--steps", default=200, help="Training steps of each row; for cheap token vectors ten times, at most.")
@click.option("--tuning-steps", default=150, help="Training steps on each collection.")
@click.option("--max-pairs", default=40_000, help="Pairs that are drawn.")
@click.option("--seed", "seeds", multiple=True, type=int, default=[1])
@click.option("--row", "chosen", multiple=True, type=click.Choice(ROWS), default=ROWS, help="Only these; repeatable.")
@click.option("--results", default="ablation", help="Name of the JSON file; one for each process.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("checkpoints/ablation"), help="Keeps encoders.")
@click.option("--table", is_flag=True, help="Only print the table of earlier runs.")
def main(
    collections: tuple[Path, ...],
    models: tuple[str, ...],
    pairs: Path | None,
    teacher: str | None,
    steps: int,
    tuning_steps: int,
    max_pairs: int,
    seeds: tuple[int, ...],
    chosen: tuple[str, ...],
    results: str,
    work: Path,
    table: bool,
) -> None:
    """Trains and evaluates, one row after the other."""
    configure_torch()
    if not table:
        if pairs is None or teacher is None:
            raise click.UsageError("--pairs and --teacher are needed")
        train = partial(trained, open_corpus(pairs), teacher)
        work.mkdir(parents=True, exist_ok=True)
        budget = (*ALIKE, *STEPS_ONLY, f"tuning.max_pairs={max_pairs}")
        for seed, row, model, pretrained in product(seeds, chosen, models, (True, False)):
            name, _, folder = model.partition("=")
            start = partial(starting_point, find_checkpoint(folder), seed, pretrained=pretrained)
            key: Row = {"row": row, "model": name, "pretrained": pretrained, "seed": seed}
            if row in AS_IT_IS:
                add_rows(results, key, collections, partial(untrained, start, AS_IT_IS[row]))
                continue
            learned = DISTILLED if row == TUNED else row
            key["steps"] = 10 * steps if row == WORDS else steps
            own = (f"training.max_steps={key['steps']}", f"training.seed={seed}", *TRAINED[learned])
            settings = load_config(CONFIG, overrides=(*budget, *own))
            output = work / f"{name}, {'pretrained' if pretrained else 'random'}, seed {seed}, {learned}, {steps} steps"
            encoder = partial(train, start, settings, output)
            if row == TUNED:
                key["tuning_steps"] = tuning_steps
                own = (*STEPS_ONLY, f"training.max_steps={tuning_steps}", f"training.seed={seed}")
                make = partial(tuned, encoder, load_config(overrides=own, defaults=tuning_config()))
            else:
                make = partial(loaded, encoder)
            if row == WORDS:  # the language model takes no part in it
                key.update(model="none", pretrained=False)
            add_rows(results, key, collections, make)
    print_table(stored_rows(results))


def starting_point(folder: Path, seed: int, *, pretrained: bool) -> Checkpoint:
    """The language model, or one of the same shape and tokenizer that has learned nothing."""
    start = Checkpoint.load(folder)
    if not pretrained:
        torch.manual_seed(seed)
        fresh = build_model(start.config.model, vocab_size=start.tokenizer.vocab_size)
        start.model.load_state_dict(fresh.state_dict())
    return start


def untrained(start: Callable[[], Checkpoint], postprocess: str, corpus: Corpus) -> Encoder:
    """The mean of a language model's hidden states."""
    config = EncoderConfig(pooling="mean", layers="last", postprocess=postprocess)
    return Encoder(start(), config=config, dtype="auto")


def trained(pairs: Corpus, teacher: str, start: Callable[[], Checkpoint], config: RunConfig, output: Path) -> Path:
    """An encoder made by `lmr tune` from pairs, unless it is there already."""
    if not output.exists():
        with tempfile.TemporaryDirectory(dir=output.parent) as folder:
            tune(pairs, start=start(), config=config, output=Path(folder) / "tuned", teacher=teacher)
            (Path(folder) / "tuned").rename(output)
    return output


def loaded(encoder: Callable[[], Path], corpus: Corpus) -> Encoder:
    """An encoder as it was trained, whatever the collection."""
    return Encoder.load(encoder(), dtype="auto")


def tuned(encoder: Callable[[], Path], config: RunConfig, corpus: Corpus) -> Encoder:
    """An encoder that has gone on to learn the text of a collection."""
    start = encoder()
    output = start.with_name(f"{start.name}, {corpus.name}")
    shutil.rmtree(output, ignore_errors=True)
    tune(corpus, start=Checkpoint.load(start), config=config, output=output, labels="none")
    return Encoder.load(output, dtype="auto")


def add_rows(results: str, key: Row, collections: Sequence[Path], make: Callable[[Corpus], Encoder]) -> None:
    """Makes and measures an encoder for each collection, unless that has been done."""
    modes: tuple[Mode, ...] = ("dense", "hybrid") if key["row"] in (DISTILLED, TUNED) else ("dense",)
    for corpus in map(open_corpus, collections):
        facts = {**key, "corpus": corpus.name}
        rows = stored_rows(results)
        if any(facts.items() <= row.items() for row in rows):
            continue
        scores = searched(corpus, make(corpus), modes)
        rows += [{**facts, "mode": mode, "nDCG@10": round(score, 4)} for mode, score in scores.items()]
        click.echo(json.dumps(rows[-1]), err=True)
        write_results(results, rows)


def print_table(rows: list[Row]) -> None:
    """Markdown: a line per step and language model, a column per collection; the median and the range over seeds."""
    names = list(dict.fromkeys(row["corpus"] for row in rows))
    groups: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for row in sorted(rows, key=lambda row: (ROWS.index(row["row"]), row["mode"], row["model"], row["pretrained"])):
        step = row["row"] + (", hybrid" if row["mode"] == "hybrid" else "")
        learned = "pretrained" if row["pretrained"] else "random"
        model = "none" if row["model"] == "none" else f"{learned} {row['model']}"
        groups.setdefault((step, model), {}).setdefault(row["seed"], {})[row["corpus"]] = row["nDCG@10"]
    lines = []
    for key, seeds in groups.items():
        for scores in seeds.values():
            if len(scores) == len(names):
                scores["mean"] = statistics.fmean(scores.values())
        columns = [[scores[name] for scores in seeds.values() if name in scores] for name in (*names, "mean")]
        lines.append([*key, *(spread(values) if values else "" for values in columns), len(seeds)])
    print_rows(["encoder", "language model", *names, "mean", "seeds"], lines, left=2)


if __name__ == "__main__":
    main()
