"""Every benchmark runs in its quick form and is correct where it compares; how fast it is is not looked at here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_texts, write_jsonl

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RESULTS = BENCHMARKS / "results"
TOPICS = ("river water stone bridge", "engine wheel road driver", "violin concert music hall", "bread flour oven salt")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small judged collection: 120 documents, 8 queries."""
    folder = tmp_path_factory.mktemp("data") / "small"
    (folder / "qrels").mkdir(parents=True)
    documents, queries, judgments = [], [], ["query-id\tcorpus-id\tscore"]
    for number in range(120):
        words = TOPICS[number % 4].split()
        text = " ".join(f"{word} {word}{number % 7} and the {words[number % 3]}" for word in words * 4)
        documents.append({"_id": f"d{number}", "title": f"{words[0]} {words[1]} number {number}", "text": text})
    for number in range(8):
        queries.append({"_id": f"q{number}", "text": f"{TOPICS[number % 4]} {number}"})
        judgments += [f"q{number}\td{place}\t1" for place in range(number % 4, 120, 12)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "qrels" / "test.tsv").write_text("\n".join(judgments) + "\n")
    return folder


def run(name: str, *arguments: object) -> str:
    before = {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LMR_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=BENCHMARKS.parent, start_new_session=True
    )
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in RESULTS.iterdir()} == before, "a quick run wrote results"
    return done.stdout


def table(output: str) -> list[list[str]]:
    """The cells of the first Markdown table, without its header."""
    lines = [line for line in output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_encode(collection: Path) -> None:
    rows = table(run("encode", collection, "--encoder", "lstm-base"))
    assert [row[1] for row in rows[:4]] == ["lstm-base float32", "lstm-base bfloat16"] * 2


def test_contention(collection: Path) -> None:
    rows = table(run("contention", collection))
    assert len(rows) == 4
    assert {row[1] for row in rows} == {"1"}
    assert all(float(row[2]) > 0 for row in rows)


def test_dynamic_padding_gives_the_vectors_of_full_padding(collection: Path) -> None:
    rows = table(run("padding", collection, "--encoder", "lstm-base", "--dtype", "float32"))
    assert len(rows) == 2
    assert all(float(row[-1]) > 0.9999 for row in rows)


def test_tokenizing_gives_identical_ids(collection: Path) -> None:
    assert "50 of 50 documents have identical ids" in run("tokenizing", collection)


def test_engines_make_the_same_vectors(collection: Path, one_ray: None) -> None:
    pytest.importorskip("ray", reason="needs the extra 'ray'")
    rows = table(run("engines", collection, "--passages", 60))
    assert {"one process, 1 thread", "Ray, 1 worker"} <= {row[0] for row in rows}
    assert all(float(row[-1]) < 1e-5 for row in rows)


def test_the_plan_counts_with_what_was_measured(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in make_texts(600, seed=3)])
    output = run("capacity", path, "--passages", 600)
    assert "Everything beyond 600 passages is extrapolated" in output
    assert [row[0] for row in table(output.split("## The plan")[1])] == [
        *("1,000,000", "10,000,000", "100,000,000", "1,000,000,000")
    ]


def test_generating_with_and_without_a_state_writes_the_same(collection: Path) -> None:
    rows = table(run("generate", "--model", "lstm-base"))
    assert [row[1] for row in rows] == ["lstm-base, lmr", "lstm-base, whole text again for each token"]


def test_both_training_loops_lose_alike(collection: Path) -> None:
    (ours, theirs) = table(run("train", collection, "--model", "lstm-base"))
    assert (ours[2], theirs[2]) == ("lmr train", "plain loop")
    assert float(ours[-1]) == pytest.approx(float(theirs[-1]), abs=1e-3)


def test_search_finds_what_the_libraries_find(collection: Path) -> None:
    rows = table(run("search", collection))
    assert [row[0] for row in rows] == ["FAISS Flat", "BM25"]
    assert [row[-1] for row in rows] == ["yes", "yes"]


def test_serve_answers_everything_and_batches(collection: Path) -> None:
    output = run("serve", collection)
    rows = table(output)
    assert [row[0] for row in rows[:5]] == ["embeddings", "tokenize", "search", "generate", "health"]
    assert all(row[-1].startswith("200: ") for row in rows[:5])
    assert "flat" in output
    assert [float(row[3]) for row in rows[-3::2]] == [1, 128]  # texts in a batch


def test_growth(collection: Path, tmp_path: Path) -> None:
    rows = table(run("growth", collection, "--sizes", 100, "--folder", tmp_path))
    assert [row[5] for row in rows] == ["Flat", "HNSW32"]
    assert rows[0][7] == "1.000"


def test_precision(collection: Path) -> None:
    rows = table(run("precision", collection, "--encoder", "lstm-base", "--text", collection / "corpus.jsonl"))
    assert [row[1] for row in rows] == ["float32", "bfloat16", "int8"]
    assert rows[0][-2] == "100.0%"
