"""Ranking measures against trec_eval itself and by hand; run files that keep the figures."""

import copy
import gzip
import math
import time
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_retrieval.errors import CorpusError, EvaluationError, StorageError
from lm_retrieval.evaluation.evaluator import DEFAULT_MEASURES, Evaluation, evaluate, trec_order
from lm_retrieval.evaluation.trec import read_qrels_file, read_run, write_run
from lm_retrieval.records import Qrels, Run

TREC_NAMES = {
    "nDCG@10": "ndcg_cut_10",
    "nDCG@5": "ndcg_cut_5",
    "nDCG": "ndcg",
    "RR": "recip_rank",
    "AP": "map",
    "AP@1000": "map_cut_1000",
    "AP@10": "map_cut_10",
    "R@100": "recall_100",
    "R@10": "recall_10",
    "P@10": "P_10",
    "P@5": "P_5",
    "Rprec": "Rprec",
    "Success@5": "success_5",
}
DOCS = [f"d{number}" for number in range(30)]


def random_case(seed: int) -> tuple[dict, dict]:
    """Judgments with grades 0 to 3 and runs with many ties, over partly different queries."""
    generator = np.random.default_rng(seed)
    qrels = {
        f"q{query}": {str(doc): int(generator.integers(0, 4)) for doc in generator.choice(DOCS, 8, replace=False)}
        for query in range(12)
    }
    for grades in qrels.values():
        grades[next(iter(grades))] = 1
    run = {
        f"q{query}": {
            str(doc): float(generator.integers(0, 6)) / 3
            for doc in generator.choice(DOCS, generator.integers(1, 25), replace=False)
        }
        for query in range(3, 15)
    }
    return qrels, run


def as_trec_eval_sorts(scores: dict[str, float]) -> list[str]:
    """By score, then by document id, both descending."""
    by_id = sorted(scores, reverse=True)
    return sorted(by_id, key=lambda doc_id: -np.float32(scores[doc_id]))


# ---------------------------------------------------------------- against trec_eval


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_trec_eval_query_by_query_with_ties_and_grades(seed):
    qrels, run = random_case(seed)
    found = evaluate(qrels, run, measures=list(TREC_NAMES))
    reference = pytrec_eval.RelevanceEvaluator(qrels, set(TREC_NAMES.values())).evaluate(run)
    assert set(found.per_query) == set(qrels)
    for query_id, figures in found.per_query.items():
        for name, trec_name in TREC_NAMES.items():
            expected = reference.get(query_id, {}).get(trec_name, 0.0)  # missing queries count 0
            assert figures[name] == pytest.approx(expected, abs=1e-6), (query_id, name)
    for name in TREC_NAMES:
        assert found.measures[name] == pytest.approx(np.mean([row[name] for row in found.per_query.values()]))
    assert (found.queries, found.queries_without_results, found.queries_without_relevant) == (12, 3, 0)


@pytest.mark.parametrize("seed", range(3))
def test_reciprocal_rank_with_a_cut_off_looks_no_further(seed):
    qrels, run = random_case(seed)
    for cut in (1, 3, 10):
        found = evaluate(qrels, run, measures=[f"RR@{cut}"])
        for query_id, figures in found.per_query.items():
            ranks = [
                rank
                for rank, doc_id in enumerate(as_trec_eval_sorts(run.get(query_id, {}))[:cut], start=1)
                if qrels[query_id].get(doc_id, 0) > 0
            ]
            assert figures[f"RR@{cut}"] == pytest.approx(1 / ranks[0] if ranks else 0.0)


