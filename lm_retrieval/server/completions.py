"""OpenAI's completions: what to write and to score for a request, and how to show it, whole or piece by piece."""

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NamedTuple

from fastapi import Request

from lm_retrieval.generation import Continuation, FinishReason, GenerationConfig
from lm_retrieval.scoring import TokenScore, token_offsets
from lm_retrieval.server.errors import ApiError, as_api_error, too_large
from lm_retrieval.server.schemas.generation import sampling
from lm_retrieval.server.schemas.openai import Completion, CompletionChoice, CompletionRequest, LogProbs, Usage
from lm_retrieval.server.served import ServedModel
from lm_retrieval.server.settings import Limits
from lm_retrieval.server.texts import Text
from lm_retrieval.server.waiting import out_of_time, results, submitted, until_gone
from lm_retrieval.tokenizer import TextTokenizer, prompt_ids

SEED_BITS = 31


def as_texts(prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]) -> list[Text]:
    """OpenAI's four ways of giving texts as a list of texts, each a string or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [[int(token_id) for token_id in prompt]]  # type: ignore[arg-type]
    return list(prompt)  # type: ignore[arg-type]


class _Prompt(NamedTuple):
    """A prompt as it is shown and as it is read."""

    text: str
    token_ids: list[int]


class CompletionJob:
    """One request for completions, from submission to answer.

    Attributes:
        id: of the answer.
        created: Unix time.
    """

    def __init__(
        self, asked: CompletionRequest, model: ServedModel, prompts: Sequence[Text], token_ids: Sequence[list[int]]
    ) -> None:
        """Hands the work to the model; to be called in the event loop.

        Raises:
            ApiError: the model is overloaded (429), or is not ready (503).
        """
        self.asked, self.model = asked, model
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._tokenizer: TextTokenizer = model.language_model.tokenizer
        self._seed = secrets.randbits(SEED_BITS) if asked.seed is None else asked.seed
        self._prompts = [
            _Prompt(given if isinstance(given, str) else self._tokenizer.decode(ids), ids)
            for given, ids in zip(prompts, token_ids, strict=True)
        ]
        self._rows = self._continuations() if asked.max_tokens else []
        self._shown = [_Shown(prompt, self._tokenizer, asked) for prompt in self._prompts for _ in range(asked.n)]
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[_Progress | None] = asyncio.Queue()
        self._told = [0] * len(self._rows)
        self._scoring: list[Future[Any]] = []
        self._writing: list[Future[Any]] = []
        self._submit()

    async def whole(self, request: Request, *, seconds: float) -> Completion:
        """The answer in one piece.

        Raises:
            ApiError: the client left, or the time is up.
        """
        found = await results(request, [*self._scoring, *self._writing], seconds=seconds)
        self._echo(found[0] if self._scoring else None)
        reasons: list[FinishReason] = ["length"] * len(self._shown)
        for index, row in enumerate(self._rows):
            reasons[index] = row.finish_reason or "length"
            self._shown[index].add(row.take_text(), row.scores, reasons[index])
        choices = [_choice(shown, index, reasons[index]) for index, shown in enumerate(self._shown)]
        return self._completion(choices, self._usage())

    async def pieces(self, request: Request, *, seconds: float) -> AsyncIterator[str]:
        """The answer as server-sent events; when the client leaves, nothing more is written."""
        gone = asyncio.create_task(until_gone(request))
        gone.add_done_callback(lambda _: self._cancel())
        try:
            async for completion in self._chunks(request, seconds):
                yield _event(completion.model_dump(mode="json"))
            yield "data: [DONE]\n\n"
        except TimeoutError:
            yield _event(out_of_time(seconds).body)
        except Exception as error:
            # the status has been sent: the error is an event
            yield _event(as_api_error(error).body)
        finally:
            gone.cancel()
            self._cancel()

    async def _chunks(self, request: Request, seconds: float) -> AsyncIterator[Completion]:
        until = self._loop.time() + seconds
        if self.asked.echo:
            found = await results(request, self._scoring, seconds=seconds)
            self._echo(found[0] if found else None)
            for index, shown in enumerate(self._shown):
                yield self._completion([_choice(shown, index, None if self._rows else "length")])
        while self._writing and (event := await self._next_event(until)) is not None:
            index, text, scores, reason = event
            self._shown[index].add(text, scores, reason)
            yield self._completion([_choice(self._shown[index], index, reason)])
        for future in self._writing:
            if not future.cancelled():
                future.result()
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            yield self._completion([], self._usage())

    async def _next_event(self, until: float) -> "_Progress | None":
        async with asyncio.timeout_at(until):
            return await self._events.get()

    def _submit(self) -> None:
        submissions: list[Callable[[], Future[Any]]] = []
        if self.asked.echo and self.asked.logprobs is not None:
            read = [prompt_ids(self._tokenizer, prompt.token_ids) for prompt in self._prompts]
            submissions.append(partial(self.model.score, read, top=self.asked.logprobs))
        if self._rows:
            listener = self._listen if self.asked.stream else None
            submissions.append(partial(self.model.write, self._rows, listener=listener))
        futures = submitted(submissions)
        if self._rows:
            self._writing = [futures.pop()]
            self._writing[0].add_done_callback(lambda _: self._tell(None))
        self._scoring = futures

    def _listen(self, place: int, row: Continuation) -> None:
        """Called in the worker's thread: passes on what a text has grown by."""
        text = row.take_text()
        # tokens of text that a stop string may still cut off wait with it
        scores = row.scores[self._told[place] :] if row.settled else []
        if text or row.finish_reason is not None:
            self._told[place] += len(scores)
            self._tell((place, text, scores, row.finish_reason))

    def _tell(self, progress: "_Progress | None") -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._events.put_nowait, progress)

    def _cancel(self) -> None:
        for future in (*self._scoring, *self._writing):
            future.cancel()

    def _echo(self, scores: list[list[TokenScore]] | None) -> None:
        """Begins each text with its prompt, where that was asked for."""
        if self.asked.echo:
            for index, shown in enumerate(self._shown):
                shown.add_prompt([] if scores is None else scores[index // self.asked.n])

    def _continuations(self) -> list[Continuation]:
        return [
            Continuation(
                self._tokenizer,
                prompt.token_ids,
                self._config(self._seed + number),
                top_scores=self.asked.logprobs,
            )
            for prompt in self._prompts
            for number in range(self.asked.n)
        ]

    def _config(self, seed: int) -> GenerationConfig:
        asked = self.asked
        return sampling(
            max_new_tokens=asked.max_tokens,
            temperature=asked.temperature,
            stop=asked.stop,
            seed=seed % 2**63,
            top_k=asked.top_k,
            top_p=asked.top_p,
            min_p=asked.min_p,
            repetition_penalty=asked.repetition_penalty,
        )

    def _completion(self, choices: list[CompletionChoice], usage: Usage | None = None) -> Completion:
        return Completion(id=self.id, created=self.created, model=self.model.name, choices=choices, usage=usage)

    def _usage(self) -> Usage:
        read = sum(len(prompt.token_ids) for prompt in self._prompts)
        written = sum(len(row.new_ids) for row in self._rows)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


_Progress = tuple[int, str, list[TokenScore], FinishReason | None]
"""A text's number, what it has grown by, the scores of its new tokens, and why it has ended."""


class _Shown:
    """The text of one choice as far as it has been made, and the part of it that has not been shown."""

    def __init__(self, prompt: _Prompt, tokenizer: TextTokenizer, asked: CompletionRequest) -> None:
        self._prompt, self._tokenizer, self._asked = prompt, tokenizer, asked
        self._ids = list(prompt.token_ids)  # offsets of new tokens need what stands before them
        self._length = len(prompt.text) if asked.echo else 0
        # a tokenizer may decode the prompt to another text than was sent
        self._shift = self._length - len(tokenizer.decode(prompt.token_ids))
        self._text: list[str] = []
        self._scores: list[tuple[int, TokenScore | None]] = []

    def add_prompt(self, scores: list[TokenScore]) -> None:
        """The prompt itself; a begin mark that was sent with it has no score, nothing having come before it."""
        self._text.append(self._prompt.text)
        if self._asked.logprobs is None:
            return
        offsets = token_offsets(self._tokenizer, self._prompt.token_ids)
        unscored = len(offsets) - len(scores)
        padded: list[TokenScore | None] = [*([None] * unscored), *scores]
        self._scores += zip(offsets, padded, strict=True)

    def add(self, text: str, scores: Sequence[TokenScore], reason: FinishReason | None) -> None:
        """What was written behind it. Tokens that a stop string cut off are not shown."""
        self._text.append(text)
        self._length += len(text)
        if self._asked.logprobs is None or not scores:
            return
        known = len(self._ids)
        self._ids += [score.token_id for score in scores]
        offsets = token_offsets(self._tokenizer, self._ids)[known:]
        for offset, score in zip(offsets, scores, strict=True):
            if reason != "stop" or offset + self._shift < self._length:
                self._scores.append((offset + self._shift, score))

    def take(self) -> tuple[str, LogProbs | None]:
        """What has not been shown yet."""
        text, self._text = "".join(self._text), []
        scores, self._scores = self._scores, []
        if self._asked.logprobs is None:
            return text, None
        unscored = iter(self._prompt.token_ids)  # only tokens at the start of the prompt have no score
        found = LogProbs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for offset, score in scores:
            first = offset == 0 and (self._asked.echo or not self._prompt.text)
            token_id = next(unscored) if score is None else score.token_id
            token = self._token_text(token_id, first)
            found.tokens.append(token)
            found.text_offset.append(offset)
            found.token_logprobs.append(None if score is None else score.log_probability)
            found.top_logprobs.append(None if score is None else self._top(score, token, first))
        return text, found

    def _top(self, score: TokenScore, token: str, first: bool) -> dict[str, float]:
        """The likeliest tokens and this one; of two that look alike the likelier stays."""
        found = {token: score.log_probability}
        for token_id, value in score.top:
            name = self._token_text(token_id, first)
            found[name] = max(value, found.get(name, value))
        return found

    def _token_text(self, token_id: int, first: bool) -> str:
        text = self._tokenizer.token_text(token_id)
        # a tokenizer that marks words by the space before them marks the first one too
        return text[1:] if first and text.startswith(" ") and not self._prompt.text.startswith(" ") else text


def check_amount(asked: CompletionRequest, prompts: int, limits: Limits) -> None:
    """Raises ApiError for more tokens (422) or texts (413) than may be asked for."""
    check_new_tokens(asked.max_tokens, limits)
    if prompts * asked.n > limits.max_texts:
        raise too_large(f"{prompts} prompts times n = {asked.n}; at most {limits.max_texts} texts can be asked for")


def check_new_tokens(count: int, limits: Limits) -> None:
    """Raises ApiError (422) for more new tokens than may be asked for."""
    if count > limits.max_new_tokens:
        raise ApiError(
            422, "too_many_tokens", f"max_tokens is {count}; at most {limits.max_new_tokens} can be asked for"
        )


def _choice(shown: _Shown, index: int, reason: FinishReason | None) -> CompletionChoice:
    ended: Literal["stop", "length"] | None = {"stop": "stop", "eos": "stop", None: None}.get(reason, "length")
    text, logprobs = shown.take()
    return CompletionChoice(text=text, index=index, logprobs=logprobs, finish_reason=ended)


def _event(value: object) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
