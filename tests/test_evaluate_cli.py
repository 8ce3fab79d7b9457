"""`lmr evaluate` and `lmr report`: what they print, what they write, and how they refuse."""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Said

from lm_retrieval.evaluation.evaluator import evaluate
from lm_retrieval.evaluation.report import compare
from lm_retrieval.evaluation.trec import read_qrels_file, read_run
from lm_retrieval.index.lexical import LexicalIndex
from lm_retrieval.reporting.folder import read_report
from lm_retrieval.reporting.html import ranking_page
from lm_retrieval.reporting.text import latex, markdown

Lmr = Callable[..., Said]
PLACES = {"first": (1, 1, 2), "second": (2, 3, 5), "last": (9, 4, 7)}


def lines_of(*places: int, queries: int = 12) -> str:
    """Query number n has its answer d{n} at one of the places, in turn."""
    rows = []
    for query in range(queries):
        others = [f"d{number}" for number in range(20, 32)]
        others.insert(places[query % len(places)] - 1, f"d{query}")
        rows += [f"q{query} Q0 {doc_id} {rank} {20 - rank} x" for rank, doc_id in enumerate(others[:12], start=1)]
    return "\n".join(rows) + "\n"


def mean(*values: float) -> float:
    return sum(values) / len(values)


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Run files in the working folder, the second one packed."""
    paths = {"first": Path("first.run"), "second": Path("second.run.gz"), "last": Path("last.run")}
    for name, path in paths.items():
        content = lines_of(*PLACES[name]).encode()
        (tmp_path / path).write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return paths


@pytest.fixture
def qrels(tmp_path: Path) -> Path:
    (tmp_path / "my.qrels").write_text("".join(f"q{number} 0 d{number} 1\n" for number in range(12)))
    return Path("my.qrels")


def collection(judged: Path, target: Path, *, queries: int = 12) -> Path:
    shutil.copytree(judged, target)
    table = target / "qrels" / "test.tsv"
    table.write_text("\n".join(table.read_text().splitlines()[: queries + 1]) + "\n")
    return target


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- a corpus


def test_a_corpus_has_a_table_on_stdout_and_a_folder_with_everything(lmr: Lmr, judged: Path, tmp_path: Path) -> None:
    said = lmr("evaluate", judged, "--output", "reports/one", "-q")
    assert said.code == 0
    assert said.stderr == "reports/one/report.html\n"
    lines = said.stdout.splitlines()
    assert lines[0] == "judged: 12 queries"
    assert lines[2].split() == ["system", "nDCG@10", "RR@10", "AP@1000", "R@100", "P@10", "judged@10"]
    out = tmp_path / "reports" / "one"
    assert set(snapshot(out)) == {
        "report.html",
        "report.md",
        "results.json",
        "tables.tex",
        "runs/judged/bm25.run.gz",
        "runs/judged/lsi-256.run.gz",
    }
    report = read_report(out)
    (part,) = report.collections
    assert [system.name for system in part.systems] == ["bm25", "lsi-256"]
    assert (part.name, part.queries, part.documents, part.baseline) == ("judged", 12, 40, "bm25")
    assert (part.settings["split"], part.settings["depth"]) == ("test", "1000")
    assert len(part.corpus_sha256 or "") == len(part.qrels_sha256) == 64
    for line in lines[4:6]:
        name, letter, *figures = line.split()
        system = part.system(name)
        assert letter == f"({system.letter})"
        assert figures[:5] == [f"{value:.3f}" for value in system.evaluation.measures.values()]
    assert (out / "report.html").read_text() == ranking_page(report)
    assert (out / "report.md").read_text() == markdown(report)
    assert (out / "tables.tex").read_text() == latex(report)


def test_every_run_in_the_folder_has_the_figures_of_the_table(
    lmr: Lmr, judged: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    assert lmr("evaluate", judged, "--run", runs["second"], "--output", "out", "-q").code == 0
    table = read_qrels_file(judged / "qrels" / "test.tsv")
    for system in read_report(tmp_path / "out").collections[0].systems:
        written = read_run(tmp_path / "out" / "runs" / "judged" / f"{system.name}.run.gz")
        assert evaluate(table, written).per_query == system.evaluation.per_query, system.name


def test_a_given_run_in_no_order_is_written_with_its_own_ranking(lmr: Lmr, judged: Path, tmp_path: Path) -> None:
    lines = lines_of(1, 1, 2).splitlines()
    (tmp_path / "upside-down.run").write_text("\n".join(reversed(lines)) + "\n")
    assert lmr("evaluate", judged, "--run", "upside-down.run", "--output", "out", "-q").code == 0
    written = read_run(tmp_path / "out" / "runs" / "judged" / "upside-down.run.gz")
    assert {query_id: next(iter(scores)) for query_id, scores in written.items()} == {
        f"q{number}": "d20" if number % 3 == 2 else f"d{number}" for number in range(12)
    }


def test_run_files_are_rows_beside_those_of_a_corpus(lmr: Lmr, judged: Path, runs: dict[str, Path]) -> None:
    given = ("--run", runs["first"], "--run", runs["second"])
    said = lmr("evaluate", judged, *given, "--measure", "RR", "--format", "json", "-q")
    (part,) = json.loads(said.stdout)["collections"]
    figures = {system["name"]: system["evaluation"]["measures"]["RR"] for system in part["systems"]}
    assert list(figures) == ["bm25", "lsi-256", "first", "second"]
    assert figures["first"] == pytest.approx(mean(1, 1, 1 / 2))
    assert figures["second"] == pytest.approx(mean(1 / 2, 1 / 3, 1 / 5))
    assert part["systems"][2]["costs"]["latency_p50_ms"] is None


def test_a_run_with_the_name_of_a_row_is_refused(lmr: Lmr, judged: Path, tmp_path: Path) -> None:
    (tmp_path / "bm25.run").write_text(lines_of(1, 2))
    said = lmr("evaluate", judged, "--run", "bm25.run", "--output", "out", "-q")
    assert said == Said(1, "", "Error: run 'bm25' has the name of another system; rename the file\n")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- judgments and runs alone


@pytest.mark.parametrize("form", ["trec", "trec.gz", "beir"])
def test_runs_are_scored_against_judgments_of_either_form(
    lmr: Lmr, runs: dict[str, Path], tmp_path: Path, form: str
) -> None:
    if form == "beir":
        path = tmp_path / "mine.test.tsv"
        rows = (f"q{number}\td{number}\t1\n" for number in range(12))
        path.write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    else:
        path = tmp_path / f"mine.{form.replace('trec', 'qrels')}"
        content = "".join(f"q{number} 0 d{number} 1\n" for number in range(12)).encode()
        path.write_bytes(gzip.compress(content) if form.endswith("gz") else content)
    given = [part for file in runs.values() for part in ("--run", file)]
    said = lmr("evaluate", "--qrels", path, *given, "--output", "out", "-q")
    assert (said.code, said.stderr) == (0, "out/report.html\n")
    assert said.stdout.startswith("mine: 12 queries\n")
    assert set(snapshot(tmp_path / "out")) == {"report.html", "report.md", "results.json", "tables.tex"}
    (part,) = read_report(tmp_path / "out").collections
    assert {system.name: system.evaluation.measures["RR@10"] for system in part.systems} == pytest.approx(
        {name: mean(*(1 / place for place in places)) for name, places in PLACES.items()}
    )
    expected = {name: read_run(tmp_path / file) for name, file in runs.items()}
    assert compare(read_qrels_file(path), expected, name="mine").collections[0] == part


def test_the_table_marks_what_is_significantly_better(lmr: Lmr, qrels: Path, runs: dict[str, Path]) -> None:
    given = [part for file in runs.values() for part in ("--run", file)]
    said = lmr("evaluate", "--qrels", qrels, *given, "--measure", "RR", "-q")
    rows = [line.split() for line in said.stdout.splitlines() if re.match(r" (first|second|last) \(", line)]
    assert rows == [
        ["first", "(a)", "0.833", "(bc)", "10", "%"],
        ["second", "(b)", "0.344", "(c)", "10", "%"],
        ["last", "(c)", "0.168", "10", "%"],
    ]
    assert "my: against first, RR" in said.stdout
    difference = next(line.split() for line in said.stdout.splitlines() if line.startswith(" last  "))
    assert difference[1] == f"{mean(1 / 9, 1 / 4, 1 / 7) - mean(1, 1, 1 / 2):+.3f}"
    assert difference[-5:] == ["0", "/", "0", "/", "12"]


def test_what_a_run_lacks_or_has_too_much_is_said_on_stderr(lmr: Lmr, qrels: Path, tmp_path: Path) -> None:
    (tmp_path / "short.run").write_text(lines_of(1, 2, queries=9))
    (tmp_path / "long.run").write_text(lines_of(2, 1) + "elsewhere Q0 d1 1 1 x\n")
    said = lmr("evaluate", "--qrels", qrels, "--run", "short.run", "--run", "long.run", "--format", "json")
    assert said.stderr.splitlines() == [
        "my: short: 3 queries have no results and count 0",
        "my: long: 1 queries are not in the judgments and were left out",
    ]
    (part,) = json.loads(said.stdout)["collections"]
    assert part["notes"] == [line.removeprefix("my: ") for line in said.stderr.splitlines()]
    assert part["systems"][0]["evaluation"]["measures"]["RR@10"] == pytest.approx((5 + 4 / 2) / 12)


def test_documents_without_judgments_show_as_a_small_share_of_judged_ones(
    lmr: Lmr, qrels: Path, tmp_path: Path
) -> None:
    (tmp_path / "strange.run").write_text(lines_of(1, 2).replace(" d", " other-"))
    said = lmr("evaluate", "--qrels", qrels, "--run", "strange.run", "--measure", "RR", "-q")
    assert said.code == 0
    assert re.search(r"^ strange \(a\) +0\.000 +0 %", said.stdout, flags=re.M)


def test_signs_in_the_name_of_a_run_stand_in_the_table_as_they_are(lmr: Lmr, qrels: Path, tmp_path: Path) -> None:
    for name in ("mine[v2]", "[red]theirs", "a:smile:b"):
        (tmp_path / f"{name}.run").write_text(lines_of(1, 2))
        said = lmr("evaluate", "--qrels", qrels, "--run", f"{name}.run", "-q")
        assert said.code == 0
        assert f" {name} (a) " in said.stdout


def test_a_measure_asked_for_twice_is_one_column(lmr: Lmr, qrels: Path, runs: dict[str, Path]) -> None:
    given = ("--run", runs["first"], "--run", runs["second"], "--measure", "RR", "--measure", "RR")
    said = lmr("evaluate", "--qrels", qrels, *given, "--format", "markdown", "-q")
    assert "| system | RR | judged@10 |" in said.stdout.splitlines()
    assert "Holm-corrected for 1 comparisons" in said.stdout


# ---------------------------------------------------------------- the baseline


def test_the_baseline_can_be_chosen(lmr: Lmr, qrels: Path, runs: dict[str, Path], judged: Path) -> None:
    given = [part for file in runs.values() for part in ("--run", file)]
    said = lmr("evaluate", "--qrels", qrels, *given, "--baseline", "second", "--measure", "RR", "-q")
    assert "my: against second, RR" in said.stdout
    difference = {
        line.split()[0]: line.split()[1]
        for line in said.stdout.split("against second", 1)[1].splitlines()
        if line.startswith((" first", " last"))
    }
    base = mean(1 / 2, 1 / 3, 1 / 5)
    assert difference == {
        "first": f"{mean(1, 1, 1 / 2) - base:+.3f}",
        "last": f"{mean(1 / 9, 1 / 4, 1 / 7) - base:+.3f}",
    }
    found = json.loads(lmr("evaluate", judged, "--baseline", "lsi-256", "--format", "json", "-q").stdout)
    assert found["collections"][0]["baseline"] == "lsi-256"
    assert found["collections"][0]["systems"][1]["against_baseline"] == []


# ---------------------------------------------------------------- forms


def test_the_forms_are_those_of_the_folder(lmr: Lmr, qrels: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    base = ("evaluate", "--qrels", qrels, "--run", runs["first"], "--run", runs["second"], "-q")
    assert lmr(*base, "--output", "out").code == 0
    out = tmp_path / "out"
    for form, name in (("json", "results.json"), ("markdown", "report.md"), ("latex", "tables.tex")):
        said = lmr(*base, "--format", form)
        assert (said.code, said.stderr) == (0, "")
        assert said.stdout == (out / name).read_text(), form
    again = lmr(*base, "--format", "text", "--output", "out")
    assert again.stdout == lmr(*base).stdout
    assert again.stdout.count("\n") > 8


def test_the_forms_can_be_written_and_printed_at_once(
    lmr: Lmr, qrels: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    said = lmr("evaluate", "--qrels", qrels, "--run", runs["first"], "--format", "json", "--output", "out", "-q")
    assert json.loads(said.stdout) == json.loads((tmp_path / "out" / "results.json").read_text())


# ---------------------------------------------------------------- several collections


def test_a_folder_of_collections_has_an_average_in_which_each_counts_the_same(
    lmr: Lmr, judged: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    collection(judged, tmp_path / "all" / "large")
    collection(judged, tmp_path / "all" / "small", queries=2)
    (tmp_path / "all" / "not-a-collection").mkdir()
    said = lmr("evaluate", "all", "--run", runs["second"], "--measure", "RR", "--output", "out", "-q")
    assert said.code == 0
    report = read_report(tmp_path / "out")
    assert [(part.name, part.queries) for part in report.collections] == [("large", 12), ("small", 2)]
    large, small = mean(1 / 2, 1 / 3, 1 / 5), mean(1 / 2, 1 / 3)
    average = report.macro_average()
    assert list(average) == ["bm25", "lsi-256", "second"]
    assert average["second"]["RR"] == pytest.approx(mean(large, small))
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["macro_average"] == average
    table = said.stdout.split("All collections: RR")[1]
    (row,) = (line.split() for line in table.splitlines() if line.startswith(" second"))
    assert row == ["second", f"{large:.3f}", f"{small:.3f}", f"{mean(large, small):.3f}"]
    assert {path.name for path in (tmp_path / "out" / "runs").iterdir()} == {"large", "small"}
    assert "small: second: 10 queries are not in the judgments and were left out" in said.stderr
    separately = lmr("evaluate", "all/large", "all/small", "--run", runs["second"], "--measure", "RR", "-q")
    assert separately.stdout.split("All collections: RR")[1] == table


def test_collections_of_one_name_are_refused(lmr: Lmr, judged: Path, tmp_path: Path) -> None:
    collection(judged, tmp_path / "more" / "judged")
    said = lmr("evaluate", judged, "more/judged", "-q")
    assert (said.code, said.stdout) == (1, "")
    assert said.stderr == "Error: two collections have one name (judged, judged); rename a folder\n"


# ---------------------------------------------------------------- earlier results


@pytest.fixture
def earlier(lmr: Lmr, qrels: Path, runs: dict[str, Path], tmp_path: Path) -> Path:
    """Results of two evaluations: one run in both with the same figures, one with others, one in the second alone."""
    for name, places in (("before", (3, 5, 5)), ("after", (1, 1, 2))):
        (tmp_path / "mine.run").write_text(lines_of(*places))
        given = ("--run", runs["second"], "--run", "mine.run")
        more = ("--run", runs["last"]) if name == "after" else ()
        done = lmr("evaluate", "--qrels", qrels, *given, *more, "--output", f"reports/{name}", "-q")
        assert done.code == 0
    return tmp_path / "reports"


def test_earlier_results_stand_side_by_side(lmr: Lmr, earlier: Path) -> None:
    said = lmr("report", "reports/before", "reports/after/results.json", "--output", "reports/both")
    assert (said.code, said.stderr) == (0, "reports/both/report.html\n")
    assert set(snapshot(earlier / "both")) == {"report.html", "report.md", "results.json", "tables.tex"}
    (part,) = read_report(earlier / "both").collections
    assert {system.name: system.evaluation.measures["RR@10"] for system in part.systems} == pytest.approx(
        {
            "second": mean(1 / 2, 1 / 3, 1 / 5),
            "mine (before)": mean(1 / 3, 1 / 5, 1 / 5),
            "mine (after)": mean(1, 1, 1 / 2),
            "last": mean(1 / 9, 1 / 4, 1 / 7),
        }
    )
    assert part.baseline == "second"
    assert "my: against second, nDCG@10" in said.stdout
    for name in ("mine (before)", "mine (after)", "last"):
        assert name in said.stdout
    moved = lmr("report", "reports/before", "reports/after", "--baseline", "mine (before)", "--format", "json")
    assert json.loads(moved.stdout)["collections"][0]["baseline"] == "mine (before)"


@pytest.mark.parametrize(
    ("form", "name"), [("json", "results.json"), ("markdown", "report.md"), ("latex", "tables.tex")]
)
def test_side_by_side_has_the_same_forms(lmr: Lmr, earlier: Path, form: str, name: str) -> None:
    said = lmr("report", "reports/before", "reports/after", "--output", "out", "--format", form)
    assert said.stdout == (earlier.parent / "out" / name).read_text()


def test_results_of_folders_with_one_name_are_told_apart_by_their_paths(lmr: Lmr, earlier: Path) -> None:
    shutil.copytree(earlier / "after", earlier.parent / "old" / "before")
    found = json.loads(lmr("report", "reports/before", "old/before", "--format", "json").stdout)
    names = [system["name"] for system in found["collections"][0]["systems"]]
    assert names == ["second", "mine (reports/before)", "mine (old/before)", "last"]


def test_a_warning_says_that_the_judgments_differ(lmr: Lmr, earlier: Path, tmp_path: Path) -> None:
    (tmp_path / "my.qrels").write_text("".join(f"q{number} 0 d{number} 2\n" for number in range(12)))
    assert lmr("evaluate", "--qrels", "my.qrels", "--run", "last.run", "--output", "reports/third", "-q").code == 0
    said = lmr("report", "reports/before", "reports/third", "--output", "out")
    assert said.stderr.splitlines()[0] == "my: before and third differ in judgments; compare with care"
    assert "before and third differ in judgments" in (tmp_path / "out" / "report.html").read_text()


def test_reading_one_result_again_keeps_its_figures(lmr: Lmr, earlier: Path) -> None:
    found = json.loads(lmr("report", "reports/after", "--format", "json").stdout)["collections"][0]
    stored = json.loads((earlier / "after" / "results.json").read_text())["collections"][0]
    assert [system["evaluation"] for system in found["systems"]] == [row["evaluation"] for row in stored["systems"]]
    assert found["pairs"] == stored["pairs"]


# ---------------------------------------------------------------- mistakes


LINE = "q0 Q0 d1 1 2.5 x\n"
BAD_RUNS = {
    "five columns": (LINE + "\nq1 Q0 d1 1 2.5\n", ["bad.run, line 3", "5 columns, 6 are needed"]),
    "a document twice": (LINE + LINE, ["bad.run, line 2", "'d1' stands twice in query 'q0'"]),
    "nan": (LINE + "q1 Q0 d1 1 NaN x\n", ["bad.run, line 2", "score 'NaN' is not a finite number"]),
    "infinite": ("q1 Q0 d1 1 inf x\n", ["bad.run, line 1", "score 'inf' is not a finite number"]),
    "no common query": ("z1 Q0 d1 1 1 x\nz2 Q0 d1 1 1 x\n", ["run 'bad' has no query in common with the judgments"]),
}


def refused(said: Said, folder: Path, before: dict[str, bytes], parts: list[str]) -> None:
    assert (said.code, said.stdout) == (1, "")
    assert said.stderr.startswith("Error: ")
    assert said.stderr.count("\n") == 1
    assert [part for part in parts if part not in said.stderr] == []
    assert snapshot(folder) == before


@pytest.mark.parametrize("name", BAD_RUNS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_a_bad_run_file_is_one_line_and_nothing_is_written(
    lmr: Lmr, qrels: Path, runs: dict[str, Path], tmp_path: Path, name: str, packed: bool
) -> None:
    content, parts = BAD_RUNS[name]
    path = tmp_path / ("bad.run.gz" if packed else "bad.run")
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    before = snapshot(tmp_path)
    said = lmr("evaluate", "--qrels", qrels, "--run", runs["first"], "--run", path.name, "--output", "out", "-q")
    refused(said, tmp_path, before, [part.replace("bad.run", path.name) for part in parts])


@pytest.mark.parametrize("name", ["nan", "no common query"])
def test_a_bad_run_file_is_refused_beside_a_corpus_too(lmr: Lmr, judged: Path, tmp_path: Path, name: str) -> None:
    content, parts = BAD_RUNS[name]
    (tmp_path / "bad.run").write_text(content)
    before = snapshot(tmp_path)
    refused(lmr("evaluate", judged, "--run", "bad.run", "--output", "out", "-q"), tmp_path, before, parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("q0 0 d0 1\nq1 d1 1\n", ["bad.qrels, line 2", "3 columns, 4 are needed"]),
        ("q0 0 d0 high\n", ["bad.qrels, line 1", "grade 'high' is not a whole number"]),
        ("query-id corpus-id score\nq0 d0 1\nq0 d0 2\n", ["bad.qrels, line 3", "judged twice"]),
        ("", ["bad.qrels: no judgments"]),
        ("q0 0 d0 0\nq1 0 d1 -1\n", ["no query has a relevant document"]),
    ],
    ids=["columns", "grade", "twice", "empty", "nothing relevant"],
)
def test_bad_judgments_are_one_line_and_nothing_is_written(
    lmr: Lmr, runs: dict[str, Path], tmp_path: Path, content: str, parts: list[str]
) -> None:
    (tmp_path / "bad.qrels").write_text(content)
    before = snapshot(tmp_path)
    said = lmr("evaluate", "--qrels", "bad.qrels", "--run", runs["first"], "--output", "out", "-q")
    refused(said, tmp_path, before, parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("evaluate", "judged", "--measure", "nDCH@10"), ["measure 'nDCH@10' is unknown", "nDCG@10"]),
        (("evaluate", "judged", "--measure", "P(rel=0)@5"), ["measure 'P(rel=0)@5'"]),
        (("evaluate", "judged", "--baseline", "bm52"), ["baseline 'bm52' is none of the systems: bm25, lsi-256"]),
        (("evaluate", "judged", "--split", "dev"), ["no judgments for split 'dev'", "found: test"]),
        (("evaluate", "judged", "--run", "absent.run"), ["absent.run: no such file"]),
        (("evaluate", "judged", "--encoder", "absent"), ["absent", "no such checkpoint"]),
        (("evaluate", "absent"), ["absent: no such file or folder"]),
        (("evaluate", "notes"), ["notes: no judgments here", "--known-item"]),
        (("evaluate", "empty"), ["empty: no judgments here"]),
        (("evaluate", "nothing-judged"), ["nothing-judged"]),
        (("evaluate", "--qrels", "absent.qrels", "--run", "first.run"), ["absent.qrels: no such file"]),
        (("evaluate", "--qrels", "my.qrels", "--run", "judged"), ["judged", "a file is needed"]),
        (("evaluate", "--qrels", "my.qrels", "--run", "first.run", "--measure", "P@"), ["measure 'P@' is unknown"]),
        (("evaluate", "--qrels", "my.qrels", "--run", "first.run", "--baseline", "bm25"), ["systems: first"]),
        (("evaluate", "--qrels", "my.qrels", "--run", "damaged.run.gz"), ["damaged.run.gz", "gzip"]),
        (("evaluate", "--qrels", "my.qrels", "--run", "latin.run"), ["latin.run", "utf-8"]),
        (("report", "absent"), ["absent: no results.json here", "lmr evaluate"]),
        (("report", "notes"), ["notes: no results.json here"]),
        (("report", "damaged"), ["damaged/results.json: damaged", "evaluate again"]),
        (("report", "foreign.json"), ["foreign.json: not the results of `lmr evaluate --output`"]),
        (("report", "list.json"), ["list.json"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    lmr: Lmr,
    judged: Path,
    notes: Path,
    qrels: Path,
    runs: dict[str, Path],
    tmp_path: Path,
    arguments: tuple[str, ...],
    parts: list[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (collection(judged, tmp_path / "nothing-judged") / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    (tmp_path / "damaged.run.gz").write_bytes(gzip.compress(lines_of(1).encode())[:-5])
    (tmp_path / "latin.run").write_bytes(b"q0 Q0 d\xe4 1 1 x\n")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "results.json").write_text('{"kind": "report", "format_ver')
    (tmp_path / "foreign.json").write_text('{"kind": "checkpoint"}')
    (tmp_path / "list.json").write_text("[]")
    before = snapshot(tmp_path)
    refused(lmr(*arguments, "--output", "out", "-q"), tmp_path, before, parts)


def test_an_unknown_measure_is_refused_before_anything_is_ranked(
    lmr: Lmr, judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    build = LexicalIndex.build

    def noted(contents: list[str]) -> LexicalIndex:
        built.append(len(contents))
        return build(contents)

    monkeypatch.setattr(LexicalIndex, "build", noted)
    assert lmr("evaluate", judged, "--measure", "nDCH@10", "-q").code == 1
    assert built == []
    assert lmr("evaluate", judged, "--measure", "RR", "-q").code == 0
    assert built == [40]


def test_a_report_without_a_common_collection_is_one_line(lmr: Lmr, earlier: Path, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "my.qrels", tmp_path / "other.qrels")
    assert lmr("evaluate", "--qrels", "other.qrels", "--run", "last.run", "--output", "reports/other", "-q").code == 0
    before = snapshot(tmp_path)
    said = lmr("report", "reports/before", "reports/other", "--output", "out")
    refused(said, tmp_path, before, ["the reports have no collection in common"])
    said = lmr("report", "reports/before", "reports/after", "--baseline", "mine", "--output", "out")
    refused(said, tmp_path, before, ["baseline 'mine' is none of the systems: second, mine (before), mine (after)"])


def test_a_file_in_the_place_of_the_folder_is_left_alone(
    lmr: Lmr, qrels: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("mine")
    before = snapshot(tmp_path)
    said = lmr("evaluate", "--qrels", qrels, "--run", runs["first"], "--output", "taken", "-q")
    refused(said, tmp_path, before, ["taken", "a file is in the way"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate",),
        ("evaluate", "--run", "first.run"),
        ("evaluate", "judged", "--qrels", "my.qrels", "--run", "first.run"),
        ("evaluate", "--qrels", "my.qrels"),
        ("evaluate", "--qrels", "my.qrels", "--run", "first.run", "--encoder", "lstm-base"),
        ("evaluate", "--qrels", "my.qrels", "--run", "first.run", "--known-item"),
        ("evaluate", "--qrels", "my.qrels", "--run", "first.run", "--run", "copy/first.run.gz"),
        ("evaluate", "--qrels", "my.qrels", "--run", "first.run", "--format", "html"),
        ("evaluate", "judged", "--postprocess", "sharpen"),
        ("evaluate", "judged", "--runs-output", "out"),
        ("report",),
        ("report", "reports/before", "--format", "html"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_two_and_nothing_is_written(
    lmr: Lmr, judged: Path, qrels: Path, runs: dict[str, Path], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "first.run.gz").write_bytes(gzip.compress(LINE.encode()))
    before = snapshot(tmp_path)
    said = lmr(*arguments, "--output", "out")
    assert (said.code, said.stdout) == (2, "")
    assert "Usage: lmr " in said.stderr
    assert "Error: " in said.stderr
    assert snapshot(tmp_path) == before
