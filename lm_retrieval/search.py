"""Answering queries from an index folder: dense, BM25 or both.

The searcher opens what a query needs and nothing else. Short queries are encoded without torch where the index allows
it; BM25 alone loads no FAISS either.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.artifacts import MANIFEST_NAME, find_folder, read_manifest, storage_errors
from lm_retrieval.errors import ConfigError, IndexFormatError
from lm_retrieval.index.fusion import DENSE_WEIGHT, reciprocal_rank, weighted_sum
from lm_retrieval.index.lexical import LexicalIndex
from lm_retrieval.index.snippets import best_chunk, cut_snippet
from lm_retrieval.index.store import Store
from lm_retrieval.records import Document, Hit, Span
from lm_retrieval.storage import is_uri, local_folder

if TYPE_CHECKING:
    from lm_retrieval.encoding.encoder import Encoder
    from lm_retrieval.encoding.query import QueryEncoder
    from lm_retrieval.index.vectors import VectorIndex

Ranking = dict[int, float]
"""Rows of documents and their scores, best first."""
Mode = Literal["dense", "bm25", "hybrid"]
Fusion = Literal["weighted", "rrf"]
Rerank = Literal["none", "lm"]

_FUSION_DEPTH = 100
_RERANK_DEPTH = 100
# share of the language model in a reranked score: of 0 to 0.5 the best on the dev splits of python-docs and NFCorpus
LIKELIHOOD_WEIGHT = 0.05
_BATCH_QUERIES = 64


class Searcher:
    """An opened index.

    Attributes:
        folder: the index folder.
        manifest: what it says about itself.
    """

    def __init__(self, folder: Path | str, *, encoder: "Encoder | None" = None) -> None:
        """Opens an index; with `encoder`, that one encodes the queries.

        Raises:
            IndexFormatError: the folder is missing, damaged or not an index.
            MismatchError: the index was built with another encoder.
        """
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = read_manifest(self.folder, kind="index", error=IndexFormatError)
        if encoder is not None:
            from lm_retrieval.index.builder import check_encoder

            check_encoder(self.manifest, encoder, folder=self.folder)
        self._given_encoder = encoder

    def search(
        self,
        query: str,
        *,
        k: int = 10,
        mode: Mode = "hybrid",
        fusion: Fusion = "weighted",
        dense_weight: float | None = None,
        rerank: Rerank = "none",
    ) -> list[Hit]:
        """The best `k` documents, at most as many as there are.

        Args:
            query: a question or some words.
            k: how many hits.
            mode: `dense` (the encoder), `bm25` (words) or `hybrid` (both).
            fusion: how hybrid joins them: weighted sum of min-max scores, or reciprocal rank fusion.
            dense_weight: the encoder's share in a weighted sum, 0..1; by default the one stored with the index.
            rerank: `lm` reorders the first 100 by how probable the encoder's language model finds the query after
                having read each of them, interpolated with their scores.

        Raises:
            ConfigError: a blank query, k below 1, or a weight out of range.
        """
        options: dict[str, Any] = {"mode": mode, "fusion": fusion, "dense_weight": dense_weight, "rerank": rerank}
        return self.search_batch([query], k=k, **options)[0]

    def search_batch(self, queries: Sequence[str], *, k: int = 10, **options: Any) -> list[list[Hit]]:
        """As `search`, for several queries that are encoded and looked up together.

        Raises:
            ConfigError: a blank query, k below 1, or a weight out of range.
        """
        if not all(query.strip() for query in queries):
            raise ConfigError("the query is empty; type some words")
        settings: dict[str, Any] = {"mode": "hybrid", "fusion": "weighted", "dense_weight": None, "rerank": "none"}
        rankings = self._rank(queries, k=k, **settings | options)
        return [self._hits(query, ranking) for query, ranking in zip(queries, rankings, strict=True)]

    def rank(
        self,
        queries: Sequence[str],
        *,
        k: int = 1000,
        mode: Mode = "hybrid",
        fusion: Fusion = "weighted",
        dense_weight: float | None = None,
        rerank: Rerank = "none",
    ) -> list[dict[str, float]]:
        """For each query the best `k` documents as doc_id → score, best first; a document scores as its best chunk.

        The arguments are those of `search`.
        """
        options: dict[str, Any] = {"mode": mode, "fusion": fusion, "dense_weight": dense_weight, "rerank": rerank}
        rankings = self._rank(queries, k=k, **options)
        doc_ids = self._doc_ids
        return [{doc_ids[row]: score for row, score in ranking.items()} for ranking in rankings]

    def _rank(
        self,
        queries: Sequence[str],
        *,
        k: int,
        mode: Mode,
        fusion: Fusion,
        dense_weight: float | None,
        rerank: Rerank,
    ) -> list[Ranking]:
        if k < 1:
            raise ConfigError(f"k is {k}; it must be at least 1")
        if dense_weight is None:
            dense_weight = float(self.manifest.get("dense_weight", DENSE_WEIGHT))
        if not 0 <= dense_weight <= 1:
            raise ConfigError(f"dense_weight is {dense_weight}; it must be between 0 and 1")
        if rerank == "lm":
            rankings = self._rank(
                queries,
                k=max(k, _RERANK_DEPTH),
                mode=mode,
                fusion=fusion,
                dense_weight=dense_weight,
                rerank="none",
            )
            return [self._by_likelihood(query, ranking, k) for query, ranking in zip(queries, rankings, strict=True)]
        if mode == "bm25":
            return [self._lexical(query, k) for query in queries]
        if mode == "dense":
            return self._dense(queries, k)
        depth = max(k, _FUSION_DEPTH)
        fused = []
        for query, dense in zip(queries, self._dense(queries, depth), strict=True):
            lexical = self._lexical(query, depth)
            scores = (
                reciprocal_rank(lexical, dense)
                if fusion == "rrf"
                else weighted_sum(lexical, dense, dense_weight=dense_weight)
            )
            fused.append(dict(sorted(scores.items(), key=lambda item: -item[1])[:k]))
        return fused

    def document(self, doc_id: str) -> Document:
        """A document by its id.

        Raises:
            IndexFormatError: the index has no such document.
        """
        row = self._rows.get(doc_id)
        if row is None:
            raise IndexFormatError(f"{self.folder}: no document '{doc_id}'")
        return self._store.document(row)

    def encode(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """(Q, D) unit vectors of queries."""
        light = self.query_encoder
        if light is not None:
            token_ids = light.tokenizer.encode_batch(queries)
            if max(map(len, token_ids)) <= light.max_seq_length:
                return light.encode_tokens(token_ids)
        return self.encoder.encode(list(queries), normalize_embeddings=True)

    def matches(self, query: str, text: str) -> list[Span]:
        """Where words of the query stand in a text."""
        analyzer = self.lexical.analyzer
        return analyzer.matches(text, frozenset(analyzer.terms(query)))

    def sample(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """At most so many chunks, evenly spaced: their numbers and (N, D) vectors."""
        chunks = len(self._chunks)
        numbers = np.unique(np.linspace(0, chunks - 1, min(count, chunks)).round().astype(np.int64))
        return numbers, self._store.vectors_at(numbers)

    def nearest(self, vector: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `k` chunks nearest to a vector (D,), best first: their numbers and (K, D) vectors."""
        numbers = self.vectors.search(vector[None], k)[0].rows
        return numbers, self._store.vectors_at(numbers)

    def chunk_document(self, number: int) -> Document:
        """The document that a chunk is of."""
        return self._store.document(int(self._chunks[number, 0]))

    # --- parts, opened when first needed -----------------------------------------------------------------------------

    @cached_property
    def encoder(self) -> "Encoder":
        """The encoder that made the index (a copy lies in its folder)."""
        if self._given_encoder is not None and self._given_encoder.fitted:
            return self._given_encoder
        from lm_retrieval.encoding.encoder import Encoder

        return Encoder.load(self.folder / "encoder")

    @cached_property
    def query_encoder(self) -> "QueryEncoder | None":
        """The same encoder without torch; None where the index does not allow it."""
        if self._given_encoder is not None or not self.manifest.get("queries_without_torch", False):
            return None
        from lm_retrieval.encoding.query import QueryEncoder

        return QueryEncoder(self.folder / "encoder")

    @cached_property
    def lexical(self) -> LexicalIndex:
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
    def _store(self) -> Store:
        return Store(self.folder)

    @cached_property
    def _doc_ids(self) -> list[str]:
        return self._store.doc_ids()

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

    # --- ranking -----------------------------------------------------------------------------------------------------

    def _lexical(self, query: str, k: int) -> Ranking:
        rows, scores = self.lexical.search(query, k)
        return dict(zip(rows.tolist(), scores.tolist(), strict=True))

    def _dense(self, queries: Sequence[str], k: int) -> list[Ranking]:
        rankings: list[Ranking] = []
        for start in range(0, len(queries), _BATCH_QUERIES):
            rankings += self._best_chunks(self.encode(queries[start : start + _BATCH_QUERIES]), k)
        return rankings

    def _by_likelihood(self, query: str, ranking: Ranking, k: int) -> Ranking:
        """The first documents by score and query likelihood, both in 0..1; the others follow in their order."""
        from lm_retrieval.index.likelihood import query_likelihood

        first = dict(list(ranking.items())[:_RERANK_DEPTH])
        encoder = self.encoder
        texts = [self._store.document(row).content for row in first]
        likelihoods = query_likelihood(encoder.model, tokenizer=encoder.tokenizer, query=query, documents=texts)
        likely = dict(zip(first, likelihoods.tolist(), strict=True))
        scores = weighted_sum(first, likely, dense_weight=LIKELIHOOD_WEIGHT)
        ordered = dict(sorted(scores.items(), key=lambda item: -item[1]))
        rest = [row for row in ranking if row not in first]
        ordered |= {row: -float(place) for place, row in enumerate(rest, start=1)}
        return dict(list(ordered.items())[:k])

    def _best_chunks(self, vectors: NDArray[np.float32], k: int) -> list[Ranking]:
        """Asks for more chunks until `k` different documents are found or there are no more chunks."""
        depth = k
        if self.manifest["chunks"] > self.manifest["documents"]:
            depth = 2 * k
        results: list[Ranking] = [{} for _ in vectors]
        open_queries = list(range(len(vectors)))
        while open_queries:
            found = self.vectors.search(vectors[open_queries], depth)
            unfinished = []
            for place, neighbours in zip(open_queries, found, strict=True):
                results[place] = self._by_document(neighbours.rows, neighbours.scores, k)
                if len(results[place]) < k and depth < len(self.vectors):
                    unfinished.append(place)
            open_queries = unfinished
            depth *= 4
        return results

    def _by_document(self, rows: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> Ranking:
        documents = self._chunks[rows, 0]
        _, first = np.unique(documents, return_index=True)
        best = np.sort(first)[:k]
        return dict(zip(documents[best].tolist(), scores[best].tolist(), strict=True))

    # --- hits --------------------------------------------------------------------------------------------------------

    def _hits(self, query: str, ranking: Ranking) -> list[Hit]:
        analyzer = self.lexical.analyzer
        terms = frozenset(analyzer.terms(query))
        hits = []
        for rank, (row, score) in enumerate(ranking.items(), start=1):
            document = self._store.document(row)
            passage = best_chunk(document.content, self._spans(row), terms=terms, analyzer=analyzer)
            body = Span(min(max(passage.start, _title_length(document)), passage.end), passage.end)
            snippet, highlights = cut_snippet(document.content, body, terms=terms, analyzer=analyzer)
            hits.append(Hit(rank, document.doc_id, score, document.title, snippet, passage, highlights))
        return hits

    def _spans(self, row: int) -> list[Span]:
        first, last = np.searchsorted(self._chunks[:, 0], [row, row + 1])
        return [Span(int(start), int(end)) for _, start, end in self._chunks[first:last]]


def _title_length(document: Document) -> int:
    """Characters of `content` before the text: a snippet need not repeat the title."""
    return len(document.title) + 1 if document.title and document.text else 0


def find_index(name: str | None, *, folder: Path = Path("indexes")) -> Path:
    """The folder meant by a path or by the name of a folder in `indexes/`; without a name the index built last.

    Raises:
        IndexFormatError: there is none; the message lists what there is.
    """
    if name is None:
        return newest_index(folder)
    if is_uri(name):
        return local_folder(name)
    found = find_folder(name, folder)
    if found is not None:
        return found
    known = sorted(path.parent.name for path in folder.glob(f"[!.]*/{MANIFEST_NAME}"))
    hint = f"found in {folder}: {', '.join(known)}" if known else "build one with `lmr embed CORPUS`"
    raise IndexFormatError(f"{name}: no such index; {hint}")


def newest_index(folder: Path = Path("indexes")) -> Path:
    """The index built last among the folders in `folder`.

    Raises:
        IndexFormatError: there is none.
    """
    found: Iterable[Path] = folder.glob(f"[!.]*/{MANIFEST_NAME}") if folder.is_dir() else ()
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise IndexFormatError(f"{folder}: no index here yet; build one with `lmr embed CORPUS`")
    return newest.parent
