"""The encoder's share in hybrid search: measured on pseudo-queries, stored with the index, used by search."""

import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_texts, write_jsonl

from lm_retrieval.artifacts import read_manifest
from lm_retrieval.corpus import open_corpus
from lm_retrieval.corpus.pairs import corpus_pairs, held_out
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import ConfigError, IndexFormatError
from lm_retrieval.index import builder, calibration
from lm_retrieval.index.builder import build_index
from lm_retrieval.index.calibration import WEIGHTS, Calibration, calibrate
from lm_retrieval.index.fusion import DENSE_WEIGHT
from lm_retrieval.index.lexical import LexicalIndex
from lm_retrieval.records import Document
from lm_retrieval.search import Searcher

Encode = Callable[[list[str]], np.ndarray]


def random_encoder(texts: list[str], *, dim: int = 16) -> np.ndarray:
    """The same random direction for the same text: knows nothing about it."""
    rows = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(dim) for text in texts]
    return np.array([row / np.linalg.norm(row) for row in rows], np.float32)


def dotted(count: int) -> list[Document]:
    """Documents of the same few words: only the dots after each word, which BM25 does not see, say which it is."""
    generator = np.random.default_rng(0)
    documents = []
    for number in range(count):
        words = [f"{word}{'.' * (number + 1)}" for word in generator.choice(["sea", "sky", "sun", "ice"], 40)]
        documents.append(Document(str(number), " ".join(words[:3]), " ".join(words)))
    return documents


def dot_encoder(texts: list[str]) -> np.ndarray:
    """Knows exactly which document a text is from."""
    return np.eye(128, dtype=np.float32)[[text.split()[0].count(".") for text in texts]]


def named(count: int) -> list[Document]:
    """Documents with words of their own: BM25 finds each."""
    return [
        Document(
            str(number), f"own{number} word{number}", " ".join(f"own{number} word{number} part{n}" for n in range(12))
        )
        for number in range(count)
    ]


def scores_by_hand(documents: list[Document], encode: Encode, weight: float) -> float:
    """Mean nDCG@10 over titles and over spans: each asked of an index in which its document lacks it."""
    texts = [document.content for document in documents]
    kinds = []
    for kind in ("titles", "spans"):
        gains = []
        for pair in (pair for pair in corpus_pairs(documents, spans_per_document=1) if pair.source == kind):
            row = next(row for row, document in enumerate(documents) if document.doc_id == pair.document)
            changed = [*texts[:row], pair.positive, *texts[row + 1 :]]
            words = LexicalIndex.build(texts).scores(pair.query)
            words[row] = LexicalIndex.build(texts).score_of(pair.query, pair.positive)
            cosines = encode(changed) @ encode([pair.query])[0]
            fused = (1 - weight) * words / (words.max() or 1)
            fused += weight * (cosines - cosines.min()) / np.ptp(cosines)
            rank = 1 + (fused > fused[row]).sum() + ((fused == fused[row]).sum() - 1) / 2
            gains.append(1 / math.log2(rank + 1) if rank <= 10 and fused[row] > 0 else 0.0)
        kinds.append(np.mean(gains))
    return float(np.mean(kinds))


def calibrated(documents: list[Document], encode: Encode, *, tuned: bool = False) -> Calibration:
    """Calibrates an index of these documents that is searched exactly, one window each."""
    texts = [document.content for document in documents]
    vectors = encode(texts) if texts else np.zeros((0, 1), np.float32)

    def dense(queries: np.ndarray, k: int) -> list[dict[int, float]]:
        best = [np.argsort(-cosines, kind="stable")[:k] for cosines in queries @ vectors.T]
        return [
            {int(row): float(query @ vectors[row]) for row in rows} for query, rows in zip(queries, best, strict=True)
        ]

    lexical = LexicalIndex.build(texts)
    return calibrate(documents, encode=encode, windows=lambda text: [text], dense=dense, lexical=lexical, tuned=tuned)


def test_an_encoder_that_knows_everything_counts_much() -> None:
    found = calibrated(dotted(80), dot_encoder)
    assert found.dense_weight > DENSE_WEIGHT
    assert found.scores is not None
    assert found.scores[1.0] == pytest.approx(1.0)
    assert found.scores[0.0] < 0.5
    assert found.queries == 160


def test_an_encoder_that_knows_nothing_counts_little() -> None:
    found = calibrated(named(80), random_encoder)
    assert found.dense_weight < DENSE_WEIGHT
    assert found.scores is not None
    assert found.scores[0.0] == pytest.approx(1.0)
    assert found.scores[1.0] < 0.2


