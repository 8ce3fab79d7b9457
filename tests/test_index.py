"""Index folders: built whole, continued after a kill byte for byte, brought up to date, refused when wrong."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from conftest import make_texts, uneven_rows, write_jsonl

from lm_retrieval.artifacts import read_manifest
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CorpusError, IndexFormatError, LmRetrievalError, MismatchError, StorageError
from lm_retrieval.index.builder import build_index, rebuild_vectors
from lm_retrieval.index.store import Store
from lm_retrieval.search import Searcher


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def vectors_by_id(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = {}
    for path in sorted((folder / "embeddings").glob("*.parquet")):
        for row in pyarrow.parquet.read_table(path).to_pylist():
            found.setdefault(row["doc_id"], []).append(np.array(row["vector"], np.float32))
    return {doc_id: np.stack(rows) for doc_id, rows in found.items()}


@pytest.fixture
def rows_path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "corpus.jsonl", uneven_rows(60, seed=1))


def test_the_index_holds_every_chunk_with_its_vector_and_place(
    rows_path: Path, encoder: Encoder, tmp_path: Path
) -> None:
    report = build_index(open_corpus(rows_path), encoder=encoder, output=tmp_path / "index", shard_chunks=16)
    documents = {document.doc_id: document for document in open_corpus(rows_path).documents()}
    assert (report.documents, report.empty_documents, report.encoded) == (60, 1, report.chunks)
    seen = 0
    for path in sorted((tmp_path / "index" / "embeddings").glob("*.parquet")):
        for row in pyarrow.parquet.read_table(path).to_pylist():
            text = documents[row["doc_id"]].content[row["start"] : row["end"]]
            np.testing.assert_allclose(row["vector"], encoder.encode(text), atol=1e-5)
            seen += 1
    assert seen == report.chunks > 60
    manifest = read_manifest(tmp_path / "index", kind="index", error=IndexFormatError)
    expected = {"documents": 60, "chunks": seen, "empty_documents": 1, "split_documents": report.split_documents}
    assert expected.items() <= manifest.items()
    assert manifest["encoder_sha256"] == encoder.fingerprint
    schema = pyarrow.parquet.read_schema(path)
    assert str(schema.field("vector").type) == "fixed_size_list<item: float>[32]" or "fixed_size_list" in str(
        schema.field("vector").type
    )


def test_random_access_to_documents(rows_path: Path, encoder: Encoder, tmp_path: Path) -> None:
    build_index(open_corpus(rows_path), encoder=encoder, output=tmp_path / "index", shard_chunks=16)
    store = Store(tmp_path / "index")
    documents = list(open_corpus(rows_path).documents())
    assert store.num_shards > 3
    assert list(store.documents()) == documents
    for row in (0, 7, 9, 31, 59):
        assert store.document(row) == documents[row]


KILL_SCRIPT = """
import os, signal, sys
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.index import builder, shards
from pathlib import Path
corpus, checkpoint, output, kill_at = sys.argv[1:]
original = shards.write_shard
def write_shard(folder, number, shard):
    if number == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)
    original(folder, number, shard)
