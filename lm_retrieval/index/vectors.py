"""FAISS behind one small class: inner product on unit vectors, rows as labels, never a -1 to a caller.

Shapes: Q queries, N vectors, D dimensions, K hits.
"""

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from lm_retrieval.artifacts import atomic_file
from lm_retrieval.errors import ConfigError, IndexFormatError
from lm_retrieval.index.cells import write_in_parts
from lm_retrieval.runtime import memory_budget, thread_count

Vectors = NDArray[np.float32]
VectorShards = Callable[[], Iterator[Vectors]]
"""Gives a fresh pass over all vectors each time it is called."""

EXACT = "Flat"
_EXACT_LIMIT = 200_000
_BYTES_LIMIT = 16_000_000
_TRAINING_POINTS_PER_CELL = 64
_MAX_TRAINING_POINTS = 262_144
_RECALL_QUERIES = 200
_TRAINING_SHARE = 0.25  # of the memory, for the vectors that cells and codes are learned from
_WEIGHED = 1000


class Neighbours(NamedTuple):
    """The nearest rows of one query, best first; shorter than asked for where there are no more."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


def choose_factory(count: int) -> str:
    """Exact search up to 200,000 vectors; above, cells with a byte per dimension, from 16 million a quarter of that.

    A graph (HNSW32) answers faster and is five times the size; it takes three times as long to build.
    """
    if count <= _EXACT_LIMIT:
        return EXACT
    return f"IVF{cells_for(count)},{'SQ8' if count <= _BYTES_LIMIT else 'PQ64'}"


def cells_for(count: int) -> int:
    """How many cells an inverted file of so many vectors should have."""
    return int(2 ** round(math.log2(4 * math.sqrt(count))))


class VectorIndex:
    """A FAISS index whose labels are the row numbers of the vectors."""

    def __init__(self, index: Any) -> None:
        """Wraps a FAISS index; use `build` or `read`."""
        self._index = index
        self.dim: int = index.d

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @classmethod
    def read(cls, path: Path) -> "VectorIndex":
        """Opens an index file, memory-mapped where FAISS can.

        Raises:
            IndexFormatError: missing or damaged.
        """
        if not path.is_file():
            raise IndexFormatError(f"{path}: missing; run `lmr embed` again")
        try:
            faiss.omp_set_num_threads(thread_count())
            return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC))
        except RuntimeError as error:
            raise IndexFormatError(
                f"{path}: damaged FAISS index; run `lmr index` on the folder to rebuild it"
            ) from error

    def search(self, queries: Vectors, k: int) -> list[Neighbours]:
        """(Q, D) unit vectors → the K rows of largest inner product, for each query."""
        if not len(self) or not len(queries):
            return [Neighbours(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
        scores, rows = self._index.search(np.ascontiguousarray(queries, np.float32), min(k, len(self)))
        return [Neighbours(r[r >= 0], s[r >= 0]) for r, s in zip(rows, scores, strict=True)]

    def search_documents(self, queries: Vectors, k: int, *, owners: NDArray[np.int64]) -> list[dict[int, float]]:
        """As `search`, for documents of which each has one vector or more: it scores as its best one.

        Asks for more vectors until `k` different documents are found or there are no more vectors.

        Args:
            queries: (Q, D) unit vectors.
            k: documents wanted.
            owners: (N,) the document of each vector, in ascending order.
        """
        documents = int(owners[-1]) + 1 if len(owners) else 0
        k = min(k, documents)
        depth = k if len(self) <= documents else 2 * k
        results: list[dict[int, float]] = [{} for _ in queries]
        open_queries = list(range(len(queries)))
        while open_queries:
            unfinished = []
            for place, found in zip(open_queries, self.search(queries[open_queries], depth), strict=True):
                results[place] = _by_document(owners[found.rows], found.scores, k)
                if len(results[place]) < k and depth < len(self):
                    unfinished.append(place)
            open_queries = unfinished
            depth *= 8
        return results


def _by_document(documents: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> dict[int, float]:
    _, first = np.unique(documents, return_index=True)
    best = np.sort(first)[:k]
    return dict(zip(documents[best].tolist(), scores[best].tolist(), strict=True))


def build(
    path: Path, *, shards: VectorShards, count: int, dim: int, factory: str, memory_bytes: int | None = None
) -> None:
    """Builds an index from a stream of (C, D) vectors and writes it atomically.

    An exact index goes straight to disk; one with cells that would not fit into memory is built in parts.

    Args:
        path: the index file.
        shards: gives the vectors.
        count: how many they are.
        dim: D.
        factory: a FAISS factory string.
        memory_bytes: what may be taken; half of what is free when None.

    Raises:
        ConfigError: an unknown factory string, one that needs more vectors to train on, or more memory.
        StorageError: the file system refused.
    """
    faiss.omp_set_num_threads(thread_count())
    if memory_bytes is None:
        memory_bytes = memory_budget()
    if factory == EXACT:
        _write_flat(path, shards, count, dim)
        return
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(
            f"factory '{factory}' is unknown to FAISS for {dim} dimensions; try Flat, HNSW32 or IVF256,PQ32"
        ) from error
    try:
        _accept_small_samples(index)
        if not index.is_trained:
            cells = getattr(faiss.try_extract_index_ivf(index), "nlist", 256)
            most = int(memory_bytes * _TRAINING_SHARE / (4 * dim))
            index.train(_sample(shards, count, max(1, min(most, training_points(cells)))))
        _set_probes(index)
        needed = count * _bytes_per_vector(index, shards)
        if needed > memory_bytes:
            if faiss.try_extract_index_ivf(index) is None:
                raise ConfigError(
                    f"factory '{factory}' needs about {needed / 1e9:.2g} GB of memory for {count:,} vectors, and "
                    f"{memory_bytes / 1e9:.2g} GB may be used; raise --max-memory or choose IVF{cells_for(count)},SQ8"
                )
            write_in_parts(path, index, shards(), memory_bytes=memory_bytes // 2)
            return
        for vectors in shards():
            index.add(np.ascontiguousarray(vectors))
    except RuntimeError as error:
        raise ConfigError(
            f"factory '{factory}' cannot be trained on {count} vectors; choose fewer cells, HNSW32, or Flat"
        ) from error
    with atomic_file(path, "wb") as stream:
        # in pieces: a copy of the whole index would double the memory
        faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write))  # type: ignore[attr-defined]


def recall(path: Path, *, shards: VectorShards, count: int, k: int = 10) -> float:
    """Share of the exact top `k` that the index finds, over 200 of its own vectors as queries."""
    queries = _sample(shards, count, _RECALL_QUERIES)
    exact, _ = _exact(shards, queries, k)
    found = VectorIndex.read(path).search(queries, k)
    hits = sum(len(np.intersect1d(rows, neighbours.rows)) for rows, neighbours in zip(exact, found, strict=True))
    return hits / max(1, sum(map(len, exact)))


def probes(shards: VectorShards, *, count: int, k: int) -> tuple[Vectors, NDArray[np.float32]]:
    """200 of the vectors, (Q, D), to ask for, and the scores of the exact top `k` of each, (Q, K), best first."""
    queries = _sample(shards, count, _RECALL_QUERIES)
    return queries, _exact(shards, queries, k)[1]


def _write_flat(path: Path, shards: VectorShards, count: int, dim: int) -> None:
    """Writes FAISS's own file of an exact index without holding the vectors.

    An empty index gives the header; its two counts (vectors, bytes of codes) are patched, and the vectors follow.
    """
    empty = faiss.serialize_index(faiss.IndexFlatIP(dim)).tobytes()
    header = bytearray(empty)
    assert (empty[:4], empty[-8:]) == (b"IxFI", bytes(8)), "FAISS changed its file format"
    struct.pack_into("<q", header, 8, count)
    struct.pack_into("<q", header, len(header) - 8, count * dim)
    with atomic_file(path, "wb") as stream:
        stream.write(header)
        for vectors in shards():
            stream.write(np.ascontiguousarray(vectors, "<f4").tobytes())


def _bytes_per_vector(index: Any, shards: VectorShards) -> float:
    """Bytes that a vector adds to a trained, empty index."""
    some = next(shards())[:_WEIGHED]
    before = len(faiss.serialize_index(index))
    index.add(np.ascontiguousarray(some))
    after = len(faiss.serialize_index(index))
    index.reset()
    return (after - before) / len(some)


def training_points(cells: int) -> int:
    """How many vectors so many cells are learned from, at most."""
    return min(_MAX_TRAINING_POINTS, max(256, cells) * _TRAINING_POINTS_PER_CELL)


def _sample(shards: VectorShards, count: int, wanted: int) -> Vectors:
    """(min(wanted, N), D) vectors spread evenly over all of them."""
    rows = np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(np.int64))
    parts, first = [], 0
    for vectors in shards():
        inside = rows[(rows >= first) & (rows < first + len(vectors))] - first
        parts.append(vectors[inside])
        first += len(vectors)
    return np.concatenate(parts)


def _exact(shards: VectorShards, queries: Vectors, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    best_scores = np.full((len(queries), 0), 0, np.float32)
    best_rows = np.zeros((len(queries), 0), np.int64)
    first = 0
    for vectors in shards():
        scores = np.concatenate([best_scores, queries @ vectors.T], axis=1)
        numbers = np.broadcast_to(np.arange(first, first + len(vectors)), (len(queries), len(vectors)))
        rows = np.concatenate([best_rows, numbers], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best_scores = np.take_along_axis(scores, order, 1)
        best_rows = np.take_along_axis(rows, order, 1)
        first += len(vectors)
    return best_rows, best_scores


def _accept_small_samples(index: Any) -> None:
    """FAISS warns once for each small clustering; the measured recall says what it costs, in one number."""
    parts: list[Any] = [index, faiss.try_extract_index_ivf(index)]
    bare = [faiss.downcast_index(part) for part in parts if part is not None]
    owners: list[Any] = bare + [part.pq for part in bare if hasattr(part, "pq")]
    for owner in owners:
        if hasattr(owner, "cp"):
            owner.cp.min_points_per_centroid = 1


def _set_probes(index: Any) -> None:
    """Visits a sixteenth of the cells (at least 8): FAISS's default of one cell misses most neighbours."""
    try:
        cells = faiss.extract_index_ivf(index)
    except RuntimeError:
        return
    if cells is not None:
        cells.nprobe = max(8, cells.nlist // 16)
