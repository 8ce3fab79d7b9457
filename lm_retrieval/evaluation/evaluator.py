"""Scoring a run against judgments with trec_eval's rules, through ir-measures."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_retrieval.errors import EvaluationError

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "AP@1000", "R@100", "P@10")


@dataclass(frozen=True)
class Evaluation:
    """Figures of one run.

    Attributes:
        measures: mean over the scored queries, by measure name.
        per_query: query_id → measure name → value.
        queries: scored queries: those with at least one relevant document.
        queries_without_results: of these, how many the run does not answer; they count 0.
        queries_without_relevant: judged queries that were left out because nothing relevant is known for them.
        judged_at_10: share of the first 10 documents that have a judgment.
    """

    measures: dict[str, float]
    per_query: dict[str, dict[str, float]]
    queries: int
    queries_without_results: int
    queries_without_relevant: int
    judged_at_10: float


def evaluate(
    qrels: Mapping[str, Mapping[str, int]],
    run: Mapping[str, Mapping[str, float]],
    *,
    measures: Sequence[str] = DEFAULT_MEASURES,
) -> Evaluation:
    """Scores a run. A query without results counts 0; one without a relevant document is left out.

    Args:
        qrels: query_id → doc_id → relevance grade.
        run: query_id → doc_id → score; ties are broken as trec_eval does, by document id, descending.
        measures: names as ir-measures writes them, such as `nDCG@10`, `RR@10`, `AP@1000`, `P(rel=2)@5`.

    Raises:
        EvaluationError: an unknown measure, or no query with a relevant document.
    """
    import ir_measures

    parsed = [_parse(name) for name in measures]
    wanted = {query_id: dict(grades) for query_id, grades in qrels.items() if any(g > 0 for g in grades.values())}
    if not wanted:
        raise EvaluationError("no query has a relevant document; check that the judgments belong to this corpus")
    scored = {query_id: dict(run.get(query_id, {})) for query_id in wanted}
    answered = {query_id: _ranks(scores) for query_id, scores in scored.items() if scores}
    per_query: dict[str, dict[str, float]] = {query_id: dict.fromkeys(measures, 0.0) for query_id in wanted}
    names: dict[Any, list[str]] = {}
    for measure, name in zip(parsed, measures, strict=True):
        names.setdefault(measure, []).append(name)
    judged = ir_measures.parse_measure("Judged@10")
    judged_sum = 0.0
    if answered:
        for metric in _calculate([*parsed, judged], wanted, answered):
            for name in names.get(metric.measure, ()):
                per_query[metric.query_id][name] = float(metric.value)
            if metric.measure == judged:
                judged_sum += float(metric.value)
    means = {name: sum(values[name] for values in per_query.values()) / len(per_query) for name in measures}
    return Evaluation(
        measures=means,
        per_query=per_query,
        queries=len(wanted),
        queries_without_results=len(wanted) - len(answered),
        queries_without_relevant=len(qrels) - len(wanted),
        judged_at_10=judged_sum / max(1, len(answered)),
    )


def check_measures(names: Sequence[str]) -> None:
    """Raises EvaluationError where a name means no measure."""
    for name in names:
        _parse(name)


def _calculate(measures: list[Any], qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> list[Any]:
    import ir_measures

    try:
        return list(ir_measures.iter_calc(measures, qrels, run))
    except (subprocess.CalledProcessError, OSError) as error:
        # some measures are computed by programs that ir-measures starts
        names = ", ".join(map(str, measures))
        raise EvaluationError(f"one of {names} cannot be computed on this machine ({error}); leave it out") from error


def trec_order(scores: Mapping[str, float]) -> list[str]:
    """Documents as trec_eval orders them: by score in float32, and by id, descending, where scores are equal."""
    with np.errstate(over="ignore"):  # beyond float32 all are infinite, and tie
        single = dict(zip(scores, np.fromiter(scores.values(), np.float32, len(scores)).tolist(), strict=True))
    return sorted(sorted(scores, reverse=True), key=single.__getitem__, reverse=True)


def _ranks(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores without ties in trec_eval's order: of ir-measures' providers only trec_eval itself breaks ties so."""
    return {doc_id: -float(rank) for rank, doc_id in enumerate(trec_order(scores))}


def _parse(name: str) -> Any:
    import ir_measures

    try:
        measure: Any = ir_measures.parse_measure(name)
        pipeline: Any = ir_measures.DefaultPipeline
        measure.validate_params()
        if "cutoff" in measure.params and measure["cutoff"] < 1:
            raise ValueError("cut-off below 1")
        if "rel" in measure.params and measure["rel"] < 1:
            raise ValueError("grade below 1")
        if not pipeline.supports(measure):
            raise ValueError("no provider")
        return measure
    except (NameError, ValueError, SyntaxError, KeyError, TypeError, AssertionError) as error:
        raise EvaluationError(
            f"measure '{name}' is unknown; write for example nDCG@10, RR@10, AP@1000, P(rel=2)@5"
        ) from error
