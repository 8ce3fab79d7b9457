"""Engines: whoever encodes the shards, the index is the same; workers that die are said, and nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Said, uneven_rows, write_jsonl

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import ConfigError, EngineError
from lm_retrieval.index.builder import build_index
from lm_retrieval.index.engines import Processes
from lm_retrieval.index.shards import Outcome, Work, plan
from lm_retrieval.index.store import EarlierPlaces, Store
from lm_retrieval.records import Document
from lm_retrieval.runtime import local_devices
from lm_retrieval.search import Searcher


@pytest.fixture
def corpus_path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "corpus.jsonl", uneven_rows(90, seed=4))


def vectors_of(index: Path) -> np.ndarray:
    return np.concatenate(list(Store(index).vector_shards()))


def test_two_processes_make_the_index_that_one_makes(corpus_path: Path, encoder: Encoder, tmp_path: Path) -> None:
    one = build_index(open_corpus(corpus_path), encoder=encoder, output=tmp_path / "one", shard_chunks=10)
    engine = Processes(["cpu", "cpu"])
    two = build_index(
        open_corpus(corpus_path), encoder=encoder, output=tmp_path / "two", shard_chunks=10, engine=engine
    )
    for name in ("documents", "chunks", "tokens", "empty_documents", "split_documents", "encoded", "recall_at_10"):
        assert getattr(one, name) == getattr(two, name), name
    np.testing.assert_allclose(vectors_of(tmp_path / "two"), vectors_of(tmp_path / "one"), atol=1e-5)
    assert list(Store(tmp_path / "two").documents()) == list(open_corpus(corpus_path).documents())
    question = "the river carries cold water"
    first, second = (Searcher(tmp_path / name).search(question, k=10) for name in ("one", "two"))
    assert [hit.doc_id for hit in first] == [hit.doc_id for hit in second]
    # an update takes the vectors of what has not changed from the index before
    lines = corpus_path.read_text().splitlines()
    corpus_path.write_text("\n".join([lines[5], *lines[:5], '{"_id": "new", "text": "green apples"}', *lines[20:]]))
    report = build_index(
        open_corpus(corpus_path), encoder=encoder, output=tmp_path / "two", shard_chunks=10, engine=engine
    )
    assert (report.encoded, report.removed) == (1, 14)
    build_index(open_corpus(corpus_path), encoder=encoder, output=tmp_path / "again", shard_chunks=10)
    np.testing.assert_allclose(vectors_of(tmp_path / "two"), vectors_of(tmp_path / "again"), atol=1e-5)


def test_a_worker_that_dies_is_said_and_what_it_finished_is_kept(
    corpus_path: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_later(works: Iterator[Work], **options: object) -> Iterator[Outcome]:
        """Kills a worker when the first shards are there."""
        for place, outcome in enumerate(run(works, **options)):
            yield outcome
            if place == 2:
                children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                for child in children:
                    if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                        os.kill(int(child), signal.SIGKILL)

    engine = Processes(["cpu"])
    run = engine.run
    monkeypatch.setattr(engine, "run", kill_later)
    with pytest.raises(EngineError, match=r"worker process on cpu ended unexpectedly.*run the same command again"):
        build_index(open_corpus(corpus_path), encoder=encoder, output=tmp_path / "ix", shard_chunks=5, engine=engine)
    assert not (tmp_path / "ix").exists()
    # another engine goes on where this one stopped
    report = build_index(open_corpus(corpus_path), encoder=encoder, output=tmp_path / "ix", shard_chunks=5)
    assert report.resumed >= 10
    build_index(open_corpus(corpus_path), encoder=encoder, output=tmp_path / "whole", shard_chunks=5)
    np.testing.assert_allclose(vectors_of(tmp_path / "ix"), vectors_of(tmp_path / "whole"), atol=1e-5)


ORPHANS_SCRIPT = """
import os, signal, sys
from pathlib import Path
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.index.builder import build_index
from lm_retrieval.index.engines import Processes

class Killed(Processes):
    def run(self, works, **options):
        for outcome in super().run(works, **options):
            print(*Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    corpus, checkpoint, output = sys.argv[1:]
    encoder = Encoder.load(checkpoint, device="cpu", threads=1)
    engine = Killed(["cpu", "cpu"])
    build_index(open_corpus(corpus), encoder=encoder, output=Path(output), shard_chunks=5, engine=engine)
"""


def test_workers_of_a_killed_run_end_with_it(
    corpus_path: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(ORPHANS_SCRIPT)
    command = [sys.executable, str(script), str(corpus_path), str(make_checkpoint()), str(tmp_path / "ix")]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=120)
    workers = ended.stdout.split()
    assert len(workers) >= 2, ended
    limit = time.monotonic() + 20
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < limit, "workers outlive the run that started them"
        time.sleep(0.1)


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_devices_are_checked_before_anything_is_read(corpus_path: Path, lmr: Callable[..., Said]) -> None:
    assert local_devices("cpu,cpu") == ["cpu", "cpu"]
    with pytest.raises(ConfigError, match="'tpu'"):
        local_devices("cpu,tpu")
    said = lmr("embed", corpus_path, "--devices", "cuda:93", "--output", "x")
    assert said.code == 1
    assert "cuda:93" in said.stderr


def test_shards_are_cut_by_length_alone() -> None:
    documents = [Document(str(number), "", "x" * size) for number, size in enumerate((10, 0, 4000, 10, 10, 10, 10))]
    works = list(plan(documents, earlier=EarlierPlaces(None), shard_chunks=4, window_tokens=256))
    assert [[document.doc_id for document in work.documents] for work in works] == [list("012"), list("3456")]
    assert [work.number for work in works] == [0, 1]
    assert works[0].places == [None] * 3