shards.write_shard = write_shard
encoder = Encoder.load(checkpoint, device="cpu", threads=1)
report = builder.build_index(open_corpus(corpus), encoder=encoder, output=Path(output), shard_chunks=16)
print(report.resumed, report.encoded)
"""


@pytest.mark.parametrize("postprocess", ["none", "whiten"])
def test_a_killed_build_goes_on_and_ends_byte_identical(
    rows_path: Path, make_checkpoint: Callable[..., Path], tmp_path: Path, postprocess: str
) -> None:
    checkpoint = make_checkpoint(postprocess=postprocess)

    def run(output: str, kill_at: int) -> subprocess.CompletedProcess[str]:
        arguments = [str(rows_path), str(checkpoint), str(tmp_path / output), str(kill_at)]
        command = [sys.executable, "-c", KILL_SCRIPT, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert run("whole", -1).returncode == 0
    killed = run("killed", 3)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    # half a shard, as a kill in the middle of a write leaves it, must not be taken for a whole one
    staging = tmp_path / ".killed.partial"
    torn = staging / "embeddings" / "part-00002.parquet"
    torn.write_bytes(torn.read_bytes()[:100])
    second = run("killed", -1)
    assert second.returncode == 0, second.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    third = run("again", 4)
    assert third.returncode == -signal.SIGKILL
    fourth = run("again", -1)
    resumed, encoded = map(int, fourth.stdout.split())
    assert resumed > 0
    assert encoded > 0
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_only_what_changed_is_encoded_and_removed_documents_disappear(
    notes: Path, encoder: Encoder, tmp_path: Path
) -> None:
    output = tmp_path / "index"
    first = build_index(open_corpus(notes), encoder=encoder, output=output)
    before = vectors_by_id(output)
    (notes / "note-03.txt").write_text("something entirely new about green apples")
    (notes / "note-05.txt").unlink()
    (notes / "added.txt").write_text("the baker warms glass")
    second = build_index(open_corpus(notes), encoder=encoder, output=output)
    after = vectors_by_id(output)
    assert second.encoded == 2
    assert second.reused == second.chunks - 2
    assert second.removed == 1
    assert first.documents == second.documents
    assert set(after) == (set(before) - {"note-05.txt"}) | {"added.txt"}
    for doc_id in set(before) & set(after) - {"note-03.txt"}:
        np.testing.assert_array_equal(before[doc_id], after[doc_id])
    np.testing.assert_allclose(after["note-03.txt"][0], encoder.encode((notes / "note-03.txt").read_text()), atol=1e-5)
    hits = Searcher(output).search("green apples", mode="bm25", k=20)
    assert "note-05.txt" not in [hit.doc_id for hit in hits]
    assert "note-03.txt" in [hit.doc_id for hit in hits]


def test_an_unchanged_corpus_encodes_nothing(notes: Path, encoder: Encoder, tmp_path: Path) -> None:
    build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    before = contents(tmp_path / "index")
    report = build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    assert (report.encoded, report.removed) == (0, 0)
    assert contents(tmp_path / "index") == before


def test_another_encoder_is_refused_until_asked_to_rebuild(
    notes: Path, encoder: Encoder, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    before = contents(tmp_path / "index")
    other = Encoder.load(make_checkpoint(seed=5), device="cpu", threads=1)
    with pytest.raises(MismatchError, match="--rebuild"):
        build_index(open_corpus(notes), encoder=other, output=tmp_path / "index")
    with pytest.raises(MismatchError, match="lmr embed CORPUS --encoder .* --rebuild"):
        Searcher(tmp_path / "index", encoder=other)
    assert contents(tmp_path / "index") == before
    build_index(open_corpus(notes), encoder=other, output=tmp_path / "index", rebuild=True)
    assert Searcher(tmp_path / "index", encoder=other).search("river", k=1)


def test_the_transform_of_the_first_build_serves_updates_and_search(
    notes: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    encoder = Encoder.load(make_checkpoint(postprocess="whiten"), device="cpu", threads=1)
    build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    before = vectors_by_id(tmp_path / "index")
    for number, text in enumerate(make_texts(20, seed=11)):
        (notes / f"more-{number}.txt").write_text(text.split(".")[0])
    build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    after = vectors_by_id(tmp_path / "index")
    np.testing.assert_array_equal(after["note-01.txt"], before["note-01.txt"])
    searcher = Searcher(tmp_path / "index", encoder=encoder)
    text = (notes / "more-3.txt").read_text()
    best = searcher.search(text, k=1, mode="dense")[0]
    assert best.doc_id == "more-3.txt"
    assert best.score == pytest.approx(1.0, abs=1e-5)


def test_an_index_of_nothing_is_refused(tmp_path: Path, encoder: Encoder) -> None:
    folder = tmp_path / "blank"
    folder.mkdir()
    (folder / "a.txt").write_text(" \n ")
    with pytest.raises(CorpusError, match="every document is empty"):
        build_index(open_corpus(folder), encoder=encoder, output=tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_two_writers_get_a_clear_error(notes: Path, encoder: Encoder, tmp_path: Path) -> None:
    from lm_retrieval.artifacts import folder_lock

    with folder_lock(tmp_path / "index"), pytest.raises(StorageError, match="another process is writing"):
        build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")


def test_a_failed_update_leaves_the_earlier_index_as_it_was(notes: Path, encoder: Encoder, tmp_path: Path) -> None:
    build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    before = contents(tmp_path / "index")
    (notes / "broken.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(CorpusError, match=r"broken\.txt: not valid utf-8"):
        build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    assert contents(tmp_path / "index") == before
    assert Searcher(tmp_path / "index").search("river", k=1)


def test_rebuilding_the_faiss_part_needs_no_encoding(rows_path: Path, encoder: Encoder, tmp_path: Path) -> None:
    output = tmp_path / "index"
    build_index(open_corpus(rows_path), encoder=encoder, output=output)
    exact = Searcher(output).search("the river carries cold water", mode="dense", k=5)
    report = rebuild_vectors(output, factory="HNSW16")
    assert report.recall_at_10 is not None
    assert report.recall_at_10 > 0.9
    assert read_manifest(output, kind="index", error=IndexFormatError)["factory"] == "HNSW16"
    assert [hit.doc_id for hit in Searcher(output).search("the river carries cold water", mode="dense", k=3)] == [
        hit.doc_id for hit in exact[:3]
    ]
    build_index(open_corpus(rows_path), encoder=encoder, output=output)
    kept = read_manifest(output, kind="index", error=IndexFormatError)
    assert (kept["factory"], kept["factory_by_size"]) == ("HNSW16", False)
    before = contents(output)
    with pytest.raises(LmRetrievalError, match="cannot be trained on"):
        rebuild_vectors(output, factory="IVF4096,PQ16")
    assert contents(output) == before


@pytest.mark.parametrize("part", ["embeddings/part-00000.parquet", "documents/part-00000.arrow"])
def test_a_truncated_shard_is_named(rows_path: Path, encoder: Encoder, tmp_path: Path, part: str) -> None:
    build_index(open_corpus(rows_path), encoder=encoder, output=tmp_path / "index")
    path = tmp_path / "index" / part
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(IndexFormatError, match=r"part-00000.*damaged or truncated shard.*lmr embed"):
        rebuild_vectors(tmp_path / "index", factory="Flat")


def test_memory_while_embedding_does_not_grow_with_the_corpus(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peak of Python's and NumPy's memory up to the BM25 stage; `benchmarks/memory.py` measures the whole process."""
    import tracemalloc

    from lm_retrieval.index.lexical import LexicalIndex

    peaks: list[int] = []
    write = LexicalIndex.write

    def record_and_write(texts: Iterable[str], folder: Path, *, memory_bytes: int) -> None:
        peaks.append(tracemalloc.get_traced_memory()[1])
        write(texts, folder, memory_bytes=memory_bytes)

    monkeypatch.setattr(LexicalIndex, "write", record_and_write)
    for count in (500, 1000, 4000):
        rows = [{"text": text} for text in make_texts(count, seed=count)]
        corpus = open_corpus(write_jsonl(tmp_path / f"{count}.jsonl", rows))
        tracemalloc.start()
        build_index(corpus, encoder=encoder, output=tmp_path / str(count), shard_chunks=256)
        tracemalloc.stop()
    # 3,000 more documents: keeping texts, ids or vectors of all of them would take 3 MB and more
    assert peaks[2] < peaks[1] + 1_500_000, peaks


