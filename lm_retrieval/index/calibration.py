"""Choosing the encoder's share in hybrid ranking without judgments.

Titles and spans are taken out of documents and asked for: the share that ranks the rest of their document best is the
one to use. Such pseudo-queries are easier than people's, but they weigh words against meaning much as people's do.
Only documents that no tuning ever learns from are asked for: an encoder tuned on this corpus knows the others by heart.

Shapes: Q pseudo-queries, N texts to find.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.corpus.pairs import Pair, corpus_pairs, held_out
from lm_retrieval.index.fusion import DENSE_WEIGHT, weighted_sum
from lm_retrieval.index.lexical import LexicalIndex, top_rows
from lm_retrieval.records import Document

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))
_TEXTS = 1000
_QUERIES = 300
_MIN_TEXTS = 50
_MIN_QUERIES = 5
_DEPTH = 100


@dataclass(frozen=True)
class Calibration:
    """The chosen weight and what it rests on.

    Attributes:
        dense_weight: the encoder's share, 0..1.
        queries: pseudo-queries asked; 0 where there was too little text and the default was taken.
        scores: weight → mean nDCG@10 of the pseudo-queries.
    """

    dense_weight: float
    queries: int = 0
    scores: dict[float, float] | None = None


def calibrate(documents: Iterable[Document], *, encode: Callable[[list[str]], NDArray[np.float32]]) -> Calibration:
    """Tries every weight on pseudo-queries of an even sample of the documents.

    Args:
        documents: of the corpus.
        encode: texts → (N, D) unit vectors.
    """
    kinds: dict[str, list[Pair]] = {"titles": [], "spans": []}
    for pair in corpus_pairs(_sample(documents), spans_per_document=1):
        kinds[pair.source].append(pair)
    used = [pairs for pairs in kinds.values() if len(pairs) >= _MIN_TEXTS and len(_asked(pairs)) >= _MIN_QUERIES]
    if not used:
        return Calibration(DENSE_WEIGHT)
    curves = [_scores(pairs, encode) for pairs in used]
    scores = {weight: float(np.mean([curve[weight] for curve in curves])) for weight in WEIGHTS}
    asked = sum(len(_asked(pairs)) for pairs in used)
    return Calibration(_middle_of_best(scores), asked, scores)


def _middle_of_best(scores: dict[float, float]) -> float:
    """The middle of the weights within 0.002 of the best: a curve's top is flat, and its highest point is chance."""
    best = max(scores.values())
    near = [weight for weight, score in scores.items() if score >= best - 0.002]
    return near[len(near) // 2]


def _scores(pairs: Sequence[Pair], encode: Callable[[list[str]], NDArray[np.float32]]) -> dict[float, float]:
    """Weight → mean nDCG@10; each query has one right text, at `rank` worth 1 / log2(rank + 1)."""
    texts = [pair.positive for pair in pairs]
    asked = _asked(pairs)
    queries = [pairs[row].query for row in asked]
    lexical = LexicalIndex.build(texts)
    cosines = encode(queries) @ encode(texts).T  # (Q, N)
    totals = dict.fromkeys(WEIGHTS, 0.0)
    for place, (row, query) in enumerate(zip(asked, queries, strict=True)):
        words = _ranking(*lexical.search(query, _DEPTH))
        meaning = _ranking(*top_rows(cosines[place], _DEPTH))
        for weight in WEIGHTS:
            fused = weighted_sum(words, meaning, dense_weight=weight)
            own = fused.get(str(row), 0.0)
            better = sum(score > own for score in fused.values())
            equal = sum(score == own for score in fused.values()) - 1
            rank = 1 + better + equal / 2 if own > 0 else len(texts)
            totals[weight] += 1 / np.log2(rank + 1) if rank <= 10 else 0.0
    return {weight: total / len(queries) for weight, total in totals.items()}


def _asked(pairs: Sequence[Pair]) -> list[int]:
    """The places of the pairs whose query is asked."""
    return [place for place, pair in enumerate(pairs) if held_out(pair.document)][:_QUERIES]


def _ranking(rows: NDArray[np.int64], scores: NDArray[np.float32]) -> dict[str, float]:
    return {str(row): float(score) for row, score in zip(rows, scores, strict=True)}


def _sample(documents: Iterable[Document]) -> list[Document]:
    """An even sample (reservoir) of the documents asked for and of the others; the same for the same documents."""
    generator = random.Random(0)
    kept: dict[bool, list[Document]] = {True: [], False: []}
    seen = {True: 0, False: 0}
    for document in documents:
        asked = held_out(document.doc_id)
        limit = _QUERIES if asked else _TEXTS - _QUERIES
        seen[asked] += 1
        if len(kept[asked]) < limit:
            kept[asked].append(document)
        elif (place := generator.randrange(seen[asked])) < limit:
            kept[asked][place] = document
    return [*kept[True], *kept[False]]
