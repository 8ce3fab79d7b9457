"""Continuing text: sampling, beam search, streaming, batches.

One forward pass per new token: the LSTM carries its state, the Transformer its key/value cache. When a Transformer's
context window is full, the newest half of it is read again and generation goes on (a sliding window).

Shapes: B rows (prompts), T tokens, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lm_retrieval.errors import ConfigError
from lm_retrieval.models import LanguageModel, State
from lm_retrieval.scoring import GrowingText, TokenScore, token_score
from lm_retrieval.tokenizer import TextTokenizer, prompt_ids

FinishReason = Literal["length", "stop", "eos", "cancelled"]


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling controls, named as in transformers' GenerationConfig.

    The filters apply in this order: repetition_penalty, temperature, top_k, top_p, min_p.

    Attributes:
        max_new_tokens: most tokens to add.
        do_sample: draw from the distribution, or take the likeliest token (greedy).
        temperature: below 1 sharpens, above 1 flattens.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that reach this probability together (Holtzman et al., 2019, arXiv:1904.09751).
        min_p: keep tokens of at least this share of the likeliest one's probability (arXiv:2407.01082).
        repetition_penalty: above 1 makes tokens that have occurred less likely (Keskar et al., 2019, arXiv:1909.05858).
        num_beams: above 1 searches for the likeliest text; it cannot be combined with sampling.
        length_penalty: beams are compared by log-probability / length ** length_penalty.
        stop_strings: generation ends before the first of them.
        seed: every prompt draws from a generator of its own with this seed, so a batch equals its prompts alone.
    """

    max_new_tokens: int = 64
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    stop_strings: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for a value out of range."""
        rules = (
            (self.max_new_tokens >= 1, "max_new_tokens must be at least 1"),
            (self.temperature > 0, "temperature must be above 0; use greedy decoding for the likeliest text"),
            (self.top_k >= 0, "top_k must be 0 (off) or more"),
            (0 < self.top_p <= 1, "top_p must be above 0 and at most 1"),
            (0 <= self.min_p < 1, "min_p must be at least 0 and below 1"),
            (self.repetition_penalty > 0, "repetition_penalty must be above 0"),
            (self.num_beams >= 1, "num_beams must be at least 1"),
            (self.num_beams == 1 or not self.do_sample, "beam search cannot be combined with sampling"),
        )
        for holds, message in rules:
            if not holds:
                raise ConfigError(message)


PRESETS: dict[str, GenerationConfig] = {
    "precise": GenerationConfig(temperature=0.4, top_k=20, top_p=0.9, repetition_penalty=1.1),
    "balanced": GenerationConfig(temperature=0.8, top_k=50, top_p=0.95, repetition_penalty=1.05),
    "creative": GenerationConfig(temperature=1.1, top_k=0, top_p=0.98, min_p=0.02),
}


@dataclass(frozen=True)
class Generation:
    """What was added to one prompt.

    Attributes:
        text: the continuation, without the prompt.
        token_ids: its tokens; where a stop string cut the text, tokens up to the cut and the one that completed it.
        log_probability: sum of the tokens' natural log-probabilities under the unfiltered model.
        finish_reason: `length`, `stop` (a stop string), `eos` (the model ended the document) or `cancelled`.
        scores: of each token, and of the end mark where it ended the text, if they were asked for.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    log_probability: float
    finish_reason: FinishReason
    scores: tuple[TokenScore, ...] = ()


def generate(
    model: LanguageModel, *, tokenizer: TextTokenizer, prompts: Sequence[str], config: GenerationConfig | None = None
) -> list[Generation]:
    """Continues every prompt; results are in the order of the prompts."""
    config = config or GenerationConfig()
    if config.num_beams > 1:
        return [_beam_search(model, tokenizer, prompt, config) for prompt in prompts]
    rows = [Continuation(tokenizer, prompt, config) for prompt in prompts]
    for _ in advance(model, rows):
        pass
    return [row.result() for row in rows]


