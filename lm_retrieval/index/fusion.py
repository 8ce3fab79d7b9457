"""Putting two rankings together. Pure functions on doc_id → score."""

from collections.abc import Mapping

RRF_K = 60
# where a corpus is too small to calibrate on; the dev splits of NFCorpus and python-docs are flat around it
DENSE_WEIGHT = 0.3


def min_max(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores moved to 0..1; all 1 where they are equal."""
    if not scores:
        return {}
    low, high = min(scores.values()), max(scores.values())
    width = high - low
    return {doc_id: (score - low) / width if width > 0 else 1.0 for doc_id, score in scores.items()}


def weighted_sum(lexical: Mapping[str, float], dense: Mapping[str, float], *, dense_weight: float) -> dict[str, float]:
    """`(1 - w)`·lexical + `w`·dense after min-max scaling; a document missing from one side counts 0 there."""
    left, right = min_max(lexical), min_max(dense)
    return {
        doc_id: (1 - dense_weight) * left.get(doc_id, 0.0) + dense_weight * right.get(doc_id, 0.0)
        for doc_id in left | right
    }


def reciprocal_rank(*rankings: Mapping[str, float], k: int = RRF_K) -> dict[str, float]:
    """Σ 1 / (k + rank), ranks from 1 (Cormack et al., 2009, doi:10.1145/1571941.1572114)."""
    fused: dict[str, float] = {}
    for ranking in rankings:
        for rank, doc_id in enumerate(sorted(ranking, key=lambda doc_id: -ranking[doc_id]), start=1):
            fused[doc_id] = fused.get(doc_id, 0.0) + 1 / (k + rank)
    return fused
