"""Loading an index folder into a Milvus collection, or bringing a collection up to date.

The collection's own keys say what it holds: rows that are there already are not sent again, and those that the index no
longer has are deleted. A killed run is therefore continued by the same command.

Shapes: C chunks of a document, D dimensions.
"""

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.artifacts import read_manifest
from lm_retrieval.corpus.words import Analyzer
from lm_retrieval.errors import IndexFormatError, MismatchError
from lm_retrieval.index.store import Store
from lm_retrieval.index.vectors import probes
from lm_retrieval.progress import progress
from lm_retrieval.records import Document, Span
from lm_retrieval.scale.milvus_client import CALL_SECONDS, Address, Connection, milvus_errors
from lm_retrieval.scale.milvus_collection import (
    EXACT,
    Collection,
    FullText,
    choose_type,
    search_parameters,
)
from lm_retrieval.scale.milvus_rows import row_bytes, row_keys, rows_of

_BATCH_BYTES = 4_000_000  # a server takes 64 MB at once, and answers others meanwhile
_BATCH_ROWS = 5_000
_SCAN_ROWS = 50_000
_DELETE_ROWS = 1_000
_RECALL_SLACK = 1e-5  # of scores: equal neighbours count, whichever was found
_KEPT_FACTS = (
    "corpus", "corpus_path", "corpus_sha256", "documents", "chunks", "encoder", "encoder_sha256",
    "encoder_base_sha256", "dim", "metric", "dense_weight", "dense_weight_source", "queries_without_torch",
)  # fmt: skip


@dataclass
class LoadReport:
    """What a load did.

    Attributes:
        address: of the collection.
        server: what it is in.
        documents: in the collection.
        chunks: in the collection.
        rows: in the collection; more than chunks where texts are longer than a field or empty.
        sent: rows sent now.
        kept: rows that were there.
        deleted: rows that the index has no more.
        index_type: Milvus's name of it.
        recall_at_10: share of the exact top 10 that is found.
        full_text: whether BM25 runs in the server, or here.
        why_local: why not in the server.
        seconds: it took.
    """

    address: Address
    server: str
    documents: int = 0
    chunks: int = 0
    rows: int = 0
    sent: int = 0
    kept: int = 0
    deleted: int = 0
    index_type: str = EXACT
    recall_at_10: float = 1.0
    full_text: str = "server"
    why_local: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def load_index(
    folder: Path,
    *,
    address: Address,
    index_type: str | None = None,
    full_text: FullText = "auto",
    rebuild: bool = False,
) -> LoadReport:
    """Makes a collection hold what an index folder holds.

    Args:
        folder: the index.
        address: of the collection; it is made where there is none.
        index_type: Milvus's index of the vectors, such as FLAT, HNSW, IVF_FLAT; by size when None.
        full_text: where BM25 runs; `auto` takes the server where it can.
        rebuild: delete the collection first; one that was not made here is never touched.

    Raises:
        IndexFormatError: `folder` is no index, or the collection is damaged or something else's.
        MismatchError: the collection holds another corpus, vectors of another encoder, or words elsewhere.
        ConfigError: `full_text` is `server` and it cannot, or an index type that Milvus does not know.
        StorageError: Milvus does not answer, or the file is in use.
    """
    manifest = read_manifest(folder, kind="index", error=IndexFormatError)
    store = Store(folder)
    with Connection(address) as connection:
        assert address.collection is not None
        collection = Collection(connection, address.collection)
        load = _Load(folder, manifest, store, collection)
        return load.run(index_type, full_text, rebuild)


