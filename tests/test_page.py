"""The web page without a browser: its pieces, and what the server answers for it."""

import asyncio
import csv
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import rows_of, write_jsonl
from serving import Running, error_of, eventually, serving, settings_of

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.generation import GenerationConfig
from lm_retrieval.index.builder import build_index
from lm_retrieval.index.store import Store
from lm_retrieval.progress import progress, watched
from lm_retrieval.records import Span
from lm_retrieval.search import Searcher
from lm_retrieval.server.settings import ServerSettings, read_environment

gr = pytest.importorskip("gradio", reason="needs the extra `ui`")
from lm_retrieval.server.ui import batch, compare, search, statistics  # noqa: E402
from lm_retrieval.server.ui import map as maps  # noqa: E402
from lm_retrieval.server.ui.html import marked, render  # noqa: E402
from lm_retrieval.server.ui.writing import Written, write_side_by_side  # noqa: E402

SCRIPT = "<script>alert('&')</script>"
KEY = "open sesame"


def built(folder: Path, rows: list[dict[str, object]], encoder: Path, **options: Any) -> Path:
    output = folder / "indexes" / str(options.pop("name", "notes"))
    corpus = open_corpus(write_jsonl(folder / "corpus.jsonl", rows))
    build_index(corpus, encoder=Encoder.load(encoder), output=output, **options)
    return output


@pytest.fixture(scope="module")
def index(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [*rows_of(40), {"_id": "x", "title": f"a {SCRIPT}", "text": f"The owl {SCRIPT} sleeps."}]
    return built(tmp_path_factory.mktemp("page"), rows, make_checkpoint("lstm"), shard_chunks=20)


@pytest.fixture(scope="module")
def running(make_checkpoint: Callable[..., Path], index: Path) -> Iterator[Running]:
    models = {"rnn": make_checkpoint("lstm"), "transformer": make_checkpoint("transformer")}
    with serving(settings_of(models, index=index, page=True, limits={"max_text_tokens": 50})) as started:
        yield started


# ---------------------------------------------------------------- prompts, exports, pieces of text


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.txt", "\ufeffone\r\n\n  two  words \n", ["one", "two words"]),
        ("a.csv", 'id,Prompt\n1,one\n2,"two\nlines"\n', ["one", "two lines"]),
        ("a.csv", "one,x\ntwo,y\n", ["one", "two"]),
        ("a.csv", "", []),
        ("a.jsonl", '{"id": 1, "text": "one\u2028line"}\n\n"two"\n{"b": 3}\n{}\n', ["one line", "two", "3"]),
    ],
)
def test_prompts_of_a_file(tmp_path: Path, name: str, content: str, prompts: list[str]) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert batch.read_prompts(str(tmp_path / name)).splitlines() == prompts


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b"\xff\xfe\x00"), ("a.jsonl", b"{"), ("a.jsonl", b"[" * 100_000), ("a.csv", b'"' + b"x" * 200_000)],
)
def test_files_without_prompts_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(gr.Error, match="cannot be read"):
        batch.read_prompts(str(tmp_path / name))


def test_a_large_file_of_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 101)
    with pytest.raises(gr.Error, match="larger than 100 bytes"):
        batch.read_prompts(str(tmp_path / "a.txt"), max_bytes=100)
    assert batch.read_prompts(None) == ""


def a_turn(prompt: str = "The river", **text: Any) -> compare.Turn:
    written = Written("rnn", "flows.\nOn.", tokens=4, first_token_seconds=0.5, seconds=2.0, ended="length")
    other = Written("gpt2", problem="it broke", ended="problem")
    return {"prompt": prompt, "settings": {"seed": 7}, "texts": [written.to_dict() | text, other.to_dict()]}


