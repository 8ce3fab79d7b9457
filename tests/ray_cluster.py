"""Encoding on a real Ray cluster of several nodes: the same index, also when a node is lost in the middle."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Said, make_texts, uneven_rows, write_jsonl

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import ConfigError, EngineError, StorageError
from lm_retrieval.index.builder import build_index
from lm_retrieval.index.engines import Site
from lm_retrieval.index.shards import Outcome, Work
from lm_retrieval.index.store import Store
from lm_retrieval.search import Searcher

ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
KEPT = "Interrupted; what is finished is kept: the same command goes on there."
QUESTIONS = ("the river carries cold water", "the baker warms glass", "new laws")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that encodes nothing and two nodes of one core each."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 * 2**20}
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
    started.lmr_nodes = [started.add_node(num_cpus=1, **memory) for _ in range(2)]
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.fixture(scope="module")
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("ray") / "corpus.jsonl", uneven_rows(150, seed=4))


@pytest.fixture(scope="module")
def encoder_path(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(postprocess="center")


@pytest.fixture(scope="module")
def local(corpus_path: Path, encoder_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index that this process makes."""
    output = tmp_path_factory.mktemp("local") / "index"
    encoder = Encoder.load(encoder_path, device="cpu", threads=1)
    build_index(open_corpus(corpus_path), encoder=encoder, output=output, shard_chunks=2)
    return output


def assert_same(index: Path, expected: Path) -> None:
    first, second = Store(index), Store(expected)
    assert list(first.documents()) == list(second.documents())
    np.testing.assert_allclose(
        np.concatenate(list(first.vector_shards())), np.concatenate(list(second.vector_shards())), atol=1e-5
    )
    assert not (index / "works").exists()
    for mode in ("dense", "hybrid"):
        for question in QUESTIONS:
            found, wanted = (Searcher(path).search(question, k=10, mode=mode) for path in (index, expected))
            assert [hit.doc_id for hit in found] == [hit.doc_id for hit in wanted]


def test_a_cluster_makes_the_index_that_one_machine_makes(
    cluster: Any, corpus_path: Path, encoder_path: Path, local: Path, lmr: Callable[..., Said], tmp_path: Path
) -> None:
    said = lmr(
        *("embed", corpus_path, "--encoder", encoder_path, "--output", "ix", "--dtype", "float32"),
        *("--engine", "ray", "--address", cluster.address, "--workers", "2"),
    )
    assert said.code == 0, said.stderr
    assert "150 documents" in said.stdout
    assert not ray.is_initialized()
    assert_same(tmp_path / "ix", local)
    # an update encodes what is new; everything else comes from the index before
    lines = corpus_path.read_text().splitlines()
    changed = tmp_path / "corpus.jsonl"
    changed.write_text("\n".join([*lines[40:], '{"_id": "new", "text": "green apples"}']))
    command = ("embed", changed, "--output", "ix", "--dtype", "float32")
    assert "holds the corpus" in lmr(*command).stderr
    original = corpus_path.read_text()
    try:
        corpus_path.write_text(changed.read_text())
        said = lmr("embed", corpus_path, *command[2:], "--engine", "ray", "--address", cluster.address)
    finally:
        corpus_path.write_text(original)
    assert "1 chunks encoded" in said.stdout, said.stderr
    assert "40 documents removed" in said.stdout


class Watched:
    """An engine that calls `when` after the first `outcomes` shards."""

    def __init__(self, engine: Any, when: Callable[[], None], *, outcomes: int) -> None:
        self.engine, self.when, self.outcomes, self.seen = engine, when, outcomes, []

    def run(self, works: Iterator[Work], *, site: Site, encoder: Encoder) -> Iterator[Outcome]:
        for outcome in self.engine.run(works, site=site, encoder=encoder):
            self.seen.append(outcome.number)
            if len(self.seen) == self.outcomes:
                self.when()
            yield outcome


def test_an_interrupted_run_goes_on_and_encodes_no_shard_again(
    cluster: Any, corpus_path: Path, encoder_path: Path, local: Path, tmp_path: Path
) -> None:
    from lm_retrieval.scale.ray_data import RayEngine

    def interrupt() -> None:
        raise KeyboardInterrupt

    encoder = Encoder.load(encoder_path, device="cpu", threads=1)
    options = {"encoder": encoder, "output": tmp_path / "ix", "shard_chunks": 2}
    first = Watched(RayEngine(address=cluster.address), interrupt, outcomes=10)
    with pytest.raises(KeyboardInterrupt):
        build_index(open_corpus(corpus_path), **options, engine=first)
    assert not (tmp_path / "ix").exists()
    written = len(list((tmp_path / ".ix.partial" / "embeddings").glob("*.parquet")))
    second = Watched(RayEngine(address=cluster.address), interrupt, outcomes=-1)
    report = build_index(open_corpus(corpus_path), **options, engine=second)
    shards = Store(tmp_path / "ix").num_shards
    assert written >= 10
    assert len(second.seen) <= shards - 10
    assert report.resumed + report.encoded == report.chunks
    assert report.resumed >= 10
    assert_same(tmp_path / "ix", local)


