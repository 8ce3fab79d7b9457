"""Search: hits of the index with marked words, whole documents, and new indexes from uploaded files."""

import asyncio
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CorpusError, LmRetrievalError
from lm_retrieval.index.builder import build_index
from lm_retrieval.progress import watched
from lm_retrieval.records import Hit
from lm_retrieval.search import Mode
from lm_retrieval.server.errors import as_api_error
from lm_retrieval.server.served import Served
from lm_retrieval.server.ui.html import marked, render

_QUESTIONS = ("create a temporary directory", "n largest elements of a list", "read a json file into a dict")
_MODES: dict[Mode, str] = {
    "hybrid": "words and meaning",
    "dense": "meaning (the encoder)",
    "bm25": "words",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_INDEXES = Path("indexes")
# buttons inside a picture of hits cannot be components: a click says which document was meant
_ON_CLICK = """element.addEventListener("click", event => {
    const button = event.target.closest("button[data-document]");
    if (button) trigger("click", {document: button.dataset.document});
});"""
# on a phone the document stands below all hits
_READ = "() => setTimeout(() => document.querySelector('#lmr-document article')?.focus(), 100)"


def search_tab(served: Served) -> gr.Dropdown:
    """Builds the tab; returns the choice of an index."""
    names = list(served.indexes)
    with gr.Row(elem_classes="lmr-main"):
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                query = gr.Textbox(label="Question or words", scale=5, min_width=220, placeholder=_QUESTIONS[0])
                go = gr.Button("Search", variant="primary", scale=1, min_width=90, elem_classes="lmr-beside")
            with gr.Row():
                mode = gr.Radio(
                    [(f"{name}: {what}", name) for name, what in _MODES.items()],
                    value="hybrid",
                    label="Mode",
                    scale=3,
                )
                count = gr.Slider(1, min(50, served.settings.limits.max_hits), 10, step=1, label="Hits", min_width=120)
            index = gr.Dropdown(names, value=names[0] if names else None, label="Index", visible=len(names) > 1)
            gr.Examples([[text] for text in _QUESTIONS], query, label="Questions to begin with")
            hits = gr.HTML(render("hits.html.j2", hits=None, problem=_no_index(served)), js_on_load=_ON_CLICK)
        with gr.Column(scale=2, min_width=300):
            document = gr.HTML(render("document.html.j2", document=None), elem_id="lmr-document")
            if served.settings.local:
                _upload_part(served, index)

    async def search(text: str, chosen_mode: Mode, wanted: int, name: str | None) -> tuple[str, str]:
        if not text.strip():
            raise gr.Error("Type a question or some words.")
        started = time.perf_counter()
        try:
            future = served.index(name).search(text, k=int(wanted), mode=chosen_mode)
            (found,) = await asyncio.wait_for(asyncio.wrap_future(future), served.settings.limits.request_seconds)
        except Exception as error:
            return render("hits.html.j2", hits=None, problem=as_api_error(error).message), ""
        seconds = time.perf_counter() - started
        shown = [_hit(hit) for hit in found]
        best = max((hit.score for hit in found), default=0.0)
        return (
            render("hits.html.j2", hits=shown, problem="", milliseconds=1000 * seconds, best=best, mode=chosen_mode),
            render("document.html.j2", document=None),
        )

    def show(text: str, name: str | None, event: gr.EventData) -> str:
        searcher = served.index(name).searcher
        assert searcher is not None
        try:
            found = searcher.document(event.document)
        except LmRetrievalError as error:
            raise gr.Error(as_api_error(error).message) from None
        words = searcher.matches(text, found.text) if text.strip() else []
        return render("document.html.j2", document=found, pieces=marked(found.text, words))

    def known() -> tuple[Any, str]:
        return _choice(served), render("hits.html.j2", hits=None, problem=_no_index(served))

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
    gr.on(
        [go.click, query.submit, mode.input, index.input],
        search,
        [query, mode, count, index],
        [hits, document],
        **quiet,
    )
    shown = hits.click(show, [query, index], document, **quiet)
    shown.success(None, js=_READ, **quiet)
    # indexes made since the page was put together
    gr.on(None, known, None, [index, hits], **quiet)
    return index


def _upload_part(served: Served, index: gr.Dropdown) -> None:
    """Files of the user's own become an index. Only where nobody else can reach the server."""
    with gr.Accordion("Search your own files", open=False):
        files = gr.File(label="Files: text, Markdown, HTML, PDF, Word, CSV, JSONL", file_count="multiple", height=160)
        with gr.Row():
            name = gr.Textbox("uploaded", label="Name of the index", min_width=120)
            build = gr.Button("Build the index", min_width=120, elem_classes="lmr-beside")
        status = gr.HTML("")

    async def run(paths: list[str] | None, wanted: str) -> AsyncIterator[dict[Any, Any]]:
        wanted = wanted.strip()
        if not paths:
            raise gr.Error("Choose some files.")
        if (problem := _name_problem(served, wanted)) is not None:
            raise gr.Error(problem)
        state = {"label": "Reading", "done": 0.0, "total": 0.0}

        def watch(label: str, done: float, total: float | None) -> None:
            state.update(label=label, done=done, total=total or 0.0)

        task = asyncio.create_task(asyncio.to_thread(_build, served, [Path(path) for path in paths], wanted, watch))
        while not task.done():
            yield {status: render("progress.html.j2", **state), build: gr.update(interactive=False)}
            await asyncio.wait([task], timeout=0.2)
        ready = gr.update(interactive=True)
        try:
            documents = task.result()
        except Exception as error:
            label = str(error) if isinstance(error, LmRetrievalError) else as_api_error(error).message
            yield {status: render("progress.html.j2", label=label, done=0, total=0), build: ready}
            return
        label = f"{documents} documents: search '{wanted}' now."
        yield {
            status: render("progress.html.j2", label=label, done=0, total=0),
            index: _choice(served, wanted),
            build: ready,
        }

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    # one after the other: two may have the same name
    build.click(run, [files, name], [status, index, build], trigger_mode="once", concurrency_limit=1, **quiet)


def _build(served: Served, files: list[Path], name: str, watch: Any) -> int:
    """Indexes uploaded files with the encoder of the first served model; returns the number of documents."""
    encoder: Encoder | None = next(
        (model.encoder for model in served.models.values() if model.encoder is not None), None
    )
    with tempfile.TemporaryDirectory() as folder:
        for place, file in enumerate(files):
            target = Path(folder) / file.name
            shutil.copyfile(file, target if not target.exists() else Path(folder) / f"{place}-{file.name}")
        try:
            with watched(watch):
                report = build_index(
                    open_corpus(folder),
                    encoder=encoder or Encoder.load("lstm-base"),
                    output=_INDEXES / name,
                    rebuild=True,
                )
        except CorpusError as error:
            # of the copies only the names are known to the user
            raise CorpusError(str(error).replace(f"{folder}/", "").replace(folder, "these files")) from error
    served.uploaded.add(name)
    served.add_index(_INDEXES / name)
    return report.documents


def _name_problem(served: Served, name: str) -> str | None:
    """Why an index of files cannot be called so; one that was made on the page may be made again."""
    if not _NAME.fullmatch(name):
        return "A name is letters, digits, '.', '_' and '-'."
    if ((_INDEXES / name).exists() or name in served.indexes) and name not in served.uploaded:
        return f"There is an index '{name}' already; choose another name."
    return None


def _choice(served: Served, name: str | None = None) -> Any:
    names = list(served.indexes)
    return gr.update(choices=names, value=name or next(iter(names), None), visible=len(names) > 1)


def _no_index(served: Served) -> str:
    hint = "build one with `lmr embed`, or from files of your own"
    return "" if served.indexes else f"There is no index here yet; {hint}."


def _hit(hit: Hit) -> dict[str, Any]:
    pieces = marked(hit.snippet, hit.highlights)
    return {"rank": hit.rank, "id": hit.doc_id, "title": hit.title, "score": hit.score, "pieces": pieces}
