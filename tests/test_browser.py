"""The web page in a real browser."""

import csv
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import rows_of, write_jsonl
from serving import Running, eventually, serving, settings_of

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.generation import advance
from lm_retrieval.index.builder import build_index

api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("gradio", reason="needs the extra `ui`")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
TABS = ("Compare", "Batch", "Search", "Map", "Models & statistics")
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def running(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    rows = [*rows_of(40), {"_id": "x<b>", "title": HOSTILE, "text": f"the river {HOSTILE} carries cold water."}]
    corpus = open_corpus(write_jsonl(folder / "corpus.jsonl", rows))
    build_index(corpus, encoder=Encoder.load(make_checkpoint("lstm")), output=folder / "indexes" / "notes")
    models = {"rnn": make_checkpoint("lstm"), "transformer": make_checkpoint("transformer")}
    before = Path.cwd()
    os.chdir(folder)  # where new indexes are written
    try:
        with serving(settings_of(models, index=folder / "indexes" / "notes", page=True)) as started:
            yield started
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@dataclass
class Tab:
    """A page in the browser, what it asked for, and what it complained about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def open(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def wait(self, selector: str) -> Any:
        found = self.page.locator(selector).first
        found.wait_for()
        return found

    def download(self, button: str) -> tuple[str, str]:
        with self.page.expect_download() as waiting:
            self.button(button).locator("visible=true").click()
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_text(encoding="utf-8")


@pytest.fixture
def visit(browser: Any, running: Running) -> Iterator[Callable[..., Tab]]:
    """Opens the page in a session of its own; afterwards nothing may have gone wrong or left this machine."""
    with visits(browser, running.url) as opened:
        yield opened


@contextmanager
def visits(browser: Any, url: str) -> Iterator[Callable[..., Tab]]:
    tabs: list[Tab] = []

    def visit(**options: Any) -> Tab:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(20_000)
        tab = Tab(context.new_page())
        context.on("request", lambda request: tab.requests.append(request.url))
        tab.page.on("console", lambda said: said.type == "error" and tab.problems.append(said.text))
        tab.page.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.page.on("dialog", lambda dialog: (tab.problems.append("a dialog"), dialog.dismiss()))
        tab.page.goto(f"{url}/ui/")
        tab.button("Generate").wait_for()
        tabs.append(tab)
        return tab

    yield visit
    for tab in tabs:
        tab.page.context.close()
        asked = [request for request in tab.requests if not request.startswith(("data:", "blob:"))]
        assert asked
        assert all(request.startswith(url) for request in asked), asked
        assert tab.problems == []


def generate(tab: Tab, prompt: str, *, tokens: int = 24, wait: bool = True) -> None:
    set_tokens(tab, tokens)
    tab.page.get_by_label("Prompt", exact=True).fill(prompt)
    tab.button("Generate").click()
    if wait:
        tab.wait(f"#lmr-live:has-text('{prompt}') .lmr-perplexity")


def set_tokens(tab: Tab, tokens: int) -> None:
    page = tab.page
    field = page.get_by_role("spinbutton", name=re.compile("New tokens")).locator("visible=true")
    if not field.count():
        page.get_by_role("button", name="Sampling").locator("visible=true").click()
    field.fill(str(tokens))


def test_texts_grow_while_they_are_written(visit: Callable[..., Tab], slow: None) -> None:
    tab = visit()
    generate(tab, "the river", tokens=60, wait=False)
    assert tab.page.title() == "lm_retrieval"
    lengths = []
    eventually(lambda: lengths.append(growing(tab)) or len({*lengths} - {None}) > 4)
    tab.wait("#lmr-live .lmr-perplexity")
    for name in ("rnn", "transformer"):
        card = tab.page.locator(f"#lmr-live [data-model={name}]")
        figures = dict(zip(card.locator("dt").all_inner_texts(), card.locator("dd").all_inner_texts(), strict=True))
        assert int(figures["tokens"]) > 0
        assert float(figures["tokens/s"]) > 0
        assert re.fullmatch(r"\d+ ms", figures["first token"])
        assert card.locator(".lmr-perplexity tbody th").all_inner_texts() == ["rnn", "transformer"]


def growing(tab: Tab) -> int | None:
    shown = tab.page.locator("#lmr-live [data-ended=''] .lmr-text")
    return len("".join(shown.all_inner_texts())) or None


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that write some fifty tokens a second."""

    def slowly(*given: Any) -> Iterator[None]:
        for step in advance(*given):
            time.sleep(0.02)
            yield step

    monkeypatch.setattr("lm_retrieval.server.worker.advance", slowly)


def ended(tab: Tab) -> list[str]:
    return [str(card.get_attribute("data-ended")) for card in tab.page.locator("#lmr-live [data-model]").all()]


def test_a_stopped_text_stays_and_the_next_one_begins(visit: Callable[..., Tab], running: Running, slow: None) -> None:
    tab = visit()
    cancelled = running.metric('lmr_cancelled_requests_total{worker="rnn"}')
    generate(tab, "the river", tokens=512, wait=False)
    eventually(lambda: (growing(tab) or 0) > 60)
    api.expect(tab.button("Generate")).to_be_disabled()
    tab.button("Stop").locator("visible=true").click()
    eventually(lambda: ended(tab) == ["stopped", "stopped"])
    api.expect(tab.button("Generate")).to_be_enabled()
    eventually(lambda: running.metric('lmr_cancelled_requests_total{worker="rnn"}') > cancelled)
    generate(tab, "the baker", tokens=4)
    assert ended(tab) == ["length", "length"]
    tab.wait("#lmr-earlier :text('the river')")
    _, text = tab.download("↓ JSON")
    assert [[text["ended"] for text in turn["texts"]] for turn in json.loads(text)] == [["stopped"] * 2, ["length"] * 2]


def test_a_closed_page_stops_the_models(visit: Callable[..., Tab], running: Running, slow: None) -> None:
    names = [f'{{worker="{name}"}}' for name in ("rnn", "transformer")]
    before = [running.metric(f"lmr_cancelled_requests_total{name}") for name in names]
    tab = visit()
    generate(tab, "the river", tokens=512, wait=False)
    eventually(lambda: growing(tab))
    assert all(running.metric(f"lmr_unfinished_requests{name}") for name in names)
    tab.page.close()
    eventually(lambda: not any(running.metric(f"lmr_unfinished_requests{name}") for name in names), seconds=5)
    assert [running.metric(f"lmr_cancelled_requests_total{name}") for name in names] == [count + 1 for count in before]


def test_two_sessions_do_not_mix(visit: Callable[..., Tab], slow: None) -> None:
    one, other = visit(), visit()
    generate(one, "the river", tokens=40, wait=False)
    generate(other, "an island", tokens=40, wait=False)
    for tab, prompt in ((one, "the river"), (other, "an island")):
        tab.wait("#lmr-live .lmr-perplexity")
        _, text = tab.download("↓ JSON")
        assert [turn["prompt"] for turn in json.loads(text)] == [prompt]
    other.button("Clear").click()
    other.wait("#lmr-live .lmr-empty")
    assert one.page.locator("#lmr-live .lmr-perplexity").count() == 2


def test_history_is_kept_saved_and_cleared(visit: Callable[..., Tab]) -> None:
    tab = visit()
    tab.button("↓ JSON").locator("visible=true").click()
    assert "nothing to save" in tab.wait("[data-testid=toast-body]").inner_text()
    tab.page.get_by_role("spinbutton", name="Seed")
    prompts = ["the river", f'a {HOSTILE}\n# head, "quoted"']
    for prompt in prompts:
        set_tokens(tab, 6)
        tab.page.get_by_label("Prompt", exact=True).fill(prompt)
        tab.page.get_by_role("spinbutton", name="Seed").locator("visible=true").fill("7")
        tab.page.get_by_label("Prompt", exact=True).press("Shift+Enter")
        tab.wait(f"#lmr-live:has-text('{prompt[:4]}') .lmr-perplexity")
    name, content = tab.download("↓ JSON")
    assert name == "lmr-comparison.json"
    turns = json.loads(content)
    assert [turn["prompt"] for turn in turns] == prompts
    assert [[text["model"] for text in turn["texts"]] for turn in turns] == [["rnn", "transformer"]] * 2
    assert turns[0]["settings"]["seed"] == 7
    assert all(text["tokens"] and set(text["perplexity"]) == {"rnn", "transformer"} for text in turns[0]["texts"])
    name, content = tab.download("↓ CSV")
    assert name == "lmr-comparison.csv"
    rows = list(csv.DictReader(io.StringIO(content)))
    assert [(row["prompt"], row["model"]) for row in rows] == [
        (prompt, model) for prompt in prompts for model in ("rnn", "transformer")
    ]
    assert rows[0]["text"] == turns[0]["texts"][0]["text"]
    name, content = tab.download("↓ Markdown")
    assert name == "lmr-comparison.md"
    assert "## the river" in content
    assert "**transformer**" in content
    tab.button("Clear").click()
    tab.wait("#lmr-live .lmr-empty")
    eventually(lambda: tab.page.locator("#lmr-earlier").inner_text().strip() == "")
    tab.button("↓ JSON").locator("visible=true").click()
    tab.page.locator("[data-testid=toast-body]").last.wait_for()


def test_prompts_of_any_size(visit: Callable[..., Tab]) -> None:
    tab = visit()
    set_tokens(tab, 5)
    tab.button("Generate").click()  # nothing written: the models begin a text
    tab.wait("#lmr-live .lmr-perplexity")
    assert "(none)" in tab.page.locator("#lmr-live").inner_text()
    tab.page.get_by_label("Prompt", exact=True).fill("the river carries cold water. " * 3400)
    tab.button("Generate").click()
    problem = tab.wait("#lmr-live .lmr-problem").inner_text()
    assert re.search(r"has \d+ tokens; at most 8192", problem)
    assert len(tab.page.locator("#lmr-live").inner_text()) < 2000
    tab.page.get_by_label("Prompt", exact=True).fill("the river carries cold water. " * 400)
    tab.button("Generate").click()
    tab.wait("#lmr-live .lmr-perplexity")
    assert not tab.page.locator("#lmr-live .lmr-problem").count()


def test_models_are_chosen(visit: Callable[..., Tab]) -> None:
    tab = visit()
    tab.page.get_by_label("rnn", exact=True).locator("visible=true").uncheck()
    generate(tab, "the river", tokens=4)
    assert [card.get_attribute("data-model") for card in tab.page.locator("#lmr-live [data-model]").all()] == [
        "transformer"
    ]
    tab.page.get_by_label("transformer", exact=True).locator("visible=true").uncheck()
    tab.button("Generate").click()
    assert "Choose a model" in tab.wait("[data-testid=toast-body]").inner_text()
    api.expect(tab.button("Generate")).to_be_enabled()


def test_presets_set_the_sliders(visit: Callable[..., Tab]) -> None:
    tab = visit()
    set_tokens(tab, 5)
    tab.page.get_by_label("precise", exact=True).locator("visible=true").check()
    temperature = tab.page.get_by_role("spinbutton", name=re.compile("Temperature")).locator("visible=true")
    api.expect(temperature).to_have_value("0.4")
    tab.button("The river").click()
    api.expect(tab.page.get_by_label("Prompt", exact=True)).to_have_value("The river")


def test_batch_of_pasted_and_uploaded_prompts(visit: Callable[..., Tab], tmp_path: Path) -> None:
    tab = visit()
    tab.open("Batch")
    set_tokens(tab, 5)
    prompts = tab.page.get_by_label("Prompts, one per line")
    tab.button("Generate all").click()
    assert "Write some prompts" in tab.wait("[data-testid=toast-body]").inner_text()
    prompts.fill(f"the river\n\n{HOSTILE}\nan island\n")
    tab.button("Generate all").click()
    tab.page.get_by_text("6 texts written").wait_for()
    name, content = tab.download("↓ CSV")
    assert name == "lmr-batch.csv"
    rows = list(csv.DictReader(io.StringIO(content)))
    assert [row["prompt"] for row in rows] == ["the river", HOSTILE, "an island"]
    assert all(row["rnn"] and row["transformer"] for row in rows)
    file = tmp_path / "prompts.csv"
    file.write_text("id,Prompt\n1,the baker\n2,her violin\n")
    upload = tab.page.locator("input[type=file]").first
    upload.set_input_files(file)
    api.expect(prompts).to_have_value("the baker\nher violin")
    tab.button("Generate all").click()
    tab.page.get_by_text("4 texts written").wait_for()
    _, content = tab.download("↓ JSON")
    assert [(row["prompt"], set(row["texts"])) for row in json.loads(content)] == [
        ("the baker", {"rnn", "transformer"}),
        ("her violin", {"rnn", "transformer"}),
    ]


def test_a_file_that_holds_no_prompts(visit: Callable[..., Tab], tmp_path: Path) -> None:
    tab = visit()
    tab.open("Batch")
    file = tmp_path / "picture.txt"
    file.write_bytes(bytes(range(256)))
    tab.page.locator("input[type=file]").first.set_input_files(file)
    assert "cannot be read" in tab.wait("[data-testid=toast-body]").inner_text()


def test_a_stopped_batch(visit: Callable[..., Tab], running: Running, slow: None) -> None:
    tab = visit()
    tab.open("Batch")
    set_tokens(tab, 200)
    tab.page.get_by_label("Prompts, one per line").fill("\n".join(["the river"] * 20))
    tab.button("Generate all").click()
    tab.page.get_by_text("0 of 40 texts").wait_for()
    tab.button("Stop").locator("visible=true").click()
    tab.page.get_by_text("Stopped after 0 texts").wait_for()
    eventually(lambda: not running.metric('lmr_unfinished_requests{worker="rnn"}'))
    api.expect(tab.button("Generate all")).to_be_enabled()


def search(tab: Tab, query: str, *, hits: str = ".lmr-hits li") -> Any:
    tab.open("Search")
    tab.page.get_by_label("Question or words").fill(query)
    tab.button("Search").click()
    return tab.wait(hits)


def test_search_in_three_modes(visit: Callable[..., Tab]) -> None:
    tab = visit()
    search(tab, "violin 21")
    for mode in ("dense", "bm25", "hybrid"):
        tab.page.get_by_role("radio", name=re.compile(mode)).check()
        tab.page.get_by_text(re.compile(rf"\d+ hits, {mode}, \d+ ms")).wait_for()
        assert tab.page.locator(".lmr-hits .lmr-score").count() >= 5
    assert "violin" in tab.page.locator(".lmr-hits mark").all_inner_texts()
    tab.page.get_by_label("Question or words").fill(" ")
    tab.button("Search").click()
    assert "Type a question" in tab.wait("[data-testid=toast-body]").inner_text()


def test_a_document_is_opened_by_keyboard_alone(visit: Callable[..., Tab]) -> None:
    tab = visit()
    press_until(tab, "document.activeElement.textContent.trim() == 'Search'")
    tab.page.keyboard.press("Enter")
    press_until(tab, "document.activeElement.matches('textarea, input[type=text]')")
    tab.page.keyboard.type("violin")
    tab.page.keyboard.press("Enter")
    tab.wait(".lmr-hits li")
    press_until(tab, "document.activeElement.matches('.lmr-title')")
    title = tab.page.evaluate("document.activeElement.textContent")
    tab.page.keyboard.press("Enter")
    tab.wait("#lmr-document mark")
    assert tab.page.locator("#lmr-document h3").inner_text() == title
    tab.page.wait_for_function("document.activeElement.matches('.lmr-document')")


def press_until(tab: Tab, holds: str) -> None:
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate(holds):
            return
    raise AssertionError(f"Tab does not lead there: {holds}")


def test_what_documents_say_is_shown_not_run(visit: Callable[..., Tab]) -> None:
    tab = visit()
    search(tab, "script onerror alert")
    tab.page.locator(".lmr-title", has_text="onerror").click()
    body = tab.wait("#lmr-document .lmr-body")
    assert HOSTILE in body.inner_text()
    assert not tab.page.locator(".lmr-hits img, #lmr-document img").count()
    tab.page.locator(".lmr-hits li p").nth(1).click()  # beside a title: nothing happens
    tab.open("Map")
    tab.page.get_by_label("Drop a pin").fill(HOSTILE)
    tab.button("Show").click()
    tab.wait(".lmr-nearest li")


def test_own_files_become_an_index(visit: Callable[..., Tab], tmp_path: Path, running: Running) -> None:
    tab = visit()
    tab.open("Search")
    tab.page.get_by_role("button", name="Search your own files").click()
    own = tmp_path / "penguins.md"
    own.write_text("# Penguins\n\nPenguins walk over the ice.\n")
    binary = tmp_path / "noise.bin"
    binary.write_bytes(os.urandom(3000))
    name = tab.page.get_by_label("Name of the index")
    files = tab.page.locator("input[type=file]").last

    def build(wanted: str) -> str:
        name.fill(wanted)
        tab.button("Build the index").click()
        return wanted

    build("mine")
    assert "Choose some files" in tab.wait("[data-testid=toast-body]").inner_text()
    files.set_input_files([own, binary])
    tab.page.get_by_text("penguins").first.wait_for()
    for wrong, said in (("../mine", "A name is letters"), ("notes", "There is an index 'notes' already")):
        build(wrong)
        tab.page.locator("[data-testid=toast-body]", has_text=said).wait_for()
    for _ in range(2):  # its owner may build it again
        build("mine")
        tab.page.get_by_text(re.compile(r"1 documents?: search 'mine' now")).wait_for()
    search(tab, "penguins ice", hits=".lmr-hits :text('Penguins')")
    answer = running.client.post("/search", json={"query": "penguins", "index": "mine"}).json()
    assert [hit["title"] for hit in answer["hits"]]
    assert running.client.post("/search", json={"query": "penguins"}).json()["hits"][0]["title"] != "Penguins"
    tab.open("Map")  # one point alone
    tab.page.get_by_text("1 of 1 passages").wait_for()
    other = visit()  # an index is there for those who come later
    other.open("Search")
    other.page.get_by_label("Index", exact=True).click()
    other.page.get_by_role("option", name="mine").click()
    other.page.get_by_label("Question or words").fill("ice")
    other.button("Search").click()
    other.wait(".lmr-hits :text('Penguins')")


def test_files_without_text_make_no_index(visit: Callable[..., Tab], tmp_path: Path, running: Running) -> None:
    tab = visit()
    tab.open("Search")
    tab.page.get_by_role("button", name="Search your own files").click()
    (tmp_path / "noise.txt").write_bytes(os.urandom(3000))
    tab.page.locator("input[type=file]").last.set_input_files(tmp_path / "noise.txt")
    tab.page.get_by_text("noise").first.wait_for()
    tab.page.get_by_label("Name of the index").fill("noise")
    tab.button("Build the index").click()
    api.expect(tab.button("Build the index")).to_be_enabled()
    said = tab.wait(".lmr-progress:has-text('no ')").locator("visible=true").inner_text()
    assert "/" not in said
    assert "noise" not in running.served.indexes


def figure(tab: Tab) -> list[dict[str, Any]]:
    """The traces of the map as plotly has them."""
    found = tab.page.evaluate(
        "(document.querySelector('#lmr-map .js-plotly-plot')?.data || [])"
        ".map(trace => ({name: trace.name, size: trace.x.length, text: trace.text}))"
    )
    return list(found)


def test_a_pin_on_the_map(visit: Callable[..., Tab]) -> None:
    tab = visit()
    tab.open("Map")
    eventually(lambda: [trace["name"] for trace in figure(tab)] == ["passages"])
    (passages,) = figure(tab)
    assert "the river, part 0" in passages["text"]
    assert not any("<" in title for title in passages["text"])
    tab.page.get_by_label("Drop a pin").fill("cold water")
    for method in ("PCA", "t-SNE"):
        tab.page.get_by_label(method, exact=True).check()
        tab.button("Show").click()
        tab.page.get_by_text(re.compile(rf"\d+ of \d+ passages, {method}")).wait_for()
        eventually(lambda: [trace["name"] for trace in figure(tab)] == ["passages", "nearest", "your question"])
        assert [trace["size"] for trace in figure(tab)][1:] == [10, 1]
    assert tab.page.locator(".lmr-nearest li").count() == 10


def test_models_and_statistics(visit: Callable[..., Tab]) -> None:
    tab = visit()
    generate(tab, "the river", tokens=4)
    tab.open("Models & statistics")
    table = tab.wait(".lmr-table:has-text('vocabulary')")
    assert table.locator("tbody th").all_inner_texts() == ["rnn", "transformer"]
    tab.wait(".lmr-pictures svg")
    workers = tab.page.locator(".lmr-table:has-text('tokens written')")

    def written() -> int:
        return int(workers.locator("tbody tr").first.locator("td").nth(2).inner_text().replace(",", ""))

    before = written()
    tab.open("Compare")
    generate(tab, "the baker", tokens=6)
    tab.open("Models & statistics")
    tab.button("Refresh").click()
    eventually(lambda: written() >= before + 6)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_only_downwards(visit: Callable[..., Tab], scheme: str) -> None:
    tab = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    dark = "document.body.classList.contains('dark')"
    tab.page.wait_for_function(dark if scheme == "dark" else f"!{dark}")
    wide = "document.scrollingElement.scrollWidth - innerWidth"
    generate(tab, "the river" + "x" * 200, tokens=24)
    assert tab.page.evaluate(wide) <= 0
    for name in TABS[1:]:
        select(tab, name)
        if name == "Search":
            search_here(tab)
        if name == "Map":
            eventually(lambda: figure(tab))
        assert tab.page.evaluate(wide) <= 0, name


def select(tab: Tab, name: str) -> None:
    """A tab that the phone may have put behind a menu."""
    shown = tab.page.get_by_role("tab", name=name).locator("visible=true")
    if not shown.count():
        tab.page.locator(".overflow-menu button").first.click()
        shown = tab.page.locator(".overflow-dropdown button", has_text=name)
    shown.first.click()


def search_here(tab: Tab) -> None:
    tab.page.get_by_label("Question or words").fill("violin")
    tab.button("Search").click()
    tab.wait(".lmr-hits li")
    tab.page.locator(".lmr-title").first.click()
    tab.wait("#lmr-document mark")
    tab.page.wait_for_function("document.querySelector('.lmr-document').getBoundingClientRect().top < innerHeight")


NAMED = {"button", "checkbox", "combobox", "link", "meter", "progressbar", "radio", "slider", "spinbutton"}
NAMED |= {"switch", "tab", "textbox", "listbox", "searchbox"}


def test_everything_has_a_name_and_can_be_reached_by_keyboard(visit: Callable[..., Tab]) -> None:
    tab = visit()
    generate(tab, "the river", tokens=4)
    devtools = tab.page.context.new_cdp_session(tab.page)
    for name in TABS:
        tab.open(name)
        if name == "Search":
            search(tab, "violin")
        if name == "Map":
            eventually(lambda: figure(tab))
        for closed in tab.page.locator("button.label-wrap:not(.open)").locator("visible=true").all():
            closed.click()
        tab.page.wait_for_timeout(300)
        assert unnamed(devtools) == [], name
        assert unreached(tab) == [], name
        assert undescribed(tab) == [], name


def unnamed(devtools: Any) -> list[str]:
    """Controls and pictures of the page without a name for those who do not see them."""
    nodes = devtools.send("Accessibility.getFullAXTree")["nodes"]
    return [
        json.dumps({key: node.get(key) for key in ("role", "name", "backendDOMNodeId", "properties")})[:400]
        for node in nodes
        if not node["ignored"]
        and node["role"]["value"] in NAMED
        and not str(node.get("name", {}).get("value", "")).strip()
    ]


def unreached(tab: Tab) -> list[str]:
    """Visible controls at which the key Tab never stops; of a group of radio buttons or tabs one is enough."""
    return list(
        tab.page.evaluate(
            """async () => {
                const shown = e => e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length;
                const all = [...document.querySelectorAll("button, input, textarea, select, a[href], [role=tab]")];
                const wanted = all.filter(e => shown(e) && !e.disabled && e.type !== "radio" && e.type !== "file"
                    && e.getAttribute("role") !== "tab" && e.getAttribute("role") !== "option"
                    && !e.closest("[aria-hidden=true], .visually-hidden"));
                return wanted.filter(e => e.tabIndex < 0).map(e => e.parentElement.outerHTML.slice(0, 300));
            }"""
        )
    )


def undescribed(tab: Tab) -> list[str]:
    """Visible pictures with neither a name nor a text beside them that they decorate."""
    return list(
        tab.page.evaluate(
            """() => {
                const shown = e => e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length;
                const told = e => e.closest("[aria-hidden=true], [aria-label], figure:has(figcaption)")
                    || e.id === "js-plotly-tester"
                    || e.closest("button, label, .block-label, .label")?.textContent.trim();
                return [...document.querySelectorAll("img:not([alt]), svg:not(.dropdown-arrow)")]
                    .filter(e => shown(e) && !told(e))
                    .map(e => e.parentElement.outerHTML.slice(0, 300));
            }"""
        )
    )


def test_the_key_is_asked_for_once(browser: Any, make_checkpoint: Callable[..., Path]) -> None:
    settings = settings_of({"rnn": make_checkpoint("lstm")}, page=True, api_key="open sesame")
    with serving(settings) as started:
        page = browser.new_context().new_page()
        page.set_default_timeout(20_000)
        page.goto(f"{started.url}/ui/")
        for key in ("wrong", "open sesame"):
            page.get_by_label("username").fill("me")
            page.get_by_label("password").fill(key)
            page.get_by_role("button", name="Login").click()
            if key == "wrong":
                page.get_by_text("Incorrect").first.wait_for()
        tab = Tab(page)
        tab.button("Generate").wait_for()
        page.reload()
        generate(tab, "the river", tokens=4)
        page.context.close()


def test_what_is_missing_is_said(browser: Any, make_checkpoint: Callable[..., Path]) -> None:
    broken = make_checkpoint("lstm", seed=5)
    (broken / "model.safetensors").write_bytes(b"damaged")
    settings = settings_of({"good": make_checkpoint("lstm"), "bad": broken}, page=True)
    with serving(settings) as started, visits(browser, started.url) as visit:
        tab = visit()
        tab.wait(".lmr-head:has-text('bad: failed')")  # the page may be drawn before the models are loaded
        generate(tab, "the river", tokens=4)
        assert "could not be loaded" in tab.wait("[data-model=bad] .lmr-problem").inner_text()
        tab.open("Search")
        tab.page.get_by_text("There is no index here yet").wait_for()
        search(tab, "violin", hits=".lmr-problem:has-text('no index')")
        tab.open("Map")
        tab.page.get_by_text("There is no index here yet").locator("visible=true").wait_for()
        tab.open("Models & statistics")
        tab.wait(".lmr-table:has-text('failed')")
