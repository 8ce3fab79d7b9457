"""Models and statistics: what is served, how it was trained, how it compares, and what has been asked of it."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import gradio as gr

from lm_retrieval.comparison import compare_models
from lm_retrieval.errors import LmRetrievalError
from lm_retrieval.reporting import plots
from lm_retrieval.reporting.models import model_table
from lm_retrieval.reporting.tables import Table
from lm_retrieval.server.errors import as_api_error
from lm_retrieval.server.served import Served, ServedModel
from lm_retrieval.server.ui.html import render
from lm_retrieval.training.curves import CURVES_NAME, read_metrics

_SAMPLE = (
    "The river carries cold water from the mountains to the sea. In spring the snow melts and the water is high. "
    "People who live near the bank build their houses on a hill, because every few years the fields are flooded."
)


def statistics_tab(served: Served, tab: gr.Tab) -> None:
    """Builds the tab; it is drawn when it is opened."""
    overview = gr.HTML("")
    with gr.Accordion("Compare on a text of your own", open=False):
        text = gr.Textbox(_SAMPLE, label="Text to score", lines=4, max_lines=12)
        measure = gr.Button("Measure", variant="primary")
        gr.HTML(render("note.html.j2", text="Each model in a process of its own, half a minute or so; others wait."))
        table = gr.HTML("")
    with gr.Row():
        gr.HTML("<h3>Requests since the server began</h3>")
        refresh = gr.Button("Refresh", size="sm", min_width=90, scale=0)
    requests = gr.HTML("")

    async def run(given: str) -> AsyncIterator[dict[Any, Any]]:
        ready = [model for model in served.models.values() if model.status == "ready"]
        if not given.strip() or not ready:
            raise gr.Error("Give a text to score." if ready else "No model is ready.")
        limit = served.settings.limits.max_body_bytes
        if len(given) > limit:
            raise gr.Error(f"At most {limit:,} characters.")
        yield {measure: gr.update(interactive=False), table: render("note.html.j2", text="Measuring …")}
        try:
            rows = await asyncio.to_thread(compare_models, [model.source for model in ready], texts=[given])
        except Exception as error:
            message = str(error) if isinstance(error, LmRetrievalError) else as_api_error(error).message
            yield {measure: gr.update(interactive=True), table: render("note.html.j2", text=message)}
            return
        named = [replace(row, name=model.name) for row, model in zip(rows, ready, strict=True)]
        yield {measure: gr.update(interactive=True), table: _table(model_table(named))}

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    measure.click(run, text, [measure, table], trigger_mode="once", concurrency_limit=1, **quiet)
    gr.on([tab.select], lambda: (_overview(served), _requests(served)), None, [overview, requests], **quiet)
    refresh.click(lambda: _requests(served), None, requests, **quiet)


def _overview(served: Served) -> str:
    """Sizes by part, and losses against tokens."""
    models = [model for model in served.models.values() if model.status == "ready"]
    counts = {model.name: model.language_model.model.parameter_counts() for model in models}
    series, pictures = [], {}
    for model in models:
        folder = model.language_model.folder
        records = [record for record in read_metrics(folder) if "validation_loss" in record] if folder else []
        if len(records) > 1:
            tokens, losses = ([record[key] for record in records] for key in ("tokens", "validation_loss"))
            series.append((model.name, tokens, losses))
        elif folder and (folder / CURVES_NAME).is_file():
            # its training kept the picture alone, which may come from anywhere: nothing in it is run
            drawn = base64.b64encode((folder / CURVES_NAME).read_bytes()).decode()
            pictures[model.name] = f"data:image/svg+xml;base64,{drawn}"
    return render(
        "models.html.j2",
        models=[_facts(model) for model in served.models.values()],
        split=plots.stacked(counts, x="parameters") if counts else "",
        curves=plots.curves(series, x="tokens seen", y="held-out loss (nats per token)") or "",
        pictures=pictures,
    )


def _facts(model: ServedModel) -> dict[str, Any]:
    loaded = model.loaded if model.status == "ready" else None
    if loaded is None:
        return {"name": model.name, "status": model.status}
    encoder = model.encoder
    return {
        "name": model.name,
        "status": model.status,
        "kind": loaded.kind,
        "parameters": sum(loaded.model.parameter_counts().values()),
        "megabytes": loaded.weights_bytes / 1e6,
        "vocabulary": loaded.tokenizer.vocab_size,
        "window": loaded.model.context_length,
        "dimensions": encoder.dim if encoder else None,
    }


def _requests(served: Served) -> str:
    return render("requests.html.j2", endpoints=served.metrics.endpoints(), workers=served.metrics.workers())


def _table(table: Table) -> str:
    return render("table.html.j2", table=table)
