"""How well a language model predicts text: perplexity per token and word, bits per byte and character.

Definitions follow lm-evaluation-harness: likelihoods are summed over the whole corpus, words are what splitting at
white space gives, bytes are UTF-8. Every token of a document is scored once; the begin mark is context only.

Shapes: B windows, T tokens.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch

from lm_retrieval.errors import ConfigError, CorpusError
from lm_retrieval.models import LanguageModel, State, detach_state
from lm_retrieval.tokenizer import TextTokenizer

Context = Literal["carried", "disjoint", "strided"]
DEFAULT_WINDOW = 256


@dataclass(frozen=True)
class PerplexityReport:
    """Sums over the whole corpus and the figures that follow from them.

    Attributes:
        nll: negative log-likelihood of all tokens, in nats.
        context: `carried` (recurrent state goes on through a document), `disjoint` (every window starts anew) or
            `strided` (windows overlap, so that tokens have at least `window - stride` tokens of context).
        window: tokens read at once.
        stride: tokens by which windows move on; equal to `window` unless strided.
    """

    nll: float
    tokens: int
    words: int
    characters: int
    bytes: int
    documents: int
    context: Context
    window: int
    stride: int

    @property
    def perplexity(self) -> float:
        """Exp of nats per token; comparable only between models with the same tokenizer."""
        return math.exp(self.nll / self.tokens)

    @property
    def word_perplexity(self) -> float:
        """Exp of nats per word."""
        return math.exp(min(700.0, self.nll / self.words))

    @property
    def byte_perplexity(self) -> float:
        """Exp of nats per byte."""
        return math.exp(self.nll / self.bytes)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between all models and tokenizers."""
        return self.nll / (self.bytes * math.log(2))

    @property
    def bits_per_character(self) -> float:
        """As bits_per_byte, over Unicode characters."""
        return self.nll / (self.characters * math.log(2))

    def to_dict(self) -> dict[str, float | int | str]:
        """Every figure by name."""
        names = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "bits_per_character")
        return {name: float(getattr(self, name)) for name in names} | asdict(self)


def perplexity(
    model: LanguageModel,
    *,
    tokenizer: TextTokenizer,
    texts: Iterable[str],
    context: Context | None = None,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
) -> PerplexityReport:
    """Scores whole documents. The figures do not depend on `batch_size`.

    Args:
        model: any language model; it is put into evaluation mode.
        tokenizer: the model's own.
        texts: one string per document; documents share no context.
        context: `carried` by default for recurrent models, `disjoint` for others.
        window: tokens read at once; by default the model's context window, or 256.
        stride: for `strided`; half a window by default.
        batch_size: windows (or documents, when carried) read side by side.

    Raises:
        ConfigError: a window, stride or context that the model cannot use.
        CorpusError: no tokens to score.
    """
    context = context or ("carried" if model.recurrent else "disjoint")
    window, stride = _check(model, context, window, stride)
    model.eval()
    tally = _Tally(tokenizer)
    if context == "carried":
        _score_carried(model, tally, texts, window, batch_size)
    else:
        _score_windows(model, tally, texts, window, stride, batch_size)
    if not tally.tokens:
        raise CorpusError("no text to score; check that the files are not empty")
    return PerplexityReport(
        nll=tally.nll,
        tokens=tally.tokens,
        words=tally.words,
        characters=tally.characters,
        bytes=tally.bytes,
        documents=tally.documents,
        context=context,
        window=window,
        stride=stride,
    )


def total(reports: Sequence[PerplexityReport]) -> PerplexityReport:
    """The report over all documents of several reports that were made alike.

    Raises:
        CorpusError: there is no report.
    """
    if not reports:
        raise CorpusError("no text to score; give at least one")
    names = ("nll", "tokens", "words", "characters", "bytes", "documents")
    return replace(reports[0], **{name: sum(getattr(report, name) for report in reports) for name in names})


