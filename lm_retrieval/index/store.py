"""Texts and vectors on disk, shard by shard.

`documents/part-*.arrow` (Arrow IPC, memory-mapped, random access) holds ids, texts and content hashes;
`embeddings/part-*.parquet` holds one row per chunk with its vector. The two parts of a shard have one number; the
Parquet file is written last and its presence says that the shard is whole.

Shapes: C chunks of a shard, D dimensions.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.ipc
from numpy.typing import NDArray

from lm_retrieval.artifacts import atomic_file, storage_errors
from lm_retrieval.errors import IndexFormatError
from lm_retrieval.records import Document, Span

Vectors = NDArray[np.float32]

_DOCUMENTS = "documents"
_EMBEDDINGS = "embeddings"


def content_hash(document: Document) -> str:
    """Changes when the title or text does."""
    return hashlib.sha256(f"{len(document.title)}:{document.title}{document.text}".encode(errors="replace")).hexdigest()


class CorpusDigest:
    """SHA-256 of documents in their order, added one by one."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, doc_id: str, digest: str) -> None:
        """Adds a document by its `content_hash`."""
        self._digest.update(f"{doc_id}\0{digest}\n".encode(errors="replace"))

    def hexdigest(self) -> str:
        """Of all that was added."""
        return self._digest.hexdigest()


def corpus_sha256(documents: Iterable[Document]) -> str:
    """SHA-256 of documents in their order: that of the manifest of an index of them."""
    digest = CorpusDigest()
    for document in documents:
        digest.add(document.doc_id, content_hash(document))
    return digest.hexdigest()


@dataclass(frozen=True)
class Shard:
    """Documents in a row and their chunks.

    Attributes:
        documents: the documents.
        hashes: content hash of each.
        spans: for each document the places of its chunks in `Document.content`; empty for an empty document.
        vectors: (C, D) float32, chunks in document order.
    """

    documents: list[Document]
    hashes: list[str]
    spans: list[list[Span]]
    vectors: Vectors


def write_shard(folder: Path, number: int, shard: Shard) -> None:
    """Writes a shard; a shard that was written before is replaced."""
    documents = pyarrow.table(
        {
            "doc_id": [document.doc_id for document in shard.documents],
            "title": [_encodable(document.title) for document in shard.documents],
            "text": [_encodable(document.text) for document in shard.documents],
            "content_hash": shard.hashes,
            "num_chunks": pyarrow.array([len(spans) for spans in shard.spans], pyarrow.int32()),
        },
        schema=_DOCUMENT_SCHEMA,
    )
    with atomic_file(_documents_path(folder, number), "wb") as stream:
        with pyarrow.ipc.new_file(stream, documents.schema) as writer:
            writer.write_table(documents)
    rows = [
        (document.doc_id, place, span)
        for document, spans in zip(shard.documents, shard.spans, strict=True)
        for place, span in enumerate(spans)
    ]
    dim = shard.vectors.shape[1]
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(shard.vectors.reshape(-1)), dim)
    table = pyarrow.table(
        {
            "doc_id": pyarrow.array([doc_id for doc_id, _, _ in rows], pyarrow.string()),
            "chunk_id": pyarrow.array([place for _, place, _ in rows], pyarrow.int32()),
            "start": pyarrow.array([span.start for _, _, span in rows], pyarrow.int64()),
            "end": pyarrow.array([span.end for _, _, span in rows], pyarrow.int64()),
            "vector": vectors,
        }
    )
    from pyarrow import parquet  # a query reads none, and it takes time to load

    with atomic_file(_embeddings_path(folder, number), "wb") as stream:
        # vectors do not compress, and plain pages are read fastest
        parquet.write_table(table, stream, compression="none", use_dictionary=["doc_id"])


def drop_shard(folder: Path, number: int) -> None:
    """Deletes a shard; the part that says it is whole goes first."""
    with storage_errors(folder):
        _embeddings_path(folder, number).unlink(missing_ok=True)
        _documents_path(folder, number).unlink(missing_ok=True)