def test_scores_are_the_ndcg_of_every_weight() -> None:
    texts = make_texts(70, seed=4, sentences=8)
    documents = [Document(str(n), " ".join(text.split()[:4]), text) for n, text in enumerate(texts)]
    found = calibrated(documents, random_encoder)
    assert found.scores is not None
    assert list(found.scores) == list(WEIGHTS)
    assert tuple(number / 20 for number in range(21)) == WEIGHTS
    for weight in (0.0, 0.25, 0.6, 1.0):
        assert found.scores[weight] == pytest.approx(scores_by_hand(documents, random_encoder, weight), abs=1e-6), (
            weight
        )


def test_every_document_of_the_index_stands_against_the_right_one() -> None:
    """Among few texts the encoder finds as much as BM25; among many alike for it, it finds less."""
    few = named(60)
    crowd = [Document(f"c{n}", "", f"own{n % 60} {'other ' * 12}") for n in range(2000)]

    def own_word(texts: list[str]) -> np.ndarray:
        return random_encoder([next(word for word in text.split() if word.startswith("own")) for text in texts])

    alone, crowded = calibrated(few, own_word), calibrated([*few, *crowd], own_word)
    assert alone.scores is not None
    assert crowded.scores is not None
    assert alone.scores[1.0] > 0.9
    assert crowded.scores[1.0] < 0.5
    assert crowded.scores[0.0] > 0.9


@pytest.mark.parametrize(("windows", "gain"), [(["b", "a"], 1.0), (["a", "b", "b"], 1.0), (["b"], 0.0), ([], 0.0)])
def test_a_long_document_is_as_near_as_its_best_window(windows: list[str], gain: float) -> None:
    directions = {"what was asked": [1.0, 0.0], "a": [1.0, 0.0], "b": [0.0, 1.0]}
    asked = calibration._Asked("what was asked", 0, Document("own", "what was asked", "text"))
    asked.windows = windows
    gains = calibration._gains(
        [asked],
        encode=lambda texts: np.array([directions[text] for text in texts], np.float32).reshape(-1, 2),
        dense=lambda queries, k: [{0: 1.0, 1: 0.5, 2: 0.2}],
        lexical=LexicalIndex.build(["", "", ""]),
    )
    assert gains.shape == (1, len(WEIGHTS))
    assert gains[0, -1] == gain


def test_what_is_left_of_a_document_takes_its_place() -> None:
    assert calibration._with_rest({7: 0.9, 1: 0.8, 2: 0.7, 3: 0.6}, 7, 0.75, depth=3) == {1: 0.8, 2: 0.7, 7: 0.75}
    assert calibration._with_rest({7: 0.9, 1: 0.8, 2: 0.7, 3: 0.6}, 7, 0.5, depth=3) == {1: 0.8, 2: 0.7, 3: 0.6}
    assert calibration._with_rest({7: 0.9, 1: 0.8}, 7, 0.1, depth=3) == {1: 0.8, 7: 0.1}
    assert calibration._with_rest({7: 0.9, 1: 0.8}, 7, None, depth=3) == {1: 0.8}
    assert calibration._with_rest({}, 7, 0.4, depth=3) == {7: 0.4}


def test_a_document_is_asked_once_by_its_title_or_its_first_heading_and_keeps_the_rest() -> None:
    headings = [
        Document(f"d{n}", "", f"# First{n} part\n\n{'some words here ' * 9}\n\n# Second{n} part\n\n{'others ' * 9}\n")
        for n in range(60)
    ]
    seen: list[str] = []

    def windows(text: str) -> list[str]:
        seen.append(text)
        return [text]

    lexical = LexicalIndex.build(document.content for document in headings)
    found = calibrate(
        headings,
        encode=random_encoder,
        windows=windows,
        lexical=lexical,
        dense=lambda queries, k: [{} for _ in queries],
    )
    titles, spans = seen[:60], seen[60:]
    assert len(spans) == 60
    assert found.queries == 120
    assert all("# Second" in text and "First" not in text and "some words here" in text for text in titles)


def test_long_documents_are_asked_until_enough_was_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_WINDOWS", 200)
    asked = [calibration._Asked(f"q{n}", n, document) for n, document in enumerate(named(60))]
    assert len(calibration._affordable(asked, lambda text: [text])) == 60
    assert len(calibration._affordable(asked, lambda text: [text] * 5)) == 40
    assert len(calibration._affordable(asked, lambda text: [text] * 100)) == 20


