"""`lmr train`."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lm_retrieval.cli import first_process
from lm_retrieval.cli.launch import train_on_all
from lm_retrieval.cli.options import LOCATION, PATH, Command, corpus_options, devices_option, run_options
from lm_retrieval.storage import Location, OutputFolder

if TYPE_CHECKING:
    from lm_retrieval.training.trainer import TrainingResult


@click.command(cls=Command)
@click.argument("config", type=PATH)
@click.option("--corpus", "corpus_path", type=LOCATION, required=True, help="Folder or file of text to learn from.")
@click.option("--output", type=LOCATION, required=True, help="Checkpoint folder to write.")
@click.option("--validation", type=LOCATION, help="Held-out text.  [default: a share of the documents]")
@click.option("--tokenizer", "tokenizer_path", type=PATH, help="A trained tokenizer.  [default: train one]")
@click.option("--from", "start", help="A checkpoint to go on from with new text.")
@run_options
@devices_option
@corpus_options
def train(
    config: Path,
    corpus_path: Location,
    output: Location,
    validation: Location | None,
    tokenizer_path: Path | None,
    start: str | None,
    overrides: tuple[str, ...],
    max_time: str | None,
    resume: bool,
    devices: str,
    encoding: str,
    text_column: str | None,
) -> None:
    """Train a language model (and its tokenizer) from a TOML configuration.

    Ctrl-C saves and stops; the same command with --resume goes on. Several devices, or the processes of torchrun (on
    one machine or more), share out each step's rows; only the first process reads CONFIG and the corpus and writes.

    \b
    Example:
      lmr train configs/lstm.toml --corpus notes/ --output checkpoints/notes-lstm --max-time 10m
      lmr train configs/gpt.toml --corpus notes/ --output checkpoints/gpt --set training.max_epochs=3
      torchrun --standalone --nproc-per-node=2 -m lm_retrieval train configs/lstm.toml --corpus notes/ --output run
    """
    from lm_retrieval.checkpoint import Checkpoint, find_checkpoint
    from lm_retrieval.config import RunConfig, load_config, parse_duration
    from lm_retrieval.corpus import open_corpus
    from lm_retrieval.runtime import configure_torch
    from lm_retrieval.tokenizer import Tokenizer
    from lm_retrieval.training.processes import process_group, shared
    from lm_retrieval.training.run import train as run_training

    def settings() -> RunConfig:
        limit = () if max_time is None else (f"training.max_time_seconds={parse_duration(max_time)}",)
        return load_config(config, overrides=(*overrides, *limit))

    train_on_all(devices, settings)
    configure_torch()
    with stop_on_signals() as should_stop, process_group(devices):
        target = shared(lambda: open_run(output, resume=resume))
        result = run_training(
            shared(lambda: open_corpus(corpus_path, encoding=encoding, text_column=text_column)),
            config=shared(settings),
            output=target.folder,
            validation=shared(lambda: open_corpus(validation, encoding=encoding) if validation else None),
            tokenizer=shared(lambda: Tokenizer.load(tokenizer_path) if tokenizer_path else None),
            start=shared(lambda: Checkpoint.load(find_checkpoint(start)) if start else None),
            resume=resume,
            device=devices,
            should_stop=should_stop,
            after_save=target.send,
        )
    echo_result(output, result)


def open_run(output: Location, *, resume: bool) -> OutputFolder:
    """Where a training run writes; the run that it is to go on from is fetched."""
    from lm_retrieval.checkpoint import check_remote_output
    from lm_retrieval.storage import open_output

    check_remote_output(output, resume=resume)
    return open_output(output)


def echo_result(output: Location, result: "TrainingResult") -> None:
    """Says how a run ended, once; one that was stopped ends the program with 130."""
    position = result.position
    if result.reason == "interrupted" and not first_process():
        raise SystemExit(130)
    if not first_process():
        return
    if result.reason == "interrupted":
        click.echo(
            f"stopped at step {position.step:,} and saved; go on with the same command and --resume "
            f"(checkpoint: {output})",
            err=True,
        )
        raise SystemExit(130)
    figures = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.metrics.items())
    click.echo(
        f"{output}: {position.step:,} steps, {position.tokens:,} tokens, "
        f"{position.elapsed_seconds:.0f} s ({result.reason})"
    )
    best = "validation loss" if position.best_loss >= 0 else "dev nDCG@10"
    click.echo(f"last: {figures}; best {best} {abs(position.best_loss):.4f} at step {position.best_step:,}")


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C (or SIGTERM) asks the run to save and stop; the second ends it at once.

    Before the run has asked for the first time there is nothing to save, and the first ends it.
    """
    asked, begun = threading.Event(), threading.Event()

    def should_stop() -> bool:
        begun.set()
        return asked.is_set()

    def ask(number: int, _frame: object) -> None:
        if asked.is_set() or not begun.is_set():
            raise KeyboardInterrupt
        asked.set()
        if first_process():
            click.echo("\nsaving; press Ctrl-C again to stop without saving", err=True)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield should_stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
