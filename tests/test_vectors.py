"""The FAISS index: exact search against numpy, the hand-written file, other factories, and what can go wrong."""

from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest

from lm_retrieval.errors import ConfigError, IndexFormatError
from lm_retrieval.index.cells import write_in_parts
from lm_retrieval.index.vectors import VectorIndex, build, choose_factory, recall

DIM = 16


def unit(count: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def in_shards(vectors: np.ndarray, size: int = 70) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: (vectors[start : start + size] for start in range(0, len(vectors), size))


def built(folder: Path, vectors: np.ndarray, factory: str = "Flat", memory_bytes: int = 1 << 30) -> Path:
    path = folder / "vectors.faiss"
    dim = vectors.shape[1]
    build(path, shards=in_shards(vectors), count=len(vectors), dim=dim, factory=factory, memory_bytes=memory_bytes)
    return path


# ---------------------------------------------------------------- exact search


@pytest.mark.parametrize("k", [1, 10, 300, 1000])
@pytest.mark.parametrize("queries", [1, 9])
def test_exact_search_equals_sorting_all_inner_products(tmp_path, k, queries):
    vectors, questions = unit(300), unit(queries, seed=1)
    found = VectorIndex.read(built(tmp_path, vectors)).search(questions, k)
    scores = questions @ vectors.T
    for row, neighbours in enumerate(found):
        expected = np.sort(scores[row])[::-1][:k]
        np.testing.assert_allclose(neighbours.scores, expected, atol=1e-6)
        np.testing.assert_allclose(scores[row][neighbours.rows], expected, atol=1e-6)  # rows that differ only tie
        assert len(set(neighbours.rows.tolist())) == min(k, 300)


def test_a_vector_is_its_own_nearest_neighbour(tmp_path):
    vectors = unit(300)
    for row, neighbours in enumerate(VectorIndex.read(built(tmp_path, vectors)).search(vectors[:40], 1)):
        assert neighbours.rows.tolist() == [row]
        assert neighbours.scores[0] == pytest.approx(1.0, abs=1e-5)


def test_equal_vectors_have_equal_scores_and_are_all_found(tmp_path):
    vectors = unit(50)
    vectors[[7, 20, 33]] = vectors[3]
    (found,) = VectorIndex.read(built(tmp_path, vectors)).search(vectors[3:4], 4)
    assert set(found.rows.tolist()) == {3, 7, 20, 33}
    assert len(set(found.scores.tolist())) == 1


def test_size_and_dimension_are_those_of_the_vectors(tmp_path):
    index = VectorIndex.read(built(tmp_path, unit(123)))
    assert (len(index), index.dim) == (123, DIM)


def test_an_empty_index_finds_nothing(tmp_path):
    index = VectorIndex.read(built(tmp_path, unit(0)))
    assert len(index) == 0
    assert [neighbours.rows.tolist() for neighbours in index.search(unit(2), 5)] == [[], []]


def test_no_queries_have_no_answers(tmp_path):
    assert VectorIndex.read(built(tmp_path, unit(20))).search(unit(0), 5) == []


@pytest.mark.parametrize(("documents", "chunks"), [(300, 1), (20, 30), (1, 40), (150, 2)])
@pytest.mark.parametrize("k", [1, 7, 500])
def test_a_document_is_as_near_as_its_nearest_vector(tmp_path, documents, chunks, k):
    vectors, queries = unit(documents * chunks), unit(3, seed=1)
    owners = np.repeat(np.arange(documents), chunks)
    found = VectorIndex.read(built(tmp_path, vectors)).search_documents(queries, k, owners=owners)
    best = (queries @ vectors.T).reshape(len(queries), documents, chunks).max(axis=2)
    for scores, ranking in zip(best, found, strict=True):
        assert list(ranking) == np.argsort(-scores)[:k].tolist()
        assert list(ranking.values()) == pytest.approx(np.sort(scores)[::-1][:k].tolist(), abs=1e-6)


def test_no_more_is_looked_at_than_the_documents_take(tmp_path, monkeypatch):
    index = VectorIndex.read(built(tmp_path, unit(400)))
    depths = []
    search = index.search
    monkeypatch.setattr(index, "search", lambda queries, k: depths.append(k) or search(queries, k))
    single = np.delete(np.arange(401), 5)  # a document without a vector
    index.search_documents(unit(1, seed=1), 50, owners=single)
    index.search_documents(unit(1, seed=1), 1000, owners=single)
    index.search_documents(unit(1, seed=1), 1000, owners=np.repeat(np.arange(4), 100))
    assert depths[:2] == [50, 401]
    assert max(depths[2:]) <= 8 * 64
    assert index.search_documents(unit(0), 5, owners=single) == []


@pytest.mark.parametrize("count", [0, 1, 200])
def test_the_exact_file_is_byte_for_byte_the_one_that_faiss_writes(tmp_path, count):
    vectors = unit(count)
    reference = faiss.IndexFlatIP(DIM)
    reference.add(vectors)
    faiss.write_index(reference, str(tmp_path / "reference"))
    assert built(tmp_path, vectors).read_bytes() == (tmp_path / "reference").read_bytes()


def test_building_again_replaces_the_file_and_leaves_no_other(tmp_path):
    built(tmp_path, unit(30))
    path = built(tmp_path, unit(40))
    assert len(VectorIndex.read(path)) == 40
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


# ---------------------------------------------------------------- other factories


@pytest.mark.parametrize(("factory", "least"), [("HNSW16", 0.9), ("IVF8,Flat", 1.0), ("SQ8", 0.9)])
def test_other_factories_find_nearly_what_exact_search_finds(tmp_path, factory, least):
    vectors, questions = unit(600), unit(50, seed=1)
    index = VectorIndex.read(built(tmp_path, vectors, factory))
    assert (len(index), index.dim) == (600, DIM)
    exact = np.argsort(-(questions @ vectors.T), axis=1)[:, :10]
    hits = [len(np.intersect1d(n.rows, e)) for n, e in zip(index.search(questions, 10), exact, strict=True)]
    assert np.mean(hits) / 10 >= least


@pytest.mark.parametrize("factory", ["HNSW16", "IVF8,Flat"])
def test_their_scores_are_inner_products_best_first(tmp_path, factory):
    vectors, questions = unit(600), unit(5, seed=1)
    for question, found in zip(
        questions, VectorIndex.read(built(tmp_path, vectors, factory)).search(questions, 20), strict=True
    ):
        np.testing.assert_allclose(found.scores, vectors[found.rows] @ question, atol=1e-5)
        assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("factory", ["IVF64,Flat", "HNSW8"])
def test_where_an_index_reaches_fewer_than_asked_for_the_answer_is_shorter_and_never_holds_a_minus_one(
    tmp_path, factory
):
    vectors = unit(400)
    found = VectorIndex.read(built(tmp_path, vectors, factory)).search(vectors[:20], 400)
    assert min(len(neighbours.rows) for neighbours in found) < 400  # it does not reach everything
    for row, neighbours in enumerate(found):
        assert neighbours.rows.min() >= 0
        assert len(set(neighbours.rows.tolist())) == len(neighbours.rows) == len(neighbours.scores)
        assert neighbours.rows[0] == row


def test_cells_are_probed_by_the_sixteenth_part_and_at_least_eight(tmp_path):
    vectors = unit(400)
    for factory, probes in (("IVF16,Flat", 8), ("IVF160,Flat", 10)):
        index = faiss.read_index(str(built(tmp_path, vectors, factory)))
        assert faiss.extract_index_ivf(index).nprobe == probes


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("factory", ["IVF8,SQ8", "IVF4,PQ4", "PCA8,IVF8,Flat"])
@pytest.mark.parametrize("memory_bytes", [2, 3000, 20_000])
def test_an_index_built_in_parts_is_the_file_that_memory_for_all_would_give(tmp_path, factory, memory_bytes):
    vectors = unit(900)
    at_once = built(tmp_path / "once", vectors, factory)
    # what is learned from fewer vectors is another index: only the adding is bounded here
    in_parts = tmp_path / "parts" / "vectors.faiss"
    in_parts.parent.mkdir()
    index = faiss.read_index(str(at_once))
    index.reset()
    write_in_parts(in_parts, index, in_shards(vectors)(), memory_bytes=memory_bytes)
    assert in_parts.read_bytes() == at_once.read_bytes()
    assert list(in_parts.parent.iterdir()) == [in_parts]


def test_with_little_memory_cells_are_built_in_parts_and_graphs_refused(tmp_path):
    vectors = unit(3000)
    found = VectorIndex.read(built(tmp_path / "a", vectors, "IVF16,SQ8", memory_bytes=30_000)).search(vectors[:50], 1)
    assert sum(neighbours.rows[0] == row for row, neighbours in enumerate(found)) >= 48
    with pytest.raises(ConfigError, match=r"'HNSW16' needs about .* GB of memory for 3,000 vectors.*--max-memory"):
        built(tmp_path / "b", vectors, "HNSW16", memory_bytes=30_000)
    assert not (tmp_path / "b" / "vectors.faiss").exists()


# ---------------------------------------------------------------- recall


@pytest.mark.parametrize("count", [5, 150, 700])
def test_recall_of_exact_search_is_one(tmp_path, count):
    vectors = unit(count)
    assert recall(built(tmp_path, vectors), shards=in_shards(vectors), count=count) == 1.0


def test_recall_is_the_share_of_the_exact_neighbours_that_are_found(tmp_path):
    vectors = unit(200)
    path = built(tmp_path, vectors, "IVF64,Flat")
    exact = np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")[:, :10]
    found = VectorIndex.read(path).search(vectors, 10)
    hits = sum(len(np.intersect1d(e, n.rows)) for e, n in zip(exact, found, strict=True))
    measured = recall(path, shards=in_shards(vectors), count=200)
    assert measured == pytest.approx(hits / 2000)
    assert measured < 1


# ---------------------------------------------------------------- choices and errors


@pytest.mark.parametrize(
    ("count", "factory"),
    [
        (0, "Flat"),
        (200_000, "Flat"),
        (200_001, "IVF2048,SQ8"),
        (1_000_000, "IVF4096,SQ8"),
        (16_000_000, "IVF16384,SQ8"),
        (16_000_001, "IVF16384,PQ64"),
        (20_000_000, "IVF16384,PQ64"),
    ],
)
def test_the_size_chooses_the_factory(count, factory):
    assert choose_factory(count) == factory


@pytest.mark.parametrize("factory", ["Nonsense", "", "PQ5", "IVF8,PQ64"])
def test_a_factory_that_faiss_does_not_know_for_this_dimension_is_an_error(tmp_path, factory):
    with pytest.raises(ConfigError, match=f"factory '{factory}' is unknown to FAISS for 16 dimensions"):
        built(tmp_path, unit(50), factory)
    assert list(tmp_path.iterdir()) == []


def test_more_cells_than_vectors_are_an_error(tmp_path):
    with pytest.raises(ConfigError, match="'IVF256,Flat' cannot be trained on 50 vectors"):
        built(tmp_path, unit(50), "IVF256,Flat")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(IndexFormatError, match="missing; run `lmr embed` again"):
        VectorIndex.read(tmp_path / "vectors.faiss")


@pytest.mark.parametrize("factory", ["Flat", "HNSW8"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:3],
        lambda data: data[:20],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: bytes(len(data)),
        lambda data: data[:4] + b"\xff" * (len(data) - 4),
    ],
    ids=["empty", "3 bytes", "20 bytes", "half", "one byte short", "zeros", "garbage"],
)
def test_a_damaged_file_is_an_error_that_says_what_to_do(tmp_path, factory, damage):
    path = built(tmp_path, unit(200), factory)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IndexFormatError, match="damaged FAISS index; run `lmr index`"):
        VectorIndex.read(path)
