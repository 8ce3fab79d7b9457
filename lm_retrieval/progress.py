"""One progress display, on stderr: a live bar on a terminal, a line now and then elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

LOG_INTERVAL_SECONDS = 10.0
logger = logging.getLogger(__name__)
Watcher = Callable[[str, float, float | None], None]
"""Called with what is being done, how much of it has been, and of how much in all where that is known."""
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


class Advance(Protocol):
    """Moves the display on by `steps`, with a short note such as `loss 3.21`."""

    def __call__(self, steps: float = 1, *, note: str = "") -> None: ...


@contextmanager
def progress(description: str, *, total: float | None = None) -> Iterator[Advance]:
    """Shows how far a long piece of work has come. Nothing is shown unless the CLI or `watched` turned display on."""
    watcher = _watcher.get()
    if watcher is not None:
        yield _Watched(watcher, description, total)
        return
    if not logger.isEnabledFor(logging.INFO):
        yield silent
        return
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console, description, total) as advance:
            yield advance
    else:
        yield _LogLines(description, total)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Work begun in this block and thread reports to `watcher` instead."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def silent(steps: float = 1, *, note: str = "") -> None:
    """Shows nothing: a library user asked for no display."""


@contextmanager
def _bar(console: object, description: str, total: float | None) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    assert isinstance(console, Console)
    note_column = TextColumn("{task.fields[note]}", style="dim")
    share = (BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"))
    left = (TextColumn("left"), TimeRemainingColumn())
    columns = (
        TextColumn("{task.description}"),
        *(share if total is not None else ()),
        note_column,
        TimeElapsedColumn(),
        *(left if total is not None else ()),
    )
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task(description, total=total, note="")

        def advance(steps: float = 1, *, note: str = "") -> None:
            if note:
                display.update(task, advance=steps, note=note)
            else:
                display.update(task, advance=steps)

        yield advance


class _Watched:
    """Progress for a program."""

    def __init__(self, watcher: Watcher, description: str, total: float | None) -> None:
        self.watcher, self.description, self.total = watcher, description, total
        self.done = 0.0
        watcher(description, 0.0, total)

    def __call__(self, steps: float = 1, *, note: str = "") -> None:
        self.done += steps
        self.watcher(self.description, self.done, self.total)


class _LogLines:
    """Progress for files and pipes: one log line every few seconds."""

    def __init__(self, description: str, total: float | None) -> None:
        self.description, self.total = description, total
        self.done = 0.0
        self.started = self.last = time.monotonic()

    def __call__(self, steps: float = 1, *, note: str = "") -> None:
        self.done += steps
        now = time.monotonic()
        if now - self.last < LOG_INTERVAL_SECONDS:
            return
        self.last = now
        share = f"{100 * self.done / self.total:.0f}%" if self.total else f"{self.done:.0f}"
        logger.info("%s: %s, %.0f s%s", self.description, share, now - self.started, f", {note}" if note else "")
