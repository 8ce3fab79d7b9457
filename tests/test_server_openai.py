"""OpenAI's endpoints through the official client, against the library."""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hugging_face_models import save_gpt2
from serving import Running, eventually, serving, settings_of

from lm_retrieval.generation import GenerationConfig, generate
from lm_retrieval.perplexity import perplexity
from lm_retrieval.scoring import score_tokens
from lm_retrieval.tokenizer import prompt_ids

MODELS = ["rnn", "transformer", "gpt2"]
TEXT = "the river carries cold water 7. ä日 a sparrow"


@pytest.fixture(scope="module")
def running(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    models = {
        "rnn": make_checkpoint("lstm", seed=1),
        "transformer": make_checkpoint("transformer", seed=1),
        "gpt2": f"hf:{save_gpt2(tmp_path_factory.mktemp('models') / 'tiny')}",
    }
    with serving(settings_of(models)) as started:
        yield started


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[openai.OpenAI]:
    with httpx.Client(trust_env=False) as http:
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, http_client=http) as client:
            yield client


def loaded(running: Running, name: str) -> Any:
    return running.served.models[name].language_model


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == MODELS
    card = client.models.retrieve("rnn")
    assert (card.id, card.object) == ("rnn", "model")
    assert abs(card.created - time.time()) < 600
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("nobody")
    assert error.value.code == "model_not_found"


# ---------------------------------------------------------------- completions


@pytest.mark.parametrize("name", MODELS)
def test_a_completion_is_the_librarys_text(client: openai.OpenAI, running: Running, name: str) -> None:
    answer = client.completions.create(
        model=name, prompt="the river", max_tokens=10, temperature=0.8, top_p=0.9, seed=5
    )
    config = GenerationConfig(max_new_tokens=10, temperature=0.8, top_p=0.9, seed=5)
    model = loaded(running, name)
    (expected,) = generate(model.model, tokenizer=model.tokenizer, prompts=["the river"], config=config)
    assert (answer.object, answer.model, len(answer.choices)) == ("text_completion", name, 1)
    choice = answer.choices[0]
    assert (choice.index, choice.text, choice.logprobs) == (0, expected.text, None)
    assert choice.finish_reason == ("length" if expected.finish_reason == "length" else "stop")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(model.tokenizer.encode("the river"))
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_prompts_are_a_text_texts_ids_or_lists_of_ids(client: openai.OpenAI, running: Running) -> None:
    tokenizer = loaded(running, "rnn").tokenizer
    texts = ["the river", "a sparrow"]
    ids = [tokenizer.encode(text) for text in texts]

    def ask(prompt: Any) -> list[str]:
        answer = client.completions.create(model="rnn", prompt=prompt, max_tokens=8, seed=1)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    both = ask(texts)
    assert ask(texts[0]) + ask(texts[1]) == both
    assert ask(ids) == both
    assert ask(ids[0]) == both[:1]
    assert ask([tokenizer.bos_id, *ids[0]]) == both[:1]  # the begin mark is not put twice


def test_n_texts_differ_and_come_in_the_order_of_the_prompts(client: openai.OpenAI) -> None:
    def ask(prompt: Any, n: int) -> list[str]:
        answer = client.completions.create(model="rnn", prompt=prompt, max_tokens=8, seed=1, n=n)
        return [choice.text for choice in answer.choices]

    texts = ask(["the river", "a sparrow"], 3)
    assert texts == ask("the river", 3) + ask("a sparrow", 3)
    assert len(set(texts)) > 2
    assert ask("the river", 1) == texts[:1]


def test_stop_ends_the_text_before_it(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="rnn", prompt="the", max_tokens=30, temperature=0).choices[0].text
    stop = whole[5:7]
    asked: dict[str, Any] = {
        "model": "rnn", "prompt": "the", "max_tokens": 30, "temperature": 0, "stop": ["never", stop], "logprobs": 0,
    }  # fmt: skip
    stopped = client.completions.create(**asked).choices[0]
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert stopped.logprobs is not None
    assert all(offset < len(stopped.text) for offset in stopped.logprobs.text_offset or [])
    parts = [piece.choices[0] for piece in client.completions.create(**asked, stream=True)]
    assert "".join(part.text for part in parts) == stopped.text
    streamed = [token for part in parts for token in (part.logprobs and part.logprobs.tokens) or []]
    assert streamed == stopped.logprobs.tokens


