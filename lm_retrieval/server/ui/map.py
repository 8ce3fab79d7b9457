"""Map: the vectors of an index as points in a plane."""

import asyncio
import textwrap
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from lm_retrieval.encoding.transform import Transform
from lm_retrieval.search import Searcher
from lm_retrieval.server.errors import as_api_error
from lm_retrieval.server.served import Served
from lm_retrieval.server.ui.html import render

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Method = Literal["PCA", "t-SNE"]
Points = NDArray[np.float32]
_MOST = {"PCA": 4000, "t-SNE": 1500}  # points; t-SNE of more takes more than some seconds
_NEIGHBOURS = 10
# for those who do not see it; the nearest passages are listed below it
_DESCRIBE = """() => {
    const plot = document.querySelector("#lmr-map");
    plot?.setAttribute("role", "figure");
    plot?.setAttribute("aria-label", "The passages of the index as points in a plane");
}"""
_POINT, _NEAR, _PIN = "#56b4e9", "#d55e00", "#cc0066"


@dataclass(frozen=True)
class Picture:
    """Points of some chunks, (N, 2), the titles of their documents, and how to place further vectors."""

    vectors: Points
    points: Points
    titles: list[str]
    plane: Transform | None
    share: float
    """Of the variance; NaN for t-SNE."""

    def place(self, vectors: Points) -> Points:
        """(M, D) vectors → (M, 2) points; without a plane, amid the points most like them."""
        if self.plane is not None:
            return self.plane(vectors)
        similar = vectors @ self.vectors.T
        nearest = np.argsort(-similar, axis=1)[:, :3]
        weights = np.exp(20 * np.take_along_axis(similar, nearest, axis=1))
        return np.asarray((self.points[nearest] * weights[:, :, None]).sum(1) / weights.sum(1)[:, None], np.float32)


def map_tab(served: Served, index: gr.Dropdown, tab: gr.Tab) -> None:
    """Builds the tab; it shows the index chosen in the search tab."""
    with gr.Row():
        query = gr.Textbox(
            label="Drop a pin", placeholder="A question: where it falls, and what is nearest", scale=5, min_width=220
        )
        method = gr.Radio(["PCA", "t-SNE"], value="PCA", label="Method", scale=1, min_width=220)
        go = gr.Button("Show", variant="primary", scale=1, min_width=90, elem_classes="lmr-beside")
    plot = gr.Plot(show_label=False, elem_id="lmr-map")
    note = gr.HTML("")

    async def draw(text: str, chosen: Method, name: str | None) -> tuple[Any, str]:
        if not served.indexes:
            return None, "There is no index here yet."
        try:
            part = served.index(name)
            if part.searcher is None:
                loading = "is loading; press Show in a moment"
                return None, f"The index {loading if part.status == 'loading' else 'could not be loaded'}."
            return await asyncio.to_thread(_draw, part.searcher, text, chosen)
        except Exception as error:
            raise gr.Error(as_api_error(error).message) from None

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
    drawn = gr.on(
        [go.click, query.submit, method.input, tab.select],
        draw,
        [query, method, index],
        [plot, note],
        trigger_mode="always_last",  # opening the tab must not swallow the question typed meanwhile
        **quiet,
    )
    drawn.success(None, js=_DESCRIBE, **quiet)


def _draw(searcher: Searcher, text: str, method: Method) -> tuple["Figure", str]:
    """The picture, and in words what it shows."""
    picture = _picture(searcher, method)
    shown = f"{len(picture.points):,} of {searcher.manifest['chunks']:,} passages"
    note = f"{shown}, {method}" + (f", {100 * picture.share:.0f} % of the variance" if picture.plane else "")
    near: tuple[Points, list[str], Points] | None = None
    if text.strip():
        vector = searcher.encode([text])
        numbers, vectors = searcher.nearest(vector[0], _NEIGHBOURS)
        titles = [_title(searcher, number) for number in numbers.tolist()]
        near = picture.place(vectors), titles, picture.place(vector)
    return _figure(picture, text, near), render("map.html.j2", note=note, nearest=near[1] if near else [])


@lru_cache(maxsize=4)
def _picture(searcher: Searcher, method: Method) -> Picture:
    numbers, vectors = searcher.sample(_MOST[method])
    titles = [_title(searcher, number) for number in numbers.tolist()]
    mean = vectors.mean(0)
    _, lengths, axes = np.linalg.svd(vectors - mean, full_matrices=False)
    across = np.zeros((vectors.shape[1], 2), np.float32)  # one passage alone spans no plane
    across[:, : len(axes)] = axes[:2].T
    plane = Transform(mean, across)
    if method == "PCA" or len(vectors) < 3:
        share = float((lengths[:2] ** 2).sum() / max(1e-12, float((lengths**2).sum())))
        return Picture(vectors, plane(vectors), titles, plane, share)
    from sklearn.manifold import TSNE

    near = min(30.0, max(1.0, (len(vectors) - 1) / 3))
    points = TSNE(perplexity=near, metric="cosine", init="random", random_state=0).fit_transform(vectors)
    return Picture(vectors, points, titles, None, float("nan"))


def _title(searcher: Searcher, number: int) -> str:
    document = searcher.chunk_document(number)
    return textwrap.shorten(document.title or document.content[:200], 80) or document.doc_id


def _figure(picture: Picture, text: str, near: tuple[Points, list[str], Points] | None) -> "Figure":
    from plotly import graph_objects as go

    figure = go.Figure()
    hover = {"hovertemplate": "%{text}<extra></extra>"}
    figure.add_scattergl(
        **_at(picture.points), mode="markers", text=_escaped(picture.titles), name="passages", **hover,
        marker={"size": 4, "color": _POINT, "opacity": 0.55},
    )  # fmt: skip
    if near is not None:
        points, titles, pin = near
        figure.add_scatter(
            **_at(points), mode="markers", text=_escaped(titles), name="nearest", **hover,
            marker={"size": 10, "color": _NEAR, "line": {"width": 1, "color": "white"}},
        )  # fmt: skip
        figure.add_scatter(
            **_at(pin), mode="markers", text=_escaped([textwrap.shorten(text, 80)]), name="your question", **hover,
            marker={"size": 18, "color": _PIN, "symbol": "star", "line": {"width": 1, "color": "white"}},
        )  # fmt: skip
    plain = {"showticklabels": False, "zeroline": False, "title": None, "gridcolor": "rgba(128,128,128,0.2)"}
    figure.update_layout(
        height=560,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "y": 1.02, "x": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "gray"},
        xaxis=plain,
        yaxis=plain,
        dragmode="pan",
    )
    return figure


def _escaped(titles: list[str]) -> list[str]:
    """As plotly takes labels, which it reads as HTML."""
    return [title.replace("&", "&amp;").replace("<", "&lt;") for title in titles]


def _at(points: Points) -> dict[str, list[float]]:
    return {"x": points[:, 0].round(4).tolist(), "y": points[:, 1].round(4).tolist()}