def test_the_middle_of_a_flat_top_is_taken_and_trusted_half() -> None:
    scores = dict.fromkeys(WEIGHTS, 0.5) | {0.2: 0.699, 0.25: 0.7, 0.3: 0.6985, 0.35: 0.69}
    assert calibration._middle_of_best(scores) == 0.25
    assert calibration._middle_of_best({0.0: 0.1, 0.5: 0.2, 1.0: 0.9}) == 1.0
    assert [calibration._trusted(weight) for weight in (0.0, DENSE_WEIGHT, 0.35, 1.0)] == [0.15, 0.3, 0.325, 0.65]


@pytest.mark.parametrize(("documents", "queries"), [(named(49), 0), (named(50), 100), ([], 0)])
def test_a_corpus_too_small_to_measure_on_gets_the_default(documents: list[Document], queries: int) -> None:
    found = calibrated(documents, random_encoder)
    assert found.queries == queries
    assert (found == Calibration(DENSE_WEIGHT)) == (queries == 0)


def test_documents_without_titles_or_without_length_are_measured_on_what_they_have() -> None:
    untitled = [document._replace(title="") for document in named(60)]
    assert calibrated(untitled, random_encoder).queries == 60
    short = [document._replace(text=f"own{document.doc_id} tail") for document in named(60)]
    assert calibrated(short, random_encoder).queries == 60


def test_a_large_corpus_is_sampled_and_the_sample_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_DOCUMENTS", 100)
    monkeypatch.setattr(calibration, "_QUERIES", 70)
    documents = named(400)
    found = calibrated(documents, random_encoder)
    assert found == calibrated(documents, random_encoder)
    assert found.queries == 140
    sample, count = calibration._sample(documents, tuned=False)
    assert count == 400
    assert len({row for row, _ in sample}) == 100
    assert all(documents[row] is document for row, document in sample)
    assert 150 < np.mean([row for row, _ in sample]) < 250


def test_of_a_tuned_encoder_only_documents_it_never_learns_from_are_asked() -> None:
    documents = named(800)
    reserved = {document.doc_id for document in documents if held_out(document.doc_id)}
    assert 50 < len(reserved) < 110
    sample, count = calibration._sample(documents, tuned=True)
    assert {document.doc_id for _, document in sample} == reserved
    assert count == 800
    assert calibrated(documents, random_encoder, tuned=True).queries == 2 * len(reserved)


def test_a_tuned_encoder_gets_no_more_than_what_helped_on_judged_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_MIN_QUERIES", 5)
    monkeypatch.setattr(calibration, "WEIGHTS", (0.0, 1.0))
    documents = dotted(120)
    assert calibrated(documents, dot_encoder).dense_weight == 0.65
    found = calibrated(documents, dot_encoder, tuned=True)
    assert (found.dense_weight, found.queries > 0) == (0.4, True)


# ---------------------------------------------------------------- with an index


@pytest.fixture
def corpus_path(tmp_path: Path) -> Path:
    texts = make_texts(60, seed=6, sentences=3)
    rows = [{"_id": f"d{n}", "title": f"note {n}", "text": text} for n, text in enumerate(texts)]
    return write_jsonl(tmp_path / "corpus.jsonl", rows)


def weight_of(index: Path) -> tuple[float, str]:
    manifest = read_manifest(index, kind="index", error=IndexFormatError)
    return manifest["dense_weight"], manifest["dense_weight_source"]


def test_the_calibrated_weight_is_stored_and_reported(corpus_path: Path, encoder: Encoder, tmp_path: Path) -> None:
    rows = [{"_id": f"d{n}", "title": f"note {n}", "text": text} for n, text in enumerate(make_texts(60, sentences=1))]
    write_jsonl(corpus_path, rows)
    report = build_index(open_corpus(corpus_path), encoder=encoder, output=tmp_path / "index")
    assert report.chunks == 60
    expected = calibrated(list(open_corpus(corpus_path).documents()), encoder.encode)
    assert report.calibration is not None
    assert report.calibration.scores == pytest.approx(expected.scores)
    assert report.calibration.queries == 60  # titles; the texts are too short for spans
    assert weight_of(tmp_path / "index") == (expected.dense_weight, "60 pseudo-queries of this index")
    assert "calibrate" in report.seconds


def test_a_small_index_has_the_default(notes: Path, encoder: Encoder, tmp_path: Path) -> None:
    report = build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    assert weight_of(tmp_path / "index") == (DENSE_WEIGHT, "default")
    assert report.calibration == Calibration(DENSE_WEIGHT)


