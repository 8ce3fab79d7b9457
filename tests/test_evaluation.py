"""Ranking measures against trec_eval itself and by hand; run files that keep the figures."""

import copy
import gzip
import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_retrieval.errors import EvaluationError
from lm_retrieval.evaluation.evaluator import DEFAULT_MEASURES, evaluate
from lm_retrieval.evaluation.trec import read_run, write_run

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
    "name", ["nonsense", "", "nDCG@", "nDCG@-1", "P(rel=2", "P(foo=2)@5", "P@1.5", "nDCG@10 P@5", "import os", "1"]
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
