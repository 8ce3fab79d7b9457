"""`ranked_by_similarity`: exact order, ties by place, depth."""

import numpy as np
import pytest

from lm_retrieval.evaluation.similarity import ranked_by_similarity


def test_the_nearest_come_first_and_of_equal_ones_the_earlier() -> None:
    documents = np.array([[0, 1], [1, 0], [1, 0], [0.6, 0.8]], np.float32)
    run = ranked_by_similarity(["q"], np.array([[1, 0]], np.float32), ["a", "b", "c", "d"], documents, depth=3)
    assert list(run["q"]) == ["b", "c", "d"]
    assert run["q"] == pytest.approx({"b": 1.0, "c": 1.0, "d": 0.6})
    assert all(isinstance(score, float) for score in run["q"].values())


def test_no_queries_give_no_rankings_and_queries_need_as_many_vectors() -> None:
    documents = np.zeros((2, 3), np.float32)
    assert ranked_by_similarity([], np.zeros((0, 3), np.float32), ["a", "b"], documents, depth=10) == {}
    with pytest.raises(ValueError):
        ranked_by_similarity(["q"], np.zeros((2, 3), np.float32), ["a", "b"], documents, depth=10)
