"""Compare: one prompt, every model side by side, live."""

import csv
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from lm_retrieval.server.served import Served
from lm_retrieval.server.ui.controls import read_controls, sampling_controls
from lm_retrieval.server.ui.downloads import download_buttons
from lm_retrieval.server.ui.html import render
from lm_retrieval.server.ui.writing import Written, write_side_by_side

_PROMPTS = (
    "The river",
    "In 1905 the physicist",
    "The capital of France is",
    "Return a list of the files in",
    "Once upon a time there was",
)
_MOST_TURNS = 100
_KINDS = {"json": "JSON", "csv": "CSV", "md": "Markdown"}
Turn = dict[str, Any]
"""A prompt, its settings, and the texts of the models, as JSON."""


def compare_tab(served: Served) -> None:
    """Builds the tab."""
    names = list(served.models)
    history = gr.State([])
    with gr.Row(elem_classes="lmr-main"):
        with gr.Column(scale=2, min_width=300):
            prompt = gr.Textbox(label="Prompt", lines=2, max_lines=8, autofocus=True, placeholder="The river")
            gr.Examples([[text] for text in _PROMPTS], prompt, label="Prompts to begin with")
            models = gr.CheckboxGroup(names, value=names, label="Models")
            with gr.Row():
                go = gr.Button("Generate", variant="primary")
                stop = gr.Button("Stop", variant="stop", interactive=False)
            with gr.Accordion("Sampling", open=False):
                controls = sampling_controls(served)
            with gr.Row():
                download_buttons("comparison", _KINDS, exported, history)
            clear = gr.Button("Clear", size="sm")
        with gr.Column(scale=5, min_width=300):
            live = gr.HTML(render("turns.html.j2", turns=[], empty=True), elem_id="lmr-live")
            earlier = gr.HTML("", elem_id="lmr-earlier")

    ended: dict[Any, Any] = {go: gr.update(interactive=True), stop: gr.update(interactive=False)}

    async def generate(text: str, chosen: list[str], turns: list[Turn], *values: Any) -> AsyncIterator[dict[Any, Any]]:
        if not chosen:
            raise gr.Error("Choose a model.")
        config, settings = read_controls(served, values)
        # what was live joins the others only now: two turns are never drawn for one
        yield {earlier: _shown(turns), go: gr.update(interactive=False), stop: gr.update(interactive=True)}
        turn: Turn = {}
        kept = turns
        async for texts in write_side_by_side(served, chosen, text, config):
            turn = _turn(text, settings, texts)
            # kept at each step, so that a text that is stopped is not lost
            kept = [*turns, turn][-_MOST_TURNS:]
            yield {live: _shown([turn]), history: kept}
        yield ended

    def stopped(turns: list[Turn]) -> dict[Any, Any]:
        for text in turns[-1]["texts"] if turns else ():
            text["ended"] = text["ended"] or "stopped"
        # both: the turn that was stopped may not have begun
        return {history: turns, live: _shown(turns[-1:]), earlier: _shown(turns[:-1]), **ended}

    def cleared() -> dict[Any, Any]:
        return {history: [], live: render("turns.html.j2", turns=[], empty=True), earlier: "", **ended}

    outputs = [history, live, earlier, go, stop]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    runs = gr.on(
        [go.click, prompt.submit],
        generate,
        [prompt, models, history, *controls],
        outputs,
        trigger_mode="once",
        **quiet,
    )
    # after the end of what runs, which could otherwise show itself once more
    stop.click(None, cancels=[runs], **quiet).then(stopped, history, outputs, **quiet)
    clear.click(None, cancels=[runs], **quiet).then(cleared, None, outputs, **quiet)


def exported(turns: list[Turn]) -> dict[str, str]:
    """The history by file ending: `json`, `csv` (a line per text) and `md`."""
    return {
        "json": json.dumps(turns, ensure_ascii=False, indent=2) + "\n",
        "csv": _as_csv(turns),
        "md": render("turns.md.j2", turns=turns).strip() + "\n",
    }


def _as_csv(turns: list[Turn]) -> str:
    judges = list(dict.fromkeys(name for turn in turns for text in turn["texts"] for name in text["perplexity"]))
    plain = ("model", "text", "ended", "tokens", "first_token_seconds", "seconds", "tokens_per_second")
    settings = list(dict.fromkeys(name for turn in turns for name in turn["settings"]))
    stream = io.StringIO()
    writer = csv.writer(stream)
    measured = [f"{kind}_{name}" for kind in ("perplexity", "bits_per_byte") for name in judges]
    writer.writerow(["prompt", *plain, *measured, *settings])
    for turn in turns:
        for text in turn["texts"]:
            figures = [text[kind].get(name, "") for kind in ("perplexity", "bits_per_byte") for name in judges]
            chosen = [turn["settings"].get(name, "") for name in settings]
            writer.writerow([turn["prompt"], *(text[name] for name in plain), *figures, *chosen])
    return stream.getvalue()


def _turn(prompt: str, settings: dict[str, Any], texts: list[Written]) -> Turn:
    return {"prompt": prompt, "settings": settings, "texts": [text.to_dict() for text in texts]}


def _shown(turns: list[Turn]) -> str:
    """The newest first."""
    return render("turns.html.j2", turns=turns[::-1], empty=False) if turns else ""
