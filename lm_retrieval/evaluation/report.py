"""A report: how good each system is, whether the differences are real, where they come from, what they cost.

Plain values in (`compare`), frozen values out; `to_dict` and `from_dict` keep everything but the runs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lm_retrieval.artifacts import sha256_bytes
from lm_retrieval.errors import EvaluationError
from lm_retrieval.evaluation.analysis import Failures, Slice, find_failures, slice_queries
from lm_retrieval.evaluation.evaluator import DEFAULT_MEASURES, Evaluation, evaluate
from lm_retrieval.evaluation.significance import PairedTest, paired_tests
from lm_retrieval.records import Document

FORMAT_VERSION = 1
_RECALL_LEVELS = tuple(f"IPrec@{level / 10:.1f}" for level in range(11))


@dataclass(frozen=True)
class Costs:
    """What a system needs; None where it does not apply or was not measured.

    Attributes:
        model_bytes, index_bytes: on disk.
        documents_per_second, tokens_per_second: of encoding (of indexing, for a system without an encoder).
        mean_tokens: tokens encoded per document; the overlap of a long one's windows counts twice.
        latency_p50_ms, latency_p95_ms: of one query at a time.
        peak_memory_bytes: of the process while the system indexed and searched.
    """

    parameters: int | None = None
    model_bytes: int | None = None
    index_bytes: int | None = None
    documents_per_second: float | None = None
    tokens_per_second: float | None = None
    mean_tokens: float | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class SystemReport:
    """One system on one collection.

    Attributes:
        letter: by which the tables refer to it.
        precision_at_recall: interpolated, at recall 0, 0.1, …, 1; mean over the queries.
        better_than: letters of the systems it is significantly better than on the first measure.
        against_baseline: a test per measure; empty for the baseline itself.
        failures: the queries most won and most lost against the baseline.
    """

    name: str
    letter: str
    evaluation: Evaluation
    precision_at_recall: tuple[float, ...] = ()
    better_than: str = ""
    against_baseline: tuple[PairedTest, ...] = ()
    failures: Failures | None = None
    costs: Costs | None = None


@dataclass(frozen=True)
class CollectionReport:
    """All systems on one collection.

    Attributes:
        documents: of the corpus, where it is known.
        qrels_sha256, corpus_sha256: what the figures belong to.
        notes: what was left out, in words.
        pairs: every two systems on the first measure.
        slices: the first measure by kind of query.
        settings: how the runs were made, by name.
    """

    name: str
    measures: tuple[str, ...]
    baseline: str
    queries: int
    systems: tuple[SystemReport, ...]
    pairs: tuple[PairedTest, ...]
    slices: tuple[Slice, ...]
    qrels_sha256: str
    corpus_sha256: str | None = None
    documents: int | None = None
    notes: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def measure(self) -> str:
        """The first measure: what is tested, sliced and drawn."""
        return self.measures[0]

    def system(self, name: str) -> SystemReport:
        """A system by its name."""
        return next(system for system in self.systems if system.name == name)


@dataclass(frozen=True)
class Report:
    """Systems on one or several collections."""

    collections: tuple[CollectionReport, ...]
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Systems that are on every collection, in the first one's order."""
        return [
            system.name
            for system in self.collections[0].systems
            if all(any(other.name == system.name for other in part.systems) for part in self.collections)
        ]

    def macro_average(self) -> dict[str, dict[str, float]]:
        """System → measure → mean over the collections, each counting the same."""
        measures = [name for name in self.collections[0].measures if all(name in p.measures for p in self.collections)]
        return {
            name: {
                measure: sum(part.system(name).evaluation.measures[measure] for part in self.collections)
                / len(self.collections)
                for measure in measures
            }
            for name in self.names
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `Report.from_dict` reads it back."""
        from pydantic import TypeAdapter

        content: dict[str, Any] = TypeAdapter(Report).dump_python(self, mode="json")
        macro = self.macro_average() if len(self.collections) > 1 else None
        return {"kind": "report", "format_version": FORMAT_VERSION, **content, "macro_average": macro}

    @classmethod
    def from_dict(cls, content: Any) -> "Report":
        """Reads what `to_dict` gave.

        Raises:
            EvaluationError: it is something else, or of another format version.
        """
        from pydantic import TypeAdapter, ValidationError

        facts = content if isinstance(content, Mapping) else {}
        if (facts.get("kind"), facts.get("format_version")) != ("report", FORMAT_VERSION):
            raise EvaluationError("not the results of `lmr evaluate --output` (or of another version of it)")
        try:
            report: Report = TypeAdapter(Report).validate_python(
                {"collections": facts.get("collections"), "warnings": facts.get("warnings", ())}
            )
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise EvaluationError(f"damaged results ({place}: {first['msg']}); evaluate again") from error
        if not report.collections or not all(map(_whole, report.collections)):
            raise EvaluationError("damaged results (figures are missing); evaluate again")
        return report


def _whole(part: CollectionReport) -> bool:
    """Whether every system has every figure that the tables show."""
    names = {system.name for system in part.systems}
    if not part.measures or part.baseline not in names:
        return False
    queries = part.systems[0].evaluation.per_query.keys()
    return all(piece.means.keys() == names for piece in part.slices) and all(
        set(part.measures) <= evaluation.measures.keys()
        and evaluation.per_query.keys() == queries
        and all(set(part.measures) <= values.keys() for values in evaluation.per_query.values())
        for evaluation in (system.evaluation for system in part.systems)
    )


def compare(
    qrels: Mapping[str, Mapping[str, int]],
    runs: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    measures: Sequence[str] = DEFAULT_MEASURES,
    baseline: str | None = None,
    name: str = "collection",
    queries: Mapping[str, str] | None = None,
    documents: Mapping[str, Document] | None = None,
) -> Report:
    """Scores runs, tests their differences and looks where they come from. The inputs are not changed.

    Args:
        qrels: query_id → doc_id → relevance grade.
        runs: system → query_id → doc_id → score.
        measures: ir-measures names; the first is the one that is tested between all systems.
        baseline: the system the others are compared with; the first by default.
        name: of the collection.
        queries: query_id → text, for the slices and the examples.
        documents: doc_id → document, for the words that queries and answers share.

    Raises:
        EvaluationError: no runs, an unknown baseline or measure, or nothing to score.
    """
    if not runs:
        raise EvaluationError("nothing to compare: give at least one run")
    if not measures:
        raise EvaluationError("nothing to measure: give at least one measure, such as nDCG@10")
    _refuse_strangers(qrels, runs)
    measures = tuple(dict.fromkeys(measures))
    evaluations = {system: evaluate(qrels, run, measures=measures) for system, run in runs.items()}
    collection = assemble(
        name,
        evaluations,
        measures=measures,
        baseline=baseline,
        qrels_sha256=sha256_bytes(json.dumps(qrels, sort_keys=True).encode()),
        slices=slice_queries(evaluations, qrels, measures[0], queries=queries, documents=documents),
    )
    notes = _run_notes(qrels, runs, evaluations)
    systems = []
    for system in collection.systems:
        curve = evaluate(qrels, runs[system.name], measures=_RECALL_LEVELS).measures
        system = replace(system, precision_at_recall=tuple(curve.values()))  # noqa: PLW2901
        if system.name != collection.baseline:
            before, after = ((evaluations[which], runs[which]) for which in (collection.baseline, system.name))
            failures = find_failures(before, after, qrels, measures[0], queries=queries, documents=documents)
            system = replace(system, failures=failures)  # noqa: PLW2901
        systems.append(system)
    return Report((replace(collection, systems=tuple(systems), notes=tuple(notes)),))


def assemble(
    name: str,
    evaluations: Mapping[str, Evaluation],
    *,
    measures: Sequence[str],
    baseline: str | None,
    qrels_sha256: str,
    slices: tuple[Slice, ...] = (),
) -> CollectionReport:
    """A collection's report from evaluations alone: tables and tests.

    Raises:
        EvaluationError: an unknown baseline, or systems that were scored on different queries.
    """
    baseline = baseline or next(iter(evaluations))
    if baseline not in evaluations:
        raise EvaluationError(f"baseline '{baseline}' is none of the systems: {', '.join(evaluations)}")
    per_query = {system: evaluation.per_query for system, evaluation in evaluations.items()}
    enough = next(iter(evaluations.values())).queries > 1
    pairs = paired_tests(per_query, measure=measures[0]) if enough else ()
    tests = [
        test for measure in measures if enough for test in paired_tests(per_query, measure=measure, baseline=baseline)
    ]
    letters = dict(zip(evaluations, map(_letter, range(len(evaluations))), strict=True))
    systems = [
        SystemReport(
            name=system,
            letter=letters[system],
            evaluation=evaluation,
            better_than="".join(letters[other] for other in evaluations if _beats(pairs, system, other)),
            against_baseline=tuple(test for test in tests if test.system == system),
        )
        for system, evaluation in evaluations.items()
    ]
    return CollectionReport(
        name=name,
        measures=tuple(measures),
        baseline=baseline,
        queries=next(iter(evaluations.values())).queries,
        systems=tuple(systems),
        pairs=pairs,
        slices=slices,
        qrels_sha256=qrels_sha256,
    )


def join(reports: Mapping[str, Report], *, baseline: str | None = None) -> Report:
    """Systems of earlier reports side by side, collection by collection; every difference in what was measured is said.

    Args:
        reports: label → report. A system that several of them have with other figures is called `name (label)`.
        baseline: as in `compare`; by default the first report's.

    Raises:
        EvaluationError: no collection is in all of them, or one was scored on different queries.
    """
    first = next(iter(reports.values()))
    shared = [
        part.name
        for part in first.collections
        if all(any(other.name == part.name for other in report.collections) for report in reports.values())
    ]
    if not shared:
        raise EvaluationError("the reports have no collection in common; there is nothing to compare")
    warnings: list[str] = []
    collections = []
    for name in shared:
        parts = {
            label: next(part for part in report.collections if part.name == name) for label, report in reports.items()
        }
        warnings += _differences(name, parts)
        collections.append(_joined(name, parts, baseline))
    for label, report in reports.items():
        warnings += [f"{label}: {warning}" for warning in report.warnings]
        left = [part.name for part in report.collections if part.name not in shared]
        warnings += [f"{label}: {name} is not in every report and was left out" for name in left]
    return Report(tuple(collections), tuple(warnings))


def _joined(name: str, parts: Mapping[str, CollectionReport], baseline: str | None) -> CollectionReport:
    leading = next(iter(parts.values()))
    measures = [measure for measure in leading.measures if all(measure in part.measures for part in parts.values())]
    if not measures:
        raise EvaluationError(f"{name}: the reports have no measure in common")
    found: dict[str, list[tuple[str, SystemReport]]] = {}
    for label, part in parts.items():
        for system in part.systems:
            found.setdefault(system.name, []).append((label, system))
    rows: dict[str, tuple[str, SystemReport]] = {}
    for row, places in found.items():
        if all(_equal(system.evaluation, places[0][1].evaluation, measures) for _, system in places):
            rows[row] = places[0]
        else:
            rows |= {f"{row} ({label})": (label, system) for label, system in places}
    joined = assemble(
        name,
        {row: system.evaluation for row, (_, system) in rows.items()},
        measures=measures,
        baseline=baseline or (leading.baseline if leading.baseline in rows else None),
        qrels_sha256=leading.qrels_sha256,
    )
    systems = tuple(
        replace(system, costs=old.costs, precision_at_recall=old.precision_at_recall)
        for system, (_, old) in zip(joined.systems, rows.values(), strict=True)
    )
    return replace(
        joined,
        systems=systems,
        notes=tuple(dict.fromkeys(note for part in parts.values() for note in part.notes)),
        settings={key: value for part in reversed(list(parts.values())) for key, value in part.settings.items()},
        slices=_joined_slices(parts, {row: (label, system.name) for row, (label, system) in rows.items()}),
        corpus_sha256=leading.corpus_sha256,
        documents=leading.documents,
    )


def _equal(one: Evaluation, other: Evaluation, measures: Sequence[str]) -> bool:
    """Whether two evaluations agree on these measures, query by query."""
    return one.per_query.keys() == other.per_query.keys() and all(
        values[measure] == other.per_query[query_id][measure]
        for query_id, values in one.per_query.items()
        for measure in measures
    )


def _joined_slices(parts: Mapping[str, CollectionReport], rows: Mapping[str, tuple[str, str]]) -> tuple[Slice, ...]:
    """The slices that all reports have, of as many queries; empty where the first measures differ."""
    if len({part.measure for part in parts.values()}) > 1:
        return ()
    known = {
        label: {(piece.kind, piece.label, piece.queries): piece.means for piece in part.slices}
        for label, part in parts.items()
    }
    leading = next(iter(known.values()))
    return tuple(
        Slice(*key, means={row: known[label][key][system] for row, (label, system) in rows.items()})
        for key in leading
        if all(key in pieces for pieces in known.values())
    )


def _differences(name: str, parts: Mapping[str, CollectionReport]) -> list[str]:
    """Warnings where figures of two reports do not belong to the same experiment."""
    labels = list(parts)
    leading = parts[labels[0]]
    warnings = []
    for label in labels[1:]:
        other = parts[label]
        unequal = [
            *(["judgments"] if leading.qrels_sha256 != other.qrels_sha256 else []),
            *(["documents"] if leading.corpus_sha256 != other.corpus_sha256 else []),
        ]
        for key in {**leading.settings, **other.settings}:
            mine, theirs = leading.settings.get(key), other.settings.get(key)
            # of a system ("lstm, encoder") that one report alone has there is nothing to compare
            if mine != theirs and not (", " in key and None in (mine, theirs)):
                unequal.append(f"{key} ({mine} and {theirs})")
        warnings += [f"{name}: {labels[0]} and {label} differ in {what}; compare with care" for what in unequal]
    return warnings


def _refuse_strangers(
    qrels: Mapping[str, Mapping[str, int]], runs: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> None:
    for system, run in runs.items():
        if run and not run.keys() & qrels.keys():
            raise EvaluationError(f"run '{system}' has no query in common with the judgments; do they belong together?")


def _run_notes(
    qrels: Mapping[str, Mapping[str, int]],
    runs: Mapping[str, Mapping[str, Mapping[str, float]]],
    evaluations: Mapping[str, Evaluation],
) -> list[str]:
    """What a run has that was not scored, and what it lacks."""
    notes = []
    first = next(iter(evaluations.values()))
    if first.queries_without_relevant:
        notes.append(f"{first.queries_without_relevant} judged queries without a relevant document were left out")
    for system, run in runs.items():
        unknown = sum(query_id not in qrels for query_id in run)
        missing = evaluations[system].queries_without_results
        if unknown:
            notes.append(f"{system}: {unknown} queries are not in the judgments and were left out")
        if missing:
            notes.append(f"{system}: {missing} queries have no results and count 0")
    return notes


def _beats(pairs: tuple[PairedTest, ...], system: str, other: str) -> bool:
    for test in pairs:
        if {test.system, test.baseline} == {system, other}:
            return test.significant and (test.difference > 0) == (test.system == system)
    return False


def _letter(number: int) -> str:
    """A, b, …, z, aa, ab, …."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    return alphabet[number] if number < len(alphabet) else _letter(number // 26 - 1) + alphabet[number % 26]
