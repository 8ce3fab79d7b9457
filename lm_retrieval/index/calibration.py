"""Choosing the encoder's share in hybrid ranking without judgments.

Titles and spans are taken out of documents and asked of the index itself: the share that ranks the rest of their
document best is the one to use. Such pseudo-queries are easier than people's, but they weigh words against meaning much
as people's do. They must have every document against them: an encoder finds the right one of a thousand more easily
than the right one of ten thousand, and BM25 loses less. Of an encoder that was tuned, only documents that no tuning
ever learns from are asked: it knows the others by heart.

Shapes: Q pseudo-queries, D dimensions.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.corpus.pairs import Pair, corpus_pairs, held_out
from lm_retrieval.index.fusion import DENSE_WEIGHT, FUSION_DEPTH, scaled
from lm_retrieval.index.lexical import LexicalIndex
from lm_retrieval.records import Document

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))
_DOCUMENTS = 1000
_QUERIES = 300
_MIN_DOCUMENTS = 50
_MIN_QUERIES = 20
Ranking = dict[int, float]
"""Row of a document → score, best first."""


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
    documents: Iterable[Document],
    *,
    encode: Callable[[list[str]], NDArray[np.float32]],
    windows: Callable[[str], list[str]],
    dense: Callable[[NDArray[np.float32], int], Sequence[Ranking]],
    lexical: LexicalIndex,
    tuned: bool = False,
) -> Calibration:
    """Tries every weight on pseudo-queries of an even sample of the documents.

    Args:
        documents: of the index, by row.
        encode: texts → (Q, D) unit vectors.
        windows: cuts a text as those of the documents were cut.
        dense: (Q, D) vectors and how many documents are wanted → the nearest of the index.
        lexical: BM25 of the index.
        tuned: the encoder may have learned from these documents; ask only for those that are always held out.
    """
    sample, count = _sample(documents, tuned=tuned)
    rows = {document.doc_id: row for row, document in sample}
    kinds: dict[str, list[Pair]] = {"titles": [], "spans": []}
    for pair in corpus_pairs((document for _, document in sample), spans_per_document=1):
        kinds[pair.source].append(pair)
    curves, queries = [], 0
    for pairs in (pairs[:_QUERIES] for pairs in kinds.values()):
        if count < _MIN_DOCUMENTS or len(pairs) < _MIN_QUERIES:
            continue
        asked = encode([pair.query for pair in pairs])
        cosines = _best_windows(asked, [windows(pair.positive) for pair in pairs], encode)
        gains = []
        for pair, near, cosine in zip(pairs, dense(asked, FUSION_DEPTH + 1), cosines, strict=True):
            row = rows[pair.document]
            found = (array.tolist() for array in lexical.search(pair.query, FUSION_DEPTH + 1))
            left = lexical.score_of(pair.query, pair.positive)
            words = _with_own(dict(zip(*found, strict=True)), row, left if left > 0 else None)
            gains.append(_gains(words, _with_own(near, row, cosine), row))
        curves.append(np.mean(gains, axis=0))
        queries += len(pairs)
    if not curves:
        return Calibration(DENSE_WEIGHT)
    scores = dict(zip(WEIGHTS, np.mean(curves, axis=0).tolist(), strict=True))
    return Calibration(_trusted(_middle_of_best(scores)), queries, scores)


def _middle_of_best(scores: dict[float, float]) -> float:
    """The middle of the weights within 0.002 of the best: a curve's top is flat, and its highest point is chance."""
    best = max(scores.values())
    near = [weight for weight, score in scores.items() if score >= best - 0.002]
    return near[len(near) // 2]


def _trusted(weight: float) -> float:
    """Half-way from the default: pseudo-queries say the direction and exaggerate.

    For the shipped encoders, and some tuned, they gave 0.2 to 0.3 on NFCorpus, 0.25 to 0.55 on python-docs and
    0.5 on SQuAD; best were 0.1 to 0.3, 0.3 to 0.4 (dev splits) and 0.2.
    """
    return round((weight + DENSE_WEIGHT) / 2, 3)


def _best_windows(
    queries: NDArray[np.float32], windows: Sequence[list[str]], encode: Callable[[list[str]], NDArray[np.float32]]
) -> list[float]:
    """For each query the cosine of the nearest window of its own text; -1 for a text without any."""
    vectors = encode([window for cut in windows for window in cut])
    ends = np.cumsum([len(cut) for cut in windows]).tolist()
    return [
        float((vectors[end - len(cut) : end] @ query).max(initial=-1.0))
        for query, cut, end in zip(queries, windows, ends, strict=True)
    ]


def _with_own(ranking: Mapping[int, float], row: int, score: float | None) -> Ranking:
    """The first of a ranking; document `row` has the score of what is left of it, None if it is not found at all."""
    others = dict(islice(((key, value) for key, value in ranking.items() if key != row), FUSION_DEPTH))
    if score is None or (len(others) == FUSION_DEPTH and score < min(others.values())):
        return others
    if len(others) == FUSION_DEPTH:
        others.popitem()
    return others | {row: score}


def _gains(lexical: Ranking, dense: Ranking, row: int) -> NDArray[np.float64]:
    """For each weight 1 / log2(rank + 1) of the right document, 0 beyond the tenth; the mean rank among equals."""
    if row not in lexical and row not in dense:
        return np.zeros(len(WEIGHTS))
    words, meaning = scaled(lexical, dense)
    found = [row, *(key for key in words | meaning if key != row)]
    left, right = (np.array([side.get(key, 0.0) for key in found]) for side in (words, meaning))
    weights = np.array(WEIGHTS)[:, None]
    fused = (1 - weights) * left + weights * right
    own = fused[:, :1]
    rank = 1 + (fused > own).sum(axis=1) + ((fused == own).sum(axis=1) - 1) / 2
    return np.where((rank <= 10) & (own[:, 0] > 0), 1 / np.log2(rank + 1), 0.0)


def _sample(documents: Iterable[Document], *, tuned: bool) -> tuple[list[tuple[int, Document]], int]:
    """Rows and documents of an even sample (reservoir), in random order, and how many there are in all.

    The same for the same documents; of a tuned encoder only those that are held out.
    """
    generator = random.Random(0)
    kept: list[tuple[int, Document]] = []
    count = seen = 0
    for row, document in enumerate(documents):
        count += 1
        if tuned and not held_out(document.doc_id):
            continue
        seen += 1
        if len(kept) < _DOCUMENTS:
            kept.append((row, document))
        elif (place := generator.randrange(seen)) < _DOCUMENTS:
            kept[place] = (row, document)
    generator.shuffle(kept)
    return kept, count
