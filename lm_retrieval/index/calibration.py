"""Choosing the encoder's share in hybrid ranking without judgments.

Titles, headings and spans are taken out of documents and asked of the index itself: the share that ranks the rest of
their document best is the one to use. They must have every document against them: an encoder finds the right one of a
thousand more easily than the right one of ten thousand, and BM25 loses less. Of an encoder that was tuned, only
documents that no tuning ever learns from are asked: it knows the others by heart.

The rest of a document is scored exactly, the others as the index has them: where vectors are product-quantized, that
flatters the encoder a little.

Shapes: Q pseudo-queries, W weights, D dimensions.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.corpus.pairs import Pair, corpus_pairs, held_out
from lm_retrieval.index.fusion import DENSE_WEIGHT, fusion_depth, scaled
from lm_retrieval.index.lexical import LexicalIndex
from lm_retrieval.records import Document

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(21))
_DOCUMENTS = 1000
_QUERIES = 300
_WINDOWS = 4000  # of all the rests together: books take long to encode
_BATCH_QUERIES = 64
# Pseudo-queries flatter an encoder that was tuned on their corpus, held-out documents or not: for some they gave 0.4 to
# 0.55 on python-docs, where 0.3 to 0.4 were best on the dev split.
_TUNED_MOST = 0.4
_MIN_DOCUMENTS = 50
_MIN_QUERIES = 20


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
    dense: Callable[[NDArray[np.float32], int], Sequence[dict[int, float]]],
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
        tuned: the encoder may have learned from these documents; ask only for those that are always held out, and
            give it no more than 0.4.
    """
    sample, count = _sample(documents, tuned=tuned)
    of_id = {document.doc_id: (row, document) for row, document in sample}
    kinds: dict[str, dict[str, Pair]] = {"titles": {}, "spans": {}}
    for pair in corpus_pairs((document for _, document in sample), spans_per_document=1):
        kinds[pair.source].setdefault(pair.document, pair)  # the title, or else the first heading
    curves, queries = [], 0
    for pairs in kinds.values():
        asked = [_Asked(pair.query, *of_id[doc_id]) for doc_id, pair in pairs.items()]
        asked = _affordable(asked[:_QUERIES], windows)
        if count >= _MIN_DOCUMENTS and len(asked) >= _MIN_QUERIES:
            parts = [asked[first : first + _BATCH_QUERIES] for first in range(0, len(asked), _BATCH_QUERIES)]
            gains = [_gains(part, encode=encode, dense=dense, lexical=lexical) for part in parts]
            curves.append(np.concatenate(gains).mean(axis=0))
            queries += len(asked)
    if not curves:
        return Calibration(DENSE_WEIGHT)
    scores = dict(zip(WEIGHTS, np.mean(curves, axis=0).tolist(), strict=True))
    weight = _trusted(_middle_of_best(scores))
    return Calibration(min(weight, _TUNED_MOST) if tuned else weight, queries, scores)


def _middle_of_best(scores: dict[float, float]) -> float:
    """The middle of the weights within 0.002 of the best: a curve's top is flat, and its highest point is chance."""
    best = max(scores.values())
    near = [weight for weight, score in scores.items() if score >= best - 0.002]
    return near[len(near) // 2]


def _trusted(weight: float) -> float:
    """Half-way to the default: pseudo-queries say the direction and exaggerate.

    For the shipped encoders they gave 0.2 on NFCorpus, 0.25 on python-docs and 0.5 on SQuAD; best were 0.1 to 0.2, 0.3
    to 0.4 (dev splits) and 0.2.
    """
    return round((weight + DENSE_WEIGHT) / 2, 3)


class _Asked:
    """A pseudo-query and the document it was taken from."""

    def __init__(self, query: str, row: int, document: Document) -> None:
        self.query, self.row = query, row
        self.rest = document.content.replace(query, " ", 1).strip()
        self.windows: list[str] = []


def _affordable(asked: Sequence[_Asked], windows: Callable[[str], list[str]]) -> list[_Asked]:
    """The first of them, cut into windows, of which there are not too many."""
    found: list[_Asked] = []
    total = 0
    for one in asked:
        one.windows = windows(one.rest)
        total += len(one.windows)
        if total > _WINDOWS and len(found) >= _MIN_QUERIES:
            break
        found.append(one)
    return found


def _gains(
    asked: Sequence[_Asked],
    *,
    encode: Callable[[list[str]], NDArray[np.float32]],
    dense: Callable[[NDArray[np.float32], int], Sequence[dict[int, float]]],
    lexical: LexicalIndex,
) -> NDArray[np.float64]:
    """(Q, W) nDCG@10 of every pseudo-query with each weight."""
    depth = fusion_depth(len(lexical))
    vectors = encode([one.query for one in asked])
    own = encode([window for one in asked for window in one.windows])
    ends = np.cumsum([len(one.windows) for one in asked]).tolist()
    gains = []
    for one, vector, end, near in zip(asked, vectors, ends, dense(vectors, depth + 1), strict=True):
        cosines = own[end - len(one.windows) : end] @ vector
        rows, scores = lexical.search(one.query, depth + 1)
        words = dict(zip(rows.tolist(), scores.tolist(), strict=True))
        gains.append(
            _gain(
                _with_rest(words, one.row, lexical.score_of(one.query, one.rest) or None, depth=depth),
                _with_rest(near, one.row, float(cosines.max()) if len(cosines) else None, depth=depth),
                one.row,
            )
        )
    return np.array(gains)


def _with_rest(ranking: Mapping[int, float], row: int, score: float | None, *, depth: int) -> dict[int, float]:
    """The first of a ranking; document `row` has the score of what is left of it, None if it is not found at all."""
    others = dict(islice(((key, value) for key, value in ranking.items() if key != row), depth))
    if score is None or (len(others) == depth and score < min(others.values())):
        return others
    if len(others) == depth:
        others.popitem()
    return others | {row: score}


def _gain(lexical: dict[int, float], dense: dict[int, float], row: int) -> NDArray[np.float64]:
    """For each weight 1 / log2(rank + 1) of the right document, 0 beyond the tenth; the mean rank among equals."""
    if row not in lexical and row not in dense:
        return np.zeros(len(WEIGHTS))
    words, meaning = scaled(lexical, dense)
    keys = [row, *(key for key in words | meaning if key != row)]
    left, right = (np.array([side.get(key, 0.0) for key in keys]) for side in (words, meaning))
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
