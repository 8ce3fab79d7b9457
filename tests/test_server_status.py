"""Status, metrics, errors, the key, CORS and limits, over real HTTP."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from serving import Running, error_of, eventually, serving, settings_of

from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.version import __version__

LIMITS = {
    "max_body_bytes": 20_000,
    "max_texts": 4,
    "max_text_tokens": 50,
    "max_request_tokens": 90,
    "max_new_tokens": 30,
    "max_hits": 5,
}
LONG = "the river carries cold water 7. " * 20


@pytest.fixture(scope="module")
def running(make_checkpoint: Callable[..., Path]) -> Iterator[Running]:
    models = {"rnn": make_checkpoint("lstm"), "transformer": make_checkpoint("transformer")}
    with serving(settings_of(models, limits=LIMITS)) as started:
        yield started


def test_answers_do_not_wait_for_acknowledgements(running: Running) -> None:
    """Small packets that wait for each other cost 40 ms an answer."""
    started = time.perf_counter()
    for _ in range(20):
        assert running.client.get("/").status_code == 200
    assert time.perf_counter() - started < 20 * 0.03


def test_name_and_version(running: Running) -> None:
    assert running.client.get("/").json() == {"name": "lm_retrieval", "version": __version__}


def test_health_when_everything_is_loaded(running: Running) -> None:
    answer = running.client.get("/health")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "ready"
    assert body["indexes"] == []
    assert [(model["name"], model["kind"], model["embeddings"]) for model in body["models"]] == [
        ("rnn", "lstm", True),
        ("transformer", "transformer", True),
    ]
    loaded = running.served.models["rnn"].loaded
    assert loaded is not None
    assert body["models"][0]["parameters"] == sum(weights.numel() for weights in loaded.model.parameters())


def test_health_tells_progress_while_models_load(
    make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"first": make_checkpoint("lstm"), "second": make_checkpoint("lstm", seed=1)}
    gate, load = threading.Event(), Encoder.load

    def slow(path: str, **options: object) -> Encoder:
        if path == str(models["second"]):
            assert gate.wait(20)
        return load(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "load", slow)
    with serving(settings_of(models), wait=False) as started:
        client = started.client
        eventually(lambda: client.get("/health").json()["models"][0]["status"] == "ready")
        answer = client.get("/health")
        assert answer.status_code == 503
        assert answer.json()["status"] == "loading"
        assert [model["status"] for model in answer.json()["models"]] == ["ready", "loading"]
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["first"]
        refused = client.post("/generate/second", json={"prompt": "a"})
        assert error_of(refused, 503)["code"] == "loading"
        assert int(refused.headers["retry-after"]) >= 1
        assert set(client.post("/generate", json={"prompt": "a"}).json()) == {"first", "generated_text"}
        gate.set()
        eventually(lambda: client.get("/health").status_code == 200)


def test_a_model_that_cannot_be_loaded_leaves_the_others_alone(
    make_checkpoint: Callable[..., Path],
) -> None:
    broken = make_checkpoint("lstm", seed=5)
    (broken / "model.safetensors").write_bytes(b"damaged")
    with serving(settings_of({"good": make_checkpoint("lstm"), "bad": broken})) as started:
        answer = started.client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert str(broken) not in answer.text
        error = error_of(started.client.post("/generate/bad", json={"prompt": "a"}), 503)
        assert error["code"] == "not_loaded"
        assert str(broken) not in error["message"]
        assert started.client.post("/generate/good", json={"prompt": "a"}).status_code == 200
    with serving(settings_of({"bad": broken})) as started:
        answer = started.client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "failed")


def test_documentation_pages_need_no_other_server(running: Running) -> None:
    for path in ("/docs", "/redoc"):
        page = running.client.get(path)
        assert page.status_code == 200
        assert "https://" not in page.text
        assert "//cdn" not in page.text
    assert running.client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def test_metrics_count_requests_latency_and_batches(running: Running) -> None:
    before = running.metric('lmr_requests_total{method="POST",path="/tokenize",status="200"}')
    running.client.post("/tokenize", json={"text": "the river"})
    running.client.post("/v1/embeddings", json={"model": "rnn", "input": "the river"})
    assert running.metric('lmr_requests_total{method="POST",path="/tokenize",status="200"}') == before + 1
    assert running.metric('lmr_request_seconds_count{path="/tokenize"}') >= 1
    assert running.metric('lmr_batch_texts_count{operation="encode",worker="rnn"}') >= 1
    assert running.metric('lmr_unfinished_requests{worker="rnn"}') == 0
    text = running.client.get("/metrics").text
    assert "# TYPE lmr_request_seconds histogram" in text
    running.client.get("/some/path/of/a/stranger")
    assert "stranger" not in running.client.get("/metrics").text


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nothing", None, 404, "not_found"),
        ("GET", "/generate", None, 405, "method_not_allowed"),
        ("POST", "/generate", {}, 422, "invalid_request"),
        ("POST", "/generate", {"prompt": "a", "tempreature": 1}, 422, "invalid_request"),
        ("POST", "/generate", {"prompt": "a", "max_tokens": 3, "max_length": 3}, 422, "invalid_request"),
        ("POST", "/generate", {"prompt": "a", "top_p": 0}, 422, "invalid_request"),
        ("POST", "/generate", {"prompt": "a", "max_tokens": 31}, 422, "too_many_tokens"),
        ("POST", "/generate/nobody", {"prompt": "a"}, 404, "model_not_found"),
        ("POST", "/v1/completions", {"model": "nobody", "prompt": "a"}, 404, "model_not_found"),
        ("POST", "/v1/completions", {"model": "rnn", "prompt": "a", "max_tokens": 31}, 422, "too_many_tokens"),
        ("POST", "/v1/completions", {"model": "rnn", "prompt": "a", "n": 5}, 413, "request_too_large"),
        ("POST", "/v1/completions", {"model": "rnn", "prompt": "a", "suffix": "b"}, 422, "invalid_request"),
        ("POST", "/v1/completions", {"model": "rnn", "prompt": "a", "best_of": 2}, 422, "invalid_request"),
        ("POST", "/v1/completions", {"model": "rnn", "prompt": [400000]}, 422, "invalid_value"),
        ("POST", "/v1/embeddings", {"model": "nobody", "input": "a"}, 404, "model_not_found"),
        ("POST", "/v1/embeddings", {"model": "rnn", "input": ""}, 422, "invalid_value"),
        ("POST", "/v1/embeddings", {"model": "rnn", "input": ["a", ""]}, 422, "invalid_value"),
        ("POST", "/v1/embeddings", {"model": "rnn", "input": "a", "dimensions": 33}, 422, "invalid_value"),
        ("POST", "/v1/embeddings", {"model": "rnn", "input": ["a"] * 5}, 413, "request_too_large"),
        ("POST", "/v1/embeddings", {"model": "rnn", "input": LONG}, 422, "text_too_long"),
        ("POST", "/v1/embeddings", {"model": "rnn", "input": [LONG[:90]] * 4}, 413, "request_too_large"),
        ("GET", "/v1/models/nobody", None, 404, "model_not_found"),
        ("POST", "/search", {"query": "a"}, 404, "index_not_found"),
        ("POST", "/rerank", {"query": " ", "documents": ["a"]}, 422, "invalid_request"),
        ("POST", "/perplexity", {"text": "a", "model": "nobody"}, 404, "model_not_found"),
        ("POST", "/perplexity", {"text": ["a", ""]}, 422, "invalid_value"),
        ("POST", "/perplexity", {"text": "a", "model": "transformer", "context": "carried"}, 422, "invalid_value"),
        ("POST", "/tokenize", {}, 422, "invalid_request"),
        ("POST", "/detokenize", {"tokens": [99999]}, 422, "invalid_value"),
    ],
)
def test_every_error_has_one_shape(
    running: Running, method: str, path: str, body: object, status: int, code: str
) -> None:
    error = error_of(running.client.request(method, path, json=body), status)
    assert error["code"] == code
    assert error["type"] == "invalid_request_error"


def test_a_body_that_is_no_json(running: Running) -> None:
    headers = {"content-type": "application/json"}
    for body in (b"{", b"[]", b'{"prompt": "\\ud800"}', b'{"prompt": NaN}', b'{"prompt": "a", "temperature": NaN}'):
        assert error_of(running.client.post("/generate", content=body, headers=headers), 422)
    assert error_of(running.client.post("/generate", content=b"\xff", headers=headers), 400)


def test_a_body_beyond_the_limit_is_refused_announced_or_not(running: Running) -> None:
    large = json.dumps({"prompt": "x" * 30_000}).encode()
    headers = {"content-type": "application/json"}
    assert error_of(running.client.post("/generate", content=large, headers=headers), 413)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(large), 1000):
            yield large[start : start + 1000]

    assert error_of(running.client.post("/generate", content=pieces(), headers=headers), 413)


def test_an_unexpected_error_tells_nothing_of_the_inside(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> object:
        raise RuntimeError("secret/path/model.safetensors")

    model = running.served.models["rnn"]
    monkeypatch.setattr(model.encoder, "encode_tokens", fail)
    answer = running.client.post("/v1/embeddings", json={"model": "rnn", "input": "a"})
    assert error_of(answer, 500)["type"] == "server_error"
    assert "secret" not in answer.text
    monkeypatch.undo()
    assert running.client.post("/v1/embeddings", json={"model": "rnn", "input": "a"}).status_code == 200


# ---------------------------------------------------------------- key and CORS


@pytest.fixture(scope="module")
def guarded(make_checkpoint: Callable[..., Path]) -> Iterator[Running]:
    options = {"api_key": "open sesame", "allowed_origins": ("https://page.example",)}
    with serving(settings_of({"rnn": make_checkpoint("lstm")}, **options)) as started:
        yield started


def test_a_key_is_needed_where_something_is_computed_or_told(guarded: Running) -> None:
    client = guarded.client
    for path in ("/", "/health", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    for path in ("/metrics", "/v1/models"):
        refused = client.get(path)
        error = error_of(refused, 401)
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"
    for key, status in (("Bearer wrong", 401), ("open sesame", 401), ("Bearer open sesame", 200)):
        assert client.get("/v1/models", headers={"Authorization": key}).status_code == status
    assert error_of(client.post("/generate", json={"prompt": "a"}), 401)


def test_pages_of_allowed_origins_may_call(guarded: Running) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = guarded.client.options("/generate", headers={"Origin": "https://page.example", **asked})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    other = guarded.client.options("/generate", headers={"Origin": "https://other.example", **asked})
    assert "access-control-allow-origin" not in other.headers
    refused = guarded.client.get("/metrics", headers={"Origin": "https://page.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://page.example"  # the page can read the error


def test_without_allowed_origins_no_page_may_call(running: Running) -> None:
    answer = running.client.get("/health", headers={"Origin": "https://page.example"})
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_body_that_does_not_come_is_given_up(make_checkpoint: Callable[..., Path]) -> None:
    import socket

    with serving(settings_of({"rnn": make_checkpoint("lstm")}, limits={"request_seconds": 0.3})) as started:
        address = httpx.URL(started.url)
        with socket.create_connection((address.host, address.port or 80)) as connection:
            connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            connection.settimeout(10)
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")
