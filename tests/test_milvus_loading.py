"""Loading an index into Milvus Lite: interrupted, again, after changes; and the commands and the server on it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Said, make_texts, write_jsonl

pytest.importorskip("pymilvus", reason="needs the extra milvus")
pytest.importorskip("milvus_lite", reason="needs the extra milvus")

from serving import serving, settings_of

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import ConfigError, IndexFormatError, MismatchError, StorageError
from lm_retrieval.index.builder import build_index
from lm_retrieval.scale import milvus_load
from lm_retrieval.scale.milvus_client import Connection, parse_address
from lm_retrieval.scale.milvus_load import LoadReport, load_index
from lm_retrieval.search import Searcher, open_index

QUERIES = make_texts(12, seed=3, sentences=1)


def load(index: Path | str, address: str, **options: Any) -> LoadReport:
    return load_index(Path(index), address=parse_address(address), **options)


def rows_of(numbers: range, *, seed: int = 1) -> list[dict[str, object]]:
    return [{"_id": f"d{n}", "title": f"note {n}", "text": make_texts(1, seed=seed + n)[0]} for n in numbers]


@pytest.fixture
def embed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder) -> Callable[..., Path]:
    """Indexes rows into `notes` in a folder of its own, which is the working directory."""
    monkeypatch.chdir(tmp_path)

    def build(rows: list[dict[str, object]], *, given: Encoder = encoder, **options: Any) -> Path:
        corpus = open_corpus(write_jsonl(tmp_path / "corpus.jsonl", rows))
        build_index(corpus, encoder=given, output=tmp_path / "notes", **options)
        return tmp_path / "notes"

    return build


def same_as_folder(address: str, index: Path) -> None:
    """Every document, and every ranking, is that of the folder; nothing else is there."""
    milvus, local = open_index(f"milvus+{address}"), Searcher(index)
    documents = list(local.backend.store.documents())
    assert [document for document, _ in milvus.backend.documents([d.doc_id for d in documents])] == documents
    assert milvus.backend.collection.count() == milvus.manifest["rows"] == local.manifest["chunks"]
    for theirs, ours in zip(*(s.rank(QUERIES, k=1000, mode="dense") for s in (local, milvus)), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    milvus.close()


def test_a_changed_corpus_changes_the_collection_by_as_much(embed: Callable[..., Path]) -> None:
    rows = rows_of(range(30))
    rows[7]["text"] = " ".join(make_texts(10, seed=99))
    index = embed(rows)
    first = load(index, "x.db#notes")
    assert (first.sent, first.kept, first.deleted, first.full_text) == (first.chunks, 0, 0, "server")
    same_as_folder("x.db#notes", index)
    again = load(index, "x.db#notes")
    assert (again.sent, again.kept, again.deleted) == (0, first.chunks, 0)
    chunks_of_7 = len(Searcher(index).backend.documents([7])[0][1])
    assert chunks_of_7 > 3
    rows[3]["text"] = "a quokka smiles"  # changed
    rows[7]["text"] = "shrunk"
    embed([*rows[:20], *rows_of(range(40, 45))])  # 10 removed, 5 added
    report = load(index, "x.db#notes")
    assert report.documents == 25
    assert report.kept == report.rows - report.sent
    assert report.rows == first.rows + report.sent - report.deleted
    assert report.deleted >= chunks_of_7 + 1 + 10
    assert report.sent >= 7
    assert len([n for n in range(20) if n not in (3, 7)]) <= report.kept
    same_as_folder("x.db#notes", index)
    milvus = open_index("milvus+x.db#notes")
    assert milvus.search("quokka", mode="bm25")[0].doc_id == "d3"
    with pytest.raises(IndexFormatError, match="no document 'd25'"):
        milvus.document("d25")
    milvus.close()


def test_a_killed_load_goes_on_where_it_stopped(embed: Callable[..., Path], tmp_path: Path) -> None:
    index = embed(rows_of(range(120)))
    code = (
        "import time; from pathlib import Path; import pymilvus\n"
        "from lm_retrieval.scale import milvus_load; from lm_retrieval.scale.milvus_client import parse_address\n"
        "milvus_load._BATCH_ROWS = 20; send = pymilvus.MilvusClient.upsert; sent = []\n"
        "def slowly(*args, **options):\n"
        "    if len(sent) == 3: print('three batches', flush=True); time.sleep(60)\n"
        "    sent.append(1); return send(*args, **options)\n"
        "pymilvus.MilvusClient.upsert = slowly\n"
        f"milvus_load.load_index(Path({str(index)!r}), address=parse_address('x.db#notes'))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "three batches\n"
    with pytest.raises(StorageError, match=r"milvus\+x\.db#notes: another process uses this file"):
        load(index, "x.db#notes")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with pytest.raises(IndexFormatError, match="not completely loaded; run the same `lmr index` again"):
        open_index("milvus+x.db#notes")
    report = load(index, "x.db#notes")
    assert report.kept == 60
    assert report.sent == report.rows - 60
    same_as_folder("x.db#notes", index)


def test_a_damaged_collection_is_refused_and_mended(embed: Callable[..., Path], tmp_path: Path) -> None:
    index = embed(rows_of(range(20)))
    load(index, "x.db#notes")
    with Connection(parse_address("x.db")) as connection:
        connection.client.load_collection("notes")
        keys = connection.client.query("notes", filter="chunk_id == 0", limit=3, output_fields=["pk"])
        connection.client.delete("notes", ids=[row["pk"] for row in keys])
    with pytest.raises(IndexFormatError, match=r"\d rows, \d+ were loaded: damaged, or changed by something else"):
        open_index("milvus+x.db#notes")
    assert load(index, "x.db#notes").sent == 3
    same_as_folder("x.db#notes", index)
    for path in (tmp_path / "x.db").rglob("data_*.parquet"):
        path.write_text("garbage")
    with pytest.raises(IndexFormatError, match=r"damaged \(.*; delete .*x\.db and load again"):
        open_index("milvus+x.db#notes")
    shutil.rmtree("x.db")
    load(index, "x.db#notes")
    same_as_folder("x.db#notes", index)


def test_batches_are_small(embed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import pymilvus

    index = embed(rows_of(range(60)))
    monkeypatch.setattr(milvus_load, "_BATCH_BYTES", 5_000)
    monkeypatch.setattr(milvus_load, "_SCAN_ROWS", 16)
    sizes: list[int] = []
    send = pymilvus.MilvusClient.upsert

    def counted(client: Any, name: str, rows: list[dict[str, Any]], **options: Any) -> Any:
        sizes.append(sum(len(row["text"]) + len(row["words"]) + row["vector"].nbytes for row in rows))
        return send(client, name, rows, **options)

    monkeypatch.setattr(pymilvus.MilvusClient, "upsert", counted)
    load(index, "x.db#notes")
    assert len(sizes) > 5
    assert max(sizes) < 6_000
    assert load(index, "x.db#notes").sent == 0
    embed(rows_of(range(10, 60)))
    assert load(index, "x.db#notes").sent == 0
    same_as_folder("x.db#notes", index)


def test_what_is_not_ours_or_something_else_is_refused(
    embed: Callable[..., Path], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    index = embed(rows_of(range(12)))
    with Connection(parse_address("x.db")) as connection:
        connection.client.create_collection("theirs", dimension=4)
    for options in ({}, {"rebuild": True}):
        with pytest.raises(IndexFormatError, match="not made by lmr; choose another --collection"):
            load(index, "x.db#theirs", **options)
    with pytest.raises(IndexFormatError, match="not made by lmr"):
        open_index("milvus+x.db#theirs")
    with pytest.raises(IndexFormatError, match="no collection of lmr here"):
        open_index("milvus+x.db")
    load(index, "x.db#notes")
    with pytest.raises(MismatchError, match="made with --full-text server; add --rebuild"):
        load(index, "x.db#notes", full_text="local")
    embed(rows_of(range(12)), given=Encoder.load(make_checkpoint("lstm", seed=5)), rebuild=True)
    with pytest.raises(MismatchError, match="holds vectors of encoder 'tiny-lstm', the index those of 'tiny-lstm'"):
        load(index, "x.db#notes")
    report = load(index, "x.db#notes", rebuild=True)
    assert report.sent == report.rows
    same_as_folder("x.db", index)
    shutil.copytree(tmp_path / "notes", tmp_path / "moved")
    (tmp_path / "other").mkdir()
    manifest = tmp_path / "moved" / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {"corpus_path": str(tmp_path / "other")}))
    with pytest.raises(MismatchError, match=r"holds the corpus .*corpus\.jsonl, not .*other; choose another"):
        load(tmp_path / "moved", "x.db#notes")


@pytest.mark.parametrize("index_type", ["HNSW", "ivf_flat"])
def test_other_index_types_say_what_they_find(embed: Callable[..., Path], index_type: str) -> None:
    index = embed(rows_of(range(100)))
    report = load(index, "x.db#notes", index_type=index_type)
    assert report.index_type == index_type.upper()
    assert 0.3 < report.recall_at_10 <= 1
    milvus = open_index("milvus+x.db")
    exact = Searcher(index).rank(QUERIES, k=10, mode="dense")
    shared = sum(len(set(a) & set(b)) for a, b in zip(exact, milvus.rank(QUERIES, k=10, mode="dense"), strict=True))
    assert shared >= 30
    milvus.close()
    assert load(index, "x.db#notes").index_type == index_type.upper()  # what was chosen stays
    with pytest.raises(IndexFormatError, match="unknown index_type: 'NONSENSE'"):
        load(index, "x.db#notes", index_type="nonsense")
    open_index("milvus+x.db").close()  # as it was
    assert load(index, "x.db#notes", index_type="FLAT").sent == 0
    same_as_folder("x.db#notes", index)


def test_a_server_without_functions_leaves_words_here(
    embed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As servers before 2.5 do, which do not read what they do not know."""
    from lm_retrieval.scale.milvus_collection import Collection

    index = embed(rows_of(range(12)))
    monkeypatch.setattr(Collection, "_has_function", lambda self: False)
    with pytest.raises(ConfigError, match="offers no full-text search"):
        load(index, "x.db#notes", full_text="server")
    report = load(index, "x.db#notes")
    assert (report.full_text, report.why_local) == ("local", "the server knows no functions")
    milvus = open_index("milvus+x.db")
    assert milvus.search("river", mode="bm25") == Searcher(index).search("river", mode="bm25")
    milvus.close()