def _hear_ctrl_c() -> None:
    """A background job ignores the signal, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_the_command_and_the_same_command_goes_on(cluster: Any, encoder_path: Path, tmp_path: Path) -> None:
    words = make_texts(100, seed=6)
    rows = [{"_id": f"d{number}", "text": f"{words[number % 100][:40]} {number}"} for number in range(40_000)]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", rows)
    command = [sys.executable, "-m", "lm_retrieval", "embed", corpus, "--encoder", encoder_path, "--output", "ix"]
    command += ["--engine", "ray", "--address", cluster.address, "--workers", "1"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=_hear_ctrl_c
    )
    deadline = time.monotonic() + 120
    while not (finished := [*(tmp_path / ".ix.partial" / "embeddings").glob("*.parquet")]):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (130, KEPT), said
    assert len(finished) < 9
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert " from the interrupted run" in ran.stdout


def test_what_is_wrong_is_said(
    cluster: Any, corpus_path: Path, encoder_path: Path, lmr: Callable[..., Said], tmp_path: Path
) -> None:
    from lm_retrieval.scale.ray_data import RayEngine, _Worker

    embed = ("embed", corpus_path, "--encoder", encoder_path, "--output", "ix")
    said = lmr(*embed, "--engine", "ray", "--address", "127.0.0.1:1")
    assert said.code == 1
    assert "127.0.0.1:1: cannot join a Ray cluster there" in said.stderr
    said = lmr(*embed, "--workers", "2")
    assert said.code == 2
    assert "--workers: only with --engine ray" in said.stderr
    said = lmr(*embed, "--engine", "ray", "--address", cluster.address, "--gpus-per-worker", "1")
    assert said.code == 1
    assert "2 cores and 0 GPUs; a worker needs 1 and 1" in said.stderr
    with pytest.raises(ConfigError, match="at least 1"):
        RayEngine(workers=0)
    with pytest.raises(StorageError, match="does not see this folder.*storage that all nodes share"):
        _Worker(site=Site(tmp_path / "a", tmp_path / "a" / "encoder", "float32", None), device="cpu", threads=1)
    assert not (tmp_path / "ix").exists()
    assert not ray.is_initialized()


def test_what_fails_on_a_node_is_said_here(cluster: Any, corpus_path: Path, encoder_path: Path, tmp_path: Path) -> None:
    """The encoder's copy is damaged when the workers read it."""
    from lm_retrieval.scale.ray_data import RayEngine

    class Damaging(RayEngine):
        def run(self, works: Iterator[Work], *, site: Site, encoder: Encoder) -> Iterator[Outcome]:
            (site.encoder / "model.safetensors").write_bytes(b"damaged")
            return super().run(works, site=site, encoder=encoder)

    encoder = Encoder.load(encoder_path, device="cpu", threads=1)
    engine = Damaging(address=cluster.address)
    with pytest.raises(EngineError, match="gave up: .*model.safetensors"):
        build_index(open_corpus(corpus_path), encoder=encoder, output=tmp_path / "ix", engine=engine)


def test_a_node_that_is_lost_in_the_middle_costs_nothing_but_time(
    cluster: Any, corpus_path: Path, encoder_path: Path, local: Path, tmp_path: Path
) -> None:
    from lm_retrieval.scale.ray_data import RayEngine

    def lose_a_node() -> None:
        cluster.remove_node(cluster.lmr_nodes.pop(), allow_graceful=False)

    encoder = Encoder.load(encoder_path, device="cpu", threads=1)
    engine = Watched(RayEngine(address=cluster.address, workers=2), lose_a_node, outcomes=8)
    report = build_index(
        open_corpus(corpus_path), encoder=encoder, output=tmp_path / "ix", shard_chunks=2, engine=engine
    )
    assert len(cluster.list_all_nodes()) == 2  # the head and one of two
    assert sorted(engine.seen) == list(range(Store(tmp_path / "ix").num_shards))
    assert len(engine.seen) > 40
    assert report.encoded + report.resumed == report.chunks
    assert_same(tmp_path / "ix", local)