def _check(model: LanguageModel, context: Context, window: int | None, stride: int | None) -> tuple[int, int]:
    window = window or model.context_length or DEFAULT_WINDOW
    if window < 1:
        raise ConfigError(f"window {window} must be at least 1 token")
    if model.context_length is not None and window > model.context_length:
        raise ConfigError(f"window {window} exceeds the model's context window of {model.context_length} tokens")
    if context == "carried" and not model.recurrent:
        raise ConfigError("context 'carried' needs a recurrent model; use disjoint or strided")
    if context != "strided":
        return window, window
    stride = stride or max(1, window // 2)
    if not 1 <= stride <= window:
        raise ConfigError(f"stride {stride} must be between 1 and the window of {window} tokens")
    return window, stride


class _Tally:
    """Adds up likelihoods and text sizes."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.nll = 0.0
        self.tokens = self.words = self.characters = self.bytes = self.documents = 0

    def open(self, text: str) -> list[int]:
        """Counts a document and returns its ids after the begin mark."""
        token_ids = self.tokenizer.encode(text)
        self.documents += 1
        self.tokens += len(token_ids)
        self.characters += len(text)
        self.bytes += len(text.encode(errors="surrogatepass"))
        self.words += len(re.split(r"\s+", text)) if text else 0
        return [self.tokenizer.bos_id, *token_ids]


def _score_windows(
    model: LanguageModel, tally: _Tally, texts: Iterable[str], window: int, stride: int, batch_size: int
) -> None:
    batch: list[tuple[list[int], int]] = []
    for text in texts:
        for piece in _windows(tally.open(text), window, stride):
            batch.append(piece)
            if len(batch) == batch_size:
                tally.nll += _window_nll(model, batch)
                batch.clear()
    if batch:
        tally.nll += _window_nll(model, batch)


def _windows(token_ids: Sequence[int], window: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """Yields (ids, scored): a window of `len(ids) - 1` inputs, of whose targets the last `scored` count."""
    scored_to = 0
    last = len(token_ids) - 1
    start = 0
    while scored_to < last:
        end = min(start + window, last)
        yield list(token_ids[start : end + 1]), end - scored_to
        scored_to = end
        start += stride


@torch.inference_mode()
def _window_nll(model: LanguageModel, batch: list[tuple[list[int], int]]) -> float:
    longest = max(len(token_ids) for token_ids, _ in batch)
    padded = torch.zeros(len(batch), longest, dtype=torch.int64)
    scored = torch.zeros(len(batch), longest - 1, dtype=torch.bool)
    for row, (token_ids, count) in enumerate(batch):
        padded[row, : len(token_ids)] = torch.tensor(token_ids)
        scored[row, len(token_ids) - 1 - count : len(token_ids) - 1] = True
    padded, scored = padded.to(model.device), scored.to(model.device)
    hidden = model(padded[:, :-1]).hidden  # (B, T, D)
    return float(model.nll(hidden[scored], padded[:, 1:][scored]).double().sum())


def _score_carried(model: LanguageModel, tally: _Tally, texts: Iterable[str], window: int, batch_size: int) -> None:
    batch: list[list[int]] = []
    for text in texts:
        batch.append(tally.open(text))
        if len(batch) == batch_size:
            tally.nll += _carried_nll(model, batch, window)
            batch.clear()
    if batch:
        tally.nll += _carried_nll(model, batch, window)


@torch.inference_mode()
def _carried_nll(model: LanguageModel, documents: list[list[int]], window: int) -> float:
    """Walks documents side by side, longest first; those that have ended leave the batch."""
    documents = sorted((ids for ids in documents if len(ids) > 1), key=len, reverse=True)
    total, state, start = 0.0, None, 0
    while documents:
        pieces = [(ids[start : start + window + 1], min(window, len(ids) - 1 - start)) for ids in documents]
        longest = len(pieces[0][0])
        padded = torch.zeros(len(pieces), longest, dtype=torch.int64)
        scored = torch.zeros(len(pieces), longest - 1, dtype=torch.bool)
        for row, (token_ids, count) in enumerate(pieces):
            padded[row, : len(token_ids)] = torch.tensor(token_ids)
            scored[row, :count] = True
        padded, scored = padded.to(model.device), scored.to(model.device)
        output = model(padded[:, :-1], state)
        total += float(model.nll(output.hidden[scored], padded[:, 1:][scored]).double().sum())
        start += window
        going = [row for row, ids in enumerate(documents) if len(ids) - 1 > start]
        documents = [documents[row] for row in going]
        state = _keep(model, output.state, going)
    return total


def _keep(model: LanguageModel, state: State, rows: list[int]) -> State | None:
    return detach_state(model.select_state(state, rows)) if rows else None