def drop_shards_from(folder: Path, number: int) -> None:
    """Deletes shard `number` and all later ones."""
    for path in (*folder.glob(f"{_EMBEDDINGS}/part-*.parquet"), *folder.glob(f"{_DOCUMENTS}/part-*.arrow")):
        if (found := int(path.stem.removeprefix("part-"))) >= number:
            drop_shard(folder, found)


def shard_is_written(folder: Path, number: int) -> bool:
    """Whether the last file of a shard is there."""
    return _embeddings_path(folder, number).is_file()


class Store:
    """Reads the shards of a folder. Opening one touches no text and no vector.

    Shards are counted from 0 in the order of their numbers on disk.
    """

    def __init__(self, folder: Path, *, numbers: Sequence[int] | None = None) -> None:
        """Opens all shards, or those with certain numbers.

        Raises:
            IndexFormatError: a shard is damaged or its parts do not fit.
        """
        self.folder = folder
        self._numbers = range(len(list((folder / _EMBEDDINGS).glob("part-*.parquet")))) if numbers is None else numbers
        self.num_shards = len(self._numbers)
        self._tables = [self._open_documents(number) for number in range(self.num_shards)]
        self._first_rows = np.cumsum([0, *(table.num_rows for table in self._tables)]).tolist()

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def document(self, row: int) -> Document:
        """The document at a row, by random access."""
        table, place = self._locate(row)
        return Document(*(table.column(name)[place].as_py() for name in ("doc_id", "title", "text")))

    def doc_ids(self) -> list[str]:
        """Every id, in row order."""
        return [doc_id for table in self._tables for doc_id in table.column("doc_id").to_pylist()]

    def documents(self) -> Iterator[Document]:
        """Streams all documents in row order."""
        for table in self._tables:
            for batch in table.to_batches(max_chunksize=256):
                columns = (batch.column(name).to_pylist() for name in ("doc_id", "title", "text"))
                yield from map(Document._make, zip(*columns, strict=True))

    def shard_key(self, number: int) -> tuple[list[str], list[str]]:
        """Ids and hashes of a shard's documents: what decides whether it can be kept."""
        table = self._tables[number]
        return table.column("doc_id").to_pylist(), table.column("content_hash").to_pylist()

    def chunk_counts(self, number: int) -> list[int]:
        """How many chunks each document of a shard has."""
        return list(self._tables[number].column("num_chunks").to_pylist())

    def chunk_table(self) -> Iterator[NDArray[np.int64]]:
        """Streams, shard by shard, (C, 3) document row, start and end of every chunk."""
        for number, table in enumerate(self._tables):
            counts = table.column("num_chunks").to_numpy()
            rows = np.repeat(np.arange(len(counts)) + self._first_rows[number], counts)
            spans = self._read_embeddings(number, ["start", "end"])
            columns = [rows, spans.column("start").to_numpy(), spans.column("end").to_numpy()]
            yield np.column_stack(columns).astype(np.int64)

    def vector_shards(self) -> Iterator[Vectors]:
        """Streams (C, D) vectors, one shard at a time."""
        for number in range(self.num_shards):
            yield self.vectors(number)

    def vectors(self, number: int) -> Vectors:
        """(C, D) vectors of one shard."""
        column = self._read_embeddings(number, ["vector"]).column("vector").combine_chunks()
        dim = column.type.list_size
        flat = column.flatten() if isinstance(column, pyarrow.FixedSizeListArray) else column.chunk(0).flatten()
        return np.asarray(flat.to_numpy(zero_copy_only=False), dtype=np.float32).reshape(-1, dim)

    def spans(self, number: int) -> list[Span]:
        """Where the chunks of one shard are in `Document.content`."""
        table = self._read_embeddings(number, ["start", "end"])
        return [
            Span(*pair) for pair in zip(*(table.column(name).to_pylist() for name in ("start", "end")), strict=True)
        ]

    def vectors_at(self, chunks: NDArray[np.int64]) -> Vectors:
        """(N, D) vectors of chunks by their numbers, in the order given."""
        firsts = np.cumsum([0, *(sum(self.chunk_counts(number)) for number in range(self.num_shards))])
        shards = np.searchsorted(firsts, chunks, side="right") - 1
        found: Vectors | None = None
        for number in np.unique(shards).tolist():
            vectors = self.vectors(number)
            wanted = np.flatnonzero(shards == number)
            if found is None:
                found = np.empty((len(chunks), vectors.shape[1]), np.float32)
            found[wanted] = vectors[chunks[wanted] - firsts[number]]
        return np.zeros((0, 0), np.float32) if found is None else found

    def _read_embeddings(self, number: int, columns: list[str]) -> Any:
        from pyarrow import parquet

        path = _embeddings_path(self.folder, self._numbers[number])
        with storage_errors(path):
            try:
                table = parquet.read_table(path, columns=columns)
            except (pyarrow.ArrowInvalid, pyarrow.ArrowException) as error:
                raise IndexFormatError(
                    f"{path}: damaged or truncated shard ({error}); run `lmr embed` again"
                ) from error
        expected = int(np.sum(self._tables[number].column("num_chunks").to_numpy()))
        if table.num_rows != expected:
            raise IndexFormatError(f"{path}: {table.num_rows} rows, {expected} expected; run `lmr embed` again")
        return table

    def _open_documents(self, number: int) -> Any:
        path = _documents_path(self.folder, self._numbers[number])
        with storage_errors(path):
            try:
                with pyarrow.memory_map(str(path)) as source:
                    return pyarrow.ipc.open_file(source).read_all()
            except (pyarrow.ArrowInvalid, pyarrow.ArrowException) as error:
                raise IndexFormatError(
                    f"{path}: damaged or truncated shard ({error}); run `lmr embed` again"
                ) from error

    def _locate(self, row: int) -> tuple[Any, int]:
        number = bisect_right(self._first_rows, row) - 1
        return self._tables[number], row - self._first_rows[number]


