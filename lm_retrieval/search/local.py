"""An index folder: FAISS, BM25 and texts, each opened when a query first needs it. BM25 alone loads no FAISS."""

from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.artifacts import read_manifest, storage_errors
from lm_retrieval.errors import IndexFormatError
from lm_retrieval.index.lexical import LexicalIndex
from lm_retrieval.index.store import Store
from lm_retrieval.records import Document, Span
from lm_retrieval.search.backend import Ranking

if TYPE_CHECKING:
    from lm_retrieval.encoding.encoder import Encoder
    from lm_retrieval.index.vectors import VectorIndex


class LocalBackend:
    """An opened index folder; the key of a document is its row.

    Attributes:
        folder: where it is.
        name: the same, for messages.
        manifest: what it says about itself.
        kind: what holds it, in words.
        lexical_place: where words are ranked.
    """

    kind = "an index folder"
    lexical_place = "here"

    def __init__(self, folder: Path) -> None:
        """Reads the manifest alone.

        Raises:
            IndexFormatError: the folder is missing, damaged or not an index.
        """
        self.folder = folder
        self.name = str(folder)
        self.manifest: dict[str, Any] = read_manifest(folder, kind="index", error=IndexFormatError)

    @property
    def encoder_folder(self) -> Path:
        """A copy of the encoder lies in the folder."""
        return self.folder / "encoder"

    def load_encoder(self) -> "Encoder":
        """Loads that copy."""
        from lm_retrieval.encoding.encoder import Encoder

        return Encoder.load(self.encoder_folder)

    def check_encoder(self, encoder: "Encoder") -> None:
        """Raises MismatchError unless the index was built with this encoder."""
        from lm_retrieval.index.builder import check_encoder

        check_encoder(self.manifest, encoder, folder=self.folder)

    def dense(self, vectors: NDArray[np.float32], k: int) -> list[Ranking]:
        """A document is as near as its best chunk."""
        return cast(list[Ranking], self.vectors.search_documents(vectors, k, owners=self._chunks[:, 0]))

    def lexical(self, query: str, k: int) -> Ranking:
        """BM25 over whole documents."""
        rows, scores = self.words.search(query, k)
        return dict(zip(rows.tolist(), scores.tolist(), strict=True))

    def find(self, doc_id: str) -> int | None:
        """The row of a document."""
        return self._rows.get(doc_id)

    def doc_ids(self, keys: Sequence[Hashable]) -> list[str]:
        """Ids by row."""
        return [self._doc_ids[row] for row in cast(Sequence[int], keys)]

    def documents(self, keys: Sequence[Hashable]) -> list[tuple[Document, list[Span]]]:
        """Documents by row, and where their chunks are."""
        return [(self.store.document(row), self.spans(row)) for row in cast(Sequence[int], keys)]

    def spans(self, row: int) -> list[Span]:
        """Where the chunks of a document are."""
        first, last = np.searchsorted(self._chunks[:, 0], [row, row + 1])
        return [Span(int(start), int(end)) for _, start, end in self._chunks[first:last]]

    def sample(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """At most so many chunks, evenly spaced: their numbers and (N, D) vectors."""
        chunks = len(self._chunks)
        numbers = np.unique(np.linspace(0, chunks - 1, min(count, chunks)).round().astype(np.int64))
        return numbers, self.store.vectors_at(numbers)

    def near_chunks(self, vector: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `k` chunks nearest to a vector (D,), best first: their numbers and (K, D) vectors."""
        numbers = self.vectors.search(vector[None], k)[0].rows
        return numbers, self.store.vectors_at(numbers)

    def chunk_document(self, number: int) -> Document:
        """The document that a chunk is of."""
        return self.store.document(int(self._chunks[number, 0]))

    def close(self) -> None:
        """Nothing is held but memory."""

    # --- parts, opened when first needed -----------------------------------------------------------------------------

    @cached_property
    def words(self) -> LexicalIndex:
        """The BM25 part."""
        index = LexicalIndex.open(self.folder / "lexical")
        if len(index) != self.manifest["documents"]:
            raise IndexFormatError(
                f"{self.folder}: BM25 holds {len(index)} documents, {self.manifest['documents']} are expected; "
                "run `lmr embed` again"
            )
        return index

    @cached_property
    def vectors(self) -> "VectorIndex":
        """The FAISS part."""
        from lm_retrieval.index.vectors import VectorIndex

        index = VectorIndex.read(self.folder / "vectors.faiss")
        if len(index) != self.manifest["chunks"]:
            raise IndexFormatError(
                f"{self.folder}: {len(index)} vectors for {self.manifest['chunks']} chunks; run `lmr embed` again"
            )
        return index

    @cached_property
    def store(self) -> Store:
        """The texts."""
        return Store(self.folder)

    @cached_property
    def _doc_ids(self) -> list[str]:
        return self.store.doc_ids()

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {doc_id: row for row, doc_id in enumerate(self._doc_ids)}

    @cached_property
    def _chunks(self) -> NDArray[np.int64]:
        path = self.folder / "chunks.npy"
        with storage_errors(path):
            try:
                return np.asarray(np.load(path, mmap_mode="r"))
            except (ValueError, EOFError) as error:
                raise IndexFormatError(f"{path}: damaged; run `lmr embed` again") from error