def test_a_comparison_is_saved_in_three_forms() -> None:
    turns = [a_turn(perplexity={"rnn": 3.0}, bits_per_byte={"rnn": 0.5}), a_turn('He said "x",\n# no head')]
    files = compare.exported(turns)
    assert json.loads(files["json"]) == turns
    rows = list(csv.DictReader(io.StringIO(files["csv"])))
    assert [row["prompt"] for row in rows] == ["The river"] * 2 + ['He said "x",\n# no head'] * 2
    assert rows[0]["text"] == "flows.\nOn."
    assert (rows[0]["perplexity_rnn"], rows[1]["perplexity_rnn"], rows[0]["seed"]) == ("3.0", "", "7")
    assert float(rows[0]["tokens_per_second"]) == 2.0
    assert "## The river\n" in files["md"]
    assert "> The riverflows.\n> On.\n" in files["md"]
    assert "first after 500 ms" in files["md"]
    assert "**gpt2**: it broke" in files["md"]
    assert "\n# no head" not in files["md"]


def test_a_batch_is_saved_in_two_forms() -> None:
    rows = [{"prompt": "one", "texts": {"prompt": "a", "rnn": "b"}}, {"prompt": "two", "texts": {"rnn": "c"}}]
    files = batch.exported(rows)
    assert json.loads(files["json"]) == rows
    assert list(csv.reader(io.StringIO(files["csv"]))) == [
        ["prompt", "prompt", "rnn"],
        ["one", "a", "b"],
        ["two", "", "c"],
    ]


def test_marked_pieces_are_the_text() -> None:
    assert marked("abcdef", [Span(0, 1), Span(3, 6)]) == [("a", True), ("bc", False), ("def", True)]
    assert marked("abc", []) == [("abc", False)]
    assert marked("", []) == []


def test_no_text_becomes_markup() -> None:
    pieces = [(SCRIPT, True), (SCRIPT, False)]
    hit = {"id": SCRIPT, "title": SCRIPT, "score": 1.0, "pieces": pieces}
    model = {"name": SCRIPT, "status": SCRIPT}
    shown = [
        render("hits.html.j2", hits=[hit], problem=SCRIPT, milliseconds=1.0, best=1.0, mode=SCRIPT),
        render("document.html.j2", document=Written(SCRIPT) and _Document(), pieces=pieces),
        render("turns.html.j2", turns=[a_turn(SCRIPT, text=SCRIPT, model=SCRIPT, perplexity={})], empty=False),
        render("texts.html.j2", rows=[{"prompt": SCRIPT, "texts": {SCRIPT: SCRIPT}}], names=[SCRIPT]),
        render("map.html.j2", note=SCRIPT, nearest=[SCRIPT]),
        render("head.html.j2", version=SCRIPT, parts=[(SCRIPT, SCRIPT)]),
        render("note.html.j2", text=SCRIPT),
        render("progress.html.j2", label=SCRIPT, done=1, total=2),
        render("models.html.j2", models=[model], split="", curves="", pictures={SCRIPT: SCRIPT}),
    ]
    assert not any("<script" in piece for piece in shown)
    assert all("&lt;script" in piece for piece in shown)


class _Document:
    title = doc_id = text = SCRIPT


def test_a_long_prompt_is_not_drawn_whole() -> None:
    assert len(render("turns.html.j2", turns=[a_turn("word " * 20_000)], empty=False)) < 6000


# ---------------------------------------------------------------- the parts of the library below


def test_vectors_by_number_come_from_every_shard(index: Path) -> None:
    store, searcher = Store(index), Searcher(index)
    assert store.num_shards > 1
    every = np.concatenate(list(store.vector_shards()))
    numbers = np.array([len(every) - 1, 0, 60, 3])
    assert np.array_equal(store.vectors_at(numbers), every[numbers])
    assert store.vectors_at(np.array([], np.int64)).shape[0] == 0
    numbers, vectors = searcher.sample(10)
    assert (numbers[0], numbers[-1], len(numbers)) == (0, len(every) - 1, 10)
    assert np.array_equal(vectors, every[numbers])
    assert len(searcher.sample(10_000)[0]) == len(every)


def test_neighbours_and_their_documents(index: Path) -> None:
    searcher = Searcher(index)
    vector = searcher.encode(["the river carries cold water"])[0]
    numbers, vectors = searcher.nearest(vector, 5)
    scores = vectors @ vector
    assert np.all(np.diff(scores) <= 1e-6)
    every = np.concatenate(list(Store(index).vector_shards())) @ vector
    assert scores[0] == pytest.approx(every.max(), abs=1e-5)
    document = searcher.chunk_document(int(numbers[0]))
    assert searcher.document(document.doc_id) == document