def test_the_commands(embed: Callable[..., Path], lmr: Callable[..., Said]) -> None:
    index = embed(rows_of(range(20)))
    said = lmr("index", "notes", "--backend", "milvus", "--uri", "x.db")
    assert said.code == 0, said.stderr
    head, rows, words = said.stdout.splitlines()
    assert head.startswith("milvus+x.db#notes: 20 documents, ")
    assert "index FLAT, Milvus Lite " in head
    assert "rows sent" in rows
    assert words == "BM25: in the server, which hybrid search asks for both rankings"
    said = lmr("search", "the river", "--index", "milvus+x.db#notes", "-k", "3", "--mode", "dense", "--format", "json")
    assert said.code == 0, said.stderr
    hits = json.loads(said.stdout)["hits"]
    expected = Searcher(index).search("the river", k=3, mode="dense")
    assert [hit["id"] for hit in hits] == [hit.doc_id for hit in expected]
    assert hits[0]["snippet"] == expected[0].snippet
    assert said.stderr.startswith("milvus+x.db#notes: Milvus Lite ")
    assert said.stderr.endswith("BM25 runs in the server\n")
    assert lmr("search", "the river", "--index", "milvus+x.db", "--quiet").stderr == ""
    said = lmr("index", "notes", "--backend", "milvus", "--uri", "x.db", "--collection", "l", "--full-text", "local")
    assert said.stdout.splitlines()[-1] == "BM25: here, from notes (as asked for)"
    said = lmr("search", "the river", "--index", "milvus+x.db#l", "--mode", "bm25")
    assert f"BM25 runs here, from {index}" in said.stderr
    assert said.code == 0
    for wrong in (
        ["index", "notes"],
        ["index", "notes", "--backend", "milvus"],
        ["index", "notes", "--backend", "milvus", "--uri", "x.db", "--factory", "Flat"],
        ["index", "notes", "--factory", "Flat", "--uri", "x.db"],
    ):
        assert lmr(*wrong).code == 2
    said = lmr("index", "notes", "--backend", "milvus", "--uri", "none/x.db")
    assert (said.code, said.stderr.count("\n")) == (1, 1)
    assert "no such folder" in said.stderr


