"""A tiny corpus, a tiny model and helpers that several test modules share."""

import fcntl
import json
import logging
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from object_stores import Store, running_store, use_store
from tuning_helpers import run

from lm_retrieval.checkpoint import Checkpoint, save_checkpoint
from lm_retrieval.cli import main
from lm_retrieval.config import EncoderConfig, LstmConfig, RunConfig, TokenizerConfig, TransformerConfig
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.models import build_model
from lm_retrieval.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LMR_DATA", ROOT.parent / "shared" / "data"))

SUBJECTS = (
    "the river",
    "a sparrow",
    "our engine",
    "this theorem",
    "the baker",
    "an island",
    "her violin",
    "the senate",
)
VERBS = ("carries", "repairs", "describes", "follows", "measures", "paints", "warms", "questions")
OBJECTS = (
    "cold water",
    "old bridges",
    "small numbers",
    "the harbour",
    "green apples",
    "loud music",
    "new laws",
    "glass",
)


def make_texts(count: int, *, seed: int = 0, sentences: int = 3) -> list[str]:
    """Short distinct texts of a small grammar: enough structure for a model to learn in seconds."""
    generator = random.Random(seed)

    def sentence() -> str:
        words = (generator.choice(SUBJECTS), generator.choice(VERBS), generator.choice(OBJECTS))
        return f"{' '.join(words)} {generator.randint(0, 99)}."

    return [" ".join(sentence() for _ in range(sentences)) for _ in range(count)]


def rows_of(count: int = 80) -> list[dict[str, object]]:
    """Documents that name their number in every sentence, under a title that names it too."""
    rows = []
    for number in range(count):
        subject, verb, thing = SUBJECTS[number % 8], VERBS[number // 8 % 8], OBJECTS[number * 3 % 8]
        sentences = [f"{subject} {verb} {other} {number}." for other in (thing, *OBJECTS[:5])]
        rows.append({"_id": f"d{number}", "title": f"{subject}, part {number}", "text": " ".join(sentences)})
    return rows


def uneven_rows(count: int, *, seed: int) -> list[dict[str, object]]:
    """Short documents, but for one that is longer than any window and one that is empty."""
    rows: list[dict[str, object]] = [
        {"_id": f"d{number}", "text": text} for number, text in enumerate(make_texts(count, seed=seed))
    ]
    rows[7]["text"] = " ".join(make_texts(20, seed=seed + 1))
    rows[9]["text"] = ""
    return rows


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def require_data(relative: str) -> Path:
    """A folder of the shared data, or a skip that says why."""
    path = DATA / relative
    if not path.exists():
        pytest.skip(f"needs {relative} in the data folder (set LMR_DATA)")
    return path


@dataclass
class Said:
    """What a command printed, and its exit code."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return make_texts(60)


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Tokenizer:
    return Tokenizer.train(texts, TokenizerConfig(vocab_size=400))


@pytest.fixture(scope="session")
def make_checkpoint(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a freshly initialised tiny checkpoint and returns its folder."""

    def make(kind: str = "lstm", *, seed: int = 0, **encoder: object) -> Path:
        torch.manual_seed(seed)
        lstm = LstmConfig(embedding_dim=32, hidden_dim=32, num_layers=1)
        transformer = TransformerConfig(embedding_dim=32, num_heads=2, num_layers=2, feedforward_dim=48, max_length=64)
        settings = EncoderConfig(**{"max_length_tokens": 32, "overlap_tokens": 4, **encoder})  # type: ignore[arg-type]
        config = RunConfig(model=lstm if kind == "lstm" else transformer, encoder=settings)
        model = build_model(config.model, vocab_size=tokenizer.vocab_size)
        folder = tmp_path_factory.mktemp("checkpoint") / f"tiny-{kind}"
        save_checkpoint(folder, model=model, tokenizer=tokenizer, config=config)
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint_path(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.fixture(scope="session")
def checkpoint(checkpoint_path: Path) -> Checkpoint:
    return Checkpoint.load(checkpoint_path)


@pytest.fixture(scope="session")
def encoder(checkpoint: Checkpoint) -> Encoder:
    return Encoder(checkpoint)


@pytest.fixture
def notes(tmp_path: Path, texts: list[str]) -> Path:
    """A folder of small text files, one of them long and one empty."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for number, text in enumerate(texts[:12]):
        (folder / f"note-{number:02d}.txt").write_text(text)
    (folder / "long.md").write_text("# A long note\n\n" + " ".join(make_texts(30, seed=5)))
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture
def judged(tmp_path: Path, texts: list[str]) -> Path:
    """A BEIR folder: the question for a document is its own first sentence."""
    folder = tmp_path / "judged"
    rows = [{"_id": f"d{number}", "title": f"note {number}", "text": text} for number, text in enumerate(texts[:40])]
    write_jsonl(folder / "corpus.jsonl", rows)
    queries = [{"_id": f"q{number}", "text": texts[number].split(".")[0]} for number in range(12)]
    write_jsonl(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *(f"q{number}\td{number}\t1" for number in range(12))]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents of `rows_of`, to tune on."""
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", rows_of())


@pytest.fixture(scope="module")
def pairs_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries and answers without a word in common: a subject stands for a verb, an object for a number."""
    rows = [
        {"query": f"{subject} {thing}", "positive": f"{verb} {100 + 7 * place}"}
        for subject, verb in zip(SUBJECTS, VERBS, strict=True)
        for place, thing in enumerate(OBJECTS)
    ]
    return write_jsonl(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A BEIR folder with a train and a dev split; its queries are found in no document."""
    folder = tmp_path / "labelled"
    write_jsonl(folder / "corpus.jsonl", rows_of())
    write_jsonl(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"who knows {n}?"} for n in range(80)])
    (folder / "qrels").mkdir()
    for split, numbers in (("train", range(60)), ("dev", range(60, 80))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in numbers)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def start(make_checkpoint: Callable[..., Path]) -> Path:
    """The language model that tuning begins with."""
    return make_checkpoint("lstm", seed=4)


@pytest.fixture(scope="module")
def tuned(corpus_path: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, for the tests that need one to look at or to go on from."""
    output = tmp_path_factory.mktemp("tuned") / "first"
    run(corpus_path, start, output)
    return output


@pytest.fixture
def one_ray() -> Iterator[None]:
    """Lets one test at a time start Ray, which ends processes of other clusters on the machine when it stops."""
    with (Path(tempfile.gettempdir()) / "lmr-tests-ray.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def store_server() -> Iterator[Store]:
    with running_store() as store:
        yield store


@pytest.fixture
def store(store_server: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """An object store on this machine, and an environment that leads there."""
    use_store(monkeypatch, store_server, tmp_path / "cache")
    return store_server


@pytest.fixture
def lmr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Said]]:
    """The command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMR_THREADS", "1")
    handlers, level = logging.getLogger().handlers[:], logging.getLogger("lm_retrieval").level

    def call(*arguments: str | Path) -> Said:
        capsys.readouterr()
        code: Any = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as ended:
            code = ended.code
        return Said(code, *capsys.readouterr())

    yield call
    logging.getLogger().handlers[:] = handlers
    logging.getLogger("lm_retrieval").setLevel(level)
