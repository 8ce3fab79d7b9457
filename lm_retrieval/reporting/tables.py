"""The tables of a report, once, for every form it is written in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lm_retrieval.evaluation.report import CollectionReport, Costs, Report


class Cell(NamedTuple):
    """What stands in one place of a table."""

    text: str
    superscript: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A title, a head, rows (the first cell names the row), and a sentence on how to read it."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def quality_table(part: CollectionReport) -> Table:
    """Every system and measure; superscripts say what a system is significantly better than."""
    best = {m: max(round(system.evaluation.measures[m], 6) for system in part.systems) for m in part.measures}
    rows = []
    for system in part.systems:
        cells = [Cell(system.name, superscript=system.letter)]
        for measure in part.measures:
            value = system.evaluation.measures[measure]
            marks = system.better_than if measure == part.measure else ""
            cells.append(Cell(f"{value:.3f}", superscript=marks, best=round(value, 6) == best[measure]))
        cells.append(Cell(f"{100 * system.evaluation.judged_at_10:.0f} %"))
        rows.append(tuple(cells))
    note = ""
    if part.pairs:
        note = (
            f"Superscripts at {part.measure}: the systems that this one is significantly better than "
            "(paired randomisation test, Holm-corrected over all pairs, p < 0.05). Bold: the best of a column."
        )
    return Table(f"{part.name}: {part.queries} queries", ("system", *part.measures, "judged@10"), tuple(rows), note)


def difference_table(part: CollectionReport) -> Table | None:
    """Every system against the baseline on the first measure."""
    tests = [test for system in part.systems for test in system.against_baseline if test.measure == part.measure]
    if not tests:
        return None
    rows = tuple(
        (
            Cell(test.system),
            Cell(f"{test.difference:+.3f}", best=test.significant and test.difference > 0),
            Cell(f"{test.interval[0]:+.3f} to {test.interval[1]:+.3f}"),
            Cell(f"{test.effect_size:+.2f}"),
            Cell(p_value(test.t_test_holm)),
            Cell(p_value(test.randomisation_holm)),
            Cell(f"{test.wins} / {test.ties} / {test.losses}"),
        )
        for test in tests
    )
    return Table(
        f"{part.name}: against {part.baseline}, {part.measure}",
        (
            "system",
            "difference",
            "95 % interval",
            "effect size",
            "p (t-test)",
            "p (randomisation)",
            "won / tied / lost",
        ),
        rows,
        "Interval: bootstrap over the queries. Effect size: difference / standard deviation of the differences. "
        f"p-values are Holm-corrected for {len(tests)} comparisons. Bold: significantly better.",
    )


def all_measures_table(part: CollectionReport) -> Table | None:
    """Every system against the baseline on the other measures."""
    rows = tuple(
        (Cell(test.system), Cell(test.measure), Cell(f"{test.difference:+.3f}"), Cell(p_value(test.randomisation_holm)))
        for system in part.systems
        for test in system.against_baseline
        if test.measure != part.measure
    )
    if not rows:
        return None
    headers = ("system", "measure", "difference", "p (randomisation)")
    return Table(f"{part.name}: against {part.baseline}, other measures", headers, rows, "Holm-corrected per measure.")


def cost_table(part: CollectionReport) -> Table | None:
    """Quality beside what it costs."""
    if not any(system.costs and system.costs != Costs() for system in part.systems):
        return None
    rows = []
    for system in part.systems:
        costs = system.costs or Costs()
        figures = [_COSTS[name](costs) for name in _COSTS]
        rows.append((Cell(system.name), Cell(f"{system.evaluation.measures[part.measure]:.3f}"), *map(Cell, figures)))
    lengths = [system.costs.mean_tokens for system in part.systems if system.costs and system.costs.mean_tokens]
    length = f" Encoded: {sum(lengths) / len(lengths):.0f} tokens per document." if lengths else ""
    return Table(
        f"{part.name}: quality and cost",
        ("system", part.measure, *_COSTS),
        tuple(rows),
        "Documents per second: tokenizing and encoding, or building the index where there is no encoder. Latency: one "
        f"query at a time, warm, ten documents. Memory: of the whole process, Python and libraries included.{length}",
    )


def slice_tables(part: CollectionReport) -> list[Table]:
    """The first measure by kind of query."""
    tables = []
    for kind in dict.fromkeys(piece.kind for piece in part.slices):
        pieces = [piece for piece in part.slices if piece.kind == kind]
        rows = []
        for system in part.systems:
            cells = [Cell(system.name)]
            for piece in pieces:
                value = piece.means[system.name]
                cells.append(Cell(f"{value:.3f}", best=round(value, 6) == round(max(piece.means.values()), 6)))
            rows.append(tuple(cells))
        headers = ("system", *(f"{piece.label} ({piece.queries})" for piece in pieces))
        tables.append(Table(f"{part.name}: {part.measure} by {kind}", headers, tuple(rows), _SLICE_NOTES.get(kind, "")))
    return tables


def macro_table(report: Report) -> Table | None:
    """Means over the collections."""
    if len(report.collections) < 2:
        return None
    averages = report.macro_average()
    if not averages or not next(iter(averages.values())):
        return None
    measure = report.collections[0].measure
    headers = ("system", *(part.name for part in report.collections), "mean")
    columns: list[Callable[[str], float]] = [_measure_of(part, measure) for part in report.collections]
    columns.append(lambda name: averages[name][measure])
    best = [max(round(column(name), 6) for name in averages) for column in columns]
    rows = tuple(
        (
            Cell(name),
            *(
                Cell(f"{column(name):.3f}", best=round(column(name), 6) == top)
                for column, top in zip(columns, best, strict=True)
            ),
        )
        for name in averages
    )
    return Table(f"All collections: {measure}", headers, rows, "Mean: every collection counts the same.")


def per_query_table(part: CollectionReport) -> Table:
    """The first measure of every query."""
    systems = [system.evaluation.per_query for system in part.systems]
    rows = tuple(
        (Cell(query_id), *(Cell(f"{values[query_id][part.measure]:.3f}") for values in systems))
        for query_id in systems[0]
    )
    return Table(f"{part.name}: {part.measure} by query", ("query", *(s.name for s in part.systems)), rows)


def report_tables(report: Report) -> list[Table]:
    """All tables of a report, in order, without those by query."""
    tables: list[Table | None] = [macro_table(report)]
    for part in report.collections:
        tables += [quality_table(part), difference_table(part), cost_table(part), *slice_tables(part)]
        tables.append(all_measures_table(part))
    return [table for table in tables if table is not None]


def p_value(value: float) -> str:
    """0.032; small ones as < 0.001."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _measure_of(part: CollectionReport, measure: str) -> Callable[[str], float]:
    values = {system.name: system.evaluation.measures[measure] for system in part.systems}
    return values.__getitem__


def _number(value: float | None, unit: float = 1, digits: int = 1) -> str:
    return "–" if value is None else f"{value / unit:,.{digits}f}"


_COSTS: dict[str, Callable[[Costs], str]] = {
    "parameters (M)": lambda costs: _number(costs.parameters, 1e6),
    "model (MB)": lambda costs: _number(costs.model_bytes, 1e6),
    "index (MB)": lambda costs: _number(costs.index_bytes, 1e6),
    "documents/s": lambda costs: _number(costs.documents_per_second, digits=0),
    "tokens/s": lambda costs: _number(costs.tokens_per_second, digits=0),
    "p50 (ms)": lambda costs: _number(costs.latency_p50_ms),
    "p95 (ms)": lambda costs: _number(costs.latency_p95_ms),
    "memory (MB)": lambda costs: _number(costs.peak_memory_bytes, 1e6, 0),
}
_SLICE_NOTES = {
    "words in the query": "Words as BM25 counts them, without stop words. In brackets: queries.",
    "words shared with the answer": (
        "Share of the query's words that the best-matching relevant document has: where little is shared, "
        "matching words cannot help and an encoder has to. In brackets: queries."
    ),
}