def test_a_process_of_its_own_says_nothing_else_and_ends(embed: Callable[..., Path], tmp_path: Path) -> None:
    embed(rows_of(range(8)))
    command = [sys.executable, "-m", "lm_retrieval", "index", "notes", "--backend", "milvus", "--uri", "x.db"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ})
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == 3


def test_evaluation_of_a_collection(judged: Path, encoder: Encoder, tmp_path: Path, lmr: Callable[..., Said]) -> None:
    build_index(open_corpus(judged), encoder=encoder, output=tmp_path / "indexes" / "notes")
    load(tmp_path / "indexes" / "notes", "x.db#notes")
    said = lmr("evaluate", judged, "--index", "notes", "--index", "milvus+x.db#notes", "--format", "json")
    assert said.code == 0, said.stderr
    (part,) = json.loads(said.stdout)["collections"]
    scores = {system["name"]: system["evaluation"]["measures"] for system in part["systems"]}
    assert scores["dense:milvus:notes"] == pytest.approx(scores["dense:notes"])
    assert set(scores) >= {"hybrid:notes", "hybrid:milvus:notes", "bm25", "lsi-256"}
    write_jsonl(judged / "corpus.jsonl", rows_of(range(50), seed=70))
    said = lmr("evaluate", judged, "--index", "milvus+x.db#notes")
    assert said.code == 1
    assert "holds" in said.stderr
    assert "as it was when it was built" in said.stderr


