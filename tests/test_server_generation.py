"""Generation over real HTTP: the texts of the library, side by side, and what stops them."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Running, error_of, eventually, serving, settings_of

from lm_retrieval.generation import GenerationConfig, generate

PROMPTS = ["the river", "a sparrow carries cold", "her violin"]
CONTROLS: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 3}
NEVER_ENDS = {"temperature": 0}  # the end mark is never the likeliest token of these models
CONFIG = GenerationConfig(max_new_tokens=12, temperature=0.9, top_k=40, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def running(make_checkpoint: Callable[..., Path]) -> Iterator[Running]:
    models = {"rnn": make_checkpoint("lstm", seed=1), "transformer": make_checkpoint("transformer", seed=1)}
    limits = {"max_waiting_requests": 6, "request_seconds": 3.0}
    batching = {"window_seconds": 0.05}  # long enough for requests that a busy machine sends together
    with serving(settings_of(models, limits=limits, batching=batching)) as started:
        yield started


def library(running: Running, name: str, prompts: list[str], config: GenerationConfig = CONFIG) -> list[str]:
    loaded = running.served.models[name].language_model
    return [text.text for text in generate(loaded.model, tokenizer=loaded.tokenizer, prompts=prompts, config=config)]


@pytest.fixture
def slow(running: Running) -> Iterator[list[int]]:
    """Each step of the LSTM takes 20 ms; gives the number of rows of each."""
    rows: list[int] = []

    def wait(_model: object, inputs: Any, _output: object) -> None:
        rows.append(inputs[0].shape[0])
        time.sleep(0.02)

    hook = running.served.models["rnn"].language_model.model.register_forward_hook(wait)
    yield rows
    hook.remove()


def idle(running: Running) -> bool:
    return running.metric('lmr_unfinished_requests{worker="rnn"}') == 0


def test_each_model_continues_the_prompt_as_the_library_does(running: Running) -> None:
    answer = running.client.post("/generate", json={"prompt": PROMPTS[0], **CONTROLS}).json()
    expected = {name: library(running, name, PROMPTS[:1])[0] for name in ("rnn", "transformer")}
    assert answer == expected


def test_one_model_by_name(running: Running) -> None:
    answer = running.client.post("/generate/transformer", json={"prompt": PROMPTS[0], **CONTROLS}).json()
    (expected,) = library(running, "transformer", PROMPTS[:1])
    assert answer == {"transformer": expected, "generated_text": expected}


def test_several_prompts(running: Running) -> None:
    answer = running.client.post("/generate/batch", json={"prompts": PROMPTS, **CONTROLS}).json()
    columns = {name: library(running, name, PROMPTS) for name in ("rnn", "transformer")}
    assert answer == {"results": [{name: texts[n] for name, texts in columns.items()} for n in range(3)]}
    one = running.client.post("/generate/batch", json={"prompts": PROMPTS, "model": "rnn", **CONTROLS}).json()
    assert [result["generated_text"] for result in one["results"]] == columns["rnn"]


def test_max_length_greedy_and_stop(running: Running) -> None:
    body = {"prompt": "the", "max_length": 20, "temperature": 0}
    greedy = running.client.post("/generate/rnn", json=body).json()["rnn"]
    config = GenerationConfig(max_new_tokens=20, do_sample=False)
    assert greedy == library(running, "rnn", ["the"], config)[0]
    stop = greedy[4:6]
    stopped = running.client.post("/generate/rnn", json={**body, "stop": stop}).json()["rnn"]
    assert stopped == greedy[: greedy.index(stop)]


def test_a_seed_is_drawn_where_none_is_given(running: Running) -> None:
    texts = {running.client.post("/generate/rnn", json={"prompt": "the"}).json()["rnn"] for _ in range(4)}
    assert len(texts) > 1


def test_requests_of_many_clients_are_written_together(running: Running, slow: list[int]) -> None:
    async def ask() -> list[str]:
        async with httpx.AsyncClient(base_url=running.url, trust_env=False) as client:
            bodies = [{"prompt": prompt, **CONTROLS} for prompt in PROMPTS]
            answers = await asyncio.gather(*(client.post("/generate/rnn", json=body) for body in bodies))
            return [answer.json()["rnn"] for answer in answers]

    texts = asyncio.run(ask())
    assert max(slow) == 3
    assert texts == library(running, "rnn", PROMPTS)


def test_a_client_that_leaves_stops_its_text(running: Running, slow: list[int]) -> None:
    cancelled = running.metric('lmr_cancelled_requests_total{worker="rnn"}')
    with pytest.raises(httpx.ReadTimeout):
        running.client.post("/generate/rnn", json={"prompt": "the", "max_tokens": 1000, **NEVER_ENDS}, timeout=0.3)
    eventually(lambda: idle(running), seconds=2)
    steps = len(slow)
    assert steps < 100
    time.sleep(0.1)
    assert len(slow) == steps
    assert running.metric('lmr_cancelled_requests_total{worker="rnn"}') == cancelled + 1


def test_what_takes_too_long_is_stopped(running: Running, slow: list[int]) -> None:
    started = time.monotonic()
    error = error_of(
        running.client.post("/generate/rnn", json={"prompt": "the", "max_tokens": 1000, **NEVER_ENDS}), 504
    )
    assert error["code"] == "timeout"
    assert 2.5 < time.monotonic() - started < 6
    eventually(lambda: idle(running), seconds=2)


def test_a_full_queue_answers_429_with_a_time_to_come_again(running: Running, slow: list[int]) -> None:
    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=20) as client:
            body = {"prompt": "the", "max_tokens": 20, "seed": 1}
            return await asyncio.gather(*(client.post("/generate/rnn", json=body) for _ in range(20)))

    answers = asyncio.run(ask())
    assert sorted({answer.status_code for answer in answers}) == [200, 429]
    accepted = [answer for answer in answers if answer.status_code == 200]
    assert len(accepted) == 6
    assert len({answer.json()["rnn"] for answer in accepted}) == 1
    for answer in answers:
        if answer.status_code == 429:
            error = error_of(answer, 429)
            assert (error["type"], error["code"]) == ("rate_limit_error", "overloaded")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert running.client.post("/generate/rnn", json={"prompt": "the", "max_tokens": 1}).status_code == 200


def test_stopping_the_server_finishes_what_is_running(make_checkpoint: Callable[..., Path]) -> None:
    answers: list[httpx.Response] = []
    with serving(settings_of({"rnn": make_checkpoint("lstm")})) as started:
        model = started.served.models["rnn"].language_model.model
        model.register_forward_hook(lambda *_: time.sleep(0.02))
        body = {"prompt": "the", "max_tokens": 40, "seed": 1}

        def ask() -> None:
            answers.append(httpx.post(f"{started.url}/generate/rnn", json=body, timeout=30, trust_env=False))

        asking = threading.Thread(target=ask)
        asking.start()
        eventually(lambda: not idle(started))
    asking.join()
    assert answers[0].status_code == 200
    assert answers[0].json()["rnn"]
