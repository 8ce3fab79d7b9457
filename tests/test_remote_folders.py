"""Checkpoints and indexes in an object store: fetched once, sent whole, never half old and half new."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Said, rows_of, write_jsonl
from object_stores import Store
from pyarrow import parquet
from tuning_helpers import SETTINGS, config, parameters

from lm_retrieval.checkpoint import Checkpoint, find_checkpoint
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CheckpointError, StorageError
from lm_retrieval.search import Searcher, find_index
from lm_retrieval.server.settings import parse_model
from lm_retrieval.storage import local_folder, locate, open_output
from lm_retrieval.storage import output as sending
from lm_retrieval.tuning.run import tune


class Requests:
    """The requests that reach the server, by method."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from werkzeug.serving import WSGIRequestHandler

        self.seen: list[str] = []
        monkeypatch.setattr(
            WSGIRequestHandler, "log_request", lambda handler, *_: self.seen.append(str(handler.requestline))
        )

    def of(self, action: Callable[[], Any]) -> list[str]:
        self.seen.clear()
        action()
        return [line.rpartition(" ")[0] for line in self.seen]


def folder_of(root: Path, files: dict[str, str], *, number: int = 0) -> Path:
    """A folder with a manifest, as a checkpoint or index is one."""
    shutil.rmtree(root, ignore_errors=True)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "manifest.json").write_text(json.dumps({"kind": "checkpoint", "format_version": 1, "number": number}))
    return root


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def send(uri: str, files: dict[str, str], *, number: int = 0) -> None:
    target = open_output(locate(uri))
    folder_of(target.folder, files, number=number)
    target.send()


# --- fetching ---------------------------------------------------------------------------------------------------------