def test_words_of_a_query_are_found_in_a_text(index: Path) -> None:
    text = "The Rivers meet; a river flows."
    assert [text[start:end] for start, end in Searcher(index).matches("river", text)] == ["Rivers", "river"]


def test_progress_is_told_to_who_watches() -> None:
    said: list[tuple[str, float, float | None]] = []
    with watched(lambda *given: said.append(given)), progress("counting", total=3) as advance:
        advance()
        advance(2, note="so far")
    assert said == [("counting", 0.0, 3), ("counting", 1.0, 3), ("counting", 3.0, 3)]
    with progress("unseen") as advance:
        advance()
    assert len(said) == 3


# ---------------------------------------------------------------- map


@pytest.mark.parametrize("method", ["PCA", "t-SNE"])
def test_a_vector_falls_where_it_is_shown(index: Path, method: maps.Method) -> None:
    picture = maps._picture(Searcher(index), method)
    assert picture.points.shape == (len(picture.titles), 2)
    assert np.isfinite(picture.points).all()
    extent = float(np.ptp(picture.points, axis=0).max())
    placed = picture.place(picture.vectors[:5])
    far = np.linalg.norm(placed - picture.points[:5], axis=1)
    assert far.max() < (1e-4 if method == "PCA" else 0.5) * extent


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("method", ["PCA", "t-SNE"])
def test_a_map_of_very_little(
    make_checkpoint: Callable[..., Path], tmp_path: Path, count: int, method: maps.Method
) -> None:
    rows: list[dict[str, object]] = [{"_id": f"d{place}", "text": f"river {place}"} for place in range(count)]
    figure, note = maps._draw(Searcher(built(tmp_path, rows, make_checkpoint("lstm"))), "river", method)
    assert f"{count} of {count} passages" in note
    assert [len(trace.x) for trace in figure.data] == [count, count, 1]


def test_the_map_shows_titles_as_they_are(index: Path) -> None:
    figure, note = maps._draw(Searcher(index), f"owl {SCRIPT}", "PCA")
    passages, nearest, pin = figure.data
    assert any("&lt;script" in title for title in passages.text)
    assert not any("<" in title for trace in (passages, nearest, pin) for title in trace.text)
    assert "<script" not in note
    assert len(nearest.text) == 10


# ---------------------------------------------------------------- statistics


def test_endpoints_and_workers_are_summed_up(running: Running) -> None:
    running.client.post("/tokenize", json={"text": "the river"})
    running.client.post("/tokenize", json={})
    running.client.post("/generate/rnn", json={"prompt": "the river", "max_tokens": 3})
    row = next(row for row in running.served.metrics.endpoints() if row["path"] == "/tokenize")
    assert (row["requests"], row["errors"]) == (2, 1)
    assert row["mean_milliseconds"] > 0
    workers = {row["worker"]: row for row in running.served.metrics.workers()}
    assert set(workers) == {"rnn", "transformer", "index:notes"}
    assert workers["rnn"]["written"] >= 1
    assert workers["rnn"]["mean_texts"] == workers["rnn"]["texts"] / workers["rnn"]["batches"]
    shown = statistics._requests(running.served)
    assert "/tokenize" in shown
    assert "index:notes" in shown