def stream(
    model: LanguageModel, *, tokenizer: TextTokenizer, prompt: str, config: GenerationConfig | None = None
) -> Iterator[str]:
    """Yields pieces of the continuation as they appear; joined, they are `generate`'s text.

    Text that could still turn into a stop string, and bytes of an unfinished character, are held back.
    """
    config = replace(config or GenerationConfig(), num_beams=1)
    row = Continuation(tokenizer, prompt, config)
    for _ in advance(model, [row]):
        if piece := row.take_text():
            yield piece
    if piece := row.take_text():
        yield piece


def filter_logits(logits: Tensor, *, config: GenerationConfig, seen: Tensor | None = None) -> Tensor:
    """Applies the sampling controls to (V,) float32 logits; excluded tokens become -inf.

    Args:
        logits: scores of the next token.
        config: which filters apply.
        seen: int64 ids that have occurred, for the repetition penalty.
    """
    scores = logits.clone()
    if config.repetition_penalty != 1.0 and seen is not None and len(seen):
        picked = scores[seen]
        scores[seen] = torch.where(picked > 0, picked / config.repetition_penalty, picked * config.repetition_penalty)
    scores /= config.temperature
    if 0 < config.top_k < len(scores):
        # exactly k tokens stay, also when scores tie
        ordered, order = scores.topk(config.top_k)
    elif config.top_p < 1:
        ordered, order = scores.sort(descending=True, stable=True)
    else:
        ordered, order = scores, None
    if config.top_p < 1:
        probabilities = ordered.softmax(0)
        before = probabilities.cumsum(0) - probabilities
        ordered = ordered.masked_fill(before >= config.top_p, -math.inf)
    if order is not None:
        scores = torch.full_like(scores, -math.inf).scatter(0, order, ordered)
    if config.min_p > 0:
        probabilities = scores.softmax(0)
        scores[probabilities < config.min_p * probabilities.max()] = -math.inf
    return scores


