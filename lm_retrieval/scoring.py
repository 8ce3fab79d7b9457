"""What a language model thinks of each token of a text, and which others it would have expected.

Shapes: B rows, T tokens, N tokens in a row, D hidden, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lm_retrieval.models import LanguageModel
from lm_retrieval.tokenizer import TextTokenizer

_BATCH_ROWS = 16
_CHUNK_SCORES = 1 << 22  # logits held at once (16 MiB in float32)
_UNFINISHED = "\ufffd"


class TokenScore(NamedTuple):
    """A token in its place.

    `log_probability` is in nats, under the unfiltered model; `top` are the likeliest tokens there with theirs, best
    first, whether or not this token is among them.
    """

    token_id: int
    log_probability: float
    top: tuple[tuple[int, float], ...] = ()


def token_score(logits: Tensor, token_id: int, *, top: int = 0) -> TokenScore:
    """The score of one token under (V,) float32 logits, with the `top` likeliest."""
    return _scores(logits[None], [token_id], top)[0]


@torch.inference_mode()
def score_tokens(model: LanguageModel, sequences: Sequence[Sequence[int]], *, top: int = 0) -> list[list[TokenScore]]:
    """Scores every token but the first of each sequence, with the `top` likeliest in its place.

    A recurrent model reads a sequence in one go; of others, what exceeds the context window is read in windows that
    start anew, as `perplexity` does unless told otherwise.
    """
    results: list[list[TokenScore]] = [[] for _ in sequences]
    pieces = [(place, piece) for place, ids in enumerate(sequences) for piece in _pieces(ids, model.context_length)]
    by_length = sorted(range(len(pieces)), key=lambda number: -len(pieces[number][1]))
    found: dict[int, list[TokenScore]] = {}
    for start in range(0, len(by_length), _BATCH_ROWS):
        numbers = by_length[start : start + _BATCH_ROWS]
        scored = _score_batch(model, [pieces[number][1] for number in numbers], top)
        found.update(zip(numbers, scored, strict=True))
    for number, (place, _) in enumerate(pieces):
        results[place] += found[number]
    return results


class GrowingText:
    """The text of tokens that come one by one; the time for one does not grow with the text.

    Attributes:
        text: of all tokens so far; an unfinished character at its end is U+FFFD.
        settled: how much of it no later token can change, in characters.
    """

    def __init__(self, tokenizer: TextTokenizer, token_ids: Sequence[int] = ()) -> None:
        """Begins with some tokens."""
        self._tokenizer, self._ids = tokenizer, list(token_ids)
        # decoding goes on from `start`; what is known are the characters before `read`
        self._start, self._read = 0, len(self._ids)
        self.text = self._known = tokenizer.decode(self._ids)
        self.settled = len(self.text)

    def add(self, token_id: int) -> str:
        """The text with one more token."""
        self._ids.append(token_id)
        window = self._tokenizer.decode(self._ids[self._start :])
        self.text = self.text[: self.settled] + window[len(self._known) :]
        if not window.endswith(_UNFINISHED):
            self.settled = len(self.text)
            self._start, self._read = self._read, len(self._ids)
            self._known = self._tokenizer.decode(self._ids[self._start : self._read])
        return self.text


def token_offsets(tokenizer: TextTokenizer, token_ids: Sequence[int]) -> list[int]:
    """Where in the decoded text each token begins, in characters.

    A token that only begins or continues a character begins where that character does.
    """
    text, offsets = GrowingText(tokenizer), []
    for token_id in token_ids:
        offsets.append(text.settled)
        text.add(token_id)
    return offsets


def _pieces(token_ids: Sequence[int], window: int | None) -> Iterator[list[int]]:
    size = window or max(1, len(token_ids) - 1)
    for start in range(0, len(token_ids) - 1, size):
        yield list(token_ids[start : start + size + 1])


def _score_batch(model: LanguageModel, pieces: list[list[int]], top: int) -> list[list[TokenScore]]:
    padded = torch.zeros(len(pieces), len(pieces[0]) - 1, dtype=torch.int64)
    for row, ids in enumerate(pieces):
        padded[row, : len(ids) - 1] = torch.tensor(ids[:-1])
    hidden = model(padded.to(model.device)).hidden  # (B, T, D)
    size = max(1, _CHUNK_SCORES // model.vocab_size)
    results = []
    for row, ids in enumerate(pieces):
        scores: list[TokenScore] = []
        for start in range(0, len(ids) - 1, size):
            end = min(start + size, len(ids) - 1)
            logits = model.logits(hidden[row, start:end])  # (N, V)
            scores += _scores(logits, ids[start + 1 : end + 1], top)
        results.append(scores)
    return results


def _scores(logits: Tensor, token_ids: Sequence[int], top: int) -> list[TokenScore]:
    """Scores of N tokens, each under its row of (N, V) logits."""
    log_probabilities = logits.log_softmax(-1)
    picked = log_probabilities.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    if not top:
        return [TokenScore(token, value) for token, value in zip(token_ids, picked, strict=True)]
    best = log_probabilities.topk(min(top, logits.shape[-1]))
    return [
        TokenScore(token, value, tuple(zip(ids, values, strict=True)))
        for token, value, ids, values in zip(
            token_ids, picked, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
