"""Locations, and corpora that lie in an object store: read as the same files are read here."""

import gzip
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import Said
from object_stores import Store
from pyarrow import fs

from lm_retrieval.corpus import open_corpus
from lm_retrieval.corpus.pairs import holds_pairs, read_pairs
from lm_retrieval.errors import CorpusError, LmRetrievalError, StorageError
from lm_retrieval.experiment import find_collections
from lm_retrieval.storage import RemotePath, locate, resolved
from lm_retrieval.storage.connection import file_system


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of every format, with names that sort differently by bytes, by key and by letter."""
    folder = tmp_path / "mixed"
    for name, text in {
        "a.txt": "first",
        "a/inner.md": "# Inner\n\nbelow a",
        "a-b.txt": "between a and a.txt, were they keys",
        "Z.txt": "capital",
        "é b%20c.rst": "Title\n=====\n\nin rst",
        "\U0001f600.txt": "beyond the basic plane",
        "\uffee.txt": "before it by code point, after it in UTF-16",
        "empty.txt": "",
        "deep/er/one.csv": "id,text\nc1,from a table\n",
        "page.html": "<html><head><title>Page</title></head><body><p>Some words of a page.</p></body></html>",
        ".hidden.txt": "not read",
        ".git/config.txt": "not read either",
        "picture.png": "no text",
        "index/vectors.faiss": "an index inside the corpus",
        "index/words.txt": "belongs to the index",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    with gzip.open(folder / "rows.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps({"title": f"row {n}", "text": f"text {n} " * 50}) + "\n" for n in range(300))
    rows = {"_id": [f"p{n}" for n in range(50)], "text": [f"parquet {n}" for n in range(50)], "other": [0.5] * 50}
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "deep" / "table.parquet", row_group_size=20)
    return folder


def test_a_corpus_reads_the_same_from_a_store(store: Store, mixed: Path) -> None:
    uri = store.put(mixed, "mixed/notes")
    here, there = open_corpus(mixed), open_corpus(f"{uri}/")
    documents = list(here.documents())
    assert list(there.documents()) == documents
    assert len(documents) == 360
    assert there.counts == here.counts
    assert here.counts.skipped_files == {".png": 1}
    assert here.counts.own_folders == 1
    assert (there.name, str(there.path)) == ("notes", uri)
    assert list(there.documents()) == documents  # again


@pytest.mark.parametrize("name", ["a.txt", "a/inner.md", "deep/table.parquet", "rows.jsonl.gz", "é b%20c.rst"])
def test_a_single_file_reads_the_same(store: Store, mixed: Path, name: str) -> None:
    uri = store.put(mixed / name, f"single/{name}")
    assert list(open_corpus(uri).documents()) == list(open_corpus(mixed / name).documents())
    assert open_corpus(uri).name == open_corpus(mixed / name).name


def test_pdf_and_word_files_are_read(store: Store, tmp_path: Path) -> None:
    docx = pytest.importorskip("docx", reason="needs the extra documents")
    document = docx.Document()
    document.add_paragraph("words of a letter")
    (tmp_path / "letters").mkdir()
    document.save(str(tmp_path / "letters" / "one.docx"))
    (found,) = open_corpus(store.put(tmp_path / "letters", "letters")).documents()
    assert (found.doc_id, found.text) == ("one.docx", "words of a letter")
    (large,) = open_corpus(store.uri("letters/one.docx")).documents()
    assert large.text == found.text


def test_only_what_is_read_is_in_memory(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w") as stream:
        stream.writelines(json.dumps({"text": f"{n} " * 2000}) + "\n" for n in range(3000))
    assert path.stat().st_size > 16e6
    pyarrow_pool = pyarrow.default_memory_pool()
    before, most, count = pyarrow_pool.bytes_allocated(), 0, 0
    for _ in open_corpus(store.put(path, "large.jsonl")).documents():
        most, count = max(most, pyarrow_pool.bytes_allocated() - before), count + 1
    assert count == 3000
    assert most < 10e6


def test_judgments_are_read_from_a_store(store: Store, judged: Path) -> None:
    uri = store.put(judged, "collections/judged")
    here, there = open_corpus(judged), open_corpus(uri)
    assert there.judged
    assert there.splits == ["test"]
    assert there.queries() == here.queries()
    assert there.qrels("test") == here.qrels("test")
    assert list(there.documents()) == list(here.documents())
    assert [corpus.name for corpus in find_collections(locate(store.uri("collections")))] == ["judged"]
    with pytest.raises(CorpusError, match=f"{uri}: no judgments for split 'dev'; found: test"):
        there.qrels("dev")


def test_pairs_are_read_from_a_store(store: Store, pairs_path: Path) -> None:
    uri = locate(store.put(pairs_path.parent, "pairs"))
    assert holds_pairs(uri)
    assert list(read_pairs(uri)) == list(read_pairs(pairs_path))


def test_a_file_uri_is_a_local_path(notes: Path, tmp_path: Path) -> None:
    folder = notes.rename(tmp_path / "my notes 100%")
    uri = folder.as_uri()
    assert "%20" in uri
    assert locate(uri) == folder
    assert resolved(uri) == folder
    assert list(open_corpus(uri).documents()) == list(open_corpus(folder).documents())


def test_keys_are_taken_literally() -> None:
    path = locate("s3://bucket//a%20b/c#d?e/")
    assert isinstance(path, RemotePath)
    assert str(path) == "s3://bucket/a%20b/c#d?e"
    assert (path.path, path.name) == ("bucket/a%20b/c#d?e", "c#d?e")
    assert str(locate("hdfs://node:8020/user/me")) == "hdfs://node:8020/user/me"


# --- what is said when something is wrong -----------------------------------------------------------------------------


def _said(uri: str) -> str:
    with pytest.raises(LmRetrievalError) as caught:
        list(open_corpus(uri).documents())
    return str(caught.value)


def test_messages_name_the_uri_and_the_line(store: Store, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "rows.jsonl").write_text('{"text": "good"}\n{"text": \n')
    uri = store.put(tmp_path / "broken", "broken")
    assert _said(uri).startswith(f"{uri}/rows.jsonl, line 2: broken JSON")
    store.client.put_object(Bucket=store.BUCKET, Key="damaged/page.parquet", Body=b"PAR1 no parquet PAR1")
    assert _said(store.uri("damaged")).startswith(f"{store.uri('damaged')}/page.parquet: not a readable Parquet file")


def test_what_is_not_there_is_named(store: Store) -> None:
    assert _said(store.uri("nothing")) == f"{store.uri('nothing')}: no such file or folder; check the path"
    assert _said("s3://no-such-bucket/notes") == "s3://no-such-bucket/notes: no such bucket; check the path"


def test_a_file_that_disappears_is_named(store: Store, notes: Path) -> None:
    uri = store.put(notes, "fleeting")
    found = locate(uri)
    assert isinstance(found, RemotePath)
    first = next(found.iterdir())
    store.client.delete_object(Bucket=store.BUCKET, Key=f"fleeting/{first.name}")
    with pytest.raises(StorageError, match=f"{uri}/{first.name}: no such file or folder"):
        first.read_bytes()


def test_refused_access_is_told_without_secrets(store: Store, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = store.put(notes, "secret/notes")
    with store.denied("secret"):
        said = _said(f"{uri}/empty.txt")
        assert said.startswith(f"{uri}/empty.txt: access denied; check the credentials")
        assert "testing" not in said
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        assert "no credentials found; set AWS_ACCESS_KEY_ID" in _said(f"{uri}/empty.txt")


def test_an_endpoint_that_does_not_answer_is_told_soon(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)  # comes before AWS_ENDPOINT_URL
        started = time.monotonic()
        assert f"{address} cannot be reached; check AWS_ENDPOINT_URL" in _said("s3://bucket/notes")
        assert time.monotonic() - started < 10
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address.replace("//", "//me:hunter2@"))
        assert f"s3://bucket: {address} cannot be reached" in _said("s3://bucket/notes")


def test_a_port_where_nobody_answers_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_retrieval.storage.connection._PROBE_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        started = time.monotonic()
        assert f"{address} cannot be reached" in _said("s3://bucket/notes")
        assert time.monotonic() - started < 8


def test_an_endpoint_that_is_no_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "localhost:9000")
    assert "AWS_ENDPOINT_URL=localhost:9000: an address such as" in _said("s3://bucket/notes")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("ftp://host/notes", "ftp://: not supported; supported: s3://, gs://, hdfs://, file://"),
        ("https://host/notes", "https://: not supported"),
        ("s3:///notes", "no bucket; write s3://BUCKET/FOLDER"),
        ("file://notes", "a file URI has three slashes"),
    ],
)
def test_addresses_that_cannot_be_used(uri: str, said: str) -> None:
    assert said in _said(uri)


@pytest.mark.parametrize("uri", ["s3://KEYID:hunter2@bucket/x", "s3://KEYID:hun/ter2@bucket/x", "gs://hunter2@b/x"])
def test_credentials_in_an_address_are_refused_and_not_repeated(uri: str) -> None:
    said = _said(uri)
    assert "credentials do not belong into an address" in said
    assert "hun" not in said


def test_google_cloud_storage_is_asked_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server: which file system is opened, and what is said when nothing answers."""
    monkeypatch.setattr("lm_retrieval.storage.connection._GCS_SECONDS", 1.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        assert isinstance(file_system("gs", "bucket"), fs.GcsFileSystem)
        assert _said("gs://bucket/notes").startswith(f"gs://bucket/notes: {address} cannot be reached")


def test_hdfs_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("JAVA_HOME", "HADOOP_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    assert "HDFS needs Java and Hadoop; install" in _said("hdfs://node:8020/notes")


def test_commands_keep_addresses_whole(lmr: Callable[..., Said], store: Store, notes: Path) -> None:
    uri = store.put(notes, "commands/notes")
    said = lmr("corpus", "info", uri)
    assert (said.code, said.stdout.split("\n")[0].split()) == (0, ["corpus", uri])
    assert json.loads(lmr("info", uri, "--format", "json").stdout)["bytes"] == sum(
        path.stat().st_size for path in notes.iterdir()
    )
    assert lmr("corpus", "info", "s3://no-such-bucket/x").stderr == (
        "Error: s3://no-such-bucket/x: no such bucket; check the path\n"
    )
    local_only = lmr("report", uri)
    assert local_only.code == 2
    assert f"{uri}: a path on this machine is needed here" in local_only.stderr
