"""Searching: the right documents in the right order, in every mode, with snippets cut from the original."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_texts, write_jsonl

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import ConfigError, IndexFormatError
from lm_retrieval.index.builder import build_index, rebuild_vectors
from lm_retrieval.index.fusion import reciprocal_rank, weighted_sum
from lm_retrieval.search import Searcher, find_index, newest_index


@pytest.fixture(scope="module")
def index(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(make_texts(40, seed=1))]
    rows += [{"_id": f"long{n}", "text": " ".join(make_texts(15, seed=20 + n))} for n in range(3)]
    rows[5] |= {"title": "About harbours", "text": "Nothing but ships. The zebra sleeps! Ropes and more ropes."}
    build_index(
        open_corpus(write_jsonl(folder / "corpus.jsonl", rows)),
        encoder=encoder,
        output=folder / "index",
    )
    return folder / "index"


def brute_force(index: Path, encoder: Encoder, query: str) -> dict[str, float]:
    """Every chunk scored by hand; a document's score is its best chunk's."""
    searcher = Searcher(index)
    scores: dict[str, float] = {}
    query_vector = encoder.encode(query)
    for row, document in enumerate(searcher._store.documents()):
        vectors = encoder.encode([document.content[span.start : span.end] for span in searcher._spans(row)])
        scores[document.doc_id] = float((vectors @ query_vector).max())
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


@pytest.mark.parametrize("query", ["the river carries cold water 7", "glass", "her violin questions loud music"])
@pytest.mark.parametrize("k", [1, 5, 43, 1000])
def test_dense_ranks_documents_by_their_best_chunk(index: Path, encoder: Encoder, query: str, k: int) -> None:
    expected = brute_force(index, encoder, query)
    found = Searcher(index).rank([query], k=k, mode="dense")[0]
    assert len(found) == min(k, 43)
    np.testing.assert_allclose(list(found.values()), list(expected.values())[:k], atol=1e-5)
    for doc_id, score in found.items():
        assert score == pytest.approx(expected[doc_id], abs=1e-5)


def test_many_queries_at_once_rank_like_each_alone(index: Path) -> None:
    queries = [text.split(".")[0] for text in make_texts(70, seed=30)]
    searcher = Searcher(index)
    for mode in ("dense", "bm25", "hybrid"):
        together = searcher.rank(queries, k=10, mode=mode)
        for query, ranking in zip(queries[:8], together, strict=False):
            alone = searcher.rank([query], k=10, mode=mode)[0]
            assert list(ranking) == list(alone)


def test_hybrid_is_the_fusion_of_both(index: Path) -> None:
    searcher = Searcher(index)
    query = "the zebra follows new laws"
    lexical = searcher.rank([query], k=100, mode="bm25")[0]
    dense = searcher.rank([query], k=100, mode="dense")[0]
    for fusion, expected in (
        ("weighted", weighted_sum(lexical, dense, dense_weight=0.4)),
        ("rrf", reciprocal_rank(lexical, dense)),
    ):
        found = searcher.rank([query], k=43, mode="hybrid", fusion=fusion, dense_weight=0.4)[0]
        assert found == pytest.approx(expected)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    ends = searcher.rank([query], k=5, mode="hybrid", dense_weight=0.0)[0]
    assert next(iter(ends)) == next(iter(lexical))


def test_snippets_come_from_the_original_and_highlights_point_at_matches(index: Path) -> None:
    hit = Searcher(index).search("sleeping zebra", k=1, mode="bm25")[0]
    assert (hit.rank, hit.doc_id, hit.title) == (1, "d5", "About harbours")
    assert "The zebra sleeps!" in hit.snippet
    assert {hit.snippet[span.start : span.end] for span in hit.highlights} == {"zebra", "sleeps"}
    document = Searcher(index).document("d5")
    assert document.content[hit.passage.start : hit.passage.end].startswith("The zebra sleeps!")


def test_the_passage_of_a_long_document_is_its_best_matching_chunk(index: Path) -> None:
    searcher = Searcher(index)
    document = searcher.document("long1")
    last_words = " ".join(document.text.split()[-5:])
    hit = next(hit for hit in searcher.search(last_words, k=43) if hit.doc_id == "long1")
    assert hit.passage.end - hit.passage.start < len(document.text)
    assert set(last_words.rstrip(".").split()) <= set(
        document.content[hit.passage.start : hit.passage.end].replace(".", "").split()
    )


def test_words_that_occur_nowhere_give_no_bm25_hits(index: Path) -> None:
    assert Searcher(index).search("qqqq zzzz", mode="bm25") == []
    assert len(Searcher(index).search("qqqq zzzz", mode="hybrid", k=3)) == 3


@pytest.mark.parametrize("options", [{"k": 0}, {"k": -1}, {"dense_weight": 1.5}])
def test_impossible_options_are_refused(index: Path, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Searcher(index).search("water", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_is_refused(index: Path, query: str) -> None:
    with pytest.raises(ConfigError, match="query is empty"):
        Searcher(index).search(query)


def test_the_label_minus_one_never_reaches_a_user(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    encoder = Encoder.load(make_checkpoint(), device="cpu", threads=1)
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(make_texts(400, seed=3, sentences=1))]
    corpus = open_corpus(write_jsonl(tmp_path / "corpus.jsonl", rows))
    build_index(corpus, encoder=encoder, output=tmp_path / "index")
    rebuild_vectors(tmp_path / "index", factory="IVF16,Flat")
    ranking = Searcher(tmp_path / "index").rank(["the river carries"], k=1000, mode="dense")[0]
    assert 0 < len(ranking) <= 400
    assert set(ranking) <= {row["_id"] for row in rows}
    assert all(-1.001 <= score <= 1.001 for score in ranking.values())


def test_names_find_indexes_and_the_newest_is_the_default(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import shutil

    monkeypatch.chdir(tmp_path)
    with pytest.raises(IndexFormatError, match="no index here yet.*lmr embed"):
        newest_index()
    for age, name in ((300, "old"), (100, "new"), (200, "middle")):
        shutil.copytree(index, Path("indexes") / name)
        manifest = Path("indexes") / name / "manifest.json"
        stamp = manifest.stat().st_mtime - age
        os.utime(manifest, (stamp, stamp))
    assert newest_index() == Path("indexes/new") == find_index(None)
    assert find_index("old") == Path("indexes/old")
    assert find_index(str(index)) == index
    with pytest.raises(IndexFormatError, match="found in indexes: middle, new, old"):
        find_index("none-such")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "not a complete index"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "damaged manifest"),
        (lambda folder: (folder / "vectors.faiss").write_bytes(b"junk"), "damaged FAISS index"),
        (lambda folder: (folder / "vectors.faiss").unlink(), "missing"),
        (lambda folder: (folder / "chunks.npy").write_bytes(b"junk"), "damaged"),
        (lambda folder: (folder / "lexical" / "size.json").write_text("?"), "damaged BM25 index"),
        (lambda folder: (folder / "lexical" / "terms.arrow").write_text("?"), "damaged BM25 index"),
    ],
)
def test_a_damaged_index_is_an_error_that_says_what_to_do(
    index: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    import shutil

    shutil.copytree(index, tmp_path / "index")
    damage(tmp_path / "index")
    with pytest.raises(IndexFormatError, match=message):
        Searcher(tmp_path / "index").search("water")


def test_a_newer_format_version_is_refused(index: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(index, tmp_path / "index")
    path = tmp_path / "index" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(IndexFormatError, match="format version 99"):
        Searcher(tmp_path / "index")


def test_bm25_search_loads_neither_torch_nor_faiss(index: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from lm_retrieval.search import Searcher; "
        f"hits = Searcher({str(index)!r}).search('zebra', mode='bm25'); "
        "print(hits[0].doc_id, 'torch' in sys.modules, 'faiss' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["d5", "False", "False"]
