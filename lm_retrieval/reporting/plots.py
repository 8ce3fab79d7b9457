"""Pictures of a report as SVG inside a page: lines and letters in the page's own colour, by day and by night."""

import hashlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_retrieval.evaluation.report import CollectionReport, SystemReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, without the yellow that no light page shows
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
_INK = "#010203"  # stands for the page's text colour
_MARKERS = "osD^vP*X"


def per_query_differences(part: CollectionReport) -> str | None:
    """Each system minus the baseline, query by query, the largest gain first."""
    others = [system for system in part.systems if system.name != part.baseline]
    if not others or part.queries < 2:
        return None
    columns = min(2, len(others))
    rows = -(-len(others) // columns)
    figure = _figure(4.2 * columns, 1.9 * rows + 0.3)
    base = part.system(part.baseline).evaluation.per_query
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, system in zip(panels.flat, others, strict=False):
        values = [
            row[part.measure] - base[query_id][part.measure] for query_id, row in system.evaluation.per_query.items()
        ]
        ordered = np.sort(values)[::-1]
        colors = np.where(ordered > 0, COLORS[2], COLORS[1])
        axes.bar(np.arange(len(ordered)), ordered, width=1.0, color=colors)
        axes.axhline(0, color=_INK, linewidth=0.8)
        axes.set_title(_label(f"{system.name} − {part.baseline}"), fontsize=9)
        axes.set_xlim(-0.5, len(ordered) - 0.5)
        _plain(axes)
    for axes in panels.flat[len(others) :]:
        axes.set_visible(False)
    figure.supylabel(f"difference in {part.measure}", fontsize=9, color=_INK)
    figure.supxlabel("queries, sorted", fontsize=9, color=_INK)
    return _svg(figure)


def precision_recall(part: CollectionReport) -> str | None:
    """Interpolated precision at eleven levels of recall."""
    systems = [system for system in part.systems if system.precision_at_recall]
    if not systems:
        return None
    figure = _figure(6, 3.8)
    axes = figure.subplots()
    for place, system in enumerate(systems):
        levels = np.linspace(0, 1, len(system.precision_at_recall))
        axes.plot(
            levels, system.precision_at_recall, label=_label(system.name), **_style(place), markersize=4, linewidth=1.4
        )
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_ylim(bottom=0)
    _plain(axes)
    _legend(axes)
    return _svg(figure)


def quality_against_cost(part: CollectionReport) -> str | None:
    """The first measure against the latency of a query."""
    points = [
        (system, system.costs.latency_p50_ms, system.evaluation.measures[part.measure])
        for system in part.systems
        if system.costs and system.costs.latency_p50_ms
    ]
    if len(points) < 2:
        return None
    figure = _figure(6, 3.6)
    axes = figure.subplots()
    for place, (system, latency, value) in enumerate(points):
        label = _label(f"{system.name} ({_size(system)})")
        axes.plot([latency], [value], linestyle="none", label=label, markersize=8, **_style(place))
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds per query (median)")
    axes.set_ylabel(part.measure)
    _plain(axes)
    _legend(axes)
    return _svg(figure)


def curves(series: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, x: str, y: str) -> str | None:
    """Lines by name: for losses against tokens and the like."""
    if not series:
        return None
    figure = _figure(6, 3.6)
    axes = figure.subplots()
    for place, (name, across, up) in enumerate(series):
        axes.plot(across, up, label=_label(name), color=COLORS[place % len(COLORS)], linewidth=1.4)
    axes.xaxis.set_major_formatter(_short)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _plain(axes)
    _legend(axes)
    return _svg(figure)


def stacked(values: Mapping[str, Mapping[str, float]], *, x: str) -> str:
    """A bar per name, divided into its parts."""
    figure = _figure(6, 1.2 + 0.45 * len(values))
    axes = figure.subplots()
    parts = list(dict.fromkeys(part for row in values.values() for part in row))
    starts = np.zeros(len(values))
    for place, part in enumerate(parts):
        widths = np.array([row.get(part, 0) for row in values.values()], float)
        axes.barh(list(map(_label, values)), widths, left=starts, label=_label(part), color=COLORS[place % len(COLORS)])
        starts += widths
    axes.invert_yaxis()
    axes.set_xlabel(x)
    axes.xaxis.set_major_formatter(_short)
    _plain(axes)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False, labelcolor=_INK)
    return _svg(figure)


def _short(value: float, _: float) -> str:
    """2500000 → 2.5M."""
    return f"{value / 1e6:g}M" if value >= 1e5 else f"{value:g}"


def _label(name: str) -> str:
    """A name as matplotlib shows it: no formulas, and a leading underscore hides nothing from a legend."""
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")


def _size(system: SystemReport) -> str:
    total = sum(size or 0 for size in (system.costs.model_bytes, system.costs.index_bytes)) if system.costs else 0
    return f"{total / 1e6:.1f} MB"


def _style(place: int) -> dict[str, Any]:
    return {"color": COLORS[place % len(COLORS)], "marker": _MARKERS[place % len(_MARKERS)]}


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plain(axes: "Axes") -> None:
    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25, color=_INK)
    axes.tick_params(colors=_INK, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(_INK)
    for name, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_visible(name in ("left", "bottom"))


def _legend(axes: "Axes") -> None:
    axes.legend(fontsize=8, frameon=False, labelcolor=_INK)


def _svg(figure: "Figure") -> str:
    """The `<svg>` element alone; lines and letters in the ink take the page's colour."""
    import matplotlib as mpl

    figure.patch.set_alpha(0)
    stream = io.StringIO()
    # text stays text: it can be read aloud and searched, and takes the page's font
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lmr", "font.family": "sans-serif"}):
        with warnings.catch_warnings():
            # the page's font shows what matplotlib's has not
            warnings.filterwarnings("ignore", message=r"Glyph \d+", category=UserWarning)
            figure.savefig(stream, format="svg", metadata={"Date": None})
    content = stream.getvalue()
    content = content[content.index("<svg") :].replace(_INK, "currentColor")
    content = re.sub(r"<metadata>.*?</metadata>", "", content, flags=re.S)
    content = re.sub(r' xmlns(:\w+)?="[^"]*"', "", content).replace("xlink:href", "href")
    # several pictures share a page: each names its parts in its own way
    own = hashlib.sha256(content.encode()).hexdigest()[:8]
    return re.sub(r'((?:id|href)="#?|url\(#)', rf"\g<1>{own}-", content)
