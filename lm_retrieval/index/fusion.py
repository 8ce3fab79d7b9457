"""Putting two rankings together. Pure functions on document → score; a document is an id or a row."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

RRF_K = 60
# where a corpus is too small to calibrate on; the dev splits of NFCorpus and python-docs are flat around it
DENSE_WEIGHT = 0.3


def min_max(scores: Mapping[Key, float]) -> dict[Key, float]:
    """Scores moved to 0..1; all 1 where they are equal."""
    if not scores:
        return {}
    low, high = min(scores.values()), max(scores.values())
    width = high - low
    return {key: (score - low) / width if width > 0 else 1.0 for key, score in scores.items()}


def weighted_sum(lexical: Mapping[Key, float], dense: Mapping[Key, float], *, dense_weight: float) -> dict[Key, float]:
    """`(1 - w)`·lexical + `w`·dense after min-max scaling; a document missing from one side counts 0 there."""
    left, right = min_max(lexical), min_max(dense)
    return {key: (1 - dense_weight) * left.get(key, 0.0) + dense_weight * right.get(key, 0.0) for key in left | right}


def reciprocal_rank(*rankings: Mapping[Key, float], k: int = RRF_K) -> dict[Key, float]:
    """Σ 1 / (k + rank), ranks from 1 (Cormack et al., 2009, doi:10.1145/1571941.1572114)."""
    fused: dict[Key, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(sorted(ranking, key=lambda key: -ranking[key]), start=1):
            fused[key] = fused.get(key, 0.0) + 1 / (k + rank)
    return fused
