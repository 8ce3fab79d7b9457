"""Putting the page together, and mounting it into the server's application."""

import hmac
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse

from lm_retrieval.server.served import Served
from lm_retrieval.server.settings import ServerSettings
from lm_retrieval.version import __version__

PATH = "/ui"
_EVENTS_AT_ONCE = 16
_CACHE_SECONDS = 3600
_UPLOAD_BYTES = 50_000_000
# of the system: nothing is fetched from elsewhere
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_HEAD = '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
_ICON = Path(__file__).parent / "icon.svg"


def mount_page(app: FastAPI, served: Served) -> None:
    """Adds the page to the application.

    With a key, the page asks for it once: any name, and the key as the password.
    """
    # read when gradio is imported; uploads must not outlive the server
    scratch = tempfile.mkdtemp(prefix="lmr-ui-")
    os.environ["GRADIO_TEMP_DIR"] = scratch
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # a summary of all events, which nothing here shows: by default made anew after each of them
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"
    import gradio as gr

    # browsers ask for it at the root
    app.get("/favicon.ico", include_in_schema=False)(lambda: FileResponse(_ICON, media_type="image/svg+xml"))
    served.at_end(lambda: shutil.rmtree(scratch, ignore_errors=True))
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_FONT, font_mono=_MONO)
    gr.mount_gradio_app(
        app,
        _page(served),
        PATH,
        theme=theme,
        css_paths=Path(__file__).parent / "page.css",
        head=_HEAD,
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        max_file_size=_UPLOAD_BYTES if served.settings.local else served.settings.limits.max_body_bytes,
        **_login(served.settings),
    )


def _page(served: Served) -> Any:
    import gradio as gr

    from lm_retrieval.server.ui.batch import batch_tab
    from lm_retrieval.server.ui.compare import compare_tab
    from lm_retrieval.server.ui.map import map_tab
    from lm_retrieval.server.ui.search import search_tab
    from lm_retrieval.server.ui.statistics import statistics_tab

    with gr.Blocks(
        title="lm_retrieval", analytics_enabled=False, fill_width=True, delete_cache=(_CACHE_SECONDS, _CACHE_SECONDS)
    ) as page:
        head = gr.HTML(_head(served))
        with gr.Tabs():
            with gr.Tab("Compare"):
                compare_tab(served)
            with gr.Tab("Batch"):
                batch_tab(served)
            with gr.Tab("Search"):
                index = search_tab(served)
            with gr.Tab("Map") as map_part:
                map_tab(served, index, map_part)
            with gr.Tab("Models & statistics") as statistics:
                statistics_tab(served, statistics)
        # until everything is loaded
        timer = gr.Timer(1.0)
        gr.on(
            [page.load, timer.tick],
            lambda: (_head(served), gr.Timer(active=served.status == "loading")),
            None,
            [head, timer],
            show_progress="hidden",
            api_visibility="private",
        )
    page.queue(default_concurrency_limit=_EVENTS_AT_ONCE, max_size=served.settings.limits.max_waiting_requests)
    return page


def _head(served: Served) -> str:
    from lm_retrieval.server.ui.html import render

    return render("head.html.j2", version=__version__, parts=[(part.name, part.status) for part in served.parts()])


def _login(settings: ServerSettings) -> dict[str, Any]:
    if settings.api_key is None:
        return {}
    key = settings.api_key.get_secret_value().encode()
    return {
        "auth": lambda _, password: hmac.compare_digest(password.encode(), key),
        "auth_message": "Type any name; the password is the server's key (LMR_API_KEY).",
    }
