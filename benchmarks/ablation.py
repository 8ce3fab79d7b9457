r"""What each step of making a base encoder brings: nDCG@10 of encoders trained alike but for one thing.

    python benchmarks/ablation.py --pairs PAIRS --teacher TEACHER --language-model lstm=checkpoints/lstm-base-lm \
        --language-model transformer=checkpoints/transformer-base-lm --minutes 5 --seed 1 --seed 2 --seed 3 \
        corpora/cranfield corpora/python-docs

Of each language model: a random one and the trained one as they are (mean of the states, centred, whitened); then the
token vectors alone, and the whole encoder from a random and from the trained language model, each with the same pairs
for the same minutes of `lmr tune` with the settings of configs/base-words.toml. Dense search, test split. Rows are
added to benchmarks/results/ablation.json as they are finished, and not measured again; `--table` prints what is there.
"""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from common import spread, stored_rows, write_results
from quality import dense_row

from lm_retrieval.checkpoint import Checkpoint, find_checkpoint
from lm_retrieval.config import EncoderConfig, RunConfig, load_config
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.models import build_model
from lm_retrieval.runtime import configure_torch
from lm_retrieval.tuning.run import tune

CONFIG = Path(__file__).parent.parent / "configs" / "base-words.toml"
# small enough for the language model to take its steps within minutes
ALIKE = ("training.batch_size=256", "tuning.max_length_tokens=64", "tuning.spans_per_positive=0")
ALIKE += ("training.eval_interval_steps=50",)
WITH_STATES = ("tuning.words_only=false", "tuning.train_language_model=true")
AS_IT_IS = ("none", "center", "whiten")
# what a row changes; all else is alike
TRAINED: dict[str, tuple[str, ...]] = {
    "token vectors alone, distilled": (),
    "contrastive": (*WITH_STATES, "tuning.teacher_weight=0"),
    "contrastive + distillation": WITH_STATES,
}
Row = dict[str, Any]


@click.command()
@click.argument("collections", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--language-model", "models", multiple=True, metavar="NAME=CHECKPOINT", help="Repeatable.")
@click.option("--pairs", type=click.Path(path_type=Path, exists=True), help="Folder of (query, positive) files.")
@click.option("--teacher", help="Folder of a sentence-transformers model.")
@click.option("--minutes", default=5.0, help="Training time of each row.")
@click.option("--max-pairs", default=40_000, help="Pairs that are drawn.")
@click.option("--seed", "seeds", multiple=True, type=int, default=[1])
@click.option("--row", "chosen", multiple=True, type=click.Choice(list(TRAINED)), help="Only these; repeatable.")
@click.option("--table", is_flag=True, help="Only print the table of earlier runs.")
def main(
    collections: tuple[Path, ...],
    models: tuple[str, ...],
    pairs: Path | None,
    teacher: str | None,
    minutes: float,
    max_pairs: int,
    seeds: tuple[int, ...],
    chosen: tuple[str, ...],
    table: bool,
) -> None:
    """Trains and evaluates, one row after the other."""
    configure_torch()
    if not table:
        if pairs is None or teacher is None:
            raise click.UsageError("--pairs and --teacher are needed")
        budget = (*ALIKE, f"training.max_time_seconds={60 * minutes}", f"tuning.max_pairs={max_pairs}")
        for seed, model, pretrained in product(seeds, models, (False, True)):
            name, _, folder = model.partition("=")
            # made anew for each row: training changes it
            start = partial(starting_point, find_checkpoint(folder), seed, pretrained=pretrained)
            facts = {"model": name, "pretrained": pretrained, "seed": seed}
            for postprocess in AS_IT_IS if not chosen else ():
                encoder = partial(untrained, start, postprocess)
                add_row({**facts, "row": f"as it is, {postprocess}"}, collections, encoder)
            for row, changes in TRAINED.items():
                if chosen and row not in chosen:
                    continue
                settings = load_config(CONFIG, overrides=(*budget, f"training.seed={seed}", *changes))
                encoder = partial(trained, start, settings, pairs, teacher)
                add_row({**facts, "row": row, "minutes": minutes}, collections, encoder)
    print_rows()


def starting_point(folder: Path, seed: int, *, pretrained: bool) -> Checkpoint:
    """The language model, or one of the same shape and tokenizer that has learned nothing."""
    start = Checkpoint.load(folder)
    if not pretrained:
        torch.manual_seed(seed)
        fresh = build_model(start.config.model, vocab_size=start.tokenizer.vocab_size)
        start.model.load_state_dict(fresh.state_dict())
    return start


def untrained(start: Callable[[], Checkpoint], postprocess: str) -> Encoder:
    """The mean of a language model's hidden states."""
    config = EncoderConfig(pooling="mean", layers="last", postprocess=postprocess)
    return Encoder(start(), config=config, dtype="auto")


def trained(start: Callable[[], Checkpoint], config: RunConfig, pairs: Path, teacher: str) -> Encoder:
    """An encoder made by `lmr tune` from pairs."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "tuned"
        tune(open_corpus(pairs), start=start(), config=config, output=output, teacher=teacher)
        return Encoder.load(output, dtype="auto")


def add_row(key: Row, collections: tuple[Path, ...], make: Callable[[], Encoder]) -> None:
    """Makes and measures an encoder, unless that has been done."""
    rows = stored_rows("ablation")
    if any(all(row[name] == value for name, value in key.items()) for row in rows):
        return
    encoder = make()
    scores = {}
    for path in collections:
        corpus = open_corpus(path)
        fitted = encoder
        if not encoder.fitted:
            fitted = encoder.fit(document.content for document in corpus.documents())
        scores[corpus.name] = round(dense_row(corpus, "test", fitted.encode)["nDCG@10"], 4)
    click.echo(json.dumps({**key, "nDCG@10": scores}), err=True)
    write_results("ablation", [*stored_rows("ablation"), {**key, "nDCG@10": scores}])


def print_rows() -> None:
    """Markdown: a line per model and row, a column per collection; the median and the range over seeds."""
    rows = stored_rows("ablation")
    groups: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for row in rows:
        learned = "pretrained" if row["pretrained"] else "random"
        groups.setdefault((row["model"], learned, row["row"]), []).append(row["nDCG@10"])
    names = list(rows[0]["nDCG@10"]) if rows else []
    print("| model | language model | encoder | " + " | ".join(names) + " | seeds |")
    print("|---|---|---|" + "--:|" * (len(names) + 1))
    for key, scores in groups.items():
        cells = [spread([score[name] for score in scores]) for name in names]
        print("| " + " | ".join((*key, *cells, str(len(scores)))) + " |")


if __name__ == "__main__":
    main()
