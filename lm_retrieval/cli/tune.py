"""`lmr tune`."""

from pathlib import Path

import click

from lm_retrieval.cli.launch import train_on_all
from lm_retrieval.cli.options import LOCATION, PATH, Command, corpus_options, devices_option, run_options
from lm_retrieval.cli.train import echo_result, open_run, stop_on_signals
from lm_retrieval.storage import Location


@click.command(cls=Command)
@click.argument("corpus_path", metavar="CORPUS", type=LOCATION)
@click.option(
    "--from",
    "start",
    default="lstm-base",
    show_default=True,
    help="Checkpoint to start from: an encoder or a language model.",
)
@click.option("--output", type=LOCATION, required=True, help="Checkpoint folder to write.")
@click.option("--labels", help="A split of the corpus, a file of pairs, or none.  [default: train where there is one]")
@click.option(
    "--teacher",
    default="auto",
    help="lsi, none, or the folder of a sentence-transformers model.  [default: lsi where there are documents]",
)
@click.option("--config", type=PATH, help="TOML file with [training] and [tuning].  [default: five minutes]")
@run_options
@devices_option
@corpus_options
def tune(
    corpus_path: Location,
    start: str,
    output: Location,
    labels: str | None,
    teacher: str,
    config: Path | None,
    overrides: tuple[str, ...],
    max_time: str | None,
    resume: bool,
    devices: str,
    encoding: str,
    text_column: str | None,
) -> None:
    """Teach an encoder your own text, so that it finds more in it.

    Needs no labels: it learns from titles, headings and spans of the documents. Labels are used where there are some:
    a BEIR folder with a train split, or a file of query and positive (and negatives) columns. Several devices, or the
    processes of torchrun, share out the pairs of a step, and each text is compared with those of all; only the first
    process reads and writes.

    \b
    Example:
      lmr tune notes/ --output checkpoints/notes
      lmr tune notes/ --output checkpoints/notes --max-time 2m
      lmr tune pairs.parquet --from lstm-base --output checkpoints/mine
      torchrun --standalone --nproc-per-node=2 -m lm_retrieval tune notes/ --output checkpoints/notes
    """
    from lm_retrieval.checkpoint import Checkpoint, find_checkpoint
    from lm_retrieval.config import RunConfig, load_config, parse_duration
    from lm_retrieval.corpus import open_corpus
    from lm_retrieval.runtime import configure_torch
    from lm_retrieval.training.processes import process_group, shared
    from lm_retrieval.tuning.run import tune as run_tuning
    from lm_retrieval.tuning.run import tuning_config

    fixed = next(
        (item for item in overrides if item.partition(".")[0].strip() in ("model", "tokenizer", "encoder")), None
    )
    if fixed is not None:
        raise click.UsageError(f"--set {fixed}: model, tokenizer and encoder come from --from and cannot be changed")

    def settings() -> RunConfig:
        limit = () if max_time is None else (f"training.max_time_seconds={parse_duration(max_time)}",)
        return load_config(config, overrides=(*overrides, *limit), defaults=None if config else tuning_config())

    train_on_all(devices, settings)
    configure_torch()
    with stop_on_signals() as should_stop, process_group(devices):
        target = shared(lambda: open_run(output, resume=resume))
        result = run_tuning(
            shared(lambda: open_corpus(corpus_path, encoding=encoding, text_column=text_column)),
            start=shared(lambda: Checkpoint.load(find_checkpoint(start))),
            config=shared(settings),
            output=target.folder,
            labels=labels,
            teacher=teacher,
            resume=resume,
            device=devices,
            should_stop=should_stop,
            after_save=target.send,
        )
    echo_result(output, result)
