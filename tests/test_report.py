"""Reports: what `compare` finds on constructed cases, what `join` says, and the same figures in every form."""

import copy
import json
import os
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm_retrieval.errors import EvaluationError, StorageError
from lm_retrieval.evaluation.analysis import DocumentAtFault, Slice
from lm_retrieval.evaluation.evaluator import evaluate
from lm_retrieval.evaluation.report import CollectionReport, Costs, Report, compare, join
from lm_retrieval.evaluation.trec import read_run
from lm_retrieval.records import Document, Qrels, Run
from lm_retrieval.reporting.folder import read_report, write_report
from lm_retrieval.reporting.html import ranking_page
from lm_retrieval.reporting.text import latex, markdown

SIZE = 24


def ranking(place: int, *, depth: int = 12) -> dict[str, float]:
    """The document `right` at a place among wrong ones; place 0 leaves it out."""
    others = iter(f"wrong-{number:02}" for number in range(depth))
    return {"right" if rank == place else next(others): float(depth - rank) for rank in range(1, depth + 1)}


def qrels_of(size: int = SIZE) -> Qrels:
    return {f"q{number:02}": {"right": 1, "wrong-00": 0} for number in range(size)}


def run_of(*places: int, size: int = SIZE) -> Run:
    return {f"q{number:02}": ranking(places[number % len(places)]) for number in range(size)}


def part_of(runs: dict[str, Run], **options: Any) -> CollectionReport:
    (part,) = compare(qrels_of(), runs, **{"measures": ["RR", "P@5"], **options}).collections
    return part


DOCUMENTS = {
    "right": Document("right", "The right answer", "rivers carry cold water"),
    "wrong-00": Document("wrong-00", "", "engines and\n bridges " * 20),
    "wrong-01": Document("wrong-01", "Another", "glass"),
}
TEXTS = {f"q{number:02}": f"cold river number {number}" for number in range(SIZE)}


@pytest.fixture
def rich() -> Report:
    """Everything that a report can hold."""
    runs = {"bad": run_of(8, 9, 4), "good": run_of(1, 1, 2), "middle": run_of(2, 3, 12)}
    del runs["middle"]["q05"]
    runs["middle"]["unjudged"] = {"right": 1.0}
    report = compare(
        qrels_of() | {"nothing": {"right": 0}},
        runs,
        measures=["RR", "P@5", "nDCG@10"],
        name="docs",
        queries=TEXTS,
        documents=DOCUMENTS,
    )
    (part,) = report.collections
    costs = Costs(31_400_000, 1_500_000, 2_600_000, 1234.0, 98765.4, 212.3, 1.25, 3.75, 512_000_000)
    systems = (part.systems[0], replace(part.systems[1], costs=costs), replace(part.systems[2], costs=Costs()))
    settings = {"split": "test", "depth": "1000"}
    return Report((replace(part, systems=systems, settings=settings, documents=3, corpus_sha256="c0ffee" * 10),))


# ---------------------------------------------------------------- comparing


def test_no_measure_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="nothing to measure"):
        compare({"q": {"d": 1}}, {"a": {"q": {"d": 1.0}}}, measures=[])