@settings(deadline=None)
@given(
    grades=st.dictionaries(st.sampled_from(DOCS[:9]), st.integers(0, 3), min_size=1).filter(
        lambda grades: any(grades.values())
    ),
    scores=st.dictionaries(st.sampled_from(DOCS[:12]), st.sampled_from([0.0, 0.5, 1.0, -2.0]), min_size=1),
)
def test_ndcg_and_precision_follow_their_formulas_for_any_ranking(grades, scores):
    found = evaluate({"q": grades}, {"q": scores}, measures=["nDCG@5", "P@5", "R@5"]).measures
    ranked = [grades.get(doc_id, 0) for doc_id in as_trec_eval_sorts(scores)][:5]
    ideal = sorted(grades.values(), reverse=True)[:5]

    def gain(row: list[int]) -> float:
        return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(row, start=1))

    hits = sum(grade > 0 for grade in ranked)
    assert found["nDCG@5"] == pytest.approx(gain(ranked) / gain(ideal), abs=1e-6)
    assert found["P@5"] == pytest.approx(hits / 5)
    assert found["R@5"] == pytest.approx(hits / sum(grade > 0 for grade in grades.values()))


# ---------------------------------------------------------------- whatever is ranked and judged

OFFICIAL = {
    "nDCG@10": "ndcg_cut_10",
    "AP@1000": "map_cut_1000",
    "RR": "recip_rank",
    "P@10": "P_10",
    "R@100": "recall_100",
}
# equal, equal in float32 alone, and neighbours in float32
SCORES = (0.0, -0.0, 1.0, 1.0 + 1e-9, 1.0 - 1e-9, 1.0 + 2**-23, -2.5, 7.0, 1e-60, 3e38)
QUERIES = [f"q{number}" for number in range(6)]


@st.composite
def judged_runs(draw: st.DrawFn) -> tuple[Qrels, Run]:
    grades = st.dictionaries(st.sampled_from(DOCS[:20]), st.sampled_from([-2, -1, 0, 0, 1, 1, 2, 3]), max_size=12)
    scores = st.dictionaries(st.sampled_from(DOCS), st.sampled_from(SCORES), max_size=25)
    qrels = draw(st.dictionaries(st.sampled_from(QUERIES), grades, min_size=4))
    qrels["surely"] = {"d3": 1, "d4": -1, "d5": 2}
    run = draw(st.dictionaries(st.sampled_from([*QUERIES, "surely", "unjudged"]), scores, min_size=3))
    return qrels, run


def relevant_queries(qrels: Qrels) -> list[str]:
    return [query_id for query_id, grades in qrels.items() if max(grades.values(), default=0) > 0]


def by_trec_eval(
    qrels: Qrels, run: Run, names: dict[str, str], *, relevance_level: int = 1
) -> dict[str, dict[str, float]]:
    # pytrec_eval crashes where every grade of a query is below -1; a query without results is none to it
    scored = {query_id: qrels[query_id] for query_id in relevant_queries(qrels)}
    answered = {query_id: scores for query_id, scores in run.items() if scores}
    evaluator = pytrec_eval.RelevanceEvaluator(scored, set(names.values()), relevance_level=relevance_level)
    reference = evaluator.evaluate(answered)
    return {
        query_id: {name: reference.get(query_id, {}).get(official, 0.0) for name, official in names.items()}
        for query_id in scored
    }


def check_against_trec_eval(qrels: Qrels, run: Run) -> None:
    found = evaluate(qrels, run, measures=list(OFFICIAL))
    reference = by_trec_eval(qrels, run, OFFICIAL)
    assert list(found.per_query) == list(reference)
    for name in OFFICIAL:
        expected = [figures[name] for figures in reference.values()]
        values = [figures[name] for figures in found.per_query.values()]
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-9, err_msg=name)
        assert found.measures[name] == pytest.approx(sum(expected) / len(expected), abs=1e-9), name
    assert found.queries == len(found.per_query)
    assert found.queries_without_relevant == len(qrels) - found.queries
    assert found.queries_without_results == sum(not run.get(query_id) for query_id in found.per_query)


@settings(deadline=None, max_examples=400)
@given(judged_runs())
def test_every_figure_is_trec_evals_for_any_judgments_and_any_run(case: tuple[Qrels, Run]) -> None:
    check_against_trec_eval(*case)


