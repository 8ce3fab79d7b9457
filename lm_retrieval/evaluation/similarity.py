"""Rankings straight from vectors, without an index: for scores during training and in benchmarks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.records import Run


def ranked_by_similarity(
    query_ids: Sequence[str],
    queries: NDArray[np.float32],
    doc_ids: Sequence[str],
    documents: NDArray[np.float32],
    *,
    depth: int,
) -> Run:
    """The nearest documents of each query by inner product; of equal ones the earlier document first.

    Args:
        query_ids: Q names.
        queries: (Q, E) vectors.
        doc_ids: N names.
        documents: (N, E) vectors.
        depth: documents per query.
    """
    run: Run = {}
    for query_id, scores in zip(query_ids, queries @ documents.T, strict=True):
        best = np.argsort(-scores, kind="stable")[:depth]
        run[query_id] = {doc_ids[place]: float(scores[place]) for place in best}
    return run