def test_comparing_leaves_its_inputs_alone_and_its_results_cannot_be_changed() -> None:
    inputs = (qrels_of(), {"a": run_of(1, 2), "b": run_of(2, 3)}, dict(TEXTS), dict(DOCUMENTS))
    before = copy.deepcopy(inputs)
    qrels, runs, queries, documents = inputs
    report = compare(qrels, runs, queries=queries, documents=documents, measures=["RR"])
    assert inputs == before
    (part,) = report.collections
    system = part.systems[1]
    assert system.failures is not None
    for frozen, name in (
        (report, "collections"),
        (part, "baseline"),
        (system, "letter"),
        (system.evaluation, "queries"),
        (system.against_baseline[0], "difference"),
        (part.slices[0], "label"),
        (system.failures, "won"),
        (system.failures.lost[0], "value"),
        (system.failures.lost[0].documents[0], "rank"),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(frozen, name, None)
    figures = report.to_dict()
    runs["a"]["q00"].clear()
    qrels.clear()
    assert report.to_dict() == figures


def test_every_system_has_the_figures_that_it_has_alone() -> None:
    runs = {"a": run_of(1, 2, 0), "b": run_of(4, 6)}
    part = part_of(runs, measures=["nDCG@10", "RR"])
    for system in part.systems:
        assert system.evaluation == evaluate(qrels_of(), runs[system.name], measures=["nDCG@10", "RR"])
    assert part.system("a").evaluation.measures["RR"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert (part.measures, part.measure, part.queries, part.baseline) == (("nDCG@10", "RR"), "nDCG@10", SIZE, "a")


def test_letters_name_the_systems_that_one_is_better_than() -> None:
    runs = {"bad": run_of(8, 9, 10), "good": run_of(1, 1, 2), "same": run_of(9, 8, 10), "middle": run_of(2, 3)}
    part = part_of(runs, measures=["RR"])
    assert [(system.letter, system.name, system.better_than) for system in part.systems] == [
        ("a", "bad", ""),
        ("b", "good", "acd"),
        ("c", "same", ""),
        ("d", "middle", "ac"),
    ]
    assert len(part.pairs) == 6
    assert {test.measure for test in part.pairs} == {"RR"}


def test_a_difference_that_is_not_significant_gives_no_letter() -> None:
    two_of_many = run_of(2)
    for query_id in ("q00", "q01"):
        two_of_many[query_id] = ranking(1)
    part = part_of({"plain": run_of(2), "lucky": two_of_many})
    assert part.system("lucky").evaluation.measures["RR"] > part.system("plain").evaluation.measures["RR"]
    assert [system.better_than for system in part.systems] == ["", ""]


def test_after_z_the_letters_are_doubled() -> None:
    runs = {f"s{number:02}": run_of(1 + number % 3, 2, size=4) for number in range(54)}
    (part,) = compare(qrels_of(4), runs, measures=["RR"]).collections
    letters = [system.letter for system in part.systems]
    assert letters[:2] + letters[25:28] + letters[51:] == ["a", "b", "z", "aa", "ab", "az", "ba", "bb"]


def test_every_system_is_tested_against_the_baseline_on_every_measure() -> None:
    part = part_of({"a": run_of(1, 2), "b": run_of(3, 4), "c": run_of(7, 8, 5, 5)}, baseline="b")
    tests = {system.name: system.against_baseline for system in part.systems}
    assert tests["b"] == ()
    for name in ("a", "c"):
        assert [(test.system, test.baseline, test.measure) for test in tests[name]] == [
            (name, "b", "RR"),
            (name, "b", "P@5"),
        ]
    assert tests["a"][0].difference == pytest.approx((1 + 1 / 2 - 1 / 3 - 1 / 4) / 2)
    assert tests["c"][1].difference == pytest.approx(-1 / 10)
    # two comparisons share one measure: the smaller p-value is doubled
    raw = sorted(test.randomisation for test in (tests["a"][0], tests["c"][0]))
    assert min(test.randomisation_holm for test in (tests["a"][0], tests["c"][0])) == pytest.approx(2 * raw[0])


def test_precision_at_eleven_levels_of_recall_by_hand() -> None:
    qrels = {"q": {"a": 1, "b": 1}}
    (part,) = compare(qrels, {"s": {"q": {"a": 4.0, "x": 3.0, "y": 2.0, "b": 1.0}}}, measures=["RR"]).collections
    # recall 0.5 with precision 1, recall 1 with precision 2 / 4
    assert part.systems[0].precision_at_recall == pytest.approx([1.0] * 6 + [0.5] * 5)


def test_a_single_query_is_compared_without_tests() -> None:
    (part,) = compare(qrels_of(1), {"a": run_of(1, size=1), "b": run_of(2, size=1)}, measures=["RR"]).collections
    assert (part.pairs, part.systems[1].against_baseline, part.systems[1].better_than) == ((), (), "")
    assert [system.evaluation.measures["RR"] for system in part.systems] == [1.0, 0.5]


# ---------------------------------------------------------------- what is said and refused


def test_what_was_left_out_is_counted() -> None:
    qrels = qrels_of() | {"n1": {"right": 0}, "n2": {}}
    short = run_of(1, 2)
    for query_id in ("q01", "q02", "q03"):
        del short[query_id]
    short["q04"] = {}
    short |= {"other": {"right": 1.0}, "another": {"right": 1.0}}
    (part,) = compare(qrels, {"whole": run_of(1, 2), "short": short}, measures=["RR"]).collections
    assert part.notes == (
        "2 judged queries without a relevant document were left out",
        "short: 2 queries are not in the judgments and were left out",
        "short: 4 queries have no results and count 0",
    )
    assert (part.queries, part.system("short").evaluation.queries_without_results) == (SIZE, 4)


def test_nothing_left_out_is_nothing_said() -> None:
    assert part_of({"a": run_of(1, 2), "b": run_of(2)}).notes == ()


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        ({}, {}, "nothing to compare: give at least one run"),
        ({"a": run_of(1)}, {"baseline": "b"}, "baseline 'b' is none of the systems: a"),
        ({"a": run_of(1)}, {"measures": ["nonsense@5"]}, "measure 'nonsense@5' is unknown"),
        ({"a": run_of(1), "b": {"x1": {"right": 1.0}}}, {}, "run 'b' has no query in common with the judgments"),
    ],
    ids=["no runs", "unknown baseline", "unknown measure", "no common query"],
)
def test_what_cannot_be_compared_is_an_error(runs: dict[str, Run], options: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        compare(qrels_of(), runs, **{"measures": ["RR"], **options})


def test_judgments_without_anything_relevant_cannot_be_compared() -> None:
    with pytest.raises(EvaluationError, match="no query has a relevant document"):
        compare({"q": {"right": 0}}, {"a": {"q": {"right": 1.0}}})


def test_the_fingerprint_is_of_the_judgments_alone() -> None:
    first = part_of({"a": run_of(1)}).qrels_sha256
    assert part_of({"b": run_of(2)}).qrels_sha256 == first
    reordered = {query_id: dict(reversed(grades.items())) for query_id, grades in reversed(qrels_of().items())}
    assert compare(reordered, {"a": run_of(1)}).collections[0].qrels_sha256 == first
    changed = qrels_of() | {"q03": {"right": 2, "wrong-00": 0}}
    assert compare(changed, {"a": run_of(1)}).collections[0].qrels_sha256 != first


# ---------------------------------------------------------------- by kind of query


def sliced(texts: dict[str, str], documents: dict[str, Document] | None, answers: dict[str, list[str]]) -> list[Slice]:
    qrels = {query_id: dict.fromkeys(doc_ids, 1) | {"judged": 0} for query_id, doc_ids in answers.items()}
    runs: dict[str, Run] = {
        "first": {query_id: {doc_ids[0]: 2.0, "judged": 1.0} for query_id, doc_ids in answers.items()},
        "every second": {
            query_id: ({doc_ids[0]: 1.0} if number % 2 else {"judged": 3.0, doc_ids[0]: 2.0})
            for number, (query_id, doc_ids) in enumerate(answers.items())
        },
    }
    (part,) = compare(qrels, runs, measures=["RR"], queries=texts, documents=documents).collections
    return list(part.slices)


def test_queries_are_divided_by_the_words_that_bm25_counts() -> None:
    words = [f"word{letter}" for letter in "abcdefghijkl"]
    lengths = {"q1": 1, "q2": 2, "q3": 3, "q5": 5, "q6": 6, "q10": 10, "q11": 11}
    texts = {query_id: "What is the " + " ".join(words[:length]) for query_id, length in lengths.items()}
    texts["twice"] = "worda worda worda wordb"  # two words
    slices = sliced(texts, None, {query_id: ["d"] for query_id in texts})
    assert [(piece.kind, piece.label, piece.queries) for piece in slices] == [
        ("words in the query", "1 to 2", 3),
        ("words in the query", "3 to 5", 2),
        ("words in the query", "6 to 10", 2),
        ("words in the query", "over 10", 1),
    ]
    # of q1, q2, q3, … the second, fourth, … have the answer first, the others second
    assert [piece.means for piece in slices] == [
        {"first": 1.0, "every second": pytest.approx((0.5 + 1 + 1) / 3)},
        {"first": 1.0, "every second": pytest.approx((0.5 + 1) / 2)},
        {"first": 1.0, "every second": pytest.approx((0.5 + 1) / 2)},
        {"first": 1.0, "every second": pytest.approx(0.5)},
    ]


def test_queries_are_divided_by_the_words_that_an_answer_shares() -> None:
    documents = {
        "glass": Document("glass", "", "glass"),
        "river": Document("river", "The River", "engines"),
        "more": Document("more", "", "river glass sparrows and nothing else"),
    }
    texts = {
        "none": "purple elephants",
        "third": "the glass elephant juggles",
        "half": "rivers juggle",
        "most": "sparrows in a river of glass juggling",
        "all": "a sparrow, rivers, glass",
        "best": "sparrow rivers",
        "stop": "what is this",
        "absent": "glass",
    }
    answers = {
        "none": ["glass"],
        "third": ["glass"],
        "half": ["river"],
        "most": ["more"],
        "all": ["more"],
        "best": ["glass", "river", "more"],  # the answer that shares most counts
        "stop": ["glass"],  # no word at all: not in this table
        "absent": ["gone"],  # the document is not there: not in this table
    }
    slices = [piece for piece in sliced(texts, documents, answers) if piece.kind == "words shared with the answer"]
    assert [(piece.label, piece.queries, piece.means["every second"]) for piece in slices] == [
        ("none", 1, 0.5),
        ("up to a third", 1, 1.0),
        ("up to two thirds", 1, 0.5),
        ("more", 1, 1.0),
        ("all", 2, pytest.approx((0.5 + 1) / 2)),
    ]


def test_a_query_of_stop_words_alone_is_not_counted_among_those_of_one_or_two_words() -> None:
    slices = sliced({"q": "what is this", "r": "river"}, None, {"q": ["d"], "r": ["d"]})
    assert [piece.queries for piece in slices if piece.label == "1 to 2"] == [1]


def test_without_the_texts_nothing_is_divided() -> None:
    assert part_of({"a": run_of(1)}).slices == ()
    kinds = {piece.kind for piece in part_of({"a": run_of(1)}, queries=TEXTS).slices}
    assert kinds == {"words in the query"}


def test_queries_without_a_text_are_in_no_part() -> None:
    texts = {"q00": "cold river", "q01": "glass", "elsewhere": "glass"}
    assert [piece.queries for piece in part_of({"a": run_of(1)}, queries=texts).slices] == [2]


# ---------------------------------------------------------------- wins and failures


def test_wins_and_failures_name_queries_documents_and_ranks() -> None:
    before, after = run_of(2), run_of(2)
    after["q03"] = ranking(1)  # 0.5 → 1
    after["q04"] = ranking(10)  # 0.5 → 0.1
    after["q05"] = {"stranger": 3.0, "wrong-00": 2.0}  # 0.5 → 0
    before["q06"] = ranking(4)  # 0.25 → 0.5
    part = part_of({"before": before, "after": after}, queries=TEXTS, documents=DOCUMENTS)
    assert part.system("before").failures is None
    failures = part.system("after").failures
    assert failures is not None
    assert [(e.query_id, e.text, e.baseline_value, e.value) for e in failures.won] == [
        ("q03", "cold river number 3", 0.5, 1.0),
        ("q06", "cold river number 6", 0.25, 0.5),
    ]
    assert [(e.query_id, e.baseline_value, e.value) for e in failures.lost] == [
        ("q05", 0.5, 0.0),
        ("q04", 0.5, pytest.approx(0.1)),
    ]
    engines = " ".join(("engines and bridges " * 20).split())[:100]
    assert failures.won[0].documents == (
        DocumentAtFault("right", "The right answer", 1, rank=1, baseline_rank=2),
        DocumentAtFault("wrong-00", engines, 0, rank=2, baseline_rank=1),
    )
    assert failures.lost[0].documents == (
        DocumentAtFault("right", "The right answer", 1, rank=None, baseline_rank=2),
        DocumentAtFault("stranger", "", None, rank=1, baseline_rank=None),
        DocumentAtFault("wrong-00", engines, 0, rank=2, baseline_rank=1),
    )
    assert failures.lost[1].documents == (
        DocumentAtFault("right", "The right answer", 1, rank=10, baseline_rank=2),
        DocumentAtFault("wrong-00", engines, 0, rank=1, baseline_rank=1),
    )


def test_the_ten_largest_wins_and_losses_are_shown_the_largest_first() -> None:
    before = run_of(6)
    after = {f"q{number:02}": ranking(place) for number, place in enumerate(range(1, 13))}
    after |= {f"q{number:02}": ranking(12 - number % 3) for number in range(12, SIZE)}
    failures = part_of({"before": before, "after": after}).systems[1].failures
    assert failures is not None
    assert [example.query_id for example in failures.won] == ["q00", "q01", "q02", "q03", "q04"]
    assert len(failures.lost) == 10
    assert [example.value for example in failures.lost[:5]] == [pytest.approx(1 / 12)] * 5
    losses = [example.baseline_value - example.value for example in failures.lost]
    assert losses == sorted(losses, reverse=True)
    assert failures.lost[0].text == ""


def test_ranks_of_tied_documents_are_those_that_were_scored() -> None:
    before = {"q00": {"right": 2.0, "wrong-00": 1.0}, "q01": ranking(1)}
    after = {"q00": {"right": 1.0, "wrong-00": 1.0, "zebra": 1.0}, "q01": ranking(1)}
    (part,) = compare(qrels_of(2), {"before": before, "after": after}, measures=["RR"]).collections
    failures = part.systems[1].failures
    assert failures is not None
    (example,) = failures.lost
    assert example.value == pytest.approx(1 / 3)
    assert [(d.doc_id, d.baseline_rank, d.rank) for d in example.documents] == [("right", 1, 3), ("zebra", None, 1)]


def test_of_many_relevant_documents_the_three_that_moved_most_near_the_top_are_shown() -> None:
    qrels = {"q": {f"d{number}": 1 for number in range(1, 7)}, "r": {"d1": 1}}
    before = {f"d{number}": 10.0 - number for number in range(1, 7)}
    after = {doc_id: 10.0 - rank for rank, doc_id in enumerate(["x", "d1", "y", "z", "d5", "d4", "d3", "d6", "d2"])}
    runs: dict[str, Run] = {"before": {"q": before, "r": {"d1": 1.0}}, "after": {"q": after, "r": {"d1": 1.0}}}
    (part,) = compare(qrels, runs, measures=["AP"]).collections
    failures = part.systems[1].failures
    assert failures is not None
    # moved by 1 - 1/2, 1/2 - 1/9 and 1/3 - 1/7; d4 and d5 by less
    shown = [(d.doc_id, d.baseline_rank, d.rank, d.relevance) for d in failures.lost[0].documents]
    assert shown == [("d1", 1, 2, 1), ("d2", 2, 9, 1), ("d3", 3, 7, 1), ("x", None, 1, None)]


# ---------------------------------------------------------------- kept and read again


def test_a_report_survives_json_whole(rich: Report) -> None:
    text = json.dumps(rich.to_dict(), allow_nan=False)
    again = Report.from_dict(json.loads(text))
    assert again == rich
    assert again.to_dict() == rich.to_dict()
    joined = join({"a": rich, "b": Report((replace(rich.collections[0], qrels_sha256="0" * 64),))})
    assert joined.warnings
    assert Report.from_dict(json.loads(json.dumps(joined.to_dict()))) == joined


def test_the_json_says_what_it_is_and_holds_what_scripts_need(rich: Report) -> None:
    content = rich.to_dict()
    assert (content["kind"], content["format_version"], content["macro_average"]) == ("report", 1, None)
    (part,) = content["collections"]
    assert (part["name"], part["queries"], part["measures"]) == ("docs", SIZE, ["RR", "P@5", "nDCG@10"])
    assert [system["name"] for system in part["systems"]] == ["bad", "good", "middle"]
    good = part["systems"][1]
    assert good["evaluation"]["measures"]["RR"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert good["evaluation"]["per_query"]["q02"]["RR"] == 0.5
    assert good["costs"]["parameters"] == 31_400_000
    assert good["better_than"] == "ac"


def damaged(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def apply(content: dict[str, Any]) -> dict[str, Any]:
        change(content)
        return content

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: [content],
        lambda content: None,
        lambda content: "report",
        lambda content: content["collections"][0],
        damaged(lambda content: content.update(kind="checkpoint")),
        damaged(lambda content: content.update(format_version=2)),
        damaged(lambda content: content.pop("format_version")),
        damaged(lambda content: content.pop("collections")),
        damaged(lambda content: content.update(collections={})),
        damaged(lambda content: content.update(collections=[])),
        damaged(lambda content: content["collections"][0].pop("systems")),
        damaged(lambda content: content["collections"][0].update(systems=[])),
        damaged(lambda content: content["collections"][0].update(measures=[])),
        damaged(lambda content: content["collections"][0].update(measures=["AP"])),
        damaged(lambda content: content["collections"][0].update(baseline="nobody")),
        damaged(lambda content: content["collections"][0].update(queries="many")),
        damaged(lambda content: content["collections"][0]["systems"][1]["evaluation"].pop("per_query")),
        damaged(lambda content: content["collections"][0]["systems"][1]["evaluation"]["per_query"].pop("q03")),
        damaged(lambda content: content["collections"][0]["systems"][1]["evaluation"]["measures"].update(RR="good")),
        damaged(lambda content: content["collections"][0]["systems"][1].update(failures=[1])),
        damaged(lambda content: content["collections"][0]["pairs"].append({})),
        damaged(lambda content: content["collections"][0]["slices"][0]["means"].pop("good")),
    ],
    ids=[
        "a list",
        "null",
        "a string",
        "a part of it",
        "another kind",
        "another version",
        "no version",
        "no collections",
        "collections of another form",
        "not one collection",
        "systems missing",
        "not one system",
        "not one measure",
        "a measure without figures",
        "a baseline that is not there",
        "words for a number",
        "no figures by query",
        "a query missing",
        "words for a figure",
        "failures of another form",
        "an empty test",
        "a slice without a system",
    ],
)
def test_damaged_results_are_refused_with_the_file_and_advice(
    rich: Report, tmp_path: Path, damage: Callable[[dict[str, Any]], Any]
) -> None:
    content = damage(json.loads(json.dumps(rich.to_dict())))
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(EvaluationError) as caught:
        read_report(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "results.json"))
    assert re.search(r"evaluate again|not the results of", str(caught.value))


