"""Engines: where the shards of an index are encoded. In this process, or in one process for each device.

An engine takes shards to make, in order, and says of each what came of it, in any order; the shards themselves it
writes into the folder it was given. `lm_retrieval.scale` has one for clusters.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import EngineError
from lm_retrieval.index import shards
from lm_retrieval.index.shards import Outcome, Work
from lm_retrieval.index.store import PlacedVectors, Store
from lm_retrieval.runtime import THREADS_VARIABLE, Precision, ahead, thread_count

_AHEAD = 2  # shards that wait for each process


class Site(NamedTuple):
    """Where an engine finds and leaves things.

    Attributes:
        folder: receives the shards.
        encoder: folder of the encoder, with its fitted transform.
        dtype: what the encoder computes in.
        earlier: index whose vectors may be used again.
    """

    folder: Path
    encoder: Path
    dtype: Precision
    earlier: Path | None

    def placed_vectors(self) -> PlacedVectors | None:
        """Reads vectors of the earlier index."""
        return None if self.earlier is None else PlacedVectors(Store(self.earlier))


class Engine(Protocol):
    """Makes shards."""

    def run(self, works: Iterator[Work], *, site: Site, encoder: Encoder) -> Iterator[Outcome]:
        """Makes every shard and yields what came of each.

        Raises:
            EngineError: workers cannot be started, or died.
        """
        ...


class ThisProcess:
    """Texts are cut and shards written while the encoder works on the shard between them."""

    def run(self, works: Iterator[Work], *, site: Site, encoder: Encoder) -> Iterator[Outcome]:
        """Yields in order."""
        earlier = site.placed_vectors()
        with ThreadPoolExecutor(1) as writer:
            writing: Future[Outcome] | None = None
            for prepared in ahead(shards.cut(work, encoder=encoder) for work in works):
                shard, outcome = shards.encode(prepared, encoder=encoder, earlier=earlier)
                if writing is not None:
                    yield writing.result()
                writing = writer.submit(shards.write, site.folder, shard, outcome)
            if writing is not None:
                yield writing.result()


class Processes:
    """A process for each device, with its share of the threads."""

    def __init__(self, devices: list[str]) -> None:
        """Devices as torch names them, one for each process: `cuda:0`, `cuda:1`, or `cpu` several times."""
        self.devices = devices

    def run(self, works: Iterator[Work], *, site: Site, encoder: Encoder) -> Iterator[Outcome]:
        """Yields as they are finished."""
        context = multiprocessing.get_context("spawn")  # CUDA and thread pools do not survive a fork
        devices = context.SimpleQueue()
        for device in self.devices:
            devices.put(device)
        threads = max(1, thread_count() // len(self.devices))
        pool = ProcessPoolExecutor(len(self.devices), context, initializer=_start, initargs=(devices, threads, site))
        waiting: set[Future[Outcome]] = set()
        try:
            for work in works:
                waiting.add(pool.submit(_make, work))
                if len(waiting) >= _AHEAD * len(self.devices):
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise EngineError(
                f"a worker process on {', '.join(self.devices)} ended unexpectedly (out of memory?); "
                "finished shards are kept: run the same command again, with fewer --devices if it happens again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_worker: Any = None


def _start(devices: Any, threads: int, site: Site) -> None:
    """Loads the encoder in a new worker process."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ[THREADS_VARIABLE] = str(threads)
    encoder = Encoder.load(site.encoder, device=devices.get(), dtype=site.dtype, threads=threads)
    _worker = site, encoder, site.placed_vectors()


def _end_with_parent() -> None:
    """A parent that was killed cannot stop its workers, and the next run may be writing into the same folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _make(work: Work) -> Outcome:
    site, encoder, earlier = _worker
    return make(work, folder=site.folder, encoder=encoder, earlier=earlier)


def make(work: Work, *, folder: Path, encoder: Encoder, earlier: PlacedVectors | None) -> Outcome:
    """Makes a shard from beginning to end."""
    shard, outcome = shards.encode(shards.cut(work, encoder=encoder), encoder=encoder, earlier=earlier)
    return shards.write(folder, shard, outcome)


def local_engine(devices: list[str]) -> Engine:
    """The engine for devices of this machine."""
    return ThisProcess() if len(devices) == 1 else Processes(devices)
