"""Putting two rankings together. Pure functions on document → score; a document is an id or a row."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

RRF_K = 60
_FUSION_DEPTH = 300
_LEAST_FUSION_DEPTH = 100
# where a corpus is too small to calibrate on, and what a calibrated weight is drawn to; the dev splits of NFCorpus and
# python-docs are flat around it
DENSE_WEIGHT = 0.3


def min_max(scores: Mapping[Key, float], *, low: float | None = None) -> dict[Key, float]:
    """Scores moved to 0..1; all 1 where they are equal.

    Args:
        scores: at least `low`.
        low: what becomes 0; the smallest score when None.
    """
    if not scores:
        return {}
    low, high = min(scores.values()) if low is None else low, max(scores.values())
    width = high - low
    return {key: (score - low) / width if width > 0 else 1.0 for key, score in scores.items()}


def fusion_depth(documents: int) -> int:
    """How many of each ranking are joined: 300 of many documents, a quarter of few, which may be long.

    To find nearly every document, nearly every vector must be looked at.
    """
    return min(_FUSION_DEPTH, max(_LEAST_FUSION_DEPTH, documents // 4))


def scaled(lexical: Mapping[Key, float], dense: Mapping[Key, float]) -> tuple[dict[Key, float], dict[Key, float]]:
    """Both rankings in 0..1, by min-max.

    The minimum of BM25 is 0, that of a document with none of the words: the last of three that were found must not
    count as if it had not been (Bruch et al., 2023, doi:10.1145/3596512). Of cosines the smallest found is taken.
    """
    return min_max(lexical, low=0.0), min_max(dense)


def weighted_sum(lexical: Mapping[Key, float], dense: Mapping[Key, float], *, dense_weight: float) -> dict[Key, float]:
    """`(1 - w)`·lexical + `w`·dense, both `scaled`; a document missing from one side counts 0 there."""
    return _sum(*scaled(lexical, dense), weight=dense_weight)


def interpolated(first: Mapping[Key, float], second: Mapping[Key, float], *, weight: float) -> dict[Key, float]:
    """`(1 - w)`·first + `w`·second, each by min-max."""
    return _sum(min_max(first), min_max(second), weight=weight)


def reciprocal_rank(*rankings: Mapping[Key, float], k: int = RRF_K) -> dict[Key, float]:
    """Σ 1 / (k + rank), ranks from 1 (Cormack et al., 2009, doi:10.1145/1571941.1572114)."""
    fused: dict[Key, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(sorted(ranking, key=lambda key: -ranking[key]), start=1):
            fused[key] = fused.get(key, 0.0) + 1 / (k + rank)
    return fused


def _sum(left: Mapping[Key, float], right: Mapping[Key, float], *, weight: float) -> dict[Key, float]:
    return {key: (1 - weight) * left.get(key, 0.0) + weight * right.get(key, 0.0) for key in [*left, *right]}
