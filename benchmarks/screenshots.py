"""README's pictures of the web page, as a browser shows it.

    lmr embed corpora/python-docs --output indexes/demo
    python benchmarks/screenshots.py

Starts `lmr serve` with the shipped models on a free port. Needs Chromium (Debian's package `chromium`) and playwright.
"""

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from common import RESULTS
from PIL import Image
from playwright.sync_api import Page, sync_playwright

_WIDE = {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"}
_PHONE = {"viewport": {"width": 390, "height": 780}, "color_scheme": "dark", "has_touch": True}


@click.command()
@click.option("--index", default="demo", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS)
def main(index: str, output: Path) -> None:
    """Takes every picture."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise click.ClickException("no Chromium found; install the package chromium")
    pictures: dict[str, tuple[dict[str, Any], Callable[[Page], None]]] = {
        "compare": (_WIDE, _compare),
        "search": (_WIDE, _search),
        "map": (_WIDE, _map),
        "statistics": (_WIDE, _statistics),
        "phone": (_PHONE, _search),
    }
    with _server(index) as address, sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for name, (options, prepare) in pictures.items():
            context = started.new_context(**options)
            page = context.new_page()
            page.goto(address)
            page.get_by_role("button", name="Generate", exact=True).wait_for()
            page.get_by_text(f"{index}: ready").wait_for()
            prepare(page)
            page.wait_for_timeout(1000)  # what moves has come to rest
            target = output / f"page-{name}.png"
            _save(page.screenshot(), target)
            click.echo(f"{target}: {target.stat().st_size / 1000:.0f} kB")
            context.close()
        started.close()


@contextmanager
def _server(index: str) -> Iterator[str]:
    command = [sys.executable, "-m", "lm_retrieval", "serve", "--port", "0", "--index", index]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+", server.stdout.readline())
            if found is None:
                raise click.ClickException("the server did not start")
            yield found[0]
        finally:
            server.terminate()


def _compare(page: Page) -> None:
    page.get_by_role("button", name="Sampling").locator("visible=true").click()
    page.get_by_role("spinbutton", name="Seed").locator("visible=true").fill("3")
    for prompt in ("In 1905 the physicist", "The river"):
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.get_by_role("button", name="Generate", exact=True).click()
        page.locator(f"#lmr-live:has-text('{prompt}') .lmr-perplexity").nth(1).wait_for()
    page.get_by_role("button", name="Sampling").locator("visible=true").click()
    page.evaluate("scrollTo(0, 0)")


def _search(page: Page) -> None:
    _open(page, "Search")
    page.get_by_label("Question or words").fill("create a temporary directory")
    page.get_by_role("button", name="Search", exact=True).click()
    page.locator(".lmr-title").first.wait_for()
    if page.viewport_size and page.viewport_size["width"] > 800:
        page.locator(".lmr-title").first.click()
        page.locator("#lmr-document mark").first.wait_for()
    else:
        page.locator(".lmr-hits").scroll_into_view_if_needed()


def _map(page: Page) -> None:
    _open(page, "Map")
    page.get_by_label("Drop a pin").fill("create a temporary directory")
    page.get_by_role("button", name="Show", exact=True).click()
    page.locator(".lmr-nearest li").first.wait_for()
    page.locator("#lmr-map .legendtext", has_text="your question").wait_for()


def _statistics(page: Page) -> None:
    _open(page, "Models & statistics")
    page.locator(".lmr-pictures svg").first.wait_for()


def _open(page: Page, name: str) -> None:
    """Opens a tab, which a narrow page may keep in a menu."""
    shown = page.get_by_role("tab", name=name).locator("visible=true")
    if not shown.count():
        page.locator(".overflow-menu button").first.click()
        shown = page.locator(".overflow-dropdown button", has_text=name)
    shown.first.click()


def _save(content: bytes, target: Path) -> None:
    """With few colours: a third of the size."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main()
