"""Ranking and hits, wherever the index is: modes, fusion, reranking, snippets.

The searcher opens what a query needs and nothing else. Short queries are encoded without torch where the index allows
it.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.corpus.words import Analyzer
from lm_retrieval.errors import ConfigError, IndexFormatError
from lm_retrieval.index.fusion import DENSE_WEIGHT, fusion_depth, interpolated, reciprocal_rank, weighted_sum
from lm_retrieval.index.snippets import best_chunk, cut_snippet
from lm_retrieval.records import Document, Hit, Span
from lm_retrieval.search.backend import Backend, Ranking
from lm_retrieval.search.local import LocalBackend

if TYPE_CHECKING:
    from lm_retrieval.encoding.encoder import Encoder
    from lm_retrieval.encoding.query import QueryEncoder

Mode = Literal["dense", "bm25", "hybrid"]
Fusion = Literal["weighted", "rrf"]
Rerank = Literal["none", "lm"]

_RERANK_DEPTH = 100
# share of the language model in a reranked score: of 0 to 0.5 the best on the dev splits of python-docs and NFCorpus
LIKELIHOOD_WEIGHT = 0.05
_BATCH_QUERIES = 64


class Searcher:
    """An opened index.

    Attributes:
        backend: where vectors, words and texts are.
        manifest: what the index says about itself.
    """

    def __init__(self, index: "Path | str | Backend", *, encoder: "Encoder | None" = None) -> None:
        """Opens an index folder, or takes a backend; with `encoder`, that one encodes the queries.

        Raises:
            IndexFormatError: the folder is missing, damaged or not an index.
            MismatchError: the index was built with another encoder.
        """
        self.backend: Backend = LocalBackend(Path(index)) if isinstance(index, (str, Path)) else index
        self.manifest: dict[str, Any] = self.backend.manifest
        if encoder is not None:
            self.backend.check_encoder(encoder)
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
            fusion: how hybrid joins them: weighted sum of scores in 0..1, or reciprocal rank fusion.
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

        Hybrid search joins the first hundreds of both rankings. What follows them, in long rankings, has scores of -1,
        -2 and so on; so has what follows the documents that `rerank` reorders.

        The arguments are those of `search`.
        """
        options: dict[str, Any] = {"mode": mode, "fusion": fusion, "dense_weight": dense_weight, "rerank": rerank}
        rankings = self._rank(queries, k=k, **options)
        return [dict(zip(self.backend.doc_ids([*ranking]), ranking.values(), strict=True)) for ranking in rankings]

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
            return [self.backend.lexical(query, k) for query in queries]
        if mode == "dense":
            return self._dense(queries, k)
        return self._joined(queries, k=k, fusion=fusion, dense_weight=dense_weight)

    def document(self, doc_id: str) -> Document:
        """A document by its id.

        Raises:
            IndexFormatError: the index has no such document.
        """
        key = self.backend.find(doc_id)
        if key is None:
            raise IndexFormatError(f"{self.backend.name}: no document '{doc_id}'")
        return self.backend.documents([key])[0][0]

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
        return self._analyzer.matches(text, frozenset(self._analyzer.terms(query)))

    def sample(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """At most so many chunks from all over the index: their numbers and (N, D) vectors."""
        return self.backend.sample(count)

    def nearest(self, vector: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `k` chunks nearest to a vector (D,), best first: their numbers and (K, D) vectors."""
        return self.backend.near_chunks(vector, k)

    def chunk_document(self, number: int) -> Document:
        """The document that a chunk is of."""
        return self.backend.chunk_document(number)

    def close(self) -> None:
        """Gives back what the index holds open."""
        self.backend.close()

    # --- parts, opened when first needed -----------------------------------------------------------------------------

    @cached_property
    def encoder(self) -> "Encoder":
        """The encoder that made the index."""
        if self._given_encoder is not None and self._given_encoder.fitted:
            return self._given_encoder
        return self.backend.load_encoder()

    @cached_property
    def query_encoder(self) -> "QueryEncoder | None":
        """The same encoder without torch; None where the index does not allow it."""
        if self._given_encoder is not None or not self.manifest.get("queries_without_torch", False):
            return None
        folder = self.backend.encoder_folder
        if folder is None:
            return None
        from lm_retrieval.encoding.query import QueryEncoder

        return QueryEncoder(folder)

    @cached_property
    def _analyzer(self) -> Analyzer:
        return Analyzer()

    # --- ranking -----------------------------------------------------------------------------------------------------

    def _dense(self, queries: Sequence[str], k: int) -> list[Ranking]:
        rankings: list[Ranking] = []
        for start in range(0, len(queries), _BATCH_QUERIES):
            rankings += self.backend.dense(self.encode(queries[start : start + _BATCH_QUERIES]), k)
        return rankings

    def _joined(self, queries: Sequence[str], *, k: int, fusion: Fusion, dense_weight: float) -> list[Ranking]:
        def join(lexical: Ranking, dense: Ranking) -> Ranking:
            if fusion == "rrf":
                return _by_score(reciprocal_rank(lexical, dense))
            return _by_score(weighted_sum(lexical, dense, dense_weight=dense_weight))

        joined = fusion_depth(self.manifest["documents"])
        depth = max(k, joined)
        rankings = []
        for query, dense in zip(queries, self._dense(queries, depth), strict=True):
            lexical = self.backend.lexical(query, depth)
            # the same however many are asked for
            ranking = join(_first(lexical, joined), _first(dense, joined))
            if k > len(ranking):
                ranking = _followed(ranking, join(lexical, dense))
            rankings.append(_first(ranking, k))
        return rankings

    def _by_likelihood(self, query: str, ranking: Ranking, k: int) -> Ranking:
        """The first documents by score and query likelihood, both in 0..1; the others follow in their order."""
        from lm_retrieval.index.likelihood import query_likelihood

        first = _first(ranking, _RERANK_DEPTH)
        encoder = self.encoder
        texts = [document.content for document, _ in self.backend.documents([*first])]
        likelihoods = query_likelihood(encoder.model, tokenizer=encoder.tokenizer, query=query, documents=texts)
        likely = dict(zip(first, likelihoods.tolist(), strict=True))
        scores = interpolated(first, likely, weight=LIKELIHOOD_WEIGHT)
        return _first(_followed(_by_score(scores), ranking), k)

    # --- hits --------------------------------------------------------------------------------------------------------

    def _hits(self, query: str, ranking: Ranking) -> list[Hit]:
        terms = frozenset(self._analyzer.terms(query))
        found = self.backend.documents([*ranking])
        hits = []
        for rank, ((document, spans), score) in enumerate(zip(found, ranking.values(), strict=True), start=1):
            passage = best_chunk(document.content, spans, terms=terms, analyzer=self._analyzer)
            text_start = max(passage.start, _title_length(document))
            body = Span(text_start, passage.end) if text_start < passage.end else passage
            snippet, highlights = cut_snippet(document.content, body, terms=terms, analyzer=self._analyzer)
            hits.append(Hit(rank, document.doc_id, score, document.title, snippet, passage, highlights))
        return hits


def _by_score(scores: Ranking) -> Ranking:
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def _first(ranking: Ranking, k: int) -> Ranking:
    return dict(islice(ranking.items(), k))


def _followed(first: Ranking, ranking: Ranking) -> Ranking:
    """The first documents, of scores from 0, then the others of a ranking in their order, at -1, -2 and so on."""
    rest = [key for key in ranking if key not in first]
    return first | {key: -float(place) for place, key in enumerate(rest, start=1)}


def _title_length(document: Document) -> int:
    """Characters of `content` before the text: a snippet need not repeat the title."""
    return len(document.title) + 1 if document.title and document.text else 0