def test_pictures_of_a_checkpoint_are_never_run(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint("lstm", seed=9)
    (folder / statistics.CURVES_NAME).write_text(f"<svg onload='alert(1)'>{SCRIPT}</svg>")
    with serving(settings_of({"rnn": folder})) as started:
        shown = statistics._overview(started.served)
    assert "Training of rnn" in shown
    assert "alert" not in shown


def test_models_of_transformers_stand_beside_ours(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra `hf`")
    from hugging_face_models import save_gpt2

    models = {"rnn": make_checkpoint("lstm"), "gpt2": f"hf:{save_gpt2(tmp_path)}"}
    with serving(settings_of(models)) as started:
        texts = last(
            write_side_by_side(started.served, ["rnn", "gpt2"], "the river", GenerationConfig(max_new_tokens=5))
        )
        assert [set(text.perplexity) for text in texts] == [{"rnn", "gpt2"}] * 2
        assert not any(text.problem for text in texts)
        assert "gpt2" in statistics._overview(started.served)


# ---------------------------------------------------------------- writing side by side


def last(steps: AsyncIterator[list[Written]]) -> list[Written]:
    async def run() -> list[Written]:
        return [texts async for texts in steps][-1]

    return asyncio.run(run())


def test_a_model_that_breaks_says_so_beside_the_others(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_retrieval.server import worker

    broken, advance = running.served.models["rnn"].language_model.model, worker.advance

    def fail(model: Any, rows: Any) -> Iterator[None]:
        if model is broken:
            raise RuntimeError("secret/path")
        yield from advance(model, rows)

    monkeypatch.setattr(worker, "advance", fail)
    rnn, other = last(write_side_by_side(running.served, ["rnn", "transformer"], "the river", GenerationConfig()))
    assert rnn.ended == "problem"
    assert rnn.problem
    assert "secret" not in rnn.problem
    assert other.tokens
    assert set(other.perplexity) == {"transformer"}


def test_a_text_that_takes_too_long_is_ended(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_retrieval.server import worker

    advance = worker.advance

    def slowly(*given: Any) -> Iterator[None]:
        for step in advance(*given):
            time.sleep(0.05)
            yield step

    monkeypatch.setattr(worker, "advance", slowly)
    with serving(settings_of({"rnn": make_checkpoint("lstm")}, limits={"request_seconds": 0.4})) as started:
        config = GenerationConfig(max_new_tokens=1000)
        (text,) = last(write_side_by_side(started.served, ["rnn"], "the river", config))
        assert text.tokens
        assert "not finished within 0.4 seconds" in text.problem
        eventually(lambda: started.metric('lmr_unfinished_requests{worker="rnn"}') == 0)


def test_a_text_without_a_perplexity_is_shown(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError

    monkeypatch.setattr("lm_retrieval.server.served.perplexity", fail)
    (text,) = last(write_side_by_side(running.served, ["rnn"], "the river", GenerationConfig(max_new_tokens=3)))
    assert (text.ended, text.problem, text.perplexity) == ("length", "", {})


def test_problems_of_each_model_are_its_own(make_checkpoint: Callable[..., Path]) -> None:
    broken = make_checkpoint("lstm", seed=5)
    (broken / "model.safetensors").write_bytes(b"damaged")
    with serving(
        settings_of({"good": make_checkpoint("lstm"), "bad": broken}, limits={"max_text_tokens": 50})
    ) as started:
        config = GenerationConfig(max_new_tokens=3)
        good, bad = last(write_side_by_side(started.served, ["good", "bad"], "the river", config))
        assert (good.ended, bad.ended) == ("length", "problem")
        assert "could not be loaded" in bad.problem
        (text,) = last(write_side_by_side(started.served, ["good"], "the river " * 10_000, config))
        assert "at most 50 can be read" in text.problem
        assert "failed" in statistics._overview(started.served)


# ---------------------------------------------------------------- over HTTP


def test_only_browsers_are_led_to_the_page(running: Running) -> None:
    assert running.client.get("/").json()["name"] == "lm_retrieval"
    led = running.client.get("/", headers={"Accept": "text/html,*/*"})
    assert (led.status_code, led.headers["location"]) == (307, "ui/")
    assert running.client.get("/ui/").status_code == 200
    assert running.client.get("/ui", follow_redirects=True).status_code == 200
    assert running.client.get("/favicon.ico").headers["content-type"] == "image/svg+xml"


def test_the_page_is_no_part_of_the_api(running: Running) -> None:
    paths = running.client.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path.startswith(("/ui", "/favicon"))]
    assert running.client.get("/ui/gradio_api/info").json()["named_endpoints"] == {}


def test_without_the_page_there_is_none(make_checkpoint: Callable[..., Path]) -> None:
    with serving(settings_of({"rnn": make_checkpoint("lstm")})) as started:
        assert started.client.get("/", headers={"Accept": "text/html"}).status_code == 200
        assert error_of(started.client.get("/ui/"), 404)


def test_whether_there_is_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ServerSettings().page
    assert "page" not in read_environment({})
    assert [settings_of({}, host=host).local for host in ("127.0.0.1", "::1", "0.0.0.0", "10.0.0.1")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_the_page_asks_for_the_key(make_checkpoint: Callable[..., Path]) -> None:
    with serving(settings_of({"rnn": make_checkpoint("lstm")}, api_key=KEY, page=True)) as started:
        client = started.client
        assert client.get("/ui/").status_code == 200  # where it is asked for
        joined = {"fn_index": 0, "session_hash": "a", "data": []}
        refused: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", "/ui/config", {}),
            ("GET", "/ui/gradio_api/info", {}),
            ("POST", "/ui/gradio_api/queue/join", {"json": joined}),
            ("GET", "/ui/gradio_api/queue/data", {"params": {"session_hash": "a"}}),
            ("POST", "/ui/gradio_api/upload", {"files": {"files": ("a.txt", b"a")}}),
        ]
        for method, path, given in refused:
            assert client.request(method, path, **given).status_code == 401, path
        assert client.post("/ui/login", data={"username": "me", "password": "wrong"}).status_code == 400
        assert client.get("/ui/config").status_code == 401
        assert client.post("/ui/login", data={"username": "me", "password": KEY}).status_code == 200
        assert client.get("/ui/config").status_code == 200  # the cookie is the key from now on
        assert client.get("/v1/models").status_code == 401  # and opens nothing else


def upload(client: httpx.Client, size: int) -> httpx.Response:
    return client.post("/ui/gradio_api/upload", files={"files": ("a.txt", b"x" * size)})


def test_uploads_are_limited_and_indexes_only_local(make_checkpoint: Callable[..., Path]) -> None:
    models, limits = {"rnn": make_checkpoint("lstm")}, {"max_body_bytes": 3000}
    for host, size in (("127.0.0.1", 10_000), ("0.0.0.0", 2000)):
        with serving(settings_of(models, host=host, page=True, limits=limits)) as started:
            labels = json.dumps(started.client.get("/ui/config").json()["components"])
            assert ("Build the index" in labels) == (host == "127.0.0.1")
            assert upload(started.client, size).status_code == 200
            assert (upload(started.client, 10_000).status_code == 200) == (host == "127.0.0.1")


def test_uploaded_files_do_not_outlive_the_server(make_checkpoint: Callable[..., Path]) -> None:
    with serving(settings_of({"rnn": make_checkpoint("lstm")}, page=True)) as started:
        (path,) = upload(started.client, 10).json()
        assert Path(path).is_file()
    assert not Path(path).exists()


def test_one_more_index_beside_the_first(make_checkpoint: Callable[..., Path], index: Path, tmp_path: Path) -> None:
    owls: list[dict[str, object]] = [{"_id": "owl", "title": "Owls", "text": "An owl sleeps."}]
    other = built(tmp_path, owls, make_checkpoint("lstm"), name="owls")
    with serving(settings_of({"rnn": make_checkpoint("lstm")}, index=index)) as started:
        ask = lambda **given: started.client.post("/search", json={"query": "owl sleeps", **given})  # noqa: E731
        assert error_of(ask(index="owls"), 404)["code"] == "index_not_found"
        started.served.add_index(other)
        assert [hit["id"] for hit in ask(index="owls").json()["hits"]] == ["owl"]
        assert len(ask().json()["hits"]) > 1
        assert started.client.get("/search", params={"q": "owl", "index": "owls"}).json()["hits"][0]["id"] == "owl"
        assert [found["name"] for found in started.client.get("/health").json()["indexes"]] == ["notes", "owls"]
        built(tmp_path, [*owls, {"_id": "two", "text": "Two owls."}], make_checkpoint("lstm"), name="owls")
        first = started.served.indexes["owls"]
        started.served.add_index(other)  # it has changed
        assert started.served.indexes["owls"] is not first
        assert len(ask(index="owls").json()["hits"]) == 2


def test_an_index_that_is_served_is_not_replaced(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("notes", "../notes", "", "a/b", ".hidden", "a" * 65)
    problems = [search._name_problem(running.served, name) for name in names]
    assert "already" in str(problems[0])
    assert all("letters" in str(problem) for problem in problems[1:])
    assert search._name_problem(running.served, "mine") is None
    (tmp_path / "indexes" / "mine").mkdir(parents=True)
    assert "already" in str(search._name_problem(running.served, "mine"))
