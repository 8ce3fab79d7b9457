"""The command line as it is used: what it prints, where, and with which exit code."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from conftest import ROOT, make_texts

from lm_retrieval.cli import lmr, main


def run(*arguments: str | Path, cwd: Path, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs `lmr` as a process of its own and checks its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "lm_retrieval", *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "LMR_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stderr
    return done


def commands(group: click.Group = lmr, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with notes, a judged corpus, and what the commands made of them."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "notes").mkdir()
    for number, text in enumerate(make_texts(80, seed=1)):
        (folder / "notes" / f"note-{number:02d}.txt").write_text(text)
    common = ["--set", "training.sample_tokens=0", "--set", "training.max_steps=60", "--quiet"]
    for name, extra in (("smoke", []), ("other", ["--set", "training.seed=7", "--set", "model.num_layers=2"])):
        output = ["--output", f"checkpoints/{name}"]
        run("train", ROOT / "configs" / "smoke.toml", "--corpus", "notes", *output, *common, *extra, cwd=folder)
    run("embed", "notes", "--encoder", "smoke", "--quiet", cwd=folder)
    return folder


@pytest.mark.parametrize("command", [(), *commands()], ids=" ".join)
def test_every_command_has_help_and_loads_no_torch_for_it(command: tuple[str, ...]) -> None:
    code = (
        "import sys; from lm_retrieval.cli import main\n"
        f"try: main([*{command!r}, '--help'])\n"
        "finally: print([name for name in ('torch', 'faiss', 'pyarrow', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: lmr")
    assert done.stdout.rstrip().endswith("[]")


def test_the_commands_are_those_that_scripts_rely_on() -> None:
    expected = (
        "corpus build, corpus import, corpus info, tokenizer train, tokenizer encode, tokenizer decode, "
        "tokenizer info, train, tune, perplexity, generate, compare, embed, index, search, serve, evaluate, report, "
        "bench, quantize, info"
    )
    assert sorted(" ".join(command) for command in commands()) == sorted(expected.split(", "))


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [c for c in commands() if f"lmr {' '.join(c)}" not in readme] == []


def test_search_prints_ranked_hits(world: Path) -> None:
    out = run("search", "the sparrow paints glass", "-k", "3", cwd=world).stdout
    ranks = re.findall(r"^ ?(\d+)\. (\d\.\d{3})  (note-\d\d\.txt)$", out, flags=re.M)
    assert [rank for rank, _, _ in ranks] == ["1", "2", "3"]
    assert "\x1b" not in out  # no colours outside a terminal


def test_search_json_is_for_scripts(world: Path) -> None:
    found = json.loads(run("search", "sparrow", "-k", "2", "--format", "json", cwd=world).stdout)
    assert found["query"] == "sparrow"
    assert [hit["rank"] for hit in found["hits"]] == [1, 2]
    assert {"rank", "score", "id", "title", "snippet", "highlights", "passage"} == set(found["hits"][0])
    hit = found["hits"][0]
    assert [hit["snippet"][start:end] for start, end in hit["highlights"]].count("sparrow") >= 1


def test_search_reads_queries_from_stdin(world: Path) -> None:
    found = json.loads(run("search", "-", "--format", "json", "-k", "1", cwd=world, stdin="glass\n\nviolin\n").stdout)
    assert [answer["query"] for answer in found] == ["glass", "violin"]


@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
def test_search_modes(world: Path, mode: str) -> None:
    found = json.loads(run("search", "the harbour", "--mode", mode, "--format", "json", cwd=world).stdout)
    assert len(found["hits"]) == 10


def test_embed_again_encodes_only_what_changed(world: Path) -> None:
    (world / "notes" / "note-00.txt").write_text("a fresh note about volcanoes")
    out = run("embed", "notes", "--encoder", "smoke", cwd=world).stdout
    assert "1 chunks encoded, " in out
    assert run("search", "volcanoes", "-k", "1", "--mode", "bm25", cwd=world).stdout.startswith(" 1. ")
    assert "note-00.txt" in run("search", "volcanoes", "-k", "1", cwd=world).stdout


def test_embed_without_an_encoder_uses_the_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "diary").mkdir()
    for number, text in enumerate(make_texts(60, seed=4)):
        (tmp_path / "diary" / f"{number}.md").write_text(f"# Day {number}\n{text}")
    first = run("embed", "diary", cwd=tmp_path)
    assert "calibrated on" in first.stdout
    facts = json.loads(run("info", "indexes/diary", "--format", "json", cwd=tmp_path).stdout)
    assert (facts["encoder"], facts["dim"]) == ("lstm-base", 256)
    assert 0 <= facts["dense_weight"] <= 1
    assert facts["dense_weight_source"].endswith("pseudo-queries of this index")
    again = run("embed", "diary", cwd=tmp_path).stdout  # the copy in the index is the same encoder
    assert "0 chunks encoded" in again
    assert "Day 7" in run("search", "day 7", "-k", "30", cwd=tmp_path).stdout
    given = run("embed", "diary", "--dense-weight", "0.25", cwd=tmp_path)
    assert given.returncode == 0
    assert json.loads(run("info", "indexes/diary", "--format", "json", cwd=tmp_path).stdout)["dense_weight"] == 0.25


def test_search_can_rerank_by_the_language_model(world: Path) -> None:
    plain = json.loads(run("search", "the river", "--index", "notes", "--format", "json", cwd=world).stdout)
    ordered = json.loads(
        run("search", "the river", "--index", "notes", "--rerank", "lm", "--format", "json", cwd=world).stdout
    )
    assert len(ordered["hits"]) == len(plain["hits"])
    scores = [hit["score"] for hit in ordered["hits"]]
    assert scores == sorted(scores, reverse=True)


def test_index_rebuilds_with_another_factory(world: Path) -> None:
    out = run("index", "notes", "--factory", "HNSW8", cwd=world).stdout
    assert re.search(r"indexes/notes: HNSW8, \d+ vectors, .* recall@10 [01]\.\d{3}", out)
    assert json.loads(run("info", "indexes/notes", "--format", "json", cwd=world).stdout)["factory"] == "HNSW8"
    run("index", "notes", "--factory", "Flat", cwd=world)


def test_evaluate_prints_the_table_and_the_agreed_json(judged: Path, world: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", judged, "--encoder", world / "checkpoints" / "smoke")
    out = run(*arguments, "--format", "json", "--output", "report", cwd=tmp_path).stdout
    (table,) = json.loads(out)["collections"]
    assert (table["name"], table["settings"]["split"], table["queries"]) == ("judged", "test", 12)
    names = ["bm25", "lsi-256", "dense:smoke", "hybrid:smoke"]
    assert [row["name"] for row in table["systems"]] == names
    written = {str(path.relative_to(tmp_path / "report")) for path in (tmp_path / "report").rglob("*.*")}
    assert written == {
        *("report.html", "report.md", "results.json", "tables.tex"),
        *(f"runs/judged/{name.replace(':', '-')}.run.gz" for name in names),
    }
    assert json.loads((tmp_path / "report" / "results.json").read_text()) == json.loads(out)
    with gzip.open(tmp_path / "report" / "runs" / "judged" / "hybrid-smoke.run.gz", "rt") as stream:
        line = stream.readline().split()
    assert (line[0], line[1], line[3], line[5]) == ("q0", "Q0", "1", "hybrid-smoke")
    markdown = run(*arguments, "--format", "markdown", "--measure", "P@5", cwd=tmp_path).stdout.splitlines()
    start = markdown.index("| system | P@5 | judged@10 |")
    assert [row.split("<sup>")[0] for row in markdown[start + 2 : start + 7]] == [*(f"| {name}" for name in names), ""]


def test_evaluate_tries_postprocessings(judged: Path, world: Path, tmp_path: Path) -> None:
    choices = ("--postprocess", "none", "--postprocess", "center", "--postprocess", "whiten", "--format", "json")
    out = run("evaluate", judged, "--encoder", world / "checkpoints" / "smoke", *choices, cwd=tmp_path).stdout
    (part,) = json.loads(out)["collections"]
    names = [row["name"] for row in part["systems"] if row["name"].startswith("dense")]
    assert names == ["dense:smoke", "dense:smoke+center", "dense:smoke+whiten"]


def test_perplexity_in_every_context(world: Path) -> None:
    figures = {}
    for context in ("carried", "disjoint", "strided"):
        arguments = ("--context", context, "--window", "16", "--format", "json")
        report = json.loads(run("perplexity", "smoke", "notes", *arguments, cwd=world).stdout)
        assert report["context"] == context
        figures[context] = report["perplexity"]
    assert figures["strided"] < figures["disjoint"] < 250
    assert figures["carried"] < figures["disjoint"]


def test_generate_is_repeatable_and_streams_what_batches_give(world: Path) -> None:
    arguments = ("generate", "smoke", "--prompt", "the river", "--seed", "3", "--max-new-tokens", "12")
    text = run(*arguments, cwd=world).stdout
    assert text.startswith("the river")
    found = json.loads(run(*arguments, "--prompt", "a sparrow", "--format", "json", cwd=world).stdout)
    assert "the river" + found[0]["generations"]["smoke"]["text"] + "\n" == text
    assert found[1]["prompt"] == "a sparrow"


def test_generate_several_models_side_by_side_from_stdin_and_file(world: Path) -> None:
    (world / "prompts.txt").write_text("our engine\n")
    arguments = ("generate", "smoke", "other", "--prompt", "-", "--prompts-file", "prompts.txt", "--preset", "precise")
    found = json.loads(run(*arguments, "--format", "json", cwd=world, stdin="the baker\n").stdout)
    assert [row["prompt"] for row in found] == ["the baker", "our engine"]
    assert set(found[0]["generations"]) == {"smoke", "other"}
    table = run(*arguments, cwd=world, stdin="the baker\n").stdout
    assert "smoke" in table
    assert "the baker" in table


def test_generate_interactively(world: Path) -> None:
    out = run("generate", "smoke", "--interactive", "--max-new-tokens", "3", cwd=world, stdin="glass\n\n").stdout
    assert "glass" in out
    run("generate", "smoke", cwd=world, code=2)


def test_compare_shows_both_models(world: Path) -> None:
    rows = json.loads(run("compare", "smoke", "other", "--text", "notes", "--format", "json", cwd=world).stdout)
    assert [row["name"] for row in rows] == ["smoke", "other"]
    assert rows[0]["total_parameters"] == sum(rows[0]["parameters"].values())
    assert rows[1]["parameters"]["lstm"] == 2 * rows[0]["parameters"]["lstm"]
    for row in rows:
        assert row["perplexity"] > 1
        assert row["reading_tokens_per_second"] > 0
        assert row["single_ms_per_token"] > 0
        assert row["peak_memory_bytes"] > 1e7
    for row in rows:
        assert [length for length, _, _ in row["latencies"]] == [16, 32, 64, 128]
        assert all(time > 0 for latency in row["latencies"] for time in latency[1:])
    run("compare", "smoke", "other", "--text", "notes", "--output", "models", cwd=world)
    page = (world / "models" / "report.html").read_text()
    for name in ("smoke", "other", "bits per byte", "What they write", "<svg"):
        assert name in page
    assert "http" not in page
    stored = json.loads((world / "models" / "results.json").read_text())
    assert [model["name"] for model in stored["models"]] == ["smoke", "other"]
    assert "| perplexity per token |" in (world / "models" / "report.md").read_text()
    table = run("compare", "smoke", "--text", "notes/note-01.txt", cwd=world).stdout
    assert "bits per byte" in table


def test_tokenizer_commands(world: Path) -> None:
    out = run("tokenizer", "train", "notes", "--vocab-size", "300", "--output", "t.model", cwd=world).stdout
    assert out == "t.model: 300 tokens\n"
    ids = run("tokenizer", "encode", "t.model", "the river warms glass", cwd=world).stdout
    assert run("tokenizer", "decode", "t.model", *ids.split(), cwd=world).stdout == "the river warms glass\n"
    assert run("tokenizer", "decode", "t.model", cwd=world, stdin=ids).stdout == "the river warms glass\n"
    pieces = run("tokenizer", "encode", "t.model", "--pieces", cwd=world, stdin="the river\n").stdout
    assert pieces.replace(" ", "").replace("▁", " ").strip() == "the river"
    info = json.loads(run("tokenizer", "info", "t.model", "--format", "json", cwd=world).stdout)
    assert (info["vocab_size"], info["lossless"]) == (300, True)
    assert "not a token id" in run("tokenizer", "decode", "t.model", "9999", cwd=world, code=1).stderr


def test_a_given_tokenizer_and_checkpoint_are_used(world: Path) -> None:
    run("tokenizer", "train", "notes", "--vocab-size", "320", "--output", "own.model", cwd=world)
    base = ("train", ROOT / "configs" / "smoke.toml", "--corpus", "notes", "--quiet", "--set", "training.max_steps=4")
    run(*base, "--tokenizer", "own.model", "--output", "checkpoints/own", cwd=world)
    run(*base, "--from", "own", "--output", "checkpoints/further", cwd=world)
    sizes = [
        json.loads(run("info", f"checkpoints/{name}", "--format", "json", cwd=world).stdout)["tokenizer_sha256"]
        for name in ("own", "further")
    ]
    assert sizes[0] == sizes[1]


def test_resume_goes_on(world: Path) -> None:
    base = ("train", ROOT / "configs" / "smoke.toml", "--corpus", "notes", "--output", "checkpoints/parts", "--quiet")
    run(*base, "--set", "training.max_steps=10", cwd=world)
    assert "20 steps" in run(*base, "--set", "training.max_steps=20", "--resume", cwd=world).stdout


def test_info_of_checkpoint_index_and_corpus(world: Path) -> None:
    for path, kind in (("checkpoints/smoke", "checkpoint"), ("indexes/notes", "index"), ("notes", "corpus")):
        facts = json.loads(run("info", path, "--format", "json", cwd=world).stdout)
        assert facts["kind"] == kind
        assert facts["bytes"] > 1000
        assert kind in run("info", path, cwd=world).stdout


def test_corpus_build_and_info(tmp_path: Path) -> None:
    out = run("corpus", "build", "python-docs", "--package", "click", "--output", "click-docs", cwd=tmp_path).stdout
    count = int(out.split(":")[1].split()[0].replace(",", ""))
    info = json.loads(run("corpus", "info", "click-docs", "--format", "json", cwd=tmp_path).stdout)
    assert info["documents"] == count > 100
    run("corpus", "build", "python-docs", "--output", "docs", cwd=tmp_path)
    splits = json.loads(run("corpus", "info", "docs", "--format", "json", cwd=tmp_path).stdout)["splits"]
    assert set(splits) == {"dev", "test"}
    assert sum(splits.values()) >= 150


def test_importing_without_the_extra_says_how_to_install_it(tmp_path: Path) -> None:
    try:
        import ir_datasets  # noqa: F401
    except ImportError:
        done = run("corpus", "import", "ir_datasets:cranfield", cwd=tmp_path, code=1)
        assert "pip install 'lm_retrieval[datasets]'" in done.stderr
    assert "is unknown" in run("corpus", "import", "cranfield", cwd=tmp_path, code=1).stderr


def test_progress_goes_to_stderr_and_quiet_silences_it(world: Path) -> None:
    loud = run("embed", "notes", "--encoder", "smoke", "--rebuild", "--output", "indexes/x", cwd=world)
    assert loud.stdout.startswith("indexes/x: 80 documents")
    quiet = run("embed", "notes", "--encoder", "smoke", "--rebuild", "--output", "indexes/x", "-q", cwd=world)
    assert quiet.stderr == ""


def test_wrong_usage_is_exit_code_two(world: Path) -> None:
    run("search", cwd=world, code=2)
    run("no-such-command", cwd=world, code=2)
    run("search", "x", "--mode", "telepathy", cwd=world, code=2)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    plain = run("search", "x", cwd=tmp_path, code=1).stderr
    assert plain.count("\n") == 1
    assert plain.startswith("Error: ")
    assert "Traceback" in run("search", "x", "--debug", cwd=tmp_path, code=1).stderr


def test_import_and_help_are_fast(make_checkpoint: Callable[..., Path]) -> None:
    code = "import lm_retrieval, sys; print('torch' in sys.modules, 'faiss' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)],
)
def test_threads_of_the_command_spin_shortly_unless_told_otherwise(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # put back at the end, whatever the command does
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    main(["--version"])
    assert os.environ.get("GOMP_SPINCOUNT") == expected