@pytest.mark.parametrize("seed", range(4))
def test_every_figure_is_trec_evals_for_a_thousand_queries_with_long_rankings(seed: int) -> None:
    generator = np.random.default_rng(seed)
    documents = np.array([f"doc-{number}" for number in range(1400)])
    scores = np.concatenate([SCORES, generator.normal(size=60)])
    qrels: Qrels = {}
    run: Run = {}
    for number in range(1000):
        depth = int(generator.choice([3, 30, 150])) if number % 50 else 1400
        judged = generator.choice(documents, generator.integers(1, 60), replace=False).tolist()
        grades = generator.choice([-1, 0, 0, 0, 1, 2], len(judged)).tolist()
        qrels[f"q{number}"] = dict(zip(judged, grades, strict=True))
        ranked = generator.choice(documents, depth, replace=False).tolist()
        if number % 9:
            run[f"q{number}"] = dict(zip(ranked, generator.choice(scores, depth).tolist(), strict=True))
    assert 700 < len(relevant_queries(qrels)) < 1000
    check_against_trec_eval(qrels, run)


def test_average_precision_at_1000_and_recall_at_100_end_at_their_cut_offs() -> None:
    run = {"q": {f"d{rank:04}": -float(rank) for rank in range(1, 1201)}}
    qrels = {"q": {"d0100": 1, "d0101": 1, "d1000": 1, "d1001": 1}}
    found = evaluate(qrels, run, measures=["AP@1000", "R@100", "AP"]).measures
    assert found["R@100"] == 1 / 4
    assert found["AP@1000"] == pytest.approx((1 / 100 + 2 / 101 + 3 / 1000) / 4, abs=1e-12)
    assert found["AP"] == pytest.approx((1 / 100 + 2 / 101 + 3 / 1000 + 4 / 1001) / 4, abs=1e-12)


def test_a_negative_grade_is_as_good_as_none_at_all() -> None:
    run = {"q": {"bad": 3.0, "good": 2.0}}
    measures = [*OFFICIAL, "Success@5", "Rprec"]
    negative = evaluate({"q": {"bad": -2, "good": 2}}, run, measures=measures)
    zero = evaluate({"q": {"bad": 0, "good": 2}}, run, measures=measures)
    assert negative.measures == zero.measures
    assert negative.measures["nDCG@10"] == pytest.approx(1 / math.log2(3))


@settings(deadline=None, max_examples=150)
@given(judged_runs())
def test_other_measures_of_ir_measures_are_its_own_figures(case: tuple[Qrels, Run]) -> None:
    qrels, run = case
    names = {"Success@5": "success_5", "Rprec": "Rprec"}
    found = evaluate(qrels, run, measures=[*names, "P(rel=2)@5", "Judged@10"])
    reference = by_trec_eval(qrels, run, names)
    strict = by_trec_eval(qrels, run, {"P(rel=2)@5": "P_5"}, relevance_level=2)
    for query_id, figures in found.per_query.items():
        ranked = as_trec_eval_sorts(run.get(query_id, {}))[:10]
        judged = sum(doc_id in qrels[query_id] for doc_id in ranked) / max(1, len(ranked))
        expected = reference[query_id] | strict[query_id] | {"Judged@10": judged}
        assert figures == pytest.approx(expected, abs=1e-9), query_id


@pytest.mark.parametrize("seed", range(5))
def test_without_ties_ir_measures_itself_gives_the_same(seed: int) -> None:
    generator = np.random.default_rng(seed)
    qrels, run = random_case(seed)
    run = {
        query_id: dict(zip(scores, generator.permutation(len(scores)).tolist(), strict=True))
        for query_id, scores in run.items()
        if query_id in qrels
    }
    names = ["Success@5", "Judged@10", "P(rel=2)@5", "Rprec", "RR@10", "nDCG@10", "AP(rel=2)@100", "IPrec@0.3", "SetF"]
    found = evaluate(qrels, run, measures=names)
    pairs = 0
    for metric in ir_measures.iter_calc(list(map(ir_measures.parse_measure, names)), qrels, run):
        name = next(name for name in names if ir_measures.parse_measure(name) == metric.measure)
        assert found.per_query[metric.query_id][name] == pytest.approx(metric.value, abs=1e-9), (metric.query_id, name)
        pairs += 1
    assert pairs == len(names) * len(qrels)