@pytest.mark.parametrize("content", [b"", b'{"kind": "report"', b"\xff\xfe", b"no json"])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(EvaluationError, match=r"results\.json: damaged .* evaluate again"):
        read_report(tmp_path / "results.json")


def test_a_folder_without_results_says_how_to_make_them(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(EvaluationError, match=r"no results\.json here; make one with `lmr evaluate"):
            read_report(path)


# ---------------------------------------------------------------- side by side


def report_of(
    runs: dict[str, Run], *, name: str = "docs", queries: dict[str, str] | None = None, **changes: Any
) -> Report:
    (part,) = compare(qrels_of(), runs, measures=["RR", "P@5"], name=name, queries=queries).collections
    return Report((replace(part, **changes),))


def test_a_system_with_the_same_figures_is_one_row_and_with_others_a_row_for_each() -> None:
    costs = Costs(parameters=7)
    first = report_of({"bm25": run_of(2, 3), "dense": run_of(4, 5)})
    (part,) = first.collections
    first = Report((replace(part, systems=(replace(part.systems[0], costs=costs), part.systems[1])),))
    second = report_of({"bm25": run_of(2, 3), "dense": run_of(1, 2), "new": run_of(6, 5)})
    joined = join({"before": first, "after": second})
    (part,) = joined.collections
    assert [system.name for system in part.systems] == ["bm25", "dense (before)", "dense (after)", "new"]
    figures = {system.name: system.evaluation.measures["RR"] for system in part.systems}
    assert figures == pytest.approx(
        {
            "bm25": (1 / 2 + 1 / 3) / 2,
            "dense (before)": (1 / 4 + 1 / 5) / 2,
            "dense (after)": (1 + 1 / 2) / 2,
            "new": (1 / 6 + 1 / 5) / 2,
        }
    )
    assert part.system("bm25").costs == costs
    assert [system.letter for system in part.systems] == ["a", "b", "c", "d"]
    assert part.system("dense (after)").better_than == "abd"
    assert part.baseline == "bm25"
    (test,) = [test for test in part.system("dense (after)").against_baseline if test.measure == "RR"]
    assert (test.baseline, test.difference) == ("bm25", pytest.approx(1 / 3))
    assert joined.warnings == ()


def test_a_joined_report_is_what_comparing_the_runs_together_gives() -> None:
    old, new = {"bm25": run_of(2, 3), "old": run_of(4, 5)}, {"bm25": run_of(2, 3), "new": run_of(1, 2)}
    texts = TEXTS | {"q01": "glass", "q02": "one two three four five six seven"}
    joined = join({"a": report_of(old, queries=texts), "b": report_of(new, queries=texts)}).collections[0]
    together = report_of(old | new, queries=texts).collections[0]
    assert joined.pairs == together.pairs
    assert joined.slices == together.slices
    assert len(joined.slices) == 3
    for system in joined.systems:
        other = together.system(system.name)
        assert (system.evaluation, system.against_baseline) == (other.evaluation, other.against_baseline)
        assert (system.letter, system.better_than) == (other.letter, other.better_than)
        assert system.precision_at_recall == other.precision_at_recall


def test_a_joined_report_takes_another_baseline_and_refuses_an_unknown_one() -> None:
    reports = {"x": report_of({"a": run_of(1, 2)}), "y": report_of({"b": run_of(2, 3)})}
    part = join(reports, baseline="b").collections[0]
    assert part.baseline == "b"
    assert [(test.system, test.baseline) for test in part.system("a").against_baseline] == [("a", "b")] * 2
    with pytest.raises(EvaluationError, match="baseline 'c' is none of the systems: a, b"):
        join(reports, baseline="c")


def test_what_differs_between_the_reports_is_said() -> None:
    first = report_of({"a": run_of(1)}, corpus_sha256="1", settings={"split": "test", "depth": "1000"})
    second = report_of({"b": run_of(2)}, corpus_sha256="2", settings={"split": "dev", "depth": "1000"})
    third = report_of({"c": run_of(1, 2)}, corpus_sha256="1", qrels_sha256="other", settings={"split": "test"})
    joined = join({"one": first, "two": second, "three": third})
    assert joined.warnings == (
        "docs: one and two differ in documents; compare with care",
        "docs: one and two differ in split (test and dev); compare with care",
        "docs: one and three differ in judgments; compare with care",
        "docs: one and three differ in depth (1000 and None); compare with care",
    )
    again = join({"joined": joined, "one": first})
    assert "joined: docs: one and two differ in documents; compare with care" in again.warnings


def test_settings_of_a_system_that_one_report_alone_has_are_no_difference() -> None:
    old = report_of({"bm25": run_of(2, 3), "dense:x": run_of(2)}, settings={"split": "test", "x, encoder": "aaa"})
    new = report_of({"bm25": run_of(2, 3), "dense:y": run_of(1)}, settings={"split": "test", "y, encoder": "bbb"})
    assert join({"old": old, "new": new}).warnings == ()


def test_what_was_left_out_of_a_report_is_said_of_the_joined_one_too() -> None:
    note = "b: 3 queries have no results and count 0"
    joined = join({"x": report_of({"a": run_of(1)}), "y": report_of({"b": run_of(2)}, notes=(note,))})
    assert note in markdown(joined)
    assert note in Page(ranking_page(joined)).text


def test_equal_conditions_are_nothing_to_warn_of() -> None:
    same = {"corpus_sha256": "1", "settings": {"split": "test"}}
    assert join({"x": report_of({"a": run_of(1)}, **same), "y": report_of({"b": run_of(2)}, **same)}).warnings == ()


def test_other_queries_cannot_be_joined() -> None:
    (fewer,) = compare(qrels_of(10), {"b": run_of(1, size=10)}, measures=["RR"], name="docs").collections
    with pytest.raises(EvaluationError, match="'b' was scored on other queries"):
        join({"x": report_of({"a": run_of(1)}), "y": Report((fewer,))})


def test_collections_that_are_not_in_every_report_are_left_out_and_named() -> None:
    docs, mail = report_of({"a": run_of(1)}), report_of({"a": run_of(2)}, name="mail")
    both = Report(docs.collections + mail.collections)
    joined = join({"x": both, "y": report_of({"b": run_of(2)})})
    assert [part.name for part in joined.collections] == ["docs"]
    assert joined.warnings == ("x: mail is not in every report and was left out",)
    with pytest.raises(EvaluationError, match="no collection in common"):
        join({"x": docs, "y": mail})


def test_measures_that_are_not_in_every_report_are_left_out() -> None:
    (part,) = compare(qrels_of(), {"b": run_of(2)}, measures=["P@5", "AP"], name="docs").collections
    joined = join({"x": report_of({"a": run_of(1)}), "y": Report((part,))})
    assert joined.collections[0].measures == ("P@5",)
    (part,) = compare(qrels_of(), {"b": run_of(2)}, measures=["AP"], name="docs").collections
    with pytest.raises(EvaluationError, match="docs: the reports have no measure in common"):
        join({"x": report_of({"a": run_of(1)}), "y": Report((part,))})


def test_a_system_that_agrees_on_the_common_measures_is_one_row() -> None:
    (part,) = compare(qrels_of(), {"bm25": run_of(2, 3)}, measures=["RR", "AP"], name="docs").collections
    joined = join({"x": report_of({"bm25": run_of(2, 3)}), "y": Report((part,))})
    assert [system.name for system in joined.collections[0].systems] == ["bm25"]


# ---------------------------------------------------------------- several collections


def test_the_macro_average_counts_every_collection_the_same() -> None:
    runs = {"a": run_of(1), "b": run_of(2), "only here": run_of(1, 2)}
    (large,) = compare(qrels_of(), runs, measures=["RR", "P@5"], name="large").collections
    small_runs = {"b": run_of(5, size=2), "a": run_of(4, size=2)}
    (small,) = compare(qrels_of(2), small_runs, measures=["RR"], name="small").collections
    report = Report((large, small))
    assert report.names == ["a", "b"]
    assert report.macro_average() == {"a": {"RR": (1 + 1 / 4) / 2}, "b": {"RR": pytest.approx((1 / 2 + 1 / 5) / 2)}}
    assert report.to_dict()["macro_average"] == report.macro_average()
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    for text in (markdown(report), latex(report), ranking_page(report)):
        assert "All collections: RR" in text
        assert "0.625" in text


def test_collections_without_a_common_system_have_no_average() -> None:
    def two(second: Run) -> Report:
        docs, mail = report_of({"bm25": run_of(1, 2)}), report_of({"bm25": second}, name="mail")
        return Report(docs.collections + mail.collections)

    joined = join({"x": two(run_of(3, 4)), "y": two(run_of(5, 6))})
    assert [[system.name for system in part.systems] for part in joined.collections] == [
        ["bm25"],
        ["bm25 (x)", "bm25 (y)"],
    ]
    assert (joined.names, joined.macro_average()) == ([], {})
    for form in (markdown, latex, ranking_page):
        assert "All collections" not in form(joined), form


# ---------------------------------------------------------------- in every form


class Page(HTMLParser):
    """Tags, attributes, words, tables and ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.styles = ""
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._inside.pop()

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._inside and self._inside[-1] == "style":
            self.styles += data
            return
        self.words.append(data)
        if {"th", "td"} & set(self._inside):
            self.tables[-1][-1][-1] += data.strip() if "sup" not in self._inside else f"^{data}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


ROWS = {
    "bad": ["0.162", "0.067", "0.349"],
    "good": ["0.833", "0.200", "0.877"],
    "middle": ["0.302", "0.133", "0.377"],
}
MARKS = {"bad": "", "good": "ac", "middle": "a"}


def test_the_figures_of_the_table_are_those_of_the_systems(rich: Report) -> None:
    for system in rich.collections[0].systems:
        figures = [f"{value:.3f}" for value in system.evaluation.measures.values()]
        assert figures == ROWS[system.name]
        assert system.better_than == MARKS[system.name]
    # by hand: eight queries each at places 2, 3 and (for P@5 too far down) 12, less the first that was taken away
    middle = rich.collections[0].system("middle").evaluation
    assert middle.measures["RR"] == pytest.approx((8 / 2 + 8 / 3 + 7 / 12) / 24)
    assert middle.measures["P@5"] == pytest.approx(16 / 24 / 5)
    assert middle.queries_without_results == 1


def test_markdown_has_every_system_and_figure(rich: Report) -> None:
    text = markdown(rich)
    for letter, (name, figures) in zip("abc", ROWS.items(), strict=True):
        first, *others = (f"**{figure}**" if name == "good" else figure for figure in figures)
        marks = f"<sup>{MARKS[name]}</sup>" if MARKS[name] else ""
        assert f"| {name}<sup>{letter}</sup> | {first}{marks} | {' | '.join(others)} |" in text
    assert "| system | RR | P@5 | nDCG@10 | judged@10 |" in text
    test = rich.collections[0].systems[1].against_baseline[0]
    assert f"| good | **{test.difference:+.3f}** |" in text
    assert f"| {test.wins} / {test.ties} / {test.losses} |" in text
    assert "| good | 0.833 | 31.4 | 1.5 | 2.6 | 1,234 | 98,765 | 1.2 | 3.8 | 512 |" in text
    assert "| bad | 0.162 | – | – | – | – | – | – | – | – |" in text
    for note in rich.collections[0].notes:
        assert f"> docs: {note}" in text
    assert "- split: test" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_every_markdown_table_is_rectangular(rich: Report) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", markdown(rich), flags=re.M)
    assert len(tables) == 6
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_latex_has_every_system_and_figure_and_its_tables_are_rectangular(rich: Report) -> None:
    text = latex(rich)
    for letter, (name, figures) in zip("abc", ROWS.items(), strict=True):
        first, *others = (f"\\textbf{{{figure}}}" if name == "good" else figure for figure in figures)
        marks = f"\\textsuperscript{{{MARKS[name]}}}" if MARKS[name] else ""
        assert f"{name}\\textsuperscript{{{letter}}} & {first}{marks} & {' & '.join(others)} &" in text
    bodies = re.findall(r"\\begin\{tabular\}\{(l?r*)\}(.*?)\\end\{tabular\}", text, flags=re.S)
    assert len(bodies) == text.count(r"\begin{table}") == text.count(r"\end{table}") == 6
    for columns, body in bodies:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) >= 3
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
    assert text.count("{") == text.count("}")


def test_latex_escapes_what_means_something_there() -> None:
    special = r"a_b&c%d$e#f{g}h~i^j\k"
    text = latex(report_of({special: run_of(1), "plain": run_of(2)}, name="50%_more"))
    escaped = r"a\_b\&c\%d\$e\#f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k"
    assert f"    {escaped}\\textsuperscript{{a}} & " in text
    assert r"\caption{50\%\_more: 24 queries." in text
    without_commands = re.sub(r"\\[\\&%$#_{}]|\\[a-z]+", "", text.split("\n", 1)[1])
    assert "p $<$ 0.05" in without_commands
    assert not set("%#_~^") & set(without_commands)


@pytest.mark.parametrize("sign", [">", "|"])
def test_latex_has_no_sign_that_its_default_font_shows_as_another(sign: str) -> None:
    # in OT1 a bare > is an inverted question mark and a bare | a dash
    text = latex(report_of({f"old{sign}new": run_of(1), "plain": run_of(2)}))
    assert f"old{sign}new" not in text


def test_the_page_has_every_system_and_figure(rich: Report) -> None:
    page = Page(ranking_page(rich))
    quality, difference = page.tables[:2]
    assert quality[0] == ["system", "RR", "P@5", "nDCG@10", "judged@10"]
    for letter, row in zip("abc", quality[1:], strict=True):
        name = row[0].split("^")[0]
        assert row[0] == f"{name}^{letter}"
        first, *others = ROWS[name]
        assert row[1:-1] == [first + (f"^{MARKS[name]}" if MARKS[name] else ""), *others]
    assert [row[0] for row in difference] == ["system", "good", "middle"]
    per_query = next(table for table in page.tables if table[0][0] == "query")
    assert len(per_query) == 1 + SIZE
    assert next(row for row in per_query if row[0] == "q02") == ["q02", "0.250", "0.500", "0.083"]
    for note in rich.collections[0].notes:
        assert note in page.text
    assert "split: test" in page.text
    assert "good against bad: 10 best and 0 worst queries" in page.text
    assert "cold river number 0" in page.text
    assert "The right answer right, relevance 1: rank 8 → 1" in page.text
    assert page.tags.count("svg") == 2  # one system has a latency: nothing to draw costs of


def test_the_page_draws_quality_against_cost_where_two_systems_have_one(rich: Report) -> None:
    (part,) = rich.collections
    costs = Costs(latency_p50_ms=2.0, index_bytes=4_200_000)
    drawn = replace(part, systems=(replace(part.systems[0], costs=costs), *part.systems[1:]))
    page = Page(ranking_page(Report((drawn,))))
    assert page.tags.count("svg") == 3
    assert "bad (4.2 MB)" in page.text
    assert "good (4.1 MB)" in page.text


@pytest.mark.parametrize("tag", ["html", "head", "body", "table", "tbody", "svg", "details", "figure", "g", "sup"])
def test_every_tag_of_the_page_is_closed(rich: Report, tag: str) -> None:
    text = ranking_page(rich)
    opened = len(re.findall(rf"<{tag}[\s>]", text)) - len(re.findall(rf"<{tag}\b[^>]*/>", text))
    assert opened == text.count(f"</{tag}>") > 0


ATTACK = "<script>alert('x')</script>"
PICTURE = '<img src=x onerror="alert(1)">'


def test_whatever_stands_in_names_texts_and_titles_is_shown_and_never_obeyed() -> None:
    qrels = {query_id: {"right": 1, PICTURE: 0} for query_id in (f"q{ATTACK}", "r", "s")}
    runs: dict[str, Run] = {
        f"old{ATTACK}&amp;": {query_id: {PICTURE: 2.0, "right": 1.0} for query_id in qrels},
        f'new"{PICTURE}': {query_id: {"right": 2.0, PICTURE: 1.0} for query_id in qrels} | {"r": {PICTURE: 1.0}},
    }
    report = compare(
        qrels,
        runs,
        measures=["RR"],
        name=f"docs{ATTACK}",
        queries=dict.fromkeys(qrels, f"question {ATTACK}"),
        documents={"right": Document("right", f"title {ATTACK}", ""), PICTURE: Document(PICTURE, "", f"{ATTACK} text")},
    )
    (part,) = report.collections
    report = Report((replace(part, notes=(f"note {ATTACK}",), settings={ATTACK: PICTURE}),), (f"warning {ATTACK}",))
    clean = Page(ranking_page(report_of({"a": run_of(1, 2), "b": run_of(2, 3)})))
    page = Page(ranking_page(report))
    assert not {"script", "img", "object", "iframe"} & set(page.tags)
    assert {tag for tag in page.tags if tag not in ("div", "strong", "li")} <= {*clean.tags, "nav"}
    assert [name for _, name, _ in page.attributes if name.startswith("on")] == []
    for shown in ("question", "title", "note", "warning", "old", "docs"):
        assert f"{shown} {ATTACK}" in page.text or f"{shown}{ATTACK}" in page.text, shown
    assert f'new"{PICTURE}' in page.text
    assert "&amp;^a" in page.tables[0][1][0]


LOADING = {"src", "srcset", "href", "xlink:href", "data", "action", "formaction", "poster", "background", "manifest"}


def test_the_page_refers_to_nothing_outside_itself(rich: Report) -> None:
    text = ranking_page(Report((*rich.collections, replace(rich.collections[0], name="again"))))
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "audio", "video"} & set(page.tags)
    assert "src=" not in text
    assert "@import" not in text
    found = [value for _, name, value in page.attributes if name in LOADING]
    found += re.findall(r"url\(['\"]?([^'\")]*)", text)
    assert len(found) > 10
    assert [value for value in found if not value.startswith("#")] == []
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for value in found} <= ids


def test_the_page_names_no_address_of_the_web(rich: Report) -> None:
    # the names of XML's vocabularies look like addresses, but nothing asks for them
    text = re.sub(r'xmlns(:\w+)?="[^"]*"', "", ranking_page(rich))
    assert re.findall(r"https?:[^\s\"<]*", text) == []


def test_no_two_parts_of_the_page_have_one_id(rich: Report) -> None:
    ids = [value for _, name, value in Page(ranking_page(rich)).attributes if name == "id"]
    assert sorted({value for value in ids if ids.count(value) > 1}) == []


@pytest.mark.parametrize(
    "name", ["x$\\foo$", "$_$", "系统", "_mine", "[bold]x[/bold]", "hybrid:a-rather-long-name+whiten-" * 3]
)
def test_every_name_of_a_system_can_be_drawn(name: str) -> None:
    text = ranking_page(report_of({name: run_of(1, 2), "other": run_of(2, 3)}))
    drawn = re.findall(r"<text\b[^>]*>([^<]*)</text>", text)
    assert sum(name.strip() in label for label in drawn) >= 2  # over the bars and in the legend


def test_the_page_is_the_same_bytes_for_the_same_report(rich: Report) -> None:
    assert ranking_page(rich) == ranking_page(Report.from_dict(json.loads(json.dumps(rich.to_dict()))))


def test_a_page_has_no_heading_over_a_picture_that_is_not_there(rich: Report) -> None:
    for report in (rich, join({"one": rich, "two": rich})):
        page = Page(ranking_page(report))
        assert ("Precision and recall" in page.text) == ("at eleven levels of recall" in page.text)


def test_one_system_alone_has_a_page_and_tables() -> None:
    report = report_of({"alone": run_of(1, 2)})
    assert Page(ranking_page(report)).tables[0][1][:3] == ["alone^a", "0.750", "0.200"]
    assert "| alone<sup>a</sup> | **0.750** |" in markdown(report)
    assert latex(report).count(r"\begin{table}") == 1


def test_warnings_stand_in_the_page_and_in_the_markdown() -> None:
    report = replace(report_of({"a": run_of(1, 2)}), warnings=("x and y differ in documents",))
    assert "x and y differ in documents" in Page(ranking_page(report)).text
    assert "> x and y differ in documents" in markdown(report)


# ---------------------------------------------------------------- the folder


def test_a_report_is_written_and_read_again(rich: Report, tmp_path: Path) -> None:
    runs = {"docs": {"bad": run_of(8), "dense:good": run_of(1)}}
    write_report(tmp_path / "deep" / "out", rich, runs=runs)
    folder = tmp_path / "deep" / "out"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "report.html",
        "report.md",
        "results.json",
        "tables.tex",
        "runs/docs/bad.run.gz",
        "runs/docs/dense-good.run.gz",
    }
    assert read_report(folder) == read_report(folder / "results.json") == rich
    assert (folder / "report.html").read_text() == ranking_page(rich)
    assert (folder / "report.md").read_text() == markdown(rich)
    assert (folder / "tables.tex").read_text() == latex(rich)
    assert read_run(folder / "runs" / "docs" / "dense-good.run.gz") == runs["docs"]["dense:good"]


def test_a_report_replaces_an_earlier_one(rich: Report, tmp_path: Path) -> None:
    other = report_of({"a": run_of(1, 2)})
    write_report(tmp_path, rich)
    write_report(tmp_path, other)
    assert read_report(tmp_path) == other
    assert "cold river" not in (tmp_path / "report.html").read_text()


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["results.json", "report.md", "tables.tex", "report.html", "runs/docs/bad.run.gz"])
@pytest.mark.parametrize(("failure", "error"), [(interrupted, KeyboardInterrupt), (full, StorageError)])
def test_an_interrupted_write_leaves_the_old_file(
    rich: Report,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    failure: Callable[..., None],
    error: type[BaseException],
) -> None:
    write_report(tmp_path, rich, runs={"docs": {"bad": run_of(8)}})
    before = (tmp_path / name).read_bytes()
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    synced = os.fsync

    def fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().name.startswith(f".{Path(name).name}."):
            failure()
        synced(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(error):
        write_report(tmp_path, report_of({"bad": run_of(1, 2)}), runs={"docs": {"bad": run_of(1)}})
    assert (tmp_path / name).read_bytes() == before
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_folder_in_the_way_of_a_file_is_an_error(rich: Report, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(StorageError, match="a file is in the way"):
        write_report(tmp_path / "taken", rich)
    assert (tmp_path / "taken").read_text() == "mine"


def test_systems_whose_names_differ_in_a_sign_keep_a_run_file_each(rich: Report, tmp_path: Path) -> None:
    runs = {"dense:x": run_of(1), "dense-x": run_of(2), "dense x": run_of(3)}
    write_report(tmp_path, rich, runs={"docs": runs})
    files = sorted((tmp_path / "runs" / "docs").iterdir())
    assert len(files) == 3
    contents = [read_run(path) for path in files]
    assert all(run in contents for run in runs.values())


@pytest.mark.parametrize(
    "scores",
    [
        {"right": 1.0, "b": 1.0, "zebra": 1.0},
        {"right": 1.0 + 1e-9, "zebra": 1.0},
        {"zebra": 1.0, "b": 3.0, "right": 2.0},
        {"right": 1.0, "zebra": 9.0},
    ],
    ids=["tied", "tied in float32", "out of order", "ascending"],
)
def test_a_run_in_the_folder_has_the_figures_of_the_report(tmp_path: Path, scores: dict[str, float]) -> None:
    qrels = qrels_of(3)
    run = run_of(2, size=3) | {"q01": scores}
    report = compare(qrels, {"s": run}, measures=["RR", "nDCG@10"], name="docs")
    write_report(tmp_path, report, runs={"docs": {"s": run}})
    written = read_run(tmp_path / "runs" / "docs" / "s.run.gz")
    figures = evaluate(qrels, written, measures=["RR", "nDCG@10"])
    assert figures.per_query == report.collections[0].systems[0].evaluation.per_query


# ---------------------------------------------------------------- at scale


@pytest.mark.slow
def test_two_hundred_thousand_rows_are_compared_and_written(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    documents = np.array([f"doc-{number:05}" for number in range(5000)])
    qrels: Qrels = {}
    runs: dict[str, Run] = {f"system-{number}": {} for number in range(4)}
    for number in range(50):
        chosen = generator.choice(documents, 1000, replace=False).tolist()
        qrels[f"q{number:02}"] = dict.fromkeys(chosen[:20], 1)
        for place, run in enumerate(runs.values()):
            scores = generator.normal(size=1000)
            scores[:20] += 0.5 * place  # the later the system, the higher what is relevant
            order = np.argsort(-scores)
            run[f"q{number:02}"] = {chosen[row]: float(scores[row]) for row in order}
    assert sum(len(scores) for run in runs.values() for scores in run.values()) == 200_000
    texts = {query_id: f"question {query_id} about rivers" for query_id in qrels}
    titles = {doc_id: Document(doc_id, f"title of {doc_id}", "rivers") for doc_id in documents.tolist()}
    report = compare(qrels, runs, name="large", queries=texts, documents=titles)
    write_report(tmp_path, report, runs={"large": runs})
    (part,) = read_report(tmp_path).collections
    for system in part.systems:
        precision = [
            sum(doc_id in qrels[query_id] for doc_id in list(scores)[:10]) / 10
            for query_id, scores in runs[system.name].items()
        ]
        assert system.evaluation.measures["P@10"] == pytest.approx(np.mean(precision), abs=1e-12)
        written = read_run(tmp_path / "runs" / "large" / f"{system.name}.run.gz")
        assert {query_id: list(scores) for query_id, scores in written.items()} == {
            query_id: list(scores) for query_id, scores in runs[system.name].items()
        }
    quality = [system.evaluation.measures["nDCG@10"] for system in part.systems]
    assert quality == sorted(quality)
    assert part.systems[3].better_than == "abc"
    assert part.systems[0].evaluation.measures["P@10"] == pytest.approx(0.02, abs=0.02)