def test_a_given_weight_is_kept_on_update_and_replaced_by_another(
    corpus_path: Path, encoder: Encoder, tmp_path: Path
) -> None:
    def build(**options: object) -> tuple[float, str]:
        report = build_index(open_corpus(corpus_path), encoder=encoder, output=tmp_path / "index", **options)
        assert (report.calibration is None) == ("rebuild" not in options)
        return weight_of(tmp_path / "index")

    assert build(dense_weight=0.85) == (0.85, "given")
    assert build() == (0.85, "given")
    rows = [{"_id": f"e{n}", "title": "", "text": text} for n, text in enumerate(make_texts(60, seed=7))]
    write_jsonl(corpus_path, rows)
    assert build() == (0.85, "given")
    assert build(dense_weight=0.0) == (0.0, "given")
    assert build(rebuild=True)[1] != "given"


def test_a_measured_weight_is_kept_until_a_tenth_of_the_corpus_is_new(
    corpus_path: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([Calibration(0.4, 99), Calibration(0.6, 99), Calibration(0.7, 99)])
    monkeypatch.setattr(builder, "calibrate", lambda documents, **parts: next(measured))
    rows = [{"_id": f"d{n}", "title": f"note {n}", "text": text} for n, text in enumerate(make_texts(60, sentences=1))]

    def build(changed: int) -> float:
        for number in range(changed):
            rows[number]["text"] += "!"
        write_jsonl(corpus_path, rows)
        report = build_index(open_corpus(corpus_path), encoder=encoder, output=tmp_path / "index")
        assert report.chunks == 60
        return weight_of(tmp_path / "index")[0]

    assert [build(changed) for changed in (0, 0, 6, 7)] == [0.4, 0.4, 0.4, 0.6]


def test_a_weight_that_an_earlier_version_measured_is_measured_again(
    corpus_path: Path, encoder: Encoder, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    measured = build_index(open_corpus(corpus_path), encoder=encoder, output=index).calibration
    assert measured is not None
    manifest = json.loads((index / "manifest.json").read_text())
    manifest |= {"dense_weight": 0.9, "dense_weight_source": "60 pseudo-queries"}
    (index / "manifest.json").write_text(json.dumps(manifest))
    assert build_index(open_corpus(corpus_path), encoder=encoder, output=index).calibration == measured
    assert weight_of(index) == (measured.dense_weight, "60 pseudo-queries of this index")


def test_documents_of_several_windows_are_calibrated_on(encoder: Encoder, tmp_path: Path) -> None:
    rows = [{"_id": f"d{n}", "title": f"note {n}", "text": text} for n, text in enumerate(make_texts(60, sentences=60))]
    path = write_jsonl(tmp_path / "corpus.jsonl", rows)
    report = build_index(open_corpus(path), encoder=encoder, output=tmp_path / "index", factory="HNSW8")
    assert report.chunks > 120
    assert report.calibration is not None
    assert report.calibration.queries == 120
    assert report.calibration.scores is not None
    assert report.calibration.scores[0.0] > 0


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_a_weight_out_of_range_is_refused_before_anything_is_done(
    corpus_path: Path, encoder: Encoder, tmp_path: Path, weight: float
) -> None:
    with pytest.raises(ConfigError, match="must be between 0 and 1"):
        build_index(open_corpus(corpus_path), encoder=encoder, output=tmp_path / "index", dense_weight=weight)
    assert not (tmp_path / "index").exists()


def test_search_uses_the_stored_weight_unless_told_otherwise(
    corpus_path: Path, encoder: Encoder, tmp_path: Path
) -> None:
    queries = ["note 7 glass", "the senate questions old bridges", "loud music 12"]
    index = tmp_path / "index"
    build_index(open_corpus(corpus_path), encoder=encoder, output=index, dense_weight=0.9)
    by_weight = {weight: Searcher(index).rank(queries, dense_weight=weight) for weight in (0.1, DENSE_WEIGHT, 0.9)}
    assert Searcher(index).rank(queries) == by_weight[0.9]
    assert by_weight[0.9] != by_weight[0.1]
    assert Searcher(index).search(queries[0]) == Searcher(index).search(queries[0], dense_weight=0.9)
    manifest = json.loads((index / "manifest.json").read_text())
    manifest["dense_weight"] = 0.1
    (index / "manifest.json").write_text(json.dumps(manifest))
    assert Searcher(index).rank(queries) == by_weight[0.1]
    del manifest["dense_weight"]  # an index from before weights were stored
    (index / "manifest.json").write_text(json.dumps(manifest))
    assert Searcher(index).rank(queries) == by_weight[DENSE_WEIGHT]