# ---------------------------------------------------------------- by hand


def test_a_ranking_worked_out_by_hand():
    qrels = {"q": {"a": 3, "b": 1, "c": 2, "x": 0}}
    run = {"q": {"x": 9.0, "a": 8.0, "y": 7.0, "c": 6.0}}  # b is not found
    found = evaluate(qrels, run).measures
    ideal = 3 / 1 + 2 / math.log2(3) + 1 / 2
    assert found == pytest.approx(
        {
            "nDCG@10": (3 / math.log2(3) + 2 / math.log2(5)) / ideal,
            "RR@10": 1 / 2,
            "AP@1000": (1 / 2 + 2 / 4) / 3,
            "R@100": 2 / 3,
            "P@10": 2 / 10,
        },
        abs=1e-6,
    )
    assert tuple(found) == DEFAULT_MEASURES


def test_a_perfect_ranking_has_full_marks():
    found = evaluate({"q": {"a": 2, "b": 1}}, {"q": {"a": 2.0, "b": 1.0}}, measures=["nDCG@10", "RR@10", "AP", "P@2"])
    assert set(found.measures.values()) == {1.0}


@pytest.mark.parametrize("measure", ["RR", "RR@10", "AP", "AP@1000"])
@pytest.mark.parametrize(
    "run",
    [{"a": 1.0, "b": 1.0}, {"b": 1.0, "a": 1.0}, {"a": 1 + 1e-12, "b": 1.0}],
    ids=["ab", "ba", "equal in float32"],
)
def test_ties_are_broken_by_document_id_descending_whatever_the_measure(measure, run):
    for relevant, expected in (("b", 1.0), ("a", 0.5)):
        assert evaluate({"q": {relevant: 1}}, {"q": run}, measures=[measure]).measures[measure] == expected


def test_ties_decide_what_is_judged_at_10_in_the_same_way():
    run = {"q": {f"d{number:02}": 1.0 for number in range(11)}}
    assert evaluate({"q": {"d00": 1}}, run).judged_at_10 == 0.0
    assert evaluate({"q": {"d10": 1}}, run).judged_at_10 == pytest.approx(0.1)


def test_queries_that_the_run_does_not_answer_count_zero():
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}, "q4": {"a": 1}}
    found = evaluate(qrels, {"q1": {"a": 1.0}, "q3": {}}, measures=["P@1", "RR@10"])
    assert found.measures == {"P@1": 0.25, "RR@10": 0.25}
    assert (found.queries, found.queries_without_results) == (4, 3)
    assert found.per_query["q2"] == found.per_query["q3"] == {"P@1": 0.0, "RR@10": 0.0}


def test_an_empty_run_has_zero_everywhere():
    found = evaluate({"q1": {"a": 1}}, {})
    assert found.measures == dict.fromkeys(DEFAULT_MEASURES, 0.0)
    assert (found.queries_without_results, found.judged_at_10) == (1, 0.0)


def test_a_query_for_which_nothing_relevant_is_known_is_left_out_and_counted():
    qrels = {"q1": {"a": 1}, "q2": {"a": 0, "b": 0}, "q3": {}, "q4": {"a": -1}}
    run = {query_id: {"a": 1.0} for query_id in ("q1", "q2", "q3", "q4")}
    found = evaluate(qrels, run, measures=["P@1"])
    assert found.per_query == {"q1": {"P@1": 1.0}}
    assert (found.measures["P@1"], found.queries, found.queries_without_relevant) == (1.0, 1, 3)