@pytest.mark.parametrize("name", MODELS)
def test_echo_without_new_tokens_scores_the_prompt(client: openai.OpenAI, running: Running, name: str) -> None:
    answer = client.completions.create(model=name, prompt=TEXT, max_tokens=0, echo=True, logprobs=3)
    choice, model = answer.choices[0], loaded(running, name)
    assert (choice.text, choice.finish_reason) == (TEXT, "length")
    assert choice.logprobs is not None
    token_ids = model.tokenizer.encode(TEXT)
    tokens, values = choice.logprobs.tokens, choice.logprobs.token_logprobs
    tops, offsets = choice.logprobs.top_logprobs, choice.logprobs.text_offset
    assert tokens is not None
    assert values is not None
    assert tops is not None
    assert offsets is not None
    assert len(tokens) == len(values) == len(tops) == len(offsets) == len(token_ids)
    expected = score_tokens(model.model, [[model.tokenizer.bos_id, *token_ids]], top=3)[0]
    assert values == pytest.approx([score.log_probability for score in expected], rel=1e-4)
    report = perplexity(model.model, tokenizer=model.tokenizer, texts=[TEXT])
    assert sum(values) == pytest.approx(-report.nll, rel=1e-4)
    assert offsets == sorted(offsets)
    for token, offset, value, top, score in zip(tokens, offsets, values, tops, expected, strict=True):
        if not token.startswith("bytes:"):
            assert TEXT[offset:].startswith(token)
        assert top[token] == value
        assert max(top.values()) == pytest.approx(score.top[0][1], rel=1e-4)
        assert len(top) <= 4
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(token_ids), 0)


def test_a_begin_mark_that_was_sent_has_no_score(client: openai.OpenAI, running: Running) -> None:
    tokenizer = loaded(running, "rnn").tokenizer
    ids = [tokenizer.bos_id, *tokenizer.encode("the river")]
    marked = client.completions.create(model="rnn", prompt=ids, max_tokens=0, echo=True, logprobs=1).choices[0]
    plain = client.completions.create(model="rnn", prompt=ids[1:], max_tokens=0, echo=True, logprobs=1).choices[0]
    assert marked.logprobs is not None
    assert plain.logprobs is not None
    assert marked.logprobs.token_logprobs == [None, *(plain.logprobs.token_logprobs or [])]
    assert marked.logprobs.tokens == ["<s>", *(plain.logprobs.tokens or [])]


def test_echo_and_new_tokens_are_scored_as_one_text(client: openai.OpenAI, running: Running) -> None:
    """What lm-evaluation-harness asks for: prompts of ids, one greedy token, its probability and the prompt's."""
    model = loaded(running, "transformer")
    ids = [model.tokenizer.encode(text) for text in ("the river carries", "a sparrow")]
    answer = client.completions.create(
        model="transformer", prompt=ids, max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1234
    )
    for choice, read in zip(answer.choices, ids, strict=True):
        assert choice.logprobs is not None
        values, tops = choice.logprobs.token_logprobs, choice.logprobs.top_logprobs
        assert values is not None
        assert tops is not None
        assert choice.logprobs.text_offset is not None
        assert len(values) == len(read) + 1
        assert values[-1] == max(tops[-1].values())  # the greedy token
        assert choice.logprobs.text_offset[-1] == len(model.tokenizer.decode(read))
        assert choice.text.startswith(model.tokenizer.decode(read))


def test_the_end_mark_is_a_token_with_a_probability_and_no_text(
    client: openai.OpenAI, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(running, "rnn")
    logits = model.model.logits

    def ending(hidden: Any) -> Any:
        scores = logits(hidden)
        scores[..., model.tokenizer.eos_id] += 1000
        return scores

    monkeypatch.setattr(model.model, "logits", ending)
    answer = client.completions.create(model="rnn", prompt="the", max_tokens=5, logprobs=1)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("", "stop")
    assert choice.logprobs is not None
    assert (choice.logprobs.tokens, choice.logprobs.token_logprobs) == (["</s>"], [pytest.approx(0)])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_offsets_of_new_tokens_count_from_the_text_that_is_shown(client: openai.OpenAI) -> None:
    choice = client.completions.create(model="rnn", prompt="the river", max_tokens=6, seed=2, logprobs=0).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset is not None
    assert choice.logprobs.text_offset[0] == 0
    assert all(len(top) == 1 for top in choice.logprobs.top_logprobs or [])


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_pieces_of_a_stream_make_the_whole(client: openai.OpenAI, name: str, echo: bool) -> None:
    asked: dict[str, Any] = {
        "model": name, "prompt": ["the river", "a"], "max_tokens": 12, "seed": 4, "logprobs": 2, "echo": echo, "n": 2,
    }  # fmt: skip
    whole = client.completions.create(**asked)
    pieces = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert len({piece.id for piece in pieces}) == 1
    assert pieces[-1].choices == []
    assert pieces[-1].usage == whole.usage
    for choice in whole.choices:
        parts = [part for piece in pieces for part in piece.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + [choice.finish_reason]
        assert choice.logprobs is not None
        for field in ("tokens", "token_logprobs", "text_offset"):
            joined = [value for part in parts for value in getattr(part.logprobs, field)]
            expected = getattr(choice.logprobs, field)
            assert joined == (pytest.approx(expected, rel=1e-4) if field == "token_logprobs" else expected)


def test_a_stream_is_server_sent_events_that_end_with_done(running: Running) -> None:
    body = {"model": "rnn", "prompt": "the", "max_tokens": 5, "stream": True, "seed": 1}
    with running.client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line[6:])["object"] == "text_completion" for line in lines[:-1])