def test_a_reader_keeps_the_old_index_while_a_new_one_is_built(notes: Path, encoder: Encoder, tmp_path: Path) -> None:
    build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    searcher = Searcher(tmp_path / "index")
    expected = searcher.search("the senate follows new laws", k=3)
    shutil.copytree(notes, tmp_path / "other")
    (notes / "note-00.txt").write_text("changed")
    started = time.monotonic()
    build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    assert time.monotonic() - started < 60
    assert searcher.search("the senate follows new laws", k=3) == expected


def test_a_rebuild_replaces_indexes_and_nothing_else(notes: Path, encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for rebuild in (False, True):
        with pytest.raises(IndexFormatError):
            build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "mine", rebuild=rebuild)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "empty").documents == 14


def test_an_index_behind_a_link_is_updated_where_it_lies(notes: Path, encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "big" / "index")
    for _ in range(2):
        build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "big" / "index" / "manifest.json").is_file()


def test_a_kill_between_two_renames_loses_nothing(notes: Path, encoder: Encoder, tmp_path: Path) -> None:
    build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    (tmp_path / "index").rename(tmp_path / ".index.old")
    report = build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    assert report.encoded == 0
    assert report.reused == report.chunks


def test_vectors_are_of_unit_length_whatever_the_encoder_says(
    notes: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    encoder = Encoder.load(make_checkpoint(normalize=False), device="cpu", threads=1)
    build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    for vectors in vectors_by_id(tmp_path / "index").values():
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_another_corpus_of_the_same_name_does_not_take_over_an_index(
    notes: Path, encoder: Encoder, tmp_path: Path
) -> None:
    build_index(open_corpus(notes), encoder=encoder, output=tmp_path / "index")
    other = tmp_path / "elsewhere" / "notes"
    shutil.copytree(notes, other)
    with pytest.raises(MismatchError, match=r"holds the corpus .*notes, not .*elsewhere/notes.*--output"):
        build_index(open_corpus(other), encoder=encoder, output=tmp_path / "index")
    shutil.rmtree(notes)  # moved: it is the same corpus in a new place
    assert build_index(open_corpus(other), encoder=encoder, output=tmp_path / "index").encoded == 0
