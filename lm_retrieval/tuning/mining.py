"""Hard negatives: documents that look right for a query and are not."""

import random
from collections.abc import Mapping, Sequence

import numpy as np

from lm_retrieval.corpus.pairs import Pair
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.index.lexical import LexicalIndex
from lm_retrieval.records import Document

_DEPTH = 50
_SKIP = 5  # the very first ranks are too often relevant, only not judged


def mine_negatives(
    pairs: Sequence[Pair], documents: Mapping[str, Document], *, count: int, encoder: Encoder | None
) -> list[Pair]:
    """Gives each pair `count` documents that rank high for its query but are not known to answer it.

    Candidates come from BM25 and, where there is one, from the encoder. Likely false negatives are left out: those
    the encoder finds nearly as close to the query as the positive (Moreira et al., 2024, arXiv:2407.15831).
    """
    doc_ids = [doc_id for doc_id, document in documents.items() if document.content.strip()]
    contents = [documents[doc_id].content for doc_id in doc_ids]
    lexical = LexicalIndex.build(contents)
    relevant: dict[str, set[str]] = {}
    for pair in pairs:
        relevant.setdefault(pair.query, set()).add(pair.document)
    place = {doc_id: number for number, doc_id in enumerate(doc_ids)}
    vectors = encoder.encode(contents) if encoder else None
    generator = random.Random(0)
    mined: dict[str, list[int]] = {}
    for query, known in relevant.items():
        rows, _ = lexical.search(query, _DEPTH)
        candidates = rows[_SKIP:].tolist()
        if encoder is not None and vectors is not None:
            scores = vectors @ encoder.encode(query)
            candidates += np.argsort(-scores, kind="stable")[_SKIP:_DEPTH].tolist()
            best = max((scores[place[doc_id]] for doc_id in known if doc_id in place), default=1.0)
            candidates = [row for row in candidates if scores[row] < 0.95 * best]
        candidates = sorted({row for row in candidates if doc_ids[row] not in known})
        while len(candidates) < count:
            candidates.append(generator.randrange(len(doc_ids)))
        mined[query] = candidates
    return [
        pair._replace(negatives=tuple(contents[row] for row in generator.sample(mined[pair.query], count)))
        for pair in pairs
    ]
