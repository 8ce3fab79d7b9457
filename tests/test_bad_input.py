"""Bad input through the command line: one line that says what, where and what to do; nothing is lost.

Unit tests of readers, tokenizers and artifacts look at the same errors closely; here a user makes the mistakes.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_texts

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.index.builder import build_index


def fails(*arguments: str | Path, cwd: Path, **options: object) -> str:
    """Runs `lmr`, expects exit code 1 and one line, and returns the line."""
    done = subprocess.run(
        [sys.executable, "-m", "lm_retrieval", *map(str, arguments), "--quiet"],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "LMR_THREADS": "1", "OMP_NUM_THREADS": "1"},
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 1, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def built(checkpoint_path: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index of good notes, which bad updates must leave alone."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "notes").mkdir()
    for number, text in enumerate(make_texts(20)):
        (folder / "notes" / f"{number}.txt").write_text(text)
    build_index(open_corpus(folder / "notes"), encoder=encoder, output=folder / "indexes" / "notes")
    shutil.copytree(checkpoint_path, folder / "checkpoints" / "tiny")
    return folder


@pytest.fixture
def world(built: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(built, tmp_path / "world"))
    manifest = folder / "indexes" / "notes" / "manifest.json"
    facts = json.loads(manifest.read_text()) | {"corpus_path": str(folder / "notes")}
    manifest.write_text(json.dumps(facts))
    return folder


BAD_FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "binary named txt": ("x.txt", b"\x00\x01\x02" * 50, ["x.txt", "binary"]),
    "invalid utf-8": ("x.txt", b"caf\xe9", ["x.txt", "not valid utf-8", "--encoding"]),
    "broken json": ("x.jsonl", b'{"text": "a"}\n{"text": \n', ["x.jsonl, line 2", "broken JSON"]),
    "not an object": ("x.jsonl", b"[1]\n", ["x.jsonl, line 1", "JSON object"]),
    "wrong columns": ("x.csv", b"colour,size\nred,3\n", ["found: colour, size", "needed", "--text-column"]),
    "wrong fields": ("x.csv", b"id,text\n1,a,b,c\n", ["x.csv, line 2", "fields"]),
    "duplicate ids": (
        "x.jsonl",
        b'{"_id": "7", "text": "a"}\n{"_id": "7", "text": "b"}\n',
        ["'7'", "line 1", "line 2"],
    ),
    "damaged gzip": ("x.txt.gz", b"\x1f\x8b\x08\x00 nonsense", ["x.txt.gz", "gzip"]),
    "damaged parquet": ("x.parquet", b"PAR1 nonsense", ["x.parquet", "Parquet"]),
}


@pytest.mark.parametrize(("name", "content", "parts"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named_and_the_index_stays(world: Path, name: str, content: bytes, parts: list[str]) -> None:
    before = snapshot(world / "indexes" / "notes")
    (world / "notes" / name).write_bytes(content)
    message = fails("embed", "notes", "--encoder", "tiny", cwd=world)
    assert [part for part in parts if part not in message] == []
    assert snapshot(world / "indexes" / "notes") == before


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("embed", "no-such-folder", "--encoder", "tiny"), ["no-such-folder", "check the path"]),
        (("embed", "blank", "--encoder", "tiny"), ["blank", "no documents found", ".txt"]),
        (("embed", "notes", "--encoder", "giant"), ["giant", "no such checkpoint", "tiny"]),
        (("embed", "notes", "--encoder", "tiny", "--factory", "Soup32"), ["Soup32", "HNSW32"]),
        (("embed", "notes", "--encoder", "tiny", "--encoding", "klingon"), ["klingon", "unknown", "latin-1"]),
        (("search", ""), ["query is empty"]),
        (("search", "water", "-k", "0"), ["k is 0", "at least 1"]),
        (("search", "water", "--index", "nowhere"), ["nowhere", "no such index", "notes"]),
        (("index", "notes", "--factory", "IVF4096,Flat"), ["IVF4096,Flat", "vectors", "Flat"]),
        (("evaluate", "notes"), ["no judgments", "qrels"]),
        (("perplexity", "tiny", "missing.txt"), ["missing.txt"]),
        (("perplexity", "tiny", "notes", "--context", "strided", "--stride", "999"), ["stride 999"]),
        (("generate", "tiny", "--prompt", "x", "--temperature", "0"), ["temperature"]),
        (("train", "none.toml", "--corpus", "notes", "--output", "o"), ["none.toml", "configs/"]),
        (("train", "bad.toml", "--corpus", "notes", "--output", "o"), ["bad.toml", "learning_rat", "learning_rate"]),
        (("train", "ok.toml", "--corpus", "notes", "--output", "checkpoints/tiny"), ["--resume"]),
        (("train", "ok.toml", "--corpus", "notes", "--output", "o", "--max-time", "soon"), ["soon", "5m"]),
        (("train", "ok.toml", "--corpus", "notes", "--output", "o", "--set", "x"), ["section.key=value"]),
        (("train", "ok.toml", "--corpus", "notes", "--output", "o", "--resume"), ["nothing to resume"]),
        (("tokenizer", "info", "ok.toml"), ["ok.toml", "not a SentencePiece model"]),
        (("tokenizer", "train", "blank", "--output", "t"), ["no documents found"]),
        (("info", "nowhere"), ["nowhere", "no such file"]),
        (("corpus", "build", "python-docs", "--package", "no_such_pkg", "--output", "o"), ["no_such_pkg", "install"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:60] if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line_that_helps(world: Path, arguments: tuple[str, ...], parts: list[str]) -> None:
    (world / "blank").mkdir()
    (world / "bad.toml").write_text("[training]\nlearning_rat = 1\n")
    (world / "ok.toml").write_text("[training]\nmax_steps = 1\n")
    before = snapshot(world / "indexes" / "notes"), snapshot(world / "checkpoints" / "tiny")
    message = fails(*arguments, cwd=world)
    assert [part for part in parts if part not in message] == []
    assert (snapshot(world / "indexes" / "notes"), snapshot(world / "checkpoints" / "tiny")) == before


def test_k_beyond_the_corpus_gives_all_there_is(world: Path) -> None:
    command = [sys.executable, "-m", "lm_retrieval", "search", "water", "-k", "1000", "--format", "json"]
    done = subprocess.run(command, cwd=world, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["hits"]) == 20


def test_weights_that_do_not_fit_their_config(world: Path) -> None:
    path = world / "checkpoints" / "tiny" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["hidden_dim"] = 48
    path.write_text(json.dumps(config))
    message = fails("embed", "notes", "--encoder", "tiny", "--output", "indexes/new", cwd=world)
    assert "do not fit" in message
    assert "found" in message
    assert not (world / "indexes" / "new").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.model", "manifest.json"])
def test_a_damaged_checkpoint_file_is_named(world: Path, name: str) -> None:
    path = world / "checkpoints" / "tiny" / name
    path.write_bytes(path.read_bytes()[:40])
    assert name in fails("generate", "tiny", "--prompt", "x", cwd=world)


def test_a_truncated_shard(world: Path) -> None:
    path = world / "indexes" / "notes" / "embeddings" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    message = fails("index", "notes", "--factory", "HNSW8", cwd=world)
    assert "part-00000.parquet: damaged or truncated shard" in message
    assert "lmr embed" in message


def test_another_encoder_is_refused_with_the_command_to_run(world: Path, make_checkpoint: Callable[..., Path]) -> None:
    shutil.copytree(make_checkpoint(seed=3), world / "checkpoints" / "stranger")
    message = fails("search", "water", "--encoder", "stranger", cwd=world)
    assert "built with encoder 'tiny-lstm', not with 'stranger'" in message
    assert "--rebuild" in message
    assert "--rebuild" in fails("embed", "notes", "--encoder", "stranger", cwd=world)


def test_a_fifty_megabyte_line_is_indexed(tmp_path: Path, checkpoint_path: Path) -> None:
    """Reading and chunking in bounded time; encoding is cut short by --quiet only in what it prints."""
    from lm_retrieval.corpus.chunking import chunk_text
    from lm_retrieval.tokenizer import Tokenizer

    line = "the river carries cold water and a sparrow repairs old bridges " * 800_000
    (tmp_path / "big.txt").write_text(line[:50_000_000])
    document = next(open_corpus(tmp_path / "big.txt").documents())
    assert len(document.text) == 50_000_000
    tokenizer = Tokenizer.load(checkpoint_path / "tokenizer.model")
    piece = document.text[:3_000_000]
    end = 0
    for chunk in chunk_text(piece, tokenizer=tokenizer, max_tokens=256, overlap_tokens=32):
        assert chunk.start <= end
        assert len(chunk.token_ids) <= 256
        end = chunk.end
    assert end == len(piece.rstrip())


def _limit_file_size() -> None:
    import signal

    # with the signal ignored, a write beyond the limit fails as on a full disk
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))


def test_a_disk_that_takes_no_more_leaves_the_earlier_index(world: Path) -> None:
    before = snapshot(world / "indexes" / "notes")
    for number, text in enumerate(make_texts(100, seed=8)):
        (world / "notes" / f"more-{number}.txt").write_text(text)
    message = fails("embed", "notes", "--encoder", "tiny", cwd=world, preexec_fn=_limit_file_size)
    assert "indexes" in message
    assert snapshot(world / "indexes" / "notes") == before


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="needs to mount a small file system")
def test_a_full_disk_says_so_and_embed_goes_on_when_there_is_room(world: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        message = fails("embed", "notes", "--encoder", "tiny", "--output", small / "index", cwd=world)
        assert "the disk is full; free some space and run the same command again" in message
        assert not (small / "index").exists()
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        command = [sys.executable, "-m", "lm_retrieval", "embed", "notes", "--encoder", "tiny", "-q"]
        subprocess.run([*command, "--output", str(small / "index")], cwd=world, check=True, capture_output=True)
        assert (small / "index" / "manifest.json").is_file()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_no_write_permission(world: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        # root may write everywhere, except below a file
        (tmp_path / "file").write_text("")
        message = fails("embed", "notes", "--encoder", "tiny", "--output", tmp_path / "file" / "index", cwd=world)
        assert "a folder is needed" in message or "file" in message
        return
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    message = fails("embed", "notes", "--encoder", "tiny", "--output", locked / "index", cwd=world)
    assert "no permission" in message


def test_a_corpus_file_of_an_unknown_format(world: Path) -> None:
    (world / "photo.jpeg").write_bytes(b"\xff\xd8")
    message = fails("embed", "photo.jpeg", "--encoder", "tiny", cwd=world)
    assert "format '.jpeg' is not supported" in message


def test_judgments_with_a_broken_line(world: Path, judged: Path) -> None:
    path = judged / "qrels" / "test.tsv"
    path.write_text(path.read_text() + "q1 d1 1\n")
    assert "test.tsv, line 14: 1 columns, 3 are needed" in fails("evaluate", judged, cwd=world)
    assert "no judgments for split 'dev'; found: test" in fails("evaluate", judged, "--split", "dev", cwd=world)
