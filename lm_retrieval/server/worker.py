"""One thread that does all work on one model: batches of texts, and texts being written, in turns.

Requests that arrive together share batches. Between two batches every text that is being written gets one more token,
so that neither kind of work waits for the other to end.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from lm_retrieval.generation import Continuation, Generation, advance
from lm_retrieval.models import LanguageModel
from lm_retrieval.server.metrics import Metrics
from lm_retrieval.server.settings import Batching

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Listener = Callable[[int, Continuation], None]
"""Called in the worker's thread after a text has grown or ended: its place in the request, and the text."""

_PROMPT_SPREAD = 32  # texts that are written together begin at most so many tokens apart: the shorter ones do not wait
_MAX_RETRY_SECONDS = 60


class OverloadedError(Exception):
    """The queue is full."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__("too many requests are waiting")
        self.retry_after_seconds = retry_after_seconds


class ClosedError(Exception):
    """The worker takes no more requests."""


@dataclass(frozen=True)
class Operation(Generic[Item, Result]):
    """Work on items one by one, done for many at once; items of equal operations share batches.

    Attributes:
        name: for the metrics.
        run: one result for each item, whatever the others are.
        key: whatever else decides a result.
    """

    name: str
    run: Callable[[list[Item]], Sequence[Result]] = field(compare=False)
    key: Hashable = None


@dataclass(eq=False)
class _Job:
    """The items of one request."""

    operation: Operation[Any, Any]
    future: Future[list[Any]]
    results: list[Any]
    left: int
    arrived: float


class _Item(NamedTuple):
    job: _Job
    place: int
    value: Any
    tokens: int


@dataclass(eq=False)
class _Writing:
    """The texts that one request has written."""

    model: LanguageModel
    rows: list[Continuation]
    future: Future[list[Generation]]
    listener: Listener | None
    arrived: float


class _Line(NamedTuple):
    """One text of a request: its place there."""

    writing: _Writing
    place: int

    @property
    def row(self) -> Continuation:
        return self.writing.rows[self.place]


@dataclass(eq=False)
class _Group:
    """Texts that are written side by side."""

    lines: list[_Line]
    steps: Iterator[None]


class Worker:
    """A queue and the thread that empties it."""

    def __init__(self, name: str, *, batching: Batching, max_waiting: int, metrics: Metrics) -> None:
        """Gets ready; `start` starts the thread.

        Args:
            name: of the model or index, for the metrics.
            batching: how requests share batches.
            max_waiting: requests that may be accepted and unfinished.
            metrics: where batches are counted.
        """
        self.name = name
        self._batching, self._max_waiting = batching, max_waiting
        self._changed = threading.Condition()
        self._queues: dict[Operation[Any, Any], deque[_Item]] = {}
        self._lines: deque[_Line] = deque()
        self._groups: list[_Group] = []
        self._unfinished: dict[Future[Any], float] = {}
        self._closing = False
        self._metrics = metrics.worker(name, unfinished=lambda: len(self._unfinished))
        self._thread = threading.Thread(target=self._work, name=f"worker-{name}", daemon=True)

    def start(self) -> None:
        """Starts the thread; what has been accepted before is done now."""
        self._thread.start()

    def submit(
        self, operation: Operation[Item, Result], items: Sequence[Item], *, tokens: Sequence[int]
    ) -> Future[list[Result]]:
        """Has `operation` done on each item; `tokens` are their sizes. Cancelling the future drops what has not begun.

        Raises:
            OverloadedError: too many requests are unfinished.
            ClosedError: the server is shutting down.
        """
        job = _Job(operation, Future(), [None] * len(items), len(items), time.monotonic())
        with self._changed:
            self._accept(job.future)
            queue = self._queues.setdefault(operation, deque())
            queue.extend(
                _Item(job, place, value, size) for place, (value, size) in enumerate(zip(items, tokens, strict=True))
            )
            self._changed.notify()
        job.future.add_done_callback(self._finished)
        return job.future

    def write(
        self, model: LanguageModel, rows: Sequence[Continuation], *, listener: Listener | None = None
    ) -> Future[list[Generation]]:
        """Has texts written to their ends. Cancelling the future stops them before their next tokens.

        Raises:
            OverloadedError: too many requests are unfinished.
            ClosedError: the server is shutting down.
        """
        writing = _Writing(model, list(rows), Future(), listener, time.monotonic())

        def stop(future: Future[list[Generation]]) -> None:
            if future.cancelled():
                for row in writing.rows:
                    row.cancel()

        with self._changed:
            self._accept(writing.future)
            self._lines.extend(_Line(writing, place) for place in range(len(writing.rows)))
            self._changed.notify()
        writing.future.add_done_callback(stop)
        writing.future.add_done_callback(self._finished)
        return writing.future

    def close(self, *, seconds: float) -> None:
        """Takes no more requests and waits until what was accepted is finished, at most so long."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _accept(self, future: Future[Any]) -> None:
        if self._closing:
            raise ClosedError
        now = time.monotonic()
        if len(self._unfinished) >= self._max_waiting:
            self._metrics.rejected()
            # what is finished now waited so long: about as long as the next one would
            oldest = min(self._unfinished.values())
            raise OverloadedError(min(_MAX_RETRY_SECONDS, max(1, math.ceil(now - oldest))))
        self._unfinished[future] = now

    def _finished(self, future: Future[Any]) -> None:
        if future.cancelled():
            self._metrics.cancelled()
        with self._changed:
            self._unfinished.pop(future, None)
            self._changed.notify()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (turn := self._next_turn()) is not None:
            batch, lines = turn
            if batch:
                self._run(batch)
            if lines:
                rows = [line.row for line in lines]
                self._metrics.batch("write", texts=len(rows), tokens=sum(row.prompt_length for row in rows))
                self._groups.append(_Group(lines, advance(lines[0].writing.model, rows)))
            for group in self._groups:
                self._step(group)
            self._groups = [group for group in self._groups if group.lines]

    def _next_turn(self) -> tuple[list[_Item], list[_Line]] | None:
        """Waits for work that is due: a batch and texts to begin, either may be empty; None when all is done."""
        with self._changed:
            while True:
                self._drop_cancelled()
                now = time.monotonic()
                batch, lines = self._take_batch(now), self._take_lines(now)
                if batch or lines or self._groups:
                    return batch, lines
                arrivals = self._arrivals()
                if not arrivals and self._closing:
                    return None
                due = min(arrivals) + self._batching.window_seconds - now if arrivals else None
                self._changed.wait(due)

    def _arrivals(self) -> list[float]:
        """When the oldest of each kind of work came."""
        arrivals = [queue[0].job.arrived for queue in self._queues.values()]
        return [*arrivals, self._lines[0].writing.arrived] if self._lines else arrivals

    def _drop_cancelled(self) -> None:
        for operation, queue in list(self._queues.items()):
            while queue and queue[0].job.future.done():
                queue.popleft()
            if not queue:
                del self._queues[operation]
        while self._lines and self._lines[0].writing.future.done():
            self._lines.popleft()

    def _due(self, arrived: float, now: float) -> bool:
        return self._closing or arrived + self._batching.window_seconds <= now

    def _take_batch(self, now: float) -> list[_Item]:
        """The oldest work, with what can share its batch, once it has waited long enough or fills the batch."""
        if not self._queues:
            return []
        operation, queue = min(self._queues.items(), key=lambda entry: entry[1][0].job.arrived)
        budget = self._batching.max_batch_tokens
        if not self._due(queue[0].job.arrived, now) and sum(item.tokens for item in queue) < budget:
            return []
        batch: list[_Item] = []
        while queue and (not batch or queue[0].tokens <= budget):
            item = queue.popleft()
            if not item.job.future.done():
                batch.append(item)
                budget -= item.tokens
        if not queue:
            del self._queues[operation]
        return batch

    def _take_lines(self, now: float) -> list[_Line]:
        """Texts to begin writing together, as many as there is room for, of prompts about as long as the oldest's."""
        room = self._batching.max_writing_rows - sum(len(group.lines) for group in self._groups)
        if not self._lines or room <= 0:
            return []
        if not self._due(self._lines[0].writing.arrived, now) and len(self._lines) < room:
            return []
        first = self._lines[0].row.prompt_length
        taken: list[_Line] = []
        left: deque[_Line] = deque()
        for line in self._lines:
            if line.writing.future.done():
                continue
            fits = len(taken) < room and abs(line.row.prompt_length - first) <= _PROMPT_SPREAD
            (taken if fits else left).append(line)
        self._lines = left
        return taken

    def _run(self, batch: list[_Item]) -> None:
        operation = batch[0].job.operation
        self._metrics.batch(operation.name, texts=len(batch), tokens=sum(item.tokens for item in batch))
        try:
            results = operation.run([item.value for item in batch])
        except Exception as error:
            jobs = list(dict.fromkeys(item.job for item in batch))
            if len(jobs) == 1:
                _fail(jobs[0].future, error)
                return
            for job in jobs:  # alone, so that one request's error is not another's
                self._run([item for item in batch if item.job is job])
            return
        for item, result in zip(batch, results, strict=True):
            item.job.results[item.place] = result
            item.job.left -= 1
            if not item.job.left:
                _succeed(item.job.future, item.job.results)

    def _step(self, group: _Group) -> None:
        """One more token for each text of a group."""
        before = sum(len(line.row.token_ids) for line in group.lines)
        try:
            next(group.steps, None)
            for line in group.lines:
                if line.writing.listener is not None:
                    line.writing.listener(line.place, line.row)
        except Exception as error:
            for line in group.lines:
                line.row.cancel()
                _fail(line.writing.future, error)
        self._metrics.written(sum(len(line.row.token_ids) for line in group.lines) - before)
        for line in group.lines:
            rows = line.writing.rows
            if line.row.finish_reason is not None and all(row.finish_reason is not None for row in rows):
                _succeed(line.writing.future, [row.result() for row in rows])
        group.lines = [line for line in group.lines if line.row.finish_reason is None]


def _succeed(future: Future[Any], result: Any) -> None:
    with suppress(InvalidStateError):  # its client has given up, or it has been told already
        future.set_result(result)


def _fail(future: Future[Any], error: Exception) -> None:
    with suppress(InvalidStateError):
        future.set_exception(error)
