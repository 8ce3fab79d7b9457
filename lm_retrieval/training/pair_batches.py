"""Batches of pairs for contrastive training.

Shapes: B pairs, N hard negatives of a pair, T tokens, D dimensions of a teacher, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lm_retrieval.artifacts import sha256_bytes
from lm_retrieval.corpus.pairs import Pair
from lm_retrieval.errors import TrainingError
from lm_retrieval.tokenizer import Tokenizer

TokenIds = NDArray[np.integer]
_SORT_BATCHES = 16  # so many batches' worth of pairs are sorted by length together


class PairBatch(NamedTuple):
    """Queries and documents of one step, padded on the right with 0."""

    query_ids: Tensor
    """(B, T) int64."""
    query_lengths: Tensor
    """(B,) int64."""
    document_ids: Tensor
    """(B·(1 + N), T) int64: the positives, then each pair's negatives."""
    document_lengths: Tensor
    """(B·(1 + N),) int64."""
    queries: Tensor
    """(B,) int64: equal numbers are the same query."""
    documents: Tensor
    """(B·(1 + N),) int64: equal numbers are the same document."""
    query_targets: Tensor
    """(B, D) float32 teacher vectors; (B, 0) without a teacher."""
    document_targets: Tensor
    """(B, D) float32 teacher vectors of the positives."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "PairBatch":
        """The same batch on another device."""
        return PairBatch(*(part.to(device, non_blocking=non_blocking) for part in self))


class TokenizedPairs:
    """Pairs as token ids, with the teacher's vectors where there is one.

    Attributes:
        fingerprint: SHA-256 of everything a batch is made of.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        tokenizer: Tokenizer,
        max_length: int,
        query_targets: NDArray[np.floating] | None = None,
        document_targets: NDArray[np.floating] | None = None,
    ) -> None:
        """Tokenizes; texts are cut after `max_length` tokens. Every pair needs as many negatives as the first."""
        dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32

        def encode(text: str) -> TokenIds:
            return np.asarray(tokenizer.encode(text)[:max_length], dtype)

        self.queries = [encode(pair.query) for pair in pairs]
        self.positives = [encode(pair.positive) for pair in pairs]
        self.negatives = [[encode(text) for text in pair.negatives] for pair in pairs]
        self.query_numbers = _numbers(pair.query for pair in pairs)
        self.documents = _numbers(pair.document for pair in pairs)
        self.sources = _numbers(pair.source for pair in pairs)
        empty = np.zeros((len(pairs), 0), np.float16)
        self.query_targets = empty if query_targets is None else query_targets
        self.document_targets = empty if document_targets is None else document_targets
        self.fingerprint = sha256_bytes(
            *(ids.tobytes() for group in (self.queries, self.positives, *self.negatives) for ids in group),
            *(part.tobytes() for part in (self.documents, self.sources)),
            self.query_targets.tobytes(),
            self.document_targets.tobytes(),
        )

    def __len__(self) -> int:
        return len(self.queries)

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: millions of small arrays are sent as a few large ones."""
        negatives = [text for group in self.negatives for text in group]
        dtype = self.queries[0].dtype if self.queries else np.dtype(np.uint16)
        return vars(self) | {
            "queries": _flat(self.queries, dtype),
            "positives": _flat(self.positives, dtype),
            "negatives": (*_flat(negatives, dtype), np.cumsum([len(group) for group in self.negatives])),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        *flat, groups = state["negatives"]
        negatives = _unflat(*flat)
        vars(self).update(state)
        self.queries, self.positives = _unflat(*state["queries"]), _unflat(*state["positives"])
        self.negatives = [negatives[first:last] for first, last in pairwise([0, *groups.astype(int).tolist()])]


class PairBatches:
    """Pairs in batches of one source and like length, in another order each epoch.

    Position (epoch, step) alone decides a batch, also which tokens are dropped: resuming is exact.
    """

    def __init__(
        self, pairs: TokenizedPairs, *, batch_size: int, seed: int, token_dropout: float = 0.0, multiple_of: int = 1
    ) -> None:
        """Raises TrainingError when there are too few pairs for one batch."""
        self.pairs, self.seed, self.token_dropout = pairs, seed, token_dropout
        self.batch_size = min(batch_size, len(pairs))
        self.batch_size -= self.batch_size % multiple_of
        if self.batch_size < 2:
            raise TrainingError(f"only {len(pairs)} pairs to learn from; contrastive training needs more text")
        self._lengths = np.fromiter(map(len, pairs.positives), np.int64, len(pairs))
        self._groups = _groups(pairs.sources, self.batch_size)
        self.steps_per_epoch = sum(len(group) // self.batch_size for group in self._groups)
        tokens = self._lengths.sum() + sum(map(len, pairs.queries))
        self.tokens_per_step = max(1, round(int(tokens) / len(pairs) * self.batch_size))

    def batch(self, epoch: int, step: int, *, parts: int = 1) -> list[PairBatch]:
        """The batch of a step, as `parts` batches of equally many pairs."""
        rows = self._plan(epoch)[step]
        texts = self._texts(rows)
        if self.token_dropout:
            # drawn for the whole batch: how many parts it is worked through in changes nothing
            generator = np.random.default_rng((self.seed, epoch, step))
            texts = [[_dropped(ids, self.token_dropout, generator) for ids in group] for group in texts]
        size = len(rows) // parts
        return [self._part(rows, texts, slice(first, first + size)) for first in range(0, len(rows), size)]

    def gather(self, rows: NDArray[np.int64]) -> PairBatch:
        """The batch of some pairs, with all their tokens."""
        return self._part(rows, self._texts(rows), slice(None))

    def _texts(self, rows: NDArray[np.int64]) -> list[list[TokenIds]]:
        """Queries, positives, and the negatives of one pair after the other."""
        pairs = self.pairs
        negatives = [text for row in rows for text in pairs.negatives[row]]
        return [[pairs.queries[row] for row in rows], [pairs.positives[row] for row in rows], negatives]

    def _part(self, rows: NDArray[np.int64], texts: list[list[TokenIds]], places: slice) -> PairBatch:
        """Some of the pairs of a batch, whose texts are given."""
        pairs, (queries, positives, negatives) = self.pairs, texts
        borders = np.cumsum([0, *(len(pairs.negatives[row]) for row in rows)])
        own = range(len(rows))[places]
        documents = positives[places] + negatives[borders[own.start] : borders[own.stop]]
        rows = rows[places]
        # a negative is nobody's positive, as far as is known
        numbers = np.concatenate((pairs.documents[rows], np.full(len(documents) - len(rows), -1)))
        return PairBatch(
            *_padded(queries[places]),
            *_padded(documents),
            torch.from_numpy(pairs.query_numbers[rows]),
            torch.from_numpy(numbers),
            torch.from_numpy(pairs.query_targets[rows].astype(np.float32)),
            torch.from_numpy(pairs.document_targets[rows].astype(np.float32)),
        )

    @lru_cache(maxsize=2)  # noqa: B019 - lives as long as the run
    def _plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """The rows of every batch of an epoch."""
        generator = np.random.default_rng((self.seed, epoch))
        batches: list[NDArray[np.int64]] = []
        for group in self._groups:
            order = generator.permutation(group)[: len(group) // self.batch_size * self.batch_size]
            block = self.batch_size * _SORT_BATCHES
            for start in range(0, len(order), block):
                part = order[start : start + block]
                part = part[np.argsort(self._lengths[part], kind="stable")]
                batches += np.split(part, len(part) // self.batch_size)
        return [batches[place] for place in generator.permutation(len(batches))]


def _padded(texts: Sequence[TokenIds]) -> tuple[Tensor, Tensor]:
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    padded = np.zeros((len(texts), max(1, int(lengths.max()))), np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(texts)
    return torch.from_numpy(padded), torch.from_numpy(lengths)


def _flat(texts: Sequence[TokenIds], dtype: np.dtype[np.integer]) -> tuple[TokenIds, NDArray[np.int64]]:
    """All ids in one row, and where each text ends."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    return np.concatenate([np.zeros(0, dtype), *texts]), np.cumsum(lengths)


def _unflat(ids: TokenIds, ends: NDArray[np.int64]) -> list[TokenIds]:
    return [ids[first:last] for first, last in pairwise([0, *ends.tolist()])]


def _numbers(names: Iterable[str]) -> NDArray[np.int64]:
    numbers: dict[str, int] = {}
    return np.asarray([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def _groups(sources: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Rows by source; sources too small for a batch of their own are put together."""
    groups = [np.flatnonzero(sources == source) for source in np.unique(sources)]
    large = [group for group in groups if len(group) >= batch_size]
    small = np.concatenate([np.zeros(0, np.int64), *(group for group in groups if len(group) < batch_size)])
    if len(small) >= batch_size:
        large.append(small)
    elif len(small) and large:  # too few for a batch: they join the smallest of the others
        large.sort(key=len)
        large[0] = np.concatenate((large[0], small))
    return large or [np.arange(len(sources))]


def _dropped(ids: TokenIds, rate: float, generator: np.random.Generator) -> TokenIds:
    kept = ids[generator.random(len(ids)) >= rate]
    return kept if len(kept) else ids