def test_a_server_serves_a_collection(embed: Callable[..., Path], make_checkpoint: Callable[..., Path]) -> None:
    index = embed(rows_of(range(20)))
    load(index, "x.db#notes")
    with serving(settings_of({"rnn": make_checkpoint("lstm")}, index="milvus+x.db#notes")) as running:
        (status,) = running.client.get("/health").json()["indexes"]
        assert status["name"] == "notes"
        assert status["documents"] == 20
        assert status["bm25"] == "in the server"
        assert status["backend"].startswith("Milvus Lite")
        answer = running.client.post("/search", json={"query": "the river carries glass", "k": 4, "mode": "dense"})
        expected = Searcher(index).search("the river carries glass", k=4, mode="dense")
        assert [hit["id"] for hit in answer.json()["hits"]] == [hit.doc_id for hit in expected]
    started = time.monotonic()
    load(index, "x.db#notes")  # the server has let go of the file
    assert time.monotonic() - started < 20


def test_a_server_and_a_file_differ_by_the_address_only(embed: Callable[..., Path], tmp_path: Path) -> None:
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    index = embed(rows_of(range(30)))
    server, database, port = start_server_in_thread(str(tmp_path / "data"))
    try:
        address = f"http://127.0.0.1:{port}#notes"
        assert load(index, address).sent > 30
        same_as_folder(address, index)
        embed(rows_of(range(5, 30)))
        assert load(index, address).sent == 0
        same_as_folder(f"http://127.0.0.1:{port}", index)
    finally:
        server.stop(grace=0).wait()
        database.close()
