"""Encoding on a Ray cluster.

The corpus is cut into shards here; workers read them, cut and encode their texts, and write them. Every node must
see the index's folder under the same path, as it does on storage that the nodes share. A shard has a number and one
place, so that it exists once however often it is made: after a node was lost, or in the next run.
"""

import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc

from lm_retrieval.artifacts import atomic_file, storage_errors
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import ConfigError, EngineError, LmRetrievalError, MissingExtraError, StorageError
from lm_retrieval.index import shards
from lm_retrieval.index.engines import Site, make
from lm_retrieval.index.shards import Outcome, Work
from lm_retrieval.index.store import Place
from lm_retrieval.progress import progress
from lm_retrieval.records import Document

logger = logging.getLogger(__name__)

_WORKS = "works"
_MOST_BLOCKS = 2000
_CONNECT_SECONDS = 5.0
_ENDING_SECONDS = 10.0


class RayEngine:
    """An actor pool on a Ray cluster, fed by Ray Data."""

    def __init__(
        self,
        *,
        address: str | None = None,
        workers: int | None = None,
        gpus_per_worker: float = 0.0,
        threads_per_worker: int = 1,
    ) -> None:
        """Nothing is started yet.

        Args:
            address: `host:port` of a cluster; by default RAY_ADDRESS, else a cluster on this machine alone.
            workers: how many; by default as many as the cluster has cores (or GPUs) for.
            gpus_per_worker: GPUs of each worker; 0 encodes on CPUs.
            threads_per_worker: cores of each worker.

        Raises:
            ConfigError: a number that cannot be.
            MissingExtraError: Ray is not installed.
        """
        if (workers is not None and workers < 1) or gpus_per_worker < 0 or threads_per_worker < 1:
            raise ConfigError("workers and threads of a worker must be at least 1, its GPUs at least 0")
        try:
            import ray.data  # noqa: F401 - asked for before anything is read
        except ImportError as error:
            raise MissingExtraError("--engine ray", extra="ray") from error
        self.address = address
        self.workers = workers
        self.gpus, self.threads = gpus_per_worker, threads_per_worker

    def run(self, works: Iterator[Work], *, site: Site, encoder: Encoder) -> Iterator[Outcome]:
        """Yields as they are finished.

        Raises:
            EngineError: the cluster cannot be reached, is too small, or a worker failed.
        """
        folder = site.folder / _WORKS
        with _cluster(self.address) as ray:
            workers = self._workers(ray)
            numbers = _write_works(folder, works)
            if numbers:
                workers = min(workers, len(numbers))
                logger.info("%d shards on %d workers", len(numbers), workers)
                yield from self._encode(ray, numbers, workers, site)
        with storage_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)

    def _workers(self, ray: Any) -> int:
        """How many workers there will be."""
        resources = ray.cluster_resources()
        fits = int(resources.get("CPU", 0) / self.threads)
        if self.gpus:
            fits = min(fits, int(resources.get("GPU", 0) / self.gpus))
        if fits < 1:
            raise EngineError(
                f"the Ray cluster has {resources.get('CPU', 0):g} cores and {resources.get('GPU', 0):g} GPUs; "
                f"a worker needs {self.threads} and {self.gpus:g}: use fewer --threads or --gpus-per-worker"
            )
        return min(self.workers or fits, fits)

    def _encode(self, ray: Any, numbers: list[int], workers: int, site: Site) -> Iterator[Outcome]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # ours is shown
        context.print_on_execution_start = False
        dataset = ray.data.from_items(
            [{"number": number} for number in numbers], override_num_blocks=min(len(numbers), _MOST_BLOCKS)
        ).map_batches(
            _Worker,
            fn_constructor_kwargs={"site": site, "device": "cuda" if self.gpus else "cpu", "threads": self.threads},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=self.threads,
            num_gpus=self.gpus or None,
        )
        with _cluster_errors(ray), _own_threads_ended():
            rows = iter(dataset.iter_rows())
            try:
                for row in rows:
                    yield Outcome(**json.loads(row["outcome"]))
            finally:
                rows.close()