class Place(NamedTuple):
    """Where an earlier index has the vectors of a document."""

    shard: int
    first: int
    chunks: int


class EarlierPlaces:
    """Places of vectors in an earlier index by document id, valid only while the content hash is the same."""

    def __init__(self, store: Store | None) -> None:
        self._places: dict[str, tuple[str, Place]] = {}
        for number in range(store.num_shards if store else 0):
            assert store is not None
            first = 0
            for doc_id, digest, count in zip(*store.shard_key(number), store.chunk_counts(number), strict=True):
                self._places[doc_id] = (digest, Place(number, first, count))
                first += count

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, doc_id: str) -> bool:
        return doc_id in self._places

    def find(self, doc_id: str, digest: str) -> Place | None:
        """Where the vectors of an unchanged document are."""
        known, place = self._places.get(doc_id, (None, None))
        return place if known == digest else None


class PlacedVectors:
    """Reads vectors by their places; neighbouring ones are of one shard, which is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: tuple[int, Vectors] | None = None

    def read(self, place: Place) -> Vectors:
        """(C, D) vectors of a document."""
        if self._open is None or self._open[0] != place.shard:
            self._open = place.shard, self._store.vectors(place.shard)
        return self._open[1][place.first : place.first + place.chunks]


_DOCUMENT_SCHEMA = pyarrow.schema(
    [
        ("doc_id", pyarrow.string()),
        ("title", pyarrow.string()),
        ("text", pyarrow.large_string()),
        ("content_hash", pyarrow.string()),
        ("num_chunks", pyarrow.int32()),
    ]
)


def _documents_path(folder: Path, number: int) -> Path:
    return folder / _DOCUMENTS / f"part-{number:05d}.arrow"


def _embeddings_path(folder: Path, number: int) -> Path:
    return folder / _EMBEDDINGS / f"part-{number:05d}.parquet"


def _encodable(text: str) -> str:
    """Lone surrogates, which broken JSON escapes can produce, have no UTF-8 form; length is kept."""
    return text if text.isascii() else "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


def spans_of(chunks: Sequence[tuple[int, int, object]]) -> list[Span]:
    """The places of chunks."""
    return [Span(start, end) for start, end, _ in chunks]