def test_queries_without_judgments_do_not_count():
    found = evaluate({"q1": {"a": 1}}, {"q1": {"b": 1.0}, "other": {"a": 1.0}}, measures=["P@1"])
    assert (found.measures["P@1"], found.queries) == (0.0, 1)


def test_a_measure_can_ask_for_a_higher_grade():
    qrels = {"q": {"a": 1, "b": 2}}
    run = {"q": {"a": 2.0, "b": 1.0}}
    found = evaluate(qrels, run, measures=["P(rel=2)@1", "P@1", "RR(rel=2)@10"]).measures
    assert found == {"P(rel=2)@1": 0.0, "P@1": 1.0, "RR(rel=2)@10": 0.5}


def test_two_names_of_one_measure_have_the_same_figure():
    found = evaluate({"q": {"a": 1}}, {"q": {"a": 1.0}}, measures=["P@1", "P(rel=1)@1", "P@1"])
    assert found.measures == {"P@1": 1.0, "P(rel=1)@1": 1.0}


def test_judged_at_10_is_the_share_of_judged_documents_among_the_first_ten():
    qrels = {"q1": {"a": 1, "b": 0}, "q2": {"a": 1}, "q3": {"a": 1}}
    run = {"q1": {"a": 4.0, "b": 3.0, "y": 2.0, "z": 1.0}, "q2": {"x": 1.0}}
    found = evaluate(qrels, run, measures=["P@1"])
    assert found.judged_at_10 == pytest.approx((2 / 4 + 0) / 2)
    assert evaluate(qrels, run, measures=["Judged@10"]).judged_at_10 == pytest.approx(0.25)


def test_inputs_are_not_modified():
    qrels, run = random_case(0)
    before = copy.deepcopy((qrels, run))
    evaluate(qrels, run)
    assert (qrels, run) == before


@pytest.mark.parametrize(
    "name",
    [
        "nonsense",
        "",
        "nDCG@",
        "nDCG@-1",
        "P(rel=2",
        "P(rel=0)@5",
        "P(foo=2)@5",
        "P@1.5",
        "nDCG@10 P@5",
        "import os",
        "1",
    ],
)
def test_an_unknown_measure_is_an_error_that_names_it(name):
    with pytest.raises(EvaluationError) as caught:
        evaluate({"q": {"a": 1}}, {"q": {"a": 1.0}}, measures=["P@1", name])
    assert f"measure '{name}'" in str(caught.value)


@pytest.mark.parametrize("name", ["nDCG@0", "P@0"])
def test_a_cut_off_of_zero_is_an_error(name):
    # no answered query: trec_eval would end the whole process
    with pytest.raises(EvaluationError):
        evaluate({"q": {"a": 1}}, {}, measures=[name])


@pytest.mark.parametrize("name", ["RBP", "alpha_nDCG@10"])
def test_a_measure_that_nothing_installed_can_compute_is_an_error(name):
    with pytest.raises(EvaluationError):
        evaluate({"q": {"a": 1}}, {"q": {"a": 1.0}}, measures=[name])


@pytest.mark.parametrize("qrels", [{}, {"q": {}}, {"q": {"a": 0}}])
def test_judgments_without_anything_relevant_are_an_error(qrels):
    with pytest.raises(EvaluationError, match="no query has a relevant document"):
        evaluate(qrels, {"q": {"a": 1.0}})


# ---------------------------------------------------------------- run files


def test_a_run_file_has_the_six_columns_of_trec(tmp_path):
    path = tmp_path / "test.run"
    write_run(path, {"q1": {"d2": 2.5, "d1": 1.0}, "q2": {"d1": -3.0}}, tag="bm25")
    assert path.read_text() == "q1 Q0 d2 1 2.5 bm25\nq1 Q0 d1 2 1 bm25\nq2 Q0 d1 1 -3 bm25\n"
    assert read_run(path) == {"q1": {"d2": 2.5, "d1": 1.0}, "q2": {"d1": -3.0}}


