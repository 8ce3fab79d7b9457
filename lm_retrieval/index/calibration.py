"""Choosing the encoder's share in hybrid ranking without judgments.

Titles and spans are taken out of documents and asked for: the share that ranks the rest of their document best is the
one to use. Such pseudo-queries are easier than people's, but they weigh words against meaning much as people's do.
Of an encoder that was tuned, only documents that no tuning ever learns from are asked: it knows the others by heart.

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
_MIN_QUERIES = 20
_DEPTH = 100
# Pseudo-queries flatter an encoder that was tuned on their corpus, held-out documents or not: they gave it 0.5 and 1.0
# where 0.3 and 0.4 were best on the dev splits of NFCorpus and python-docs.
_TUNED_MOST = 0.4


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


def calibrate(
    documents: Iterable[Document], *, encode: Callable[[list[str]], NDArray[np.float32]], tuned: bool = False
) -> Calibration:
    """Tries every weight on pseudo-queries of an even sample of the documents.

    Args:
        documents: of the corpus.
        encode: texts → (N, D) unit vectors.
        tuned: the encoder may have learned from these documents; ask only for those that are always held out, and
            trust the answer up to a share of 0.4.
    """
    sample = _sample(documents, tuned=tuned)
    asked = {document.doc_id for document in sample if not tuned or held_out(document.doc_id)}
    kinds: dict[str, list[Pair]] = {"titles": [], "spans": []}
    for pair in corpus_pairs(sample, spans_per_document=1):
        kinds[pair.source].append(pair)
    curves, queries = [], 0
    for pairs in kinds.values():
        rows = [row for row, pair in enumerate(pairs) if pair.document in asked][:_QUERIES]
        if len(pairs) >= _MIN_TEXTS and len(rows) >= _MIN_QUERIES:
            curves.append(_scores(pairs, rows, encode))
            queries += len(rows)
    if not curves:
        return Calibration(DENSE_WEIGHT)
    scores = {weight: float(np.mean([curve[weight] for curve in curves])) for weight in WEIGHTS}
    weight = _middle_of_best(scores)
    return Calibration(min(weight, _TUNED_MOST) if tuned else weight, queries, scores)


def _middle_of_best(scores: dict[float, float]) -> float:
    """The middle of the weights within 0.002 of the best: a curve's top is flat, and its highest point is chance."""
    best = max(scores.values())
    near = [weight for weight, score in scores.items() if score >= best - 0.002]
    return near[len(near) // 2]


def _scores(
    pairs: Sequence[Pair], asked: Sequence[int], encode: Callable[[list[str]], NDArray[np.float32]]
) -> dict[float, float]:
    """Weight → mean nDCG@10; each query has one right text, at `rank` worth 1 / log2(rank + 1)."""
    texts = [pair.positive for pair in pairs]
    queries = [pairs[row].query for row in asked]
    lexical = LexicalIndex.build(texts)
    cosines = encode(queries) @ encode(texts).T  # (Q, N)
    totals = dict.fromkeys(WEIGHTS, 0.0)
    for row, query, similar in zip(asked, queries, cosines, strict=True):
        words = _ranking(*lexical.search(query, _DEPTH))
        meaning = _ranking(*top_rows(similar, _DEPTH))
        for weight in WEIGHTS:
            fused = weighted_sum(words, meaning, dense_weight=weight)
            own = fused.get(str(row), 0.0)
            better = sum(score > own for score in fused.values())
            equal = sum(score == own for score in fused.values()) - 1
            rank = 1 + better + equal / 2 if own > 0 else len(texts)
            totals[weight] += 1 / np.log2(rank + 1) if rank <= 10 else 0.0
    return {weight: total / len(queries) for weight, total in totals.items()}


def _ranking(rows: NDArray[np.int64], scores: NDArray[np.float32]) -> dict[str, float]:
    return {str(row): float(score) for row, score in zip(rows, scores, strict=True)}


def _sample(documents: Iterable[Document], *, tuned: bool = False) -> list[Document]:
    """An even sample (reservoir), in random order; the same for the same documents.

    For a tuned encoder held-out documents are sampled apart, so that enough of them are there to be asked for.
    """
    generator = random.Random(0)
    limits = {True: _QUERIES, False: _TEXTS - _QUERIES} if tuned else {False: _TEXTS}
    kept: dict[bool, list[Document]] = {part: [] for part in limits}
    seen = dict.fromkeys(limits, 0)
    for document in documents:
        part = tuned and held_out(document.doc_id)
        seen[part] += 1
        if len(kept[part]) < limits[part]:
            kept[part].append(document)
        elif (place := generator.randrange(seen[part])) < limits[part]:
            kept[part][place] = document
    chosen = [document for part in kept.values() for document in part]
    generator.shuffle(chosen)
    return chosen
