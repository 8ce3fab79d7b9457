"""Searching a collection of Milvus Lite as one searches the folder that it was loaded from."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SUBJECTS, Said, make_texts, require_data, write_jsonl

pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs the extra milvus")

from lm_retrieval.corpus import open_corpus
from lm_retrieval.corpus.words import Analyzer
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import IndexFormatError, LmRetrievalError, MismatchError
from lm_retrieval.index.builder import build_index
from lm_retrieval.index.fusion import weighted_sum
from lm_retrieval.records import Document, Span
from lm_retrieval.scale.milvus_client import parse_address
from lm_retrieval.scale.milvus_load import LoadReport, load_index
from lm_retrieval.scale.milvus_rows import join_document, rows_of
from lm_retrieval.search import Searcher, open_index

QUERIES = [f"{subject} {verb} {number}" for number, subject in enumerate(SUBJECTS) for verb in ("paints", "glass", "")]
ODD = 'an "odd"\\id\'s % ä 中 \N{OWL} {x}'


def load(index: Path, address: str, **options: Any) -> LoadReport:
    return load_index(index, address=parse_address(address), **options)


@pytest.fixture(scope="module")
def index(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("milvus")
    rows: list[dict[str, object]] = [
        {"_id": f"d{number}", "title": f"note {number}", "text": text}
        for number, text in enumerate(make_texts(60, seed=1))
    ]
    rows += [{"_id": f"long{n}", "text": "  ".join(make_texts(12, seed=20 + n)) + "\n \n"} for n in range(4)]
    rows += [
        {"_id": ODD, "title": "only a title \N{OWL}"},
        {"_id": "i" * 40_000, "title": "a", "text": "the zebra sleeps"},
        {"_id": "title", "title": " ä " * 600, "text": "the title is long"},
        {"_id": "gap", "text": f"the okapi wakes {' ' * 150_000} and the okapi sleeps"},
        {"_id": "empty", "text": ""},
        {"_id": "blank", "title": "", "text": " \n "},
    ]
    corpus = open_corpus(write_jsonl(folder / "corpus.jsonl", rows))
    build_index(corpus, encoder=encoder, output=folder / "notes")
    return folder / "notes"


@pytest.fixture(scope="module")
def uri(index: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("lite") / "demo.db"
    load(index, f"{file}#notes")
    load(index, f"{file}#local", full_text="local")
    return f"milvus+{file}"


@pytest.fixture(scope="module")
def local(index: Path) -> Searcher:
    return Searcher(index)


@pytest.fixture(scope="module")
def milvus(uri: str) -> Iterator[Searcher]:
    searcher = open_index(f"{uri}#notes")
    yield searcher
    searcher.close()


@pytest.mark.parametrize("k", [1, 10, 100])
def test_dense_ranking_is_that_of_faiss(local: Searcher, milvus: Searcher, k: int) -> None:
    expected, found = (searcher.rank(QUERIES, k=k, mode="dense") for searcher in (local, milvus))
    for theirs, ours in zip(expected, found, strict=True):
        assert len(theirs) == min(k, 68)  # 70 documents, of which two have no word
        assert list(ours)[:10] == list(theirs)[:10]
        assert ours == pytest.approx(theirs, abs=1e-5)  # far down, some are closer to each other than float32 tells


def test_every_document_comes_back_as_it_was(index: Path, local: Searcher, milvus: Searcher) -> None:
    documents = list(local.backend.store.documents())
    assert len(documents) == 70
    assert max(len(document.content) for document in documents) > 150_000
    keys = [document.doc_id for document in documents]
    for document, (found, spans) in zip(documents, milvus.backend.documents(keys), strict=True):
        assert found == document
        assert spans == local.backend.documents([local.backend.find(document.doc_id)])[0][1]
    assert milvus.document(ODD).title == "only a title \N{OWL}"
    with pytest.raises(IndexFormatError, match=r"demo\.db#notes: no document 'none'"):
        milvus.document("none")


def test_bm25_in_the_server_is_ours_where_chunks_are_documents(
    encoder: Encoder, tmp_path: Path, texts: list[str]
) -> None:
    """The server gets our stems and constants: scores differ by the factor k1 + 1, which it does not leave out."""
    rows: list[dict[str, object]] = [{"_id": f"d{n}", "text": text.split(".")[0]} for n, text in enumerate(texts)]
    build_index(open_corpus(write_jsonl(tmp_path / "c.jsonl", rows)), encoder=encoder, output=tmp_path / "index")
    load(tmp_path / "index", f"{tmp_path}/x.db#c")
    milvus = open_index(f"milvus+{tmp_path}/x.db#c")
    for query in QUERIES:
        theirs, ours = (s.rank([query], k=60, mode="bm25")[0] for s in (Searcher(tmp_path / "index"), milvus))
        assert set(ours) == set(theirs)
        assert len(ours) > 3
        factors = [ours[doc_id] / score for doc_id, score in theirs.items()]
        np.testing.assert_allclose(factors, 2.2, rtol=0.03)
        assert sorted(ours.values(), reverse=True) == [*ours.values()]
    assert milvus.rank(["the of and"], mode="bm25") == [{}]  # stop words
    milvus.close()


def test_hybrid_is_the_weighted_sum_of_both_rankings(milvus: Searcher) -> None:
    query = "the river paints glass 7"
    dense, words = (milvus.rank([query], k=100, mode=mode)[0] for mode in ("dense", "bm25"))
    expected = weighted_sum(words, dense, dense_weight=0.4)
    found = milvus.rank([query], k=5, dense_weight=0.4)[0]
    assert found == pytest.approx(dict(sorted(expected.items(), key=lambda item: -item[1])[:5]))


@pytest.mark.parametrize("options", [{}, {"mode": "bm25"}, {"fusion": "rrf"}, {"mode": "bm25", "rerank": "lm"}])
def test_with_words_here_everything_is_as_in_the_folder(local: Searcher, uri: str, options: dict[str, Any]) -> None:
    milvus = open_index(f"{uri}#local")
    for query in ("okapi", "the river carries cold water", "a sparrow 12"):
        theirs, ours = (s.search(query, k=7, **options) for s in (local, milvus))
        assert [hit._replace(score=0) for hit in ours] == [hit._replace(score=0) for hit in theirs]
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-5)
    milvus.close()


def test_words_beyond_a_field_are_found_too(milvus: Searcher) -> None:
    (first, *_) = milvus.search("okapi sleeps", mode="bm25")
    assert first.doc_id == "gap"
    assert "okapi" in first.snippet
    assert milvus.search("zebra", mode="bm25")[0].doc_id == "i" * 40_000


def test_words_here_need_the_folder_and_say_so(index: Path, tmp_path: Path) -> None:
    shutil.copytree(index, tmp_path / "notes")
    load(tmp_path / "notes", f"{tmp_path}/x.db#notes", full_text="local")
    manifest = tmp_path / "notes" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"corpus_sha256": "', '"corpus_sha256": "0'))
    milvus = open_index(f"milvus+{tmp_path}/x.db#notes")
    with pytest.raises(IndexFormatError, match="that has changed; run `lmr index` again, or use --mode dense"):
        milvus.search("okapi", mode="bm25")
    milvus.close()
    shutil.rmtree(tmp_path / "notes")
    milvus = open_index(f"milvus+{tmp_path}/x.db#notes")
    with pytest.raises(IndexFormatError, match="that folder is gone; use --mode dense"):
        milvus.search("okapi", mode="bm25")
    milvus.close()


def test_without_the_folder_the_same_encoder_has_to_be_given(
    index: Path, encoder: Encoder, make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(index, "notes")
    load(Path("notes"), "x.db#notes")
    expected = Searcher("notes").rank(QUERIES[:5], k=5, mode="dense")
    shutil.rmtree("notes")
    with pytest.raises(MismatchError, match="made by encoder 'tiny-lstm', which is not here; pass --encoder PATH"):
        open_index("milvus+x.db").search("glass")
    other = make_checkpoint("lstm", seed=9)
    with pytest.raises(MismatchError, match="made by encoder 'tiny-lstm', not by 'tiny-lstm' or its present settings"):
        open_index("milvus+x.db", encoder=Encoder.load(other))
    assert open_index("milvus+x.db", encoder=encoder).rank(QUERIES[:5], k=5, mode="dense") == [
        pytest.approx(ranking, abs=1e-5) for ranking in expected
    ]
    shutil.copytree(encoder.checkpoint.path, "checkpoints/tiny-lstm")
    milvus = open_index("milvus+x.db")
    assert [hit.doc_id for hit in milvus.search(QUERIES[0], k=5, mode="dense")] == list(expected[0])
    shutil.rmtree("checkpoints/tiny-lstm")
    shutil.copytree(other, "checkpoints/tiny-lstm")
    with pytest.raises(MismatchError, match="not by 'tiny-lstm'"):
        open_index("milvus+x.db").search("glass")


def test_chunks_for_the_map(local: Searcher, milvus: Searcher) -> None:
    numbers, vectors = milvus.sample(10_000)
    assert len({*numbers.tolist()}) == len(numbers) >= local.manifest["chunks"]
    documents = [milvus.chunk_document(number) for number in numbers[:5].tolist()]
    assert all(local.document(document.doc_id) == document for document in documents)
    vector = local.encode(["the river"])[0]
    near, near_vectors = milvus.nearest(vector, 5)
    theirs, their_vectors = local.nearest(vector, 5)
    np.testing.assert_allclose(near_vectors, their_vectors, atol=1e-6)
    assert [milvus.chunk_document(n) for n in near.tolist()] == [local.chunk_document(n) for n in theirs.tolist()]
    some, _ = milvus.sample(20)
    assert 5 <= len(some) <= 20
    assert vectors.shape == (len(numbers), 32)


@pytest.mark.parametrize("size", [0, 1, 39_999, 40_000, 40_001, 200_000])
def test_a_text_longer_than_a_field_goes_on_in_further_rows(size: int) -> None:
    document = Document("d", "ä" * 7, "\N{OWL}x" * size)
    spans = [Span(0, 8), Span(5, len(document.content))] if size else [Span(0, 7)]
    vectors = np.arange(len(spans) * 2, dtype=np.float32).reshape(-1, 2)
    rows = list(rows_of(document, spans, vectors, analyzer=Analyzer()))
    assert join_document(reversed(rows)) == (document, spans)
    assert max(len(row["text"].encode()) for row in rows) <= 65_535
    assert [row["vector"][0] for row in rows] == [2 * row["chunk_id"] for row in rows]
    assert len({row["pk"] for row in rows}) == len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cranfield", "nfcorpus"])
def test_the_same_top_10_on_real_collections(name: str, tmp_path: Path) -> None:
    corpus = open_corpus(require_data(f"collections/{name}"))
    build_index(corpus, encoder=Encoder.load("lstm-base", dtype="auto"), output=tmp_path / name, dense_weight=0.3)
    report = load(tmp_path / name, f"{tmp_path}/x.db#{name}", full_text="local")
    assert report.index_type == "FLAT"
    queries = [query.text for query in corpus.queries()][:100]
    milvus = open_index(f"milvus+{tmp_path}/x.db#{name}")
    theirs, ours = (s.rank(queries, k=10, mode="dense") for s in (Searcher(tmp_path / name), milvus))
    differing = 0
    for expected, found in zip(theirs, ours, strict=True):
        np.testing.assert_allclose([*found.values()], [*expected.values()], atol=1e-5)
        # documents of one text score alike: which of them comes first, or is the tenth, neither promises
        last = min(expected.values()) + 1e-5
        assert {d for d, score in found.items() if score > last} == {d for d, score in expected.items() if score > last}
        differing += set(found) != set(expected)
    assert differing <= 0.03 * len(queries)
    milvus.close()


def test_the_core_knows_nothing_of_milvus(index: Path) -> None:
    code = (
        "import sys; from lm_retrieval.search import open_index; "
        f"open_index({str(index)!r}).search('glass'); "
        "print([name for name in sys.modules if 'milvus' in name or name == 'grpc'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_which_collection_is_meant(uri: str, lmr: Callable[..., Said]) -> None:
    said = lmr("search", "glass", "--index", uri)
    assert said.code == 1
    assert said.stdout == ""
    assert said.stderr.endswith("which collection? add #NAME; there are: local, notes\n")
    assert "no such collection; there are: local, notes" in lmr("search", "glass", "--index", f"{uri}#x").stderr


def test_errors_of_addresses_are_one_line(lmr: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "plain.db").write_text("not a database")
    (tmp_path / "bad.db" / "databases").mkdir(parents=True)
    (tmp_path / "bad.db" / "collections").write_text("not a folder")
    for address, message in {
        "milvus+none.db": "no such file",
        "milvus+plain.db": "not a file of Milvus Lite",
        "milvus+bad.db": "bad.db",
        "milvus+notes": "must end in .db",
        "milvus+ftp://x#y": "not the URL of a Milvus server",
        "milvus+x.db#9y": "'9y' cannot be the name of a collection",
        "milvus+http://me:secret@127.0.0.1:1#x": "milvus+http://127.0.0.1:1#x: Milvus does not answer",
    }.items():
        said = lmr("search", "glass", "--index", address)
        assert (said.code, said.stdout) == (1, "")
        assert message in said.stderr
        assert said.stderr.count("\n") == 1
        assert "secret" not in said.stderr


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, index: Path) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(LmRetrievalError, match=r"pip install 'lm_retrieval\[milvus\]'"):
        load(index, "http://127.0.0.1:1#x")
