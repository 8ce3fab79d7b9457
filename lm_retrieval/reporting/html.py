"""A report as one HTML file: readable offline, printable, by day and by night, on a phone."""

from functools import cache
from typing import TYPE_CHECKING, Any

from lm_retrieval.evaluation.report import CollectionReport, Report
from lm_retrieval.reporting import plots, tables
from lm_retrieval.reporting.text import facts
from lm_retrieval.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment


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
    return environment("lm_retrieval.reporting").get_template(template).render(version=__version__, **content)


@cache
def environment(package: str) -> "Environment":
    """The templates of a package; they escape texts, and a value that is missing is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


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
