"""Batch: many prompts, a table of texts."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from lm_retrieval.generation import GenerationConfig
from lm_retrieval.server.errors import as_api_error
from lm_retrieval.server.served import Served
from lm_retrieval.server.ui.controls import read_controls, sampling_controls
from lm_retrieval.server.ui.downloads import download_buttons
from lm_retrieval.server.ui.html import render
from lm_retrieval.server.ui.writing import write_one

_AT_ONCE = 16  # prompts, of each model
_SHOW_SECONDS = 0.4  # between two pictures of the table
_PROMPT_NAMES = ("prompt", "text", "query")
Row = dict[str, Any]
"""`prompt`, and `texts` by model."""


def batch_tab(served: Served) -> None:
    """Builds the tab."""
    names = list(served.models)
    made = gr.State([])
    with gr.Row(elem_classes="lmr-main"):
        with gr.Column(scale=2, min_width=300):
            prompts = gr.Textbox(label="Prompts, one per line", lines=8, max_lines=20, placeholder="The river")
            upload = gr.File(label="Or a file: .txt, .csv, .jsonl", file_types=[".txt", ".csv", ".jsonl"], height=160)
            models = gr.CheckboxGroup(names, value=names, label="Models")
            with gr.Row():
                go = gr.Button("Generate all", variant="primary")
                stop = gr.Button("Stop", variant="stop", interactive=False)
            with gr.Accordion("Sampling", open=False):
                controls = sampling_controls(served, seed=0)
            with gr.Row():
                download_buttons("batch", {"csv": "CSV", "json": "JSON"}, exported, made)
        with gr.Column(scale=5, min_width=300):
            status = gr.HTML(render("progress.html.j2", label="No prompts yet.", done=0, total=0))
            table = gr.HTML("")

    ended: dict[Any, Any] = {go: gr.update(interactive=True), stop: gr.update(interactive=False)}

    async def run(text: str, chosen: list[str], *values: Any) -> AsyncIterator[dict[Any, Any]]:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines or not chosen:
            raise gr.Error("Write some prompts." if not lines else "Choose a model.")
        most = served.settings.limits.max_texts
        if len(lines) > most:
            raise gr.Error(f"{len(lines)} prompts; at most {most} can be sent at once.")
        config, _ = read_controls(served, values)
        yield {go: gr.update(interactive=False), stop: gr.update(interactive=True)}
        async for rows, done in _written(served, lines, chosen, config):
            total = len(lines) * len(chosen)
            label = f"{done} of {total} texts" if done < total else f"{total} texts written"
            yield {
                made: rows,
                status: render("progress.html.j2", label=label, done=done, total=total),
                table: render("texts.html.j2", rows=rows, names=chosen),
            }
        yield ended

    def stopped(rows: list[Row]) -> dict[Any, Any]:
        label = f"Stopped after {sum(len(row['texts']) for row in rows)} texts."
        return {status: render("progress.html.j2", label=label, done=0, total=0), **ended}

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    most_bytes = served.settings.limits.max_body_bytes
    upload.upload(partial(read_prompts, max_bytes=most_bytes), upload, prompts, **quiet)
    runs = go.click(run, [prompts, models, *controls], [made, status, table, go, stop], trigger_mode="once", **quiet)
    stop.click(None, cancels=[runs], **quiet).then(stopped, made, [status, go, stop], **quiet)


async def _written(
    served: Served, prompts: list[str], names: list[str], config: GenerationConfig
) -> AsyncIterator[tuple[list[Row], int]]:
    """The table as it fills, and how many texts are done."""
    rows: list[Row] = [{"prompt": prompt, "texts": {}} for prompt in prompts]
    places = {name: asyncio.Semaphore(_AT_ONCE) for name in names}

    async def one(row: Row, name: str) -> None:
        async with places[name]:
            try:
                row["texts"][name] = (await write_one(served, served.model(name), row["prompt"], config)).text
            except Exception as error:
                row["texts"][name] = f"({as_api_error(error).message})"

    tasks = [asyncio.create_task(one(row, name)) for row in rows for name in names]
    try:
        left = tasks
        while left:
            yield rows, len(tasks) - len(left)
            await asyncio.wait(left, timeout=_SHOW_SECONDS)
            left = [task for task in tasks if not task.done()]
        yield rows, len(tasks)
    finally:
        for task in tasks:
            task.cancel()


def read_prompts(path: str | None, *, max_bytes: int = 2_000_000) -> str:
    """The prompts of a file, one per line: lines, or the column or key `prompt`, `text` or `query`, else the first.

    Raises:
        gr.Error: it is too large or cannot be read.
    """
    if path is None:
        return ""
    if Path(path).stat().st_size > max_bytes:
        raise gr.Error(f"This file is larger than {max_bytes:,} bytes.")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        kind = Path(path).suffix.lower()
        found = _of_csv(text) if kind == ".csv" else _of_jsonl(text) if kind == ".jsonl" else text.splitlines()
    except (ValueError, RecursionError, csv.Error) as error:
        raise gr.Error(f"This file cannot be read: {error}.") from None
    # a prompt is a line here
    return "\n".join(" ".join(prompt.split()) for prompt in found if prompt.strip())


def exported(rows: list[Row]) -> dict[str, str]:
    """The table by file ending."""
    names = list(dict.fromkeys(name for row in rows for name in row["texts"]))
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["prompt", *names])
    writer.writerows([row["prompt"], *(row["texts"].get(name, "") for name in names)] for row in rows)
    return {"csv": stream.getvalue(), "json": json.dumps(rows, ensure_ascii=False, indent=2) + "\n"}


def _of_csv(text: str) -> list[str]:
    lines = list(csv.reader(io.StringIO(text)))
    head = [name.strip().lower() for name in lines[0]] if lines else []
    named = next((name for name in _PROMPT_NAMES if name in head), None)
    column = 0 if named is None else head.index(named)
    return [line[column] for line in lines[named is not None :] if len(line) > column]


def _of_jsonl(text: str) -> list[str]:
    found = []
    for line in filter(str.strip, text.split("\n")):  # the other ends of lines may stand in strings
        value = json.loads(line)
        if isinstance(value, dict):
            named = next((name for name in _PROMPT_NAMES if name in value), None)
            value = value[named] if named else next(iter(value.values()), "")
        found.append(str(value))
    return found
