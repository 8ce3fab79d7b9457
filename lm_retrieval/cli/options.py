"""Options that several commands share, and what they print with."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from lm_retrieval.cli import set_up_logging
from lm_retrieval.runtime import THREADS_VARIABLE
from lm_retrieval.storage import locate

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command with `--threads` and `--quiet`; both take effect before its function runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(
                ["--threads"],
                type=click.IntRange(min=1),
                help=f"CPU threads.  [default: {THREADS_VARIABLE}, else all cores; under torchrun a share of them]",
            ),
            click.Option(["-q", "--quiet"], is_flag=True, help="Only warnings and results; no progress."),
            click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Sets threads and logging, then runs the command's function."""
        set_up_logging(quiet=ctx.params.pop("quiet"))
        ctx.params.pop("debug")
        threads = ctx.params.pop("threads")
        if threads is not None:
            os.environ[THREADS_VARIABLE] = str(threads)
        return super().invoke(ctx)


class Group(click.Group):
    """A group whose commands are `Command`s."""

    command_class = Command


class _LocationType(click.Path):
    """A path or URI; an unknown scheme is an error of its own."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return locate(value)


class _PathType(click.Path):
    """A path on this machine, also as a `file://` URI."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        location = locate(value)
        if not isinstance(location, Path):
            self.fail(f"{location}: a path on this machine is needed here", param, ctx)
        return super().convert(location, param, ctx)


LOCATION = _LocationType()
PATH = _PathType(path_type=Path)


class Bytes(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on
    """A number of bytes such as 500MB or 2GB; KB, MB, GB and TB are powers of 1000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parses the text."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])B?|B)", value.strip().upper())
        if found is None:
            self.fail(f"{value!r} is no size; write for example 500MB or 2GB", param, ctx)
        return int(float(found[1]) * 1000 ** " KMGT".index(found[2] or " "))


max_memory_option = click.option(
    "--max-memory",
    type=Bytes(),
    help="Memory of the process while it builds, for example 2GB.  [default: half of what is free]",
)

format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Output form.",
)
encoding_option = click.option("--encoding", default="utf-8", show_default=True, help="Encoding of text files.")
text_column_option = click.option(
    "--text-column", help="Column of CSV, TSV, JSONL or Parquet files that holds the text."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
devices_option = click.option(
    "--devices",
    "--device",
    default="auto",
    help='Devices, each with a process of its own: "cpu", "cuda:0,cuda:1".  [default: every GPU, else cpu]',
)


def dtype_option(default: str) -> Callable[[F], F]:
    """`--dtype`: what a model computes in."""
    return click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16", "int8"]),
        default=default,
        show_default=True,
        help="Of the arithmetic; auto is bfloat16 where that is fast, int8 rounds the weights to eight bits.",
    )


_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a setting; repeatable."
)
_max_time_option = click.option("--max-time", help="Stop after this time, for example 90s, 5m, 1.5h.")
_resume_option = click.option("--resume", is_flag=True, help="Go on exactly where the run in --output was saved.")


def run_options(function: F) -> F:
    """`--set`, `--max-time` and `--resume` of a training run."""
    return _set_option(_max_time_option(_resume_option(function)))


def corpus_options(function: F) -> F:
    """`--encoding` and `--text-column`."""
    return encoding_option(text_column_option(function))


def echo_json(value: Any) -> None:
    """Prints JSON for scripts."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def echo_table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Prints a table; the first `left` columns are words, the others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, header in enumerate(headers):
        table.add_column(
            Text(header), justify="left" if place < left else "right", overflow="fold", no_wrap=place >= left
        )
    for row in rows:
        table.add_row(*map(Text, row))  # brackets in names are no markup
    # a pipe has no width: tables must not be squeezed into 80 columns there
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def echo_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Prints name–value lines."""
    items = [(name, value) for name, value in facts if value is not None]
    width = max((len(name) for name, _ in items), default=0)
    for name, value in items:
        click.echo(f"{name:<{width}}  {value}")


def human_bytes(count: float) -> str:
    """1536 → '1.5 KB'."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
