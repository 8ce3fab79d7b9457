"""Hard negatives: documents that look right for a query and are not."""

import random
from collections.abc import Mapping, Sequence

import numpy as np

from lm_retrieval.corpus.pairs import Pair
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.index.lexical import LexicalIndex
from lm_retrieval.records import Document

_DEPTH = 50
_NEARLY = 0.95
_SKIP = 5  # the very first ranks are too often relevant, only not judged


def mine_negatives(
    pairs: Sequence[Pair], documents: Mapping[str, Document], *, count: int, encoder: Encoder | None
) -> list[Pair]:
    """Gives each pair `count` documents that rank high for its query but are not known to answer it.

    Candidates come from BM25 and, where there is one, from the encoder. Likely false negatives are left out: those
    the encoder finds nearly as close to the query as the positive (Moreira et al., 2024, arXiv:2407.15831).
    """
    relevant: dict[str, set[str]] = {}
    answers: dict[str, set[str]] = {}
    for pair in pairs:
        relevant.setdefault(pair.query, set()).add(pair.document)
        answers.setdefault(pair.query, set()).add(pair.positive)
    generator = random.Random(0)
    miner = _Miner(documents, encoder)
    mined: dict[str, list[str]] = {}
    for query, known in relevant.items():
        found = miner.texts(miner.near(query, known), known | answers[query])
        if len(found) < count:  # few share a word with the query: then any other document will do
            others = generator.sample(range(len(miner.doc_ids)), min(len(miner.doc_ids), count + len(known)))
            found = list(dict.fromkeys([*found, *miner.texts(others, known | answers[query])]))[:count]
        mined[query] = found
    return [
        pair._replace(negatives=tuple(generator.sample(mined[pair.query], min(count, len(mined[pair.query])))))
        for pair in pairs
    ]


class _Miner:
    """Documents that are near a query, by words and by meaning."""

    def __init__(self, documents: Mapping[str, Document], encoder: Encoder | None) -> None:
        self.doc_ids = [doc_id for doc_id, document in documents.items() if document.content.strip()]
        self._contents = [documents[doc_id].content for doc_id in self.doc_ids]
        self._rows = {doc_id: row for row, doc_id in enumerate(self.doc_ids)}
        self._lexical = LexicalIndex.build(self._contents)
        self._encoder = encoder
        self._vectors = encoder.encode(self._contents) if encoder else None

    def near(self, query: str, known: set[str]) -> list[int]:
        """Rows of candidates."""
        candidates: list[int] = self._lexical.search(query, _DEPTH)[0][_SKIP:].tolist()
        if self._encoder is None or self._vectors is None:
            return candidates
        scores = self._vectors @ self._encoder.encode(query)
        candidates += np.argsort(-scores, kind="stable")[_SKIP:_DEPTH].tolist()
        best = max((scores[self._rows[doc_id]] for doc_id in known if doc_id in self._rows), default=1.0)
        return [row for row in candidates if scores[row] < _NEARLY * best]

    def texts(self, rows: Sequence[int], known: set[str]) -> list[str]:
        """Their texts, without those whose id or text is known to answer."""
        wrong = (row for row in rows if self.doc_ids[row] not in known and self._contents[row] not in known)
        return list(dict.fromkeys(self._contents[row] for row in wrong))
