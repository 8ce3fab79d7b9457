"""Texts that several models write side by side, as far as they have come."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lm_retrieval.generation import Continuation, Generation, GenerationConfig
from lm_retrieval.server.errors import as_api_error
from lm_retrieval.server.served import Served, ServedModel
from lm_retrieval.server.texts import token_ids_of
from lm_retrieval.server.waiting import out_of_time

_SHOW_SECONDS = 0.08  # between two pictures of what has been written
_STEPS = {"length": "length", "stop": "stop", "eos": "end", "cancelled": "stopped"}


@dataclass
class Written:
    """What one model has made of a prompt.

    Attributes:
        first_token_seconds: from asking to the first new text; None before it.
        seconds: from asking to now, or to the end.
        ended: `end` (of the document), `length`, `stop`, `stopped` (by the user), `problem`, or empty while it goes on.
        perplexity: of prompt and text under each model, per token; bits_per_byte the same, comparable between models.
        problem: why there is no text.
    """

    model: str
    text: str = ""
    tokens: int = 0
    first_token_seconds: float | None = None
    seconds: float = 0.0
    ended: str = ""
    problem: str = ""
    perplexity: dict[str, float] = field(default_factory=dict)
    bits_per_byte: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of writing, reading the prompt left out; None before the second token."""
        if self.first_token_seconds is None or self.tokens < 2 or self.seconds <= self.first_token_seconds:
            return None
        return (self.tokens - 1) / (self.seconds - self.first_token_seconds)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"tokens_per_second": self.tokens_per_second}


async def write_side_by_side(
    served: Served, names: Sequence[str], prompt: str, config: GenerationConfig
) -> AsyncIterator[list[Written]]:
    """Yields what the models have written so far, again and again until all have ended, then with perplexities.

    Whoever stops listening stops the models.
    """
    texts = [Written(name) for name in names]
    running: list[tuple[Written, Future[list[Generation]]]] = []
    started = time.perf_counter()
    limit = served.settings.limits.request_seconds
    try:
        for text in texts:
            try:
                running.append((text, await _begin(served, text, prompt, config, started)))
            except Exception as error:
                _fail(text, error)
        while not all(future.done() for _, future in running) and time.perf_counter() - started < limit:
            yield _copies(texts, started)
            await asyncio.sleep(_SHOW_SECONDS)
        for text, future in running:
            future.cancel()  # changes nothing where it is done
            problem = out_of_time(limit) if future.cancelled() else future.exception()
            if problem is not None:
                _fail(text, problem)
        yield _copies(texts, started)
        await _add_perplexities(served, prompt, texts)
        yield _copies(texts, started)
    finally:
        for _, future in running:
            future.cancel()


async def write_one(served: Served, model: ServedModel, prompt: str, config: GenerationConfig) -> Generation:
    """One text, whole.

    Raises:
        ApiError: what an endpoint would answer.
    """
    row = await _continuation(served, model, prompt, config)
    future = model.write([row])
    try:
        return (await asyncio.wait_for(asyncio.wrap_future(future), served.settings.limits.request_seconds))[0]
    except TimeoutError:
        raise out_of_time(served.settings.limits.request_seconds) from None
    finally:
        future.cancel()


async def _begin(
    served: Served, text: Written, prompt: str, config: GenerationConfig, started: float
) -> Future[list[Generation]]:
    model = served.model(text.model)
    row = await _continuation(served, model, prompt, config)

    def listen(_: int, row: Continuation) -> None:
        """In the model's thread: what has been written so far."""
        if text.problem:
            return
        now = time.perf_counter() - started
        if text.first_token_seconds is None:
            text.first_token_seconds = now
        text.text += row.take_text()
        text.tokens, text.seconds = len(row.token_ids) - row.prompt_length, now
        text.ended = "" if row.finish_reason is None else _STEPS[row.finish_reason]

    return model.write([row], listener=listen)


async def _continuation(served: Served, model: ServedModel, prompt: str, config: GenerationConfig) -> Continuation:
    tokenizer = model.language_model.tokenizer
    (token_ids,) = await token_ids_of(tokenizer, [prompt], limits=served.settings.limits, allow_empty=True)
    return Continuation(tokenizer, token_ids, config)


async def _add_perplexities(served: Served, prompt: str, texts: list[Written]) -> None:
    """How well each model predicts each text: the prompt and what stands behind it."""
    for text in texts:
        whole = prompt + text.text
        if text.problem or not whole.strip():
            continue
        for judge in (served.model(other.model) for other in texts if not other.problem):
            try:
                scored = judge.perplexity([whole], tokens=[max(1, len(whole) // 4)])
                (report,) = await asyncio.wait_for(asyncio.wrap_future(scored), served.settings.limits.request_seconds)
            except Exception as error:
                as_api_error(error)  # logged; the text itself is worth showing without it
                continue
            text.perplexity[judge.name] = report.perplexity
            text.bits_per_byte[judge.name] = report.bits_per_byte


def _fail(text: Written, error: BaseException) -> None:
    text.problem, text.ended = as_api_error(error).message, "problem"


def _copies(texts: list[Written], started: float) -> list[Written]:
    now = time.perf_counter() - started
    return [replace(text, seconds=text.seconds if text.ended else now) for text in texts]