class _Load:
    """One run of `load_index`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], store: Store, collection: Collection) -> None:
        self.folder, self.source, self.store, self.collection = folder, manifest, store, collection
        self.report = LoadReport(collection.address, collection.connection.server)

    def run(self, index_type: str | None, full_text: FullText, rebuild: bool) -> LoadReport:
        started = time.perf_counter()
        manifest = self._prepare(index_type, full_text, rebuild)
        self.collection.load()
        present = self._present()
        wanted = self._send(present)
        self._delete(present, wanted)
        self.collection.flush()
        self.collection.load()
        report = self.report
        report.seconds["load"] = time.perf_counter() - started
        report.documents, report.chunks, report.rows = self.source["documents"], self.source["chunks"], len(wanted)
        found = self.collection.count()
        if found != len(wanted):
            raise IndexFormatError(
                f"{self.collection.address}: {found} rows, {len(wanted)} were sent; run the same command again"
            )
        if report.index_type != EXACT:
            report.recall_at_10 = self._recall()
        facts = {"state": "complete", "rows": report.rows, "recall_at_10": report.recall_at_10}
        self.collection.write_manifest(manifest | facts)
        report.seconds["all"] = time.perf_counter() - started
        return report

    # --- the collection ----------------------------------------------------------------------------------------------

    def _prepare(self, index_type: str | None, full_text: FullText, rebuild: bool) -> dict[str, Any]:
        """Makes the collection, or checks that it is the one meant; from now on it says that it is being loaded."""
        earlier = self._earlier(full_text, rebuild)
        chosen = index_type.upper() if index_type else None
        manifest = {key: self.source[key] for key in _KEPT_FACTS if key in self.source} | {
            "state": "loading",
            "index_folder": str(self.folder.resolve()),
            "index_type": chosen or choose_type(self.source["chunks"]),
            "index_type_by_size": chosen is None,
            "server": self.collection.connection.server,
        }
        if earlier is None:
            self.report.why_local = self.collection.create(manifest, full_text=full_text)
            manifest["full_text"] = "server" if self.report.why_local is None else "local"
        else:
            manifest["full_text"] = earlier["full_text"]
            if chosen is None and not earlier["index_type_by_size"]:
                manifest |= {"index_type": earlier["index_type"], "index_type_by_size": False}
            if manifest["index_type"] != earlier["index_type"]:
                self.collection.index_again(
                    manifest["index_type"], earlier=earlier["index_type"], count=self.source["chunks"]
                )
        self.collection.write_manifest(manifest)
        self.report.index_type, self.report.full_text = manifest["index_type"], manifest["full_text"]
        return manifest

    def _earlier(self, full_text: FullText, rebuild: bool) -> dict[str, Any] | None:
        where = self.collection.address
        if not self.collection.exists():
            return None
        try:
            earlier = self.collection.manifest()
        except IndexFormatError:  # a damaged or newer one of ours
            if not rebuild:
                raise
            earlier = {}
        if earlier is None:
            raise IndexFormatError(f"{where}: this collection was not made by lmr; choose another --collection")
        if rebuild or "full_text" not in earlier:  # killed before it was made
            self.collection.drop()
            return None
        moved = earlier["corpus_path"] != self.source["corpus_path"] and Path(earlier["corpus_path"]).exists()
        if moved:
            raise MismatchError(
                f"{where}: holds the corpus {earlier['corpus_path']}, not {self.source['corpus_path']}; "
                "choose another --collection, or add --rebuild to replace it"
            )
        if earlier["encoder_sha256"] != self.source["encoder_sha256"]:
            raise MismatchError(
                f"{where}: holds vectors of encoder '{earlier['encoder']}', the index those of "
                f"'{self.source['encoder']}' (or of other settings); add --rebuild to replace them"
            )
        if full_text not in ("auto", earlier["full_text"]):
            raise MismatchError(
                f"{where}: was made with --full-text {earlier['full_text']}; add --rebuild to change it"
            )
        return earlier

    # --- rows --------------------------------------------------------------------------------------------------------

    def _present(self) -> NDArray[np.uint64]:
        """Hashes of the keys in the collection, sorted: eight bytes a row."""
        return np.sort(np.fromiter((hash_of(key) for key in self._keys()), np.uint64))

    def _keys(self) -> Iterator[str]:
        """Every key, in parts: keys begin with a hash, so that a range of them holds about as many as any other."""
        client, name = self.collection.client, self.collection.name
        parts = -(-self.collection.count() // _SCAN_ROWS)
        bounds = [f"{place * (1 << 32) // parts:08x}" for place in range(parts)]
        for lower, upper in itertools.pairwise([*bounds, "g"]):
            with milvus_errors(self.collection.address):
                rows = client.query(
                    name,
                    filter=f'pk >= "{lower}" and pk < "{upper}"',
                    output_fields=["pk"],
                    consistency_level="Strong",
                    timeout=CALL_SECONDS,
                )
            yield from (row["pk"] for row in rows)

    def _send(self, present: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Sends what is not present; returns hashes of all keys of the index, sorted."""
        wanted: list[NDArray[np.uint64]] = []
        with progress("loading", total=self.source["chunks"]) as advance:
            for batch in _batches(self._new_rows(present, wanted, advance)):
                with milvus_errors(self.collection.address):
                    self.collection.client.upsert(self.collection.name, batch, timeout=CALL_SECONDS)
                self.report.sent += len(batch)
        return np.sort(np.concatenate(wanted)) if wanted else np.zeros(0, np.uint64)

    def _new_rows(
        self, present: NDArray[np.uint64], wanted: list[NDArray[np.uint64]], advance: Any
    ) -> Iterator[dict[str, Any]]:
        analyzer = Analyzer()
        for document, spans, vectors in _chunked(self.store):
            hashes = np.array([hash_of(key) for key in row_keys(document, spans, vectors)], np.uint64)
            wanted.append(hashes)
            there = _inside(hashes, present)
            self.report.kept += int(there.sum())
            if not there.all():
                for row, known in zip(rows_of(document, spans, vectors, analyzer=analyzer), there, strict=True):
                    if not known:
                        if self.report.full_text == "local":
                            del row["words"]
                        yield row
            advance(len(spans), note=f"{self.report.sent + self.report.kept:,} rows")

    def _delete(self, present: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> None:
        """Takes away what the index has no more, after the new rows are there: a search never misses a document."""
        if _inside(present, wanted).all():
            return
        stale = [key for key in self._keys() if not _inside(np.array([hash_of(key)], np.uint64), wanted)[0]]
        for first in range(0, len(stale), _DELETE_ROWS):
            keys = stale[first : first + _DELETE_ROWS]
            with milvus_errors(self.collection.address):
                self.collection.client.delete(self.collection.name, ids=keys, timeout=CALL_SECONDS)
        self.report.deleted = len(stale)

    def _recall(self) -> float:
        """Share of the exact top 10 that the collection finds, over 200 of its own vectors as queries."""
        count = self.source["chunks"]
        queries, scores = probes(self.store.vector_shards, count=count, k=10)
        hits = 0
        for first in range(0, len(queries), 50):
            with milvus_errors(self.collection.address):
                found = self.collection.client.search(
                    self.collection.name,
                    data=list(queries[first : first + 50]),
                    anns_field="vector",
                    limit=10,
                    search_params={"params": search_parameters(self.report.index_type, count=count, depth=10)},
                    consistency_level="Strong",
                    timeout=CALL_SECONDS,
                )
            for exact, hit in zip(scores[first : first + 50], found, strict=True):
                hits += sum(float(one["distance"]) >= exact[-1] - _RECALL_SLACK for one in hit)
        return hits / max(1, scores.size)


def hash_of(key: str) -> int:
    """64 bits of a key: of its document, its content and its place."""
    document, content, _, place = key.split("-")
    return (int(document[:16], 16) ^ int(content, 16)) + int(place) & (1 << 64) - 1


def _inside(values: NDArray[np.uint64], among: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(among):
        return np.zeros(len(values), np.bool_)
    places = np.minimum(np.searchsorted(among, values), len(among) - 1)
    return np.asarray(among[places] == values)


def _chunked(store: Store) -> Iterator[tuple[Document, list[Span], NDArray[np.float32]]]:
    """Documents with their chunks, one shard in memory at a time."""
    documents = store.documents()
    for number in range(store.num_shards):
        vectors, spans = store.vectors(number), store.spans(number)
        first = 0
        for count in store.chunk_counts(number):
            yield next(documents), spans[first : first + count], vectors[first : first + count]
            first += count


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row_bytes(row)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
