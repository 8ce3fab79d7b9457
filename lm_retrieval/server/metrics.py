"""Figures about the running server in Prometheus' text format."""

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """Counters of one server; each server has its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "lmr_requests", "Answered requests.", ("method", "path", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "lmr_request_seconds", "From request to answer.", ("path",), buckets=_SECONDS, registry=self.registry
        )
        self._waiting = Gauge(
            "lmr_unfinished_requests", "Accepted and not finished.", ("worker",), registry=self.registry
        )
        self._rejected = Counter(
            "lmr_rejected_requests", "Turned away because the queue was full.", ("worker",), registry=self.registry
        )
        self._batch_texts = Histogram(
            "lmr_batch_texts",
            "Texts worked on together.",
            ("worker", "operation"),
            buckets=_TEXTS,
            registry=self.registry,
        )
        self._batch_tokens = Histogram(
            "lmr_batch_tokens",
            "Tokens worked on together.",
            ("worker", "operation"),
            buckets=_TOKENS,
            registry=self.registry,
        )
        self._written = Counter("lmr_written_tokens", "Tokens generated.", ("worker",), registry=self.registry)
        self._cancelled = Counter(
            "lmr_cancelled_requests", "Given up by their client or by a time limit.", ("worker",),
            registry=self.registry,
        )  # fmt: skip

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """A request has been answered; `path` is the route's pattern, so that there are few."""
        self._requests.labels(method, path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def worker(self, name: str, *, unfinished: Callable[[], int]) -> "WorkerMetrics":
        """The part of one worker thread; `unfinished` counts what it has accepted and not finished."""
        self._waiting.labels(name).set_function(unfinished)
        return WorkerMetrics(self, name)

    def endpoints(self) -> list[dict[str, Any]]:
        """For each path that was asked: requests, errors (status 400 and above), mean milliseconds."""
        rows: dict[str, dict[str, Any]] = {}
        for labels, value in self._samples("lmr_requests_total"):
            row = rows.setdefault(labels["path"], {"path": labels["path"], "requests": 0, "errors": 0})
            row["requests"] += int(value)
            row["errors"] += int(value) if int(labels["status"]) >= 400 else 0
        for labels, value in self._samples("lmr_request_seconds_sum"):
            rows[labels["path"]]["mean_milliseconds"] = 1000 * value / max(1, rows[labels["path"]]["requests"])
        return sorted(rows.values(), key=lambda row: -int(row["requests"]))

    def workers(self) -> list[dict[str, Any]]:
        """For each worker: batches, mean texts in one, tokens written, requests unfinished, turned away, given up."""
        rows: dict[str, dict[str, Any]] = {}
        named = {
            "lmr_unfinished_requests": "unfinished",
            "lmr_batch_texts_count": "batches",
            "lmr_batch_texts_sum": "texts",
            "lmr_written_tokens_total": "written",
            "lmr_rejected_requests_total": "rejected",
            "lmr_cancelled_requests_total": "cancelled",
        }
        for sample, name in named.items():
            for labels, value in self._samples(sample):
                empty = {"worker": labels["worker"], **dict.fromkeys(named.values(), 0)}
                rows.setdefault(labels["worker"], empty)[name] += int(value)
        return [row | {"mean_texts": row["texts"] / max(1, row["batches"])} for row in rows.values()]

    def _samples(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        for metric in self.registry.collect():
            yield from ((sample.labels, sample.value) for sample in metric.samples if sample.name == name)

    def render(self) -> bytes:
        """Everything as text."""
        return generate_latest(self.registry)


class WorkerMetrics:
    """What one worker thread tells."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics, self._name = metrics, name

    def batch(self, operation: str, *, texts: int, tokens: int) -> None:
        """A batch is about to run."""
        self._metrics._batch_texts.labels(self._name, operation).observe(texts)
        self._metrics._batch_tokens.labels(self._name, operation).observe(tokens)

    def written(self, tokens: int) -> None:
        """Tokens have been generated."""
        self._metrics._written.labels(self._name).inc(tokens)

    def rejected(self) -> None:
        """A request was turned away."""
        self._metrics._rejected.labels(self._name).inc()

    def cancelled(self) -> None:
        """A request was given up."""
        self._metrics._cancelled.labels(self._name).inc()
