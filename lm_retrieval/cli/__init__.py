"""The `lmr` command. Commands are loaded when used; none imports torch before it has to."""

import importlib
import logging
import os
import sys
from typing import TextIO

import click

from lm_retrieval.errors import LmRetrievalError, PeerError
from lm_retrieval.version import __version__

_COMMANDS = {
    "corpus": "corpus:corpus",
    "tokenizer": "tokenizer:tokenizer",
    "train": "train:train",
    "tune": "tune:tune",
    "perplexity": "language_model:perplexity",
    "generate": "language_model:generate",
    "compare": "language_model:compare",
    "embed": "retrieval:embed",
    "index": "retrieval:index",
    "search": "retrieval:search",
    "serve": "serve:serve",
    "evaluate": "evaluate:evaluate",
    "report": "evaluate:report",
    "bench": "bench:bench",
    "quantize": "info:quantize",
    "info": "info:info",
}
# Threads of torch and FAISS wait for one another by spinning. Where other work shares the cores that costs whole time
# slices: benchmarks/contention.py has 9.8 s against 4.2 s for an index of 300 documents when a thread that has spun
# this often sleeps instead, and no difference on idle cores.
_SPINS = "2000"


class _LazyGroup(click.Group):
    """Lists the commands in the order they are used and imports one only when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(f"lm_retrieval.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lmr")
def lmr() -> None:
    """Train small language models on your own text, turn them into encoders, search, and measure the ranking.

    \b
    Start here:
      lmr corpus build python-docs          a corpus to try things on
      lmr embed corpora/python-docs         index it (or any folder of text)
      lmr search "merge two dictionaries"
      lmr evaluate corpora/python-docs      how good is the ranking?

    Corpora, checkpoints and indexes may also lie at s3://, gs://, hdfs:// and file:// addresses.
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs `lmr`; errors of this package become one line on stderr and exit code 1 (2 for wrong usage)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    try:
        lmr.main(args=[a for a in arguments if a != "--debug"], prog_name="lmr", standalone_mode=False, obj=arguments)
    except LmRetrievalError as error:
        if debug:
            raise
        if isinstance(error, PeerError) and os.environ.get("LOCAL_RANK", "0") != "0":
            sys.exit(1)  # one process of each machine says why
        _fail(f"Error: {error}" if first_process() else f"Error in process {os.environ['RANK']}: {error}", 1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as stop:
        # click makes an Abort of the KeyboardInterrupt
        _fail(str(stop.__cause__ or stop) or "Interrupted.", 130)
    except BrokenPipeError:
        # the reader of our output (head, less) is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if debug:
            raise
        _fail(f"Error: {error.filename or 'operating system'}: {error.strerror or error}", 1)


def first_process() -> bool:
    """Whether this process speaks: always, but under torchrun only the first."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _fail(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is at that moment: a live progress bar puts itself there to stay below the messages."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Nothing to keep."""


def set_up_logging(*, quiet: bool) -> None:
    """Messages go to stderr, each a line; `--quiet` keeps warnings only."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_StderrHandler()], force=True)
    level = logging.WARNING if quiet else logging.INFO
    logging.getLogger("lm_retrieval").setLevel(level if first_process() else logging.ERROR)