@pytest.mark.parametrize("seed", range(3))
def test_a_run_written_and_read_again_has_the_same_figures(tmp_path, seed):
    qrels, run = random_case(seed)
    ordered = {
        query_id: {doc_id: scores[doc_id] for doc_id in as_trec_eval_sorts(scores)} for query_id, scores in run.items()
    }
    write_run(tmp_path / "test.run", ordered, tag="t")
    again = read_run(tmp_path / "test.run")
    assert {query_id: list(scores) for query_id, scores in again.items()} == {
        query_id: list(scores) for query_id, scores in ordered.items()
    }
    assert evaluate(qrels, again) == evaluate(qrels, run)


@settings(deadline=None)
@given(
    st.lists(
        st.floats(-(2.0**90), 2.0**90, width=32) | st.sampled_from([0.0, -0.0, 1.0, 1e-45, 0.1, 1 + 1e-12, 1e-60]),
        min_size=1,
        max_size=30,
    ),
)
def test_scores_in_the_file_strictly_decrease_in_float32_in_the_order_of_the_run(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("runs") / "test.run"
    run = {"q": {f"d{number}": score for number, score in enumerate(sorted(scores, reverse=True))}}
    write_run(path, run, tag="t")
    found = read_run(path)["q"]
    assert list(found) == list(run["q"])
    in_file = np.array(list(found.values())).astype(np.float32)
    assert (in_file[1:] < in_file[:-1]).all()
    np.testing.assert_allclose(in_file, list(run["q"].values()), rtol=1e-5, atol=1e-43)


def test_tied_documents_keep_the_order_of_the_run_not_that_of_their_ids(tmp_path):
    write_run(tmp_path / "test.run", {"q": {"a": 1.0, "c": 1.0, "b": 1.0}}, tag="t")
    run = read_run(tmp_path / "test.run")
    assert as_trec_eval_sorts(run["q"]) == ["a", "c", "b"]
    for place, doc_id in enumerate("acb", start=1):
        assert evaluate({"q": {doc_id: 1}}, run, measures=["RR@10"]).measures["RR@10"] == pytest.approx(1 / place)


def test_writing_does_not_modify_the_run(tmp_path):
    run = {"q": {"a": 1.0, "b": 1.0}}
    write_run(tmp_path / "test.run", run, tag="t")
    assert run == {"q": {"a": 1.0, "b": 1.0}}


@pytest.mark.parametrize("run", [{"q 1": {"a": 1.0}}, {"q": {"a b": 1.0}}, {"q": {"a\tb": 1.0}}, {"": {"a": 1.0}}])
def test_ids_with_white_space_are_refused_and_nothing_is_left_behind(tmp_path, run):
    with pytest.raises(EvaluationError, match="white space"):
        write_run(tmp_path / "test.run", run, tag="t")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 d2 2 0.5", "5 columns, 6 are needed"),
        ("q1 Q0 d2 2 0.5 tag more", "7 columns, 6 are needed"),
        ("q1 Q0 d2 2 high tag", "score 'high' is not a finite number"),
        ("q1 Q0 d2 2 nan tag", "score 'nan' is not a finite number"),
        ("q1 Q0 d2 2 -inf tag", "score '-inf' is not a finite number"),
        ("q1 Q0 d1 2 0.5 tag", "document 'd1' stands twice in query 'q1'"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_with_its_number(tmp_path, line, message):
    path = tmp_path / "bad.run"
    path.write_text(f"q1 Q0 d1 1 0.9 tag\n\n{line}\n")
    with pytest.raises(EvaluationError, match="line 3") as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}, line 3: {message}")


def test_tabs_blank_lines_windows_line_ends_and_a_byte_order_mark_are_fine(tmp_path):
    path = tmp_path / "test.run"
    path.write_bytes(b"\xef\xbb\xbfq1\tQ0\td1\t1\t1e-3\ttag\r\n\r\nq1  0  d\xc3\xa4  7  -2.5  tag")
    assert read_run(path) == {"q1": {"d1": 0.001, "dä": -2.5}}


def test_lines_of_a_query_need_not_stand_together_nor_in_order(tmp_path):
    path = tmp_path / "test.run"
    path.write_text("q1 Q0 a 1 1 t\nq2 Q0 a 1 5 t\nq1 Q0 b 1 3 t\n")
    assert read_run(path) == {"q1": {"a": 1.0, "b": 3.0}, "q2": {"a": 5.0}}


def test_a_gzip_file_is_read_like_a_plain_one(tmp_path):
    plain, packed = tmp_path / "test.run", tmp_path / "test.run.gz"
    _, run = random_case(0)
    ordered = {query_id: dict(sorted(scores.items(), key=lambda item: -item[1])) for query_id, scores in run.items()}
    write_run(plain, ordered, tag="t")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_run(packed) == read_run(plain)
    assert len(read_run(packed)) == 12


def test_an_empty_file_is_an_empty_run(tmp_path):
    (tmp_path / "test.run").write_text("")
    assert read_run(tmp_path / "test.run") == {}


# ---------------------------------------------------------------- run files for other programs


def assert_same(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> None:
    assert found.keys() == expected.keys()
    for query_id, figures in expected.items():
        assert found[query_id] == pytest.approx(figures, abs=1e-9), query_id


@pytest.mark.parametrize("suffix", ["run", "run.gz"])
@settings(deadline=None, max_examples=100)
@given(case=judged_runs())
def test_other_programs_read_a_written_run_and_find_the_same_figures(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, case: tuple[Qrels, Run]
) -> None:
    qrels, run = case
    path = tmp_path_factory.mktemp("runs") / f"x.{suffix}"
    ordered = {query_id: {doc_id: scores[doc_id] for doc_id in trec_order(scores)} for query_id, scores in run.items()}
    write_run(path, ordered, tag="x")
    own = evaluate(qrels, run, measures=list(OFFICIAL)).per_query
    with gzip.open(path, "rt") if suffix.endswith("gz") else path.open() as stream:
        assert_same(own, by_trec_eval(qrels, pytrec_eval.parse_run(stream), OFFICIAL))
    reread: Run = {}
    for scored in ir_measures.read_trec_run(str(path)):
        reread.setdefault(scored.query_id, {})[scored.doc_id] = scored.score
    assert_same(own, by_trec_eval(qrels, reread, OFFICIAL))
    again: dict[str, dict[str, float]] = {query_id: dict.fromkeys(OFFICIAL, 0.0) for query_id in own}
    names = {ir_measures.parse_measure(name): name for name in OFFICIAL}
    scored = {query_id: qrels[query_id] for query_id in own}
    # a plain list of what the file says: ir-measures orders it itself
    for metric in ir_measures.iter_calc(list(names), scored, list(ir_measures.read_trec_run(str(path)))):
        again[metric.query_id][names[metric.measure]] = metric.value
    assert_same(own, again)


def test_scores_that_differ_beyond_float32_alone_keep_their_order_in_other_programs(tmp_path: Path) -> None:
    scores = {"a": 1.0 + 3e-9, "c": 1.0 + 2e-9, "b": 1.0 + 1e-9, "d": 1.0}
    write_run(tmp_path / "x.run", {"q": scores}, tag="x")
    with (tmp_path / "x.run").open() as stream:
        run = pytrec_eval.parse_run(stream)
    for rank, doc_id in enumerate(scores, start=1):
        judged = {"q": {doc_id: 1}}
        assert by_trec_eval(judged, run, OFFICIAL)["q"]["RR"] == pytest.approx(1 / rank)
        found = {scored.doc_id: scored.score for scored in ir_measures.read_trec_run(str(tmp_path / "x.run"))}
        assert ir_measures.calc_aggregate([ir_measures.RR @ 10], judged, {"q": found}) == {
            ir_measures.RR @ 10: pytest.approx(1 / rank)
        }


def test_a_compressed_run_is_the_same_bytes_whenever_and_wherever_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = random_case(1)
    ordered = {query_id: {d: scores[d] for d in trec_order(scores)} for query_id, scores in run.items()}
    write_run(tmp_path / "first.run.gz", ordered, tag="x")
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    write_run(tmp_path / "elsewhere" / "second.run.gz", ordered, tag="x")
    packed = (tmp_path / "first.run.gz").read_bytes()
    assert packed == (tmp_path / "elsewhere" / "second.run.gz").read_bytes()
    write_run(tmp_path / "plain.run", ordered, tag="x")
    assert gzip.decompress(packed) == (tmp_path / "plain.run").read_bytes()
    assert read_run(tmp_path / "first.run.gz") == read_run(tmp_path / "plain.run")


def test_a_compressed_run_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.run.gz"
    write_run(path, {"q": {"a": 1.0}}, tag="x")
    before = path.read_bytes()
    with pytest.raises(EvaluationError, match="white space"):
        write_run(path, {"q": {"b": 2.0, "c d": 1.0}}, tag="x")
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == {"x.run.gz": before}


def test_a_run_file_that_is_missing_damaged_or_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"absent\.run: no such file"):
        read_run(tmp_path / "absent.run")
    (tmp_path / "broken.run.gz").write_bytes(gzip.compress(b"q Q0 d 1 1 t\n" * 9)[:-9])
    with pytest.raises(CorpusError, match=r"broken\.run\.gz: damaged gzip"):
        read_run(tmp_path / "broken.run.gz")
    (tmp_path / "latin.run").write_bytes(b"q Q0 d\xe4 1 1 t\n")
    with pytest.raises(CorpusError, match=r"latin\.run: not valid utf-8"):
        read_run(tmp_path / "latin.run")


# ---------------------------------------------------------------- judgment files


def test_judgments_are_read_from_trecs_form_and_from_beirs(tmp_path: Path) -> None:
    expected = {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": -1}}
    (tmp_path / "trec.qrels").write_text("q1 0 d1 2\nq1 Q0 d2 0\n\nq2\t7\td1\t-1\n")
    (tmp_path / "beir.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t-1\n")
    (tmp_path / "packed.qrels.gz").write_bytes(gzip.compress((tmp_path / "trec.qrels").read_bytes()))
    (tmp_path / "windows.tsv").write_bytes(
        b"\xef\xbb\xbf" + (tmp_path / "beir.tsv").read_bytes().replace(b"\n", b"\r\n")
    )
    for name in ("trec.qrels", "beir.tsv", "packed.qrels.gz", "windows.tsv"):
        assert read_qrels_file(tmp_path / name) == expected, name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q1 0 d1 1\nq1 d2 1\n", "line 2: 3 columns, 4 are needed"),
        ("query-id corpus-id score\nq1 0 d1 1\n", "line 2: 4 columns, 3 are needed"),
        ("q1 0 d1 1\n\nq1 0 d2 1.5\n", "line 3: grade '1.5' is not a whole number"),
        ("q1 0 d1 1\nq1 0 d1 1\n", "line 2: query 'q1' and document 'd1' are judged twice"),
        ("query-id corpus-id score\n", "no judgments"),
        ("", "no judgments"),
    ],
)
def test_a_judgment_that_cannot_be_read_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.qrels"
    path.write_text(content)
    with pytest.raises(EvaluationError) as caught:
        read_qrels_file(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


# ---------------------------------------------------------------- scores outside what float32 holds


def test_scores_too_large_for_float32_are_ranked_and_written_without_a_warning(tmp_path: Path) -> None:
    run = {"q": {"b": 1e40, "a": 1e39, "c": 1.0}}
    found: Evaluation = evaluate({"q": {"a": 1}}, run, measures=["RR"])
    assert found.measures["RR"] == 0.5  # both are infinite in float32: b stands before a
    write_run(tmp_path / "x.run", run, tag="x")
    assert list(read_run(tmp_path / "x.run")["q"]) == ["b", "a", "c"]
