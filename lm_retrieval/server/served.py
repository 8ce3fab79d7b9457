"""The models and the index that a server holds: loading in the background, and the work each can do."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import LmRetrievalError
from lm_retrieval.generation import Continuation, Generation
from lm_retrieval.index.likelihood import query_likelihood
from lm_retrieval.loading import LoadedModel, hub_name, load_language_model
from lm_retrieval.perplexity import PerplexityReport, perplexity
from lm_retrieval.records import Hit
from lm_retrieval.scoring import TokenScore, score_tokens
from lm_retrieval.search import Searcher, index_name, open_index
from lm_retrieval.server.errors import ApiError, invalid
from lm_retrieval.server.metrics import Metrics
from lm_retrieval.server.settings import ModelSource, ServerSettings
from lm_retrieval.server.worker import ClosedError, Listener, Operation, OverloadedError, Worker

logger = logging.getLogger(__name__)

Status = Literal["loading", "ready", "failed"]
Vector = NDArray[np.float32]
T = TypeVar("T")
_LOADING_RETRY_SECONDS = 2


class ServedModel:
    """A language model, its encoder where it has one, and the thread that works on them.

    Attributes:
        name: what requests call it.
        source: a checkpoint or `hf:` model.
        status: `loading` until `load` has run.
        loaded: the language model; None until it is ready.
        encoder: None for models of transformers, which are not used as encoders here.
        created: Unix time of loading.
        worker: the thread.
    """

    def __init__(self, given: ModelSource, *, settings: ServerSettings, metrics: Metrics) -> None:
        self.name, self.source = given
        self._settings = settings
        self.status: Status = "loading"
        self.loaded: LoadedModel | None = None
        self.encoder: Encoder | None = None
        self.created = int(time.time())
        self.worker = _worker(self.name, settings, metrics)

    def load(self) -> None:
        """Reads the model.

        Raises:
            LmRetrievalError: it is missing, damaged or cannot be used here.
        """
        options: dict[str, Any] = {"device": self._settings.device, "dtype": self._settings.dtype}
        if hub_name(self.source) is None:
            self.encoder = Encoder.load(self.source, **options)
            self.loaded = LoadedModel.from_checkpoint(self.encoder.checkpoint, model=self.encoder.model)
        else:
            self.loaded = load_language_model(self.source, **options)

    @property
    def language_model(self) -> LoadedModel:
        """The model, for work on it.

        Raises:
            ApiError: it is not loaded (503).
        """
        if self.status != "ready" or self.loaded is None:
            raise _unavailable(f"model '{self.name}'", self.status)
        return self.loaded

    @property
    def text_encoder(self) -> Encoder:
        """The encoder, for work with it.

        Raises:
            ApiError: the model is not loaded (503), or is no encoder (422).
        """
        if self.status != "ready":
            raise _unavailable(f"model '{self.name}'", self.status)
        if self.encoder is None:
            raise invalid(f"model '{self.name}' makes no embeddings", code="not_an_encoder")
        return self.encoder

    def encode(self, token_ids: Sequence[Sequence[int]]) -> Future[list[Vector]]:
        """A unit vector (D,) for each text."""
        operation: Operation[Sequence[int], Vector] = Operation("encode", self._encode)
        return _accepted(lambda: self.worker.submit(operation, token_ids, tokens=[*map(len, token_ids)]))

    def score(self, token_ids: Sequence[list[int]], *, top: int) -> Future[list[list[TokenScore]]]:
        """Scores of every token but the first of each text."""
        run = partial(score_tokens, self.language_model.model, top=top)
        operation: Operation[list[int], list[TokenScore]] = Operation("score", run, top)
        return _accepted(lambda: self.worker.submit(operation, token_ids, tokens=[*map(len, token_ids)]))

    def perplexity(
        self, texts: Sequence[str], *, tokens: Sequence[int], **options: Any
    ) -> Future[list[PerplexityReport]]:
        """A report for each text; options as of `perplexity.perplexity`."""
        loaded = self.language_model

        def run(batch: list[str]) -> list[PerplexityReport]:
            return [perplexity(loaded.model, tokenizer=loaded.tokenizer, texts=[text], **options) for text in batch]

        operation: Operation[str, PerplexityReport] = Operation("perplexity", run, tuple(sorted(options.items())))
        return _accepted(lambda: self.worker.submit(operation, texts, tokens=tokens))

    def likelihood(self, query: str, documents: Sequence[str], *, tokens: Sequence[int]) -> Future[list[float]]:
        """How probable the query is after each document: nats per token."""
        loaded = self.language_model

        def run(batch: list[str]) -> list[float]:
            found = query_likelihood(loaded.model, tokenizer=loaded.tokenizer, query=query, documents=batch)
            return [float(value) for value in found]

        operation: Operation[str, float] = Operation("likelihood", run, query)
        return _accepted(lambda: self.worker.submit(operation, documents, tokens=tokens))

    def write(self, rows: Sequence[Continuation], *, listener: Listener | None = None) -> Future[list[Generation]]:
        """Continues texts to their ends."""
        model = self.language_model.model
        return _accepted(lambda: self.worker.write(model, rows, listener=listener))

    def _encode(self, batch: list[Sequence[int]]) -> list[Vector]:
        budget = self._settings.batching.max_batch_tokens
        return list(self.text_encoder.encode_tokens(batch, max_batch_tokens=budget, normalize_embeddings=True))


class ServedIndex:
    """An index and the thread that searches it, `worker`."""

    def __init__(self, index: Path | str, *, settings: ServerSettings, metrics: Metrics) -> None:
        self.name = index_name(index)
        self._index = index
        self.status: Status = "loading"
        self.searcher: Searcher | None = None
        self.worker = _worker(f"index:{self.name}", settings, metrics)

    def load(self) -> None:
        """Opens the index and asks it something, so that the first question does not wait for its parts.

        Raises:
            LmRetrievalError: it is missing or damaged.
        """
        searcher = open_index(self._index)
        try:
            searcher.search("warm", k=1)
        except BaseException:
            searcher.close()
            raise
        self.searcher = searcher

    def search(self, query: str, **options: Any) -> Future[list[list[Hit]]]:
        """Hits for a query, as the only element of a list; options as of `Searcher.search`."""
        searcher = self.searcher
        if self.status != "ready" or searcher is None:
            raise _unavailable(f"index '{self.name}'", self.status)

        def run(batch: list[str]) -> list[list[Hit]]:
            return searcher.search_batch(batch, **options)

        operation: Operation[str, list[Hit]] = Operation("search", run, tuple(sorted(options.items())))
        return _accepted(lambda: self.worker.submit(operation, [query], tokens=[max(1, len(query) // 4)]))


class Served:
    """Everything that a server holds."""

    def __init__(self, settings: ServerSettings, *, metrics: Metrics) -> None:
        """Names everything; nothing is loaded yet."""
        self.settings, self.metrics = settings, metrics
        self.models = {given.name: ServedModel(given, settings=settings, metrics=metrics) for given in settings.models}
        self.indexes: dict[str, ServedIndex] = {}
        self.uploaded: set[str] = set()  # names of indexes made on the page
        self._at_end: list[Callable[[], object]] = []
        if settings.index is not None:
            index = ServedIndex(settings.index, settings=settings, metrics=metrics)
            self.indexes[index.name] = index

    def start(self) -> None:
        """Loads one part after the other, in a thread; each can be used as soon as it is ready."""
        for part in self.parts():
            part.worker.start()
        threading.Thread(target=self._load, name="loading", daemon=True).start()

    def _load(self) -> None:
        for part in self.parts():
            started = time.perf_counter()
            try:
                part.load()
            except Exception as error:
                part.status = "failed"
                known = isinstance(error, LmRetrievalError)
                logger.error("%s: cannot be served: %s", part.name, error, exc_info=None if known else error)
            else:
                part.status = "ready"
                logger.info("%s: ready after %.1f s", part.name, time.perf_counter() - started)

    def parts(self) -> list[ServedModel | ServedIndex]:
        """Models, then indexes."""
        return [*self.models.values(), *self.indexes.values()]

    @property
    def status(self) -> Literal["loading", "ready", "degraded", "failed"]:
        """`ready` when everything is; `degraded` when some of it could not be loaded, `failed` when nothing could."""
        found = {part.status for part in self.parts()}
        if "loading" in found:
            return "loading"
        if "failed" not in found:
            return "ready"
        return "degraded" if "ready" in found else "failed"

    def model(self, name: str) -> ServedModel:
        """A model by its name.

        Raises:
            ApiError: there is none (404).
        """
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(404, "model_not_found", f"there is no model '{name[:80]}' here; there are: {known}")
        return self.models[name]

    def chosen(self, name: str | None) -> list[ServedModel]:
        """The model of this name, or all that can be used now.

        Raises:
            ApiError: there is no such model (404), or none is ready (503).
        """
        if name is not None:
            return [self.model(name)]
        usable = [model for model in self.models.values() if model.status == "ready"]
        return usable or [self.first()]

    def first(self, name: str | None = None) -> ServedModel:
        """The model of this name, or the first.

        Raises:
            ApiError: there is no such model (404).
        """
        if name is None and not self.models:
            raise ApiError(404, "model_not_found", "no model is served here")
        return next(iter(self.models.values())) if name is None else self.model(name)

    def index(self, name: str | None = None) -> ServedIndex:
        """The index of this name, or the first.

        Raises:
            ApiError: there is none (404).
        """
        if not self.indexes:
            raise ApiError(404, "index_not_found", "no index is served here; start the server with --index")
        if name is not None and name not in self.indexes:
            known = ", ".join(self.indexes)
            raise ApiError(404, "index_not_found", f"there is no index '{name[:80]}' here; there are: {known}")
        return next(iter(self.indexes.values())) if name is None else self.indexes[name]

    def add_index(self, folder: Path) -> ServedIndex:
        """Opens one more index, or one that has changed again.

        Raises:
            LmRetrievalError: it is missing or damaged.
        """
        index = ServedIndex(folder, settings=self.settings, metrics=self.metrics)
        index.load()
        index.status = "ready"
        index.worker.start()
        before = self.indexes.get(index.name)
        self.indexes[index.name] = index
        if before is not None:
            before.worker.close(seconds=self.settings.limits.request_seconds)
        return index

    def close(self) -> None:
        """Finishes what was accepted; nothing more is."""
        until = time.monotonic() + self.settings.shutdown_seconds
        for part in self.parts():
            part.worker.close(seconds=max(0.0, until - time.monotonic()))
        for index in self.indexes.values():
            if index.searcher is not None:
                index.searcher.close()
        for finish in self._at_end:
            finish()

    def at_end(self, finish: Callable[[], object]) -> None:
        """Has something done when the server has stopped."""
        self._at_end.append(finish)


def _worker(name: str, settings: ServerSettings, metrics: Metrics) -> Worker:
    return Worker(name, batching=settings.batching, max_waiting=settings.limits.max_waiting_requests, metrics=metrics)


def _accepted(submit: Callable[[], T]) -> T:
    """What a worker has accepted; its refusals as answers (429, 503)."""
    try:
        return submit()
    except OverloadedError as error:
        seconds = error.retry_after_seconds
        message = f"too many requests are waiting; come again in {seconds} s"
        raise ApiError(429, "overloaded", message, retry_after_seconds=seconds) from None
    except ClosedError:
        raise ApiError(503, "shutting_down", "the server is shutting down", retry_after_seconds=5) from None


def _unavailable(what: str, status: Status) -> ApiError:
    if status == "loading":
        return ApiError(503, "loading", f"{what} is loading", retry_after_seconds=_LOADING_RETRY_SECONDS)
    return ApiError(503, "not_loaded", f"{what} could not be loaded; the server's log says why")
