"""A report as one HTML file: readable offline, printable, by day and by night, on a phone."""

from typing import Any

from lm_retrieval.evaluation.report import CollectionReport, Report
from lm_retrieval.reporting import plots, tables
from lm_retrieval.reporting.text import facts
from lm_retrieval.version import __version__


def ranking_page(report: Report, *, title: str = "Ranking report") -> str:
    """The page of `lmr evaluate --output` and `lmr report`."""
    return render(
        "ranking.html.j2",
        title=title,
        warnings=report.warnings,
        macro=tables.macro_table(report),
        collections=[_content(part) for part in report.collections],
    )


def render(template: str, **content: Any) -> str:
    """Fills a template of this package; texts are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lm_retrieval.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=__version__, **content)


def _content(part: CollectionReport) -> dict[str, Any]:
    return {
        "report": part,
        "quality": tables.quality_table(part),
        "difference": tables.difference_table(part),
        "others": tables.all_measures_table(part),
        "costs": tables.cost_table(part),
        "slices": tables.slice_tables(part),
        "per_query": tables.per_query_table(part),
        "failing": [system for system in part.systems if system.failures is not None],
        "facts": facts(part),
        "differences_svg": plots.per_query_differences(part),
        "curve_svg": plots.precision_recall(part),
        "cost_svg": plots.quality_against_cost(part),
    }