class Continuation:
    """One prompt on its way: its tokens, its random generator and its stopping rule.

    Attributes:
        finish_reason: None while it goes on.
        scores: of each new token, and of the end mark where it ended the text, if `top_scores` is given.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        prompt: str | Sequence[int],
        config: GenerationConfig,
        *,
        top_scores: int | None = None,
    ) -> None:
        """Begins behind `prompt`, a text or token ids; with `top_scores` tokens are kept with so many alternatives.

        Raises:
            ConfigError: the settings ask for beam search.
        """
        if config.num_beams > 1:
            raise ConfigError("beam search finds its text as a whole; it cannot be advanced token by token")
        self.tokenizer, self.config, self.top_scores = tokenizer, config, top_scores
        self.token_ids = prompt_ids(tokenizer, prompt)
        self.prompt_length = len(self.token_ids)
        self.log_probability = 0.0
        self.scores: list[TokenScore] = []
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self._taken = 0
        self._seen = set(self.token_ids)
        self._decoder = GrowingText(tokenizer, self.token_ids)
        self.prompt_text = self._decoder.text
        self.prompt = prompt if isinstance(prompt, str) else self.prompt_text
        self._generator = torch.Generator().manual_seed(config.seed)

    @property
    def new_ids(self) -> list[int]:
        """Tokens added so far."""
        return self.token_ids[self.prompt_length :]

    def choose(self, logits: Tensor) -> None:
        """Adds one token, drawn from (V,) float32 logits on the CPU."""
        seen = torch.tensor(sorted(self._seen)) if self.config.repetition_penalty != 1 else None
        if self.config.do_sample:
            scores = filter_logits(logits, config=self.config, seen=seen)
            # among those that are left: drawing from the whole vocabulary takes longer than a step of a small model
            left = scores.isfinite().nonzero()[:, 0]
            drawn = torch.multinomial(scores[left].softmax(0), 1, generator=self._generator)
            chosen = int(left[drawn])
        else:
            penalty = replace(self.config, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
            chosen = int(filter_logits(logits, config=penalty, seen=seen).argmax())
        score = token_score(logits, chosen, top=self.top_scores or 0)
        if self.top_scores is not None:
            self.scores.append(score)
        if chosen == self.tokenizer.eos_id:
            self.finish_reason = "eos"
            return
        self.log_probability += score.log_probability
        self.token_ids.append(chosen)
        self._seen.add(chosen)
        self.text = self._decoder.add(chosen)[len(self.prompt_text) :]
        cut = _first_stop(self.text, self.config.stop_strings)
        if cut is not None:
            self.text, self.finish_reason = self.text[:cut], "stop"
        elif len(self.new_ids) >= self.config.max_new_tokens:
            self.finish_reason = "length"

    def cancel(self) -> None:
        """Ends it before its next token; may be called from another thread."""
        self.finish_reason = self.finish_reason or "cancelled"

    @property
    def settled(self) -> bool:
        """Whether all of its text has been taken and no later token can change it."""
        return self.finish_reason is not None or self._taken == len(self.text)

    def take_text(self) -> str:
        """What has been added since it was last taken, as far as later tokens cannot change it."""
        text = self.text if self.finish_reason else self._settled_text()
        piece, self._taken = text[self._taken :], max(self._taken, len(text))
        return piece

    def _settled_text(self) -> str:
        text = self.text.rstrip("\ufffd")
        held = max((_overlap(text, stop) for stop in self.config.stop_strings), default=0)
        return text[: len(text) - held]

    def result(self) -> Generation:
        """What has been added so far."""
        return Generation(
            self.prompt,
            self.text,
            tuple(self.new_ids),
            self.log_probability,
            self.finish_reason or "length",
            tuple(self.scores),
        )


@torch.inference_mode()
def advance(model: LanguageModel, rows: Sequence[Continuation]) -> Iterator[None]:
    """Adds a token to each row between two yields, each under its own settings, until all have ended.

    All rows stand at the same position, so no padding is needed and a row gets the numbers it would get alone; one
    whose prompt is longer still reads while others write.
    """
    active = [row for row in rows if row.finish_reason is None]
    if not active:
        return
    position = min(row.prompt_length for row in active)
    logits, state = _read(model, [row.token_ids[:position] for row in active])
    while True:
        for row, scores in zip(active, logits.cpu(), strict=True):
            if len(row.token_ids) == position and row.finish_reason is None:
                row.choose(scores)
        yield
        going = [place for place, row in enumerate(active) if row.finish_reason is None]
        if not going:
            return
        if len(going) < len(active):
            active = [active[place] for place in going]
            state = model.select_state(state, going)
        position += 1
        logits, state = _step(model, [row.token_ids[:position] for row in active], state)


def _read(model: LanguageModel, sequences: list[list[int]]) -> tuple[Tensor, State]:
    """Reads sequences of one length: (B, V) logits of the next token and the state. Too long a prefix slides out."""
    window = model.context_length
    if window is not None and len(sequences[0]) > window:
        # what a row that had grown token by token would hold here, so that a batch equals its prompts alone
        half = max(1, window // 2)
        kept = half + (len(sequences[0]) - window - 1) % (window - half + 1)
        sequences = [sequence[-kept:] for sequence in sequences]
    output = model(torch.tensor(sequences, device=model.device))
    return model.logits(output.hidden[:, -1]), output.state


def _step(model: LanguageModel, sequences: list[list[int]], state: State) -> tuple[Tensor, State]:
    """Reads the last token of every sequence on top of `state`, or the newest half window where that is full."""
    window = model.context_length
    if window is not None and model.state_length(state) >= window:
        return _read(model, [sequence[-max(1, window // 2) :] for sequence in sequences])
    output = model(torch.tensor([sequence[-1:] for sequence in sequences], device=model.device), state)
    return model.logits(output.hidden[:, -1]), output.state


@dataclass(frozen=True)
class _Beam:
    new_ids: tuple[int, ...]
    total: float  # what beams are compared by: penalised, with the end mark
    log_probability: float  # of new_ids under the unfiltered model
    finish_reason: FinishReason | None = None

    def score(self, length_penalty: float) -> float:
        return float(self.total / max(1, len(self.new_ids)) ** length_penalty)

    def bound(self, config: GenerationConfig) -> float:
        """The best score a continuation can reach: no more is lost, and the length is the kindest one."""
        length = config.max_new_tokens if config.length_penalty > 0 else max(1, len(self.new_ids))
        return float(self.total / length**config.length_penalty)


@torch.inference_mode()
def _beam_search(model: LanguageModel, tokenizer: TextTokenizer, prompt: str, config: GenerationConfig) -> Generation:
    """Keeps the `num_beams` likeliest continuations; finished ones compete by their length-normalised score."""
    read_ids = prompt_ids(tokenizer, prompt)
    prompt_text = tokenizer.decode(read_ids)

    def continuation(beam: _Beam) -> str:
        return tokenizer.decode([*read_ids, *beam.new_ids])[len(prompt_text) :]

    beams, finished = [_Beam((), 0.0, 0.0)], list[_Beam]()
    logits, state = _read(model, [read_ids])
    for _ in range(config.max_new_tokens):
        candidates = _extend(beams, logits, config, read_ids, tokenizer.eos_id)
        beams, parents = [], []
        for parent, beam in candidates:
            if beam.finish_reason is not None:
                finished.append(beam)
            elif _first_stop(continuation(beam), config.stop_strings) is not None:
                finished.append(replace(beam, finish_reason="stop"))
            elif len(beams) < config.num_beams:
                beams.append(beam)
                parents.append(parent)
        reached = max((beam.score(config.length_penalty) for beam in finished), default=-math.inf)
        going = [place for place, beam in enumerate(beams) if beam.bound(config) > reached]
        beams, parents = [beams[place] for place in going], [parents[place] for place in going]
        if not beams:
            break
        state = model.select_state(state, parents)
        logits, state = _step(model, [[*read_ids, *beam.new_ids] for beam in beams], state)
    best = max(finished + beams, key=lambda beam: beam.score(config.length_penalty))
    text = continuation(best)
    cut = _first_stop(text, config.stop_strings)
    reason = best.finish_reason or "length"
    return Generation(prompt, text if cut is None else text[:cut], best.new_ids, best.log_probability, reason)


def _extend(
    beams: list[_Beam], logits: Tensor, config: GenerationConfig, read_ids: list[int], eos_id: int
) -> list[tuple[int, _Beam]]:
    """The likeliest one-token extensions of all beams, best first, with the place of the beam each came from."""
    extensions: list[tuple[int, _Beam]] = []
    penalty = replace(config, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    for place, (beam, scores) in enumerate(zip(beams, logits.cpu(), strict=True)):
        seen = torch.tensor(sorted({*read_ids, *beam.new_ids}))
        plain = scores.log_softmax(0)
        log_probabilities = filter_logits(scores, config=penalty, seen=seen).log_softmax(0)
        top = log_probabilities.topk(min(2 * config.num_beams, len(scores)))
        for value, token_id in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            total = beam.total + value
            if token_id == eos_id:
                extensions.append((place, _Beam(beam.new_ids, total, beam.log_probability, "eos")))
            else:
                plain_total = beam.log_probability + float(plain[token_id])
                extensions.append((place, _Beam((*beam.new_ids, token_id), total, plain_total)))
    extensions.sort(key=lambda item: -item[1].total)
    return extensions[: 2 * config.num_beams]


def _first_stop(text: str, stop_strings: Sequence[str]) -> int | None:
    places = [text.find(stop) for stop in stop_strings if stop]
    found = [place for place in places if place >= 0]
    return min(found) if found else None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