def test_an_encoder_loads_from_a_store(
    store: Store, checkpoint_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = store.put(checkpoint_path, "encoders/tiny-lstm")
    there, here = Encoder.load(uri, device="cpu"), Encoder.load(checkpoint_path, device="cpu")
    np.testing.assert_array_equal(there.encode(texts[:5]), here.encode(texts[:5]))
    assert there.name == "tiny-lstm"
    requests = Requests(monkeypatch).of(lambda: find_checkpoint(uri))
    assert not [line for line in requests if line.endswith(("safetensors", ".model", "config.json"))]


def test_a_server_takes_models_and_an_index_from_a_store() -> None:
    assert parse_model("s3://bucket/day=3/mine") == ("mine", "s3://bucket/day=3/mine")
    assert parse_model("custom=s3://bucket/day=3/mine") == ("custom", "s3://bucket/day=3/mine")


def test_only_what_is_new_is_fetched(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = store.uri("fresh/one")
    send(uri, {"a.txt": "a" * 99, "b.txt": "b", "sub/c d.txt": "c"})
    monkeypatch.setenv("LMR_CACHE", str(find_cache(monkeypatch) / "elsewhere"))
    requests = Requests(monkeypatch)
    first = local_folder(uri)
    assert {name: text for name, text in contents(first).items() if name != "manifest.json"} == {
        "a.txt": "a" * 99,
        "b.txt": "b",
        "sub/c d.txt": "c",
    }
    assert requests.of(lambda: local_folder(uri)) == [
        "HEAD /our-notes/fresh/one/manifest.json",
        "GET /our-notes/fresh/one/manifest.json",
    ]
    monkeypatch.setenv("LMR_CACHE", str(find_cache(monkeypatch).parent))
    send(uri, {"a.txt": "a" * 99, "b.txt": "B", "new.txt": "n"}, number=1)
    monkeypatch.setenv("LMR_CACHE", str(find_cache(monkeypatch) / "elsewhere"))
    fetched = requests.of(lambda: local_folder(uri))
    assert {line.rpartition("/")[2] for line in fetched if line.startswith("GET")} == {
        "manifest.json",
        "b.txt",
        "new.txt",
    }
    second = local_folder(uri)
    assert sorted(contents(second)) == ["a.txt", "b.txt", "manifest.json", "new.txt"]
    assert (second / "b.txt").read_text() == "B"
    assert (first / "b.txt").read_text() == "b"  # whoever still reads the version before keeps it


def find_cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    import os

    return Path(os.environ["LMR_CACHE"])


def test_a_folder_that_other_tools_put_there_is_followed(store: Store, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "plain", {"a.txt": "one", "b.txt": "same"})
    uri = store.put(folder, "plain")
    assert (local_folder(uri) / "a.txt").read_text() == "one"
    folder_of(folder, {"a.txt": "three", "b.txt": "same"}, number=1)
    store.put(folder, "plain")
    assert (local_folder(uri) / "a.txt").read_text() == "three"


def test_an_incomplete_folder_is_refused(store: Store, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "half", {"a.txt": "one"})
    (folder / "manifest.json").unlink()
    uri = store.put(folder, "half")
    with pytest.raises(StorageError, match=r"half: not a complete checkpoint or index \(manifest.json is missing\)"):
        local_folder(uri)
    with pytest.raises(StorageError, match="half: holds 1 files but no checkpoint or index"):
        open_output(locate(uri))
    with pytest.raises(StorageError, match="nowhere: no such file or folder"):
        Checkpoint.load(store.uri("nowhere"))
    with pytest.raises(StorageError, match="s3://no-such-bucket/x: no such bucket"):
        find_index("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match="s3://no-such-bucket/x: no such bucket"):
        open_output(locate("s3://no-such-bucket/x"))


def test_a_file_that_does_not_belong_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uri = store.uri("changed")
    send(uri, {"a.txt": "one"})
    store.client.put_object(Bucket=store.BUCKET, Key="changed/a.txt", Body=b"two")
    monkeypatch.setenv("LMR_CACHE", str(tmp_path / "other"))
    with pytest.raises(
        StorageError, match=r"changed/a.txt: is not the file that manifest.json names; if another process"
    ):
        local_folder(uri)
    assert not list((tmp_path / "other").glob("*/[!.]*/changed"))


def test_processes_fetch_one_after_the_other(store: Store) -> None:
    uri = store.uri("together")
    send(uri, {f"{number}.txt": "x" * 1000 for number in range(20)})
    program = f"from lm_retrieval.storage import local_folder; print(len(list(local_folder({uri!r}).iterdir())))"
    runs = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(3)]
    assert [run.communicate(timeout=60)[0] for run in runs] == [b"21\n"] * 3


# --- sending ----------------------------------------------------------------------------------------------------------


def test_what_is_sent_is_a_plain_folder(store: Store) -> None:
    uri = store.uri("sent/ckpt")
    send(uri, {"a.txt": "old", "b.txt": "same", "gone.txt": "x", "tokens/train.bin": "left out"})
    send(uri, {"a.txt": "new", "b.txt": "same", "more.txt": "y"}, number=1)
    found = store.objects("sent/ckpt")
    assert {name: data for name, data in found.items() if name != "manifest.json"} == {
        "a.txt": b"new",
        "b.txt": b"same",
        "more.txt": b"y",
    }
    assert json.loads(found["manifest.json"])["number"] == 1


def test_only_what_changed_is_sent(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = store.uri("less")
    send(uri, {"a.txt": "old", "b.txt": "same"})
    requests = Requests(monkeypatch).of(lambda: send(uri, {"a.txt": "new", "b.txt": "same"}, number=1))
    assert not [line for line in requests if "b.txt" in line]


@pytest.mark.parametrize("broken", ["upload", "write_version", "_settle"])
def test_an_interrupted_upload_leaves_one_whole_version(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str
) -> None:
    """Whichever step the network is lost at, readers see all of the old or all of the new."""
    uri = store.uri(f"cut/{broken}")
    old, new = ({"a.txt": word, "b.txt": word, "keep.txt": "k"} for word in ("old", "new"))
    send(uri, old)
    steps = 0

    def fail(*arguments: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if broken == "upload" and steps == 1:
            return original(*arguments, **options)
        raise StorageError("the network is gone")

    original = getattr(sending, broken)
    with monkeypatch.context() as cut:
        cut.setattr(sending, broken, fail)
        with pytest.raises(StorageError, match="the network is gone"):
            send(uri, new, number=1)
    assert steps
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("LMR_CACHE", str(tmp_path / "reader"))
        seen = contents(local_folder(uri))
    assert {name: seen[name] for name in old} == (new if broken == "_settle" else old)
    send(uri, new, number=1)  # and the next try succeeds
    assert sorted(store.objects(f"cut/{broken}")) == ["a.txt", "b.txt", "keep.txt", "manifest.json"]
    assert (local_folder(uri) / "a.txt").read_text() == "new"


def test_readers_see_one_version_while_another_is_sent(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uri = store.uri("busy")
    send(uri, {f"{n}.txt": "0" for n in range(6)})
    done = threading.Event()
    seen: list[set[str]] = []

    def read() -> None:
        while not done.is_set():
            folder = local_folder(uri)
            seen.append({text for name, text in contents(folder).items() if name != "manifest.json"})

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, 5):
            send(uri, {f"{n}.txt": str(number) for n in range(6)}, number=number)
    finally:
        done.set()
        reader.join()
    assert seen
    assert all(len(texts) == 1 for texts in seen)


def test_what_somebody_else_wrote_is_not_overwritten(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uri = store.uri("shared")
    mine = open_output(locate(uri))
    folder_of(mine.folder, {"a.txt": "mine"})
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("LMR_CACHE", str(tmp_path / "colleague"))
        send(uri, {"a.txt": "theirs"})
    with pytest.raises(StorageError, match="was changed by somebody else since this run began"):
        mine.send()
    assert store.objects("shared")["a.txt"] == b"theirs"
    assert (mine.folder / "a.txt").read_text() == "mine"


# --- commands ---------------------------------------------------------------------------------------------------------


def test_an_index_is_built_searched_and_updated_in_a_store(
    store: Store, lmr: Callable[..., Said], checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(30)
    corpus = store.put(write_jsonl(tmp_path / "notes" / "rows.jsonl", rows), "books/notes/rows.jsonl").rpartition("/")[
        0
    ]
    encoder, uri = store.put(checkpoint_path, "books/encoder"), store.uri("books/index")
    built = lmr("embed", corpus, "--encoder", encoder, "--output", uri)
    assert built.code == 0, built.stderr
    assert built.stdout.startswith(f"{uri}: 30 documents")
    stored = store.objects("books/index")
    assert json.loads(stored["manifest.json"])["corpus_path"] == corpus
    (tmp_path / "part.parquet").write_bytes(stored["embeddings/part-00000.parquet"])
    assert parquet.read_table(tmp_path / "part.parquet").num_rows == json.loads(stored["manifest.json"])["chunks"]

    monkeypatch.setenv("LMR_CACHE", str(tmp_path / "another-machine"))
    first = lmr("search", "a sparrow repairs 9", "--index", uri, "-k", "3", "--format", "json")
    assert first.stderr.count("fetched") == 1, first.stderr
    again = lmr("search", "a sparrow repairs 9", "--index", uri, "-k", "3", "--format", "json")
    assert (again.stdout, again.stderr) == (first.stdout, "")
    local = lmr("embed", "notes", "--encoder", checkpoint_path, "--output", "local")
    assert local.code == 0
    expected = lmr("search", "a sparrow repairs 9", "--index", "local", "-k", "3", "--format", "json")
    assert json.loads(first.stdout) == json.loads(expected.stdout)

    rows[4]["text"] = "zebras cross the river at night"
    store.put(write_jsonl(tmp_path / "notes" / "rows.jsonl", rows[:-1]), "books/notes/rows.jsonl")
    updated = lmr("embed", corpus, "--output", uri)
    assert "1 documents removed" in updated.stdout, updated.stderr
    monkeypatch.setenv("LMR_CACHE", str(tmp_path / "cache"))
    found = json.loads(lmr("search", "zebras", "--mode", "bm25", "--index", uri, "--format", "json").stdout)
    assert [hit["id"] for hit in found["hits"]] == ["d4"]
    assert Searcher(find_index(uri)).manifest["documents"] == 29
    facts = lmr("info", uri, "--format", "json")
    assert json.loads(facts.stdout)["documents"] == 29
    rebuilt = lmr("index", uri, "--factory", "HNSW8")
    assert rebuilt.stdout.startswith(f"{uri}: HNSW8"), rebuilt.stderr
    assert json.loads(store.objects("books/index")["manifest.json"])["factory"] == "HNSW8"


def test_tuning_goes_on_from_a_store_on_another_machine(
    store: Store, corpus_path: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = store.uri("runs/mine")
    settings = config("training.max_steps=4", "training.eval_interval_steps=2")
    options: dict[str, Any] = {"config": settings, "teacher": "none", "start": Checkpoint.load(start)}
    whole = tmp_path / "whole"
    tune(open_corpus(corpus_path), output=whole, **options)

    steps = 0

    def lose() -> bool:
        nonlocal steps
        steps += 1
        if steps > 3:
            raise RuntimeError("the machine is gone")
        return False

    target = open_output(locate(uri))
    often = config("training.max_steps=4", "training.eval_interval_steps=2", "training.save_interval_seconds=0.001")
    options |= {"start": Checkpoint.load(start), "config": often}
    with pytest.raises(RuntimeError, match="the machine is gone"):
        tune(open_corpus(corpus_path), output=target.folder, should_stop=lose, after_save=target.send, **options)
    stored = store.objects("runs/mine")
    assert {"trainer.pt", "last.safetensors"} <= stored.keys()
    assert json.loads(stored["manifest.json"])["steps"] == 2

    monkeypatch.setenv("LMR_CACHE", str(tmp_path / "another-machine"))
    target = open_output(locate(uri))
    options |= {"start": Checkpoint.load(start), "config": settings}
    result = tune(open_corpus(corpus_path), output=target.folder, resume=True, after_save=target.send, **options)
    assert result.position.step == 4
    there, expected = parameters(find_checkpoint(uri)), parameters(whole)
    assert not (find_checkpoint(uri) / "trainer.pt").exists()  # large, and only resuming needs it
    assert all((there[name] == expected[name]).all() for name in expected)


def test_training_commands_send_what_they_save(
    store: Store, lmr: Callable[..., Said], corpus_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = store.uri("runs/tuned")
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    command = ("tune", corpus_path, "--from", store.put(start, "runs/start"), "--output", uri, "--teacher", "none")
    said = lmr(*command, *settings, "--set", "training.max_steps=3")
    assert said.code == 0, said.stderr
    assert said.stdout.startswith(f"{uri}: 3 steps")
    assert json.loads(store.objects("runs/tuned")["manifest.json"])["steps"] == 3
    again = lmr(*command, *settings)
    assert (again.code, again.stderr.splitlines()[-1]) == (
        1,
        f"Error: {uri}: holds something already; add --resume to go on, or choose another --output",
    )
    further = lmr(*command, *settings, "--set", "training.max_steps=5", "--resume")
    assert further.code == 0, further.stderr
    assert json.loads(store.objects("runs/tuned")["manifest.json"])["steps"] == 5
    with pytest.raises(CheckpointError, match="nothing to resume"):
        tune(
            open_corpus(corpus_path),
            start=Checkpoint.load(start),
            config=config(),
            output=open_output(locate(store.uri("runs/new"))).folder,
            resume=True,
        )