def test_a_client_that_leaves_a_stream_stops_its_text(running: Running) -> None:
    steps = 0

    def wait(*_: object) -> None:
        nonlocal steps
        steps += 1
        time.sleep(0.02)

    hook = loaded(running, "rnn").model.register_forward_hook(wait)
    body = {"model": "rnn", "prompt": "the", "max_tokens": 1000, "stream": True, "seed": 1}
    try:
        with running.client.stream("POST", "/v1/completions", json=body) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
        eventually(lambda: running.metric('lmr_unfinished_requests{worker="rnn"}') == 0, seconds=3)
        assert steps < 150
    finally:
        hook.remove()


def test_a_model_that_fails_in_a_stream_ends_it_with_an_error_event(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_hidden: object) -> object:
        raise RuntimeError("secret")

    monkeypatch.setattr(loaded(running, "rnn").model, "logits", fail)
    body = {"model": "rnn", "prompt": "the", "stream": True}
    with running.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert json.loads(lines[-1][6:])["error"]["code"] == "internal_error"
    assert "secret" not in "".join(lines)


# ---------------------------------------------------------------- embeddings


def test_embeddings_are_the_encoders_vectors(client: openai.OpenAI, running: Running) -> None:
    texts = ["the river carries cold water", "a sparrow", "glass"]
    answer = client.embeddings.create(model="rnn", input=texts, encoding_format="float")
    encoder = running.served.models["rnn"].text_encoder
    vectors = np.array([item.embedding for item in answer.data])
    np.testing.assert_allclose(vectors, encoder.encode(texts, normalize_embeddings=True), atol=1e-5)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == sum(len(encoder.tokenizer.encode(text)) for text in texts)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens


def test_forms_of_input_and_of_vectors(client: openai.OpenAI, running: Running) -> None:
    tokenizer = loaded(running, "rnn").tokenizer
    ids = tokenizer.encode("the river")
    expected = client.embeddings.create(model="rnn", input="the river", encoding_format="float").data[0].embedding
    for form in (["the river"], ids, [ids]):
        found = client.embeddings.create(model="rnn", input=form, encoding_format="float").data[0].embedding
        assert found == pytest.approx(expected, abs=1e-6)
    raw = running.client.post(
        "/v1/embeddings", json={"model": "rnn", "input": "the river", "encoding_format": "base64"}
    ).json()["data"][0]["embedding"]
    decoded = np.frombuffer(base64.b64decode(raw), dtype="<f4")
    np.testing.assert_allclose(decoded, expected, atol=1e-6)
    # the client asks for base64 itself where no form is named
    assert client.embeddings.create(model="rnn", input="the river").data[0].embedding == pytest.approx(expected)


def test_fewer_dimensions_are_the_first_ones_at_unit_length(client: openai.OpenAI) -> None:
    full = np.array(client.embeddings.create(model="rnn", input="the river").data[0].embedding)
    short = np.array(client.embeddings.create(model="rnn", input="the river", dimensions=8).data[0].embedding)
    np.testing.assert_allclose(short, full[:8] / np.linalg.norm(full[:8]), atol=1e-6)


def test_a_model_of_transformers_makes_no_embeddings(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.embeddings.create(model="gpt2", input="a")
    assert error.value.code == "not_an_encoder"


def test_vectors_of_many_clients_are_made_together_and_are_those_of_each_alone(running: Running) -> None:
    texts = [f"the river carries {'cold ' * (n % 7)}water {n}." for n in range(48)]
    alone = running.served.models["transformer"].text_encoder.encode(texts, batch_size=1)
    label = '{operation="encode",worker="transformer"}'
    before = [running.metric(f"lmr_batch_texts_{part}{label}") for part in ("sum", "count")]

    async def ask() -> list[list[float]]:
        async with httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=30) as client:
            bodies = [{"model": "transformer", "input": text} for text in texts]
            answers = await asyncio.gather(*(client.post("/v1/embeddings", json=body) for body in bodies))
            return [answer.json()["data"][0]["embedding"] for answer in answers]

    vectors = np.array(asyncio.run(ask()))
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    after = [running.metric(f"lmr_batch_texts_{part}{label}") for part in ("sum", "count")]
    assert after[0] - before[0] == 48
    assert after[1] - before[1] <= 24  # at least two to a batch on average


def test_prompt_ids_of_both_kinds_of_tokenizer(running: Running) -> None:
    for name in MODELS:
        tokenizer = loaded(running, name).tokenizer
        ids = prompt_ids(tokenizer, "the river")
        assert ids[0] == tokenizer.bos_id
        assert prompt_ids(tokenizer, ids) == ids