class _Worker:
    """Makes shards on some node."""

    def __init__(self, *, site: Site, device: str, threads: int) -> None:
        if not site.encoder.is_dir():
            raise StorageError(
                f"{site.folder}: a worker node does not see this folder; "
                "choose an --output on storage that all nodes share"
            )
        self.site = site
        self.encoder = Encoder.load(site.encoder, device=device, dtype=site.dtype, threads=threads)
        self.earlier = site.placed_vectors()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """One shard: {"number": (1,)} → what came of it."""
        work = _read_work(self.site.folder / _WORKS, int(batch["number"][0]))
        # another attempt may have finished it before its node was lost
        outcome = shards.finished(self.site.folder, work) or make(
            work, folder=self.site.folder, encoder=self.encoder, earlier=self.earlier
        )
        return {"outcome": [json.dumps(outcome._asdict())]}


def _write_works(folder: Path, works: Iterator[Work]) -> list[int]:
    """Writes what is to be encoded, a file for each shard; returns their numbers."""
    with storage_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
    numbers = []
    with progress("reading") as advance:
        for work in works:
            table = pyarrow.table(
                {
                    **dict(zip(Document._fields, map(list, zip(*work.documents, strict=True)), strict=True)),
                    "content_hash": work.hashes,
                    "place": pyarrow.array([place and place._asdict() for place in work.places], _PLACE),
                }
            )
            with atomic_file(_work_path(folder, work.number), "wb") as stream:
                with pyarrow.ipc.new_file(stream, table.schema) as writer:
                    writer.write_table(table)
            numbers.append(work.number)
            advance(len(work.documents))
    return numbers


def _read_work(folder: Path, number: int) -> Work:
    path = _work_path(folder, number)
    with storage_errors(path), pyarrow.memory_map(str(path)) as source:
        columns = pyarrow.ipc.open_file(source).read_all().to_pydict()
    documents = [Document(*row) for row in zip(*(columns[name] for name in Document._fields), strict=True)]
    places = [place and Place(**place) for place in columns["place"]]
    return Work(number, documents, columns["content_hash"], places)


def _work_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.arrow"


_PLACE = pyarrow.struct([(name, pyarrow.int64()) for name in Place._fields])


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Connects to a cluster, or starts one of this machine; one that was connected before stays so."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ours = not ray.is_initialized()
    if ours:
        # without an address Ray would look for what it started last, and wait minutes for one that is gone
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        _check_reachable(address)
        options = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(address, error) from error
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _own_threads_ended() -> Iterator[None]:
    """An error or an interrupt comes out when the threads that Ray Data started have ended.

    Ray ends this whole process when one of them asks for a block after `ray.shutdown()`.
    """
    before = set(threading.enumerate())
    try:
        yield
    except BaseException:
        deadline = time.monotonic() + _ENDING_SECONDS
        for thread in set(threading.enumerate()) - before:
            if thread.name != "Prefetcher":  # never ends, and asks for nothing once its reader is gone
                thread.join(max(0.0, deadline - time.monotonic()))
        raise


def _check_reachable(address: str) -> None:
    """Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> EngineError:
    return EngineError(
        f"{address}: cannot join a Ray cluster there ({_first_line(error)}); check --address and `ray status`, and set "
        "RAY_AUTH_MODE=token where the cluster asks for one"
    )


@contextmanager
def _cluster_errors(ray: Any) -> Iterator[None]:
    """What a worker raised comes out as what it was; everything else as an EngineError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        found: BaseException | None = error
        while found is not None:
            if isinstance(found, LmRetrievalError):
                raise found from error
            found = getattr(found, "cause", None) or found.__cause__
        raise EngineError(
            f"the Ray cluster gave up: {_reason(error)}; finished shards are kept: run the same command again"
        ) from error


def _reason(error: BaseException) -> str:
    """What stopped a worker; of an error in its beginning Ray hands on the traceback alone, as text."""
    ours = (line for line in str(error).splitlines() if line.startswith(LmRetrievalError.__module__))
    return next((line.partition(": ")[2] for line in ours), None) or _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
