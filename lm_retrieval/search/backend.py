"""What a searcher needs of a place that holds vectors, words and texts: an index folder, or a Milvus collection.

Shapes: Q queries, N chunks, K hits, D dimensions.
"""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.records import Document, Span

if TYPE_CHECKING:
    from lm_retrieval.encoding.encoder import Encoder

Ranking = dict[Hashable, float]
"""Documents, each by the key that its backend gives it, and their scores, best first."""


class Backend(Protocol):
    """Vectors, words and texts of an index.

    Attributes:
        name: what messages call it.
        manifest: what the index says about itself.
        kind: what holds it, in words.
        lexical_place: where words are ranked.
    """

    name: str
    manifest: dict[str, Any]

    @property
    def kind(self) -> str: ...

    @property
    def lexical_place(self) -> str: ...

    @property
    def encoder_folder(self) -> Path | None:
        """The copy of the encoder that made the vectors; None where there is none."""

    def load_encoder(self) -> "Encoder":
        """The encoder that made the vectors."""

    def check_encoder(self, encoder: "Encoder") -> None:
        """Raises MismatchError unless the vectors were made by this encoder."""

    def dense(self, vectors: NDArray[np.float32], k: int) -> list[Ranking]:
        """For each of (Q, D) unit vectors the `k` documents with the best chunks."""

    def lexical(self, query: str, k: int) -> Ranking:
        """The `k` documents with the best BM25 scores."""

    def find(self, doc_id: str) -> Hashable | None:
        """The key of a document; None where there is none."""

    def doc_ids(self, keys: Sequence[Hashable]) -> list[str]:
        """The ids of documents."""

    def documents(self, keys: Sequence[Hashable]) -> list[tuple[Document, list[Span]]]:
        """Documents, and where their chunks are in `Document.content`."""

    def sample(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """At most so many chunks from all over the index: their numbers and (N, D) vectors."""

    def near_chunks(self, vector: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `k` chunks nearest to a vector (D,), best first: their numbers and (K, D) vectors."""

    def chunk_document(self, number: int) -> Document:
        """The document that a chunk is of."""

    def close(self) -> None:
        """Gives back what it holds open."""
