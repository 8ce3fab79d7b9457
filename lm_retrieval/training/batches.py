"""From documents to training batches: one long token stream on disk, read as rows of segments.

Shapes: B rows, T tokens of a segment.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lm_retrieval.artifacts import sha256_bytes, storage_errors
from lm_retrieval.errors import TrainingError
from lm_retrieval.records import Document
from lm_retrieval.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenStream:
    """Documents as one row of ids, each `begin … end`, memory-mapped from disk.

    Attributes:
        token_ids: (N,) uint16 or uint32.
        text_bytes: UTF-8 size of the text it was made of.
        fingerprint: SHA-256 of the ids.
    """

    token_ids: NDArray[np.unsignedinteger]
    text_bytes: int
    documents: int
    fingerprint: str


class StreamWriter:
    """Writes a token stream document by document; memory does not grow with the corpus."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self.path, self.tokenizer = path, tokenizer
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        self.text_bytes = self.documents = 0
        self._digest = hashlib.sha256()
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("wb")

    def write(self, text: str) -> None:
        """Appends one document."""
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(text), self.tokenizer.eos_id]
        data = np.asarray(ids, dtype=self.dtype).tobytes()
        with storage_errors(self.path):
            self._stream.write(data)
        self._digest.update(data)
        self.text_bytes += len(text.encode(errors="replace"))
        self.documents += 1

    def close(self) -> TokenStream:
        """Ends writing and opens the stream for reading."""
        with storage_errors(self.path):
            self._stream.close()
            empty = self.path.stat().st_size == 0
            ids = np.zeros(0, self.dtype) if empty else np.memmap(self.path, dtype=self.dtype, mode="r")
        return TokenStream(ids, self.text_bytes, self.documents, self._digest.hexdigest())


def split_documents(
    documents: Iterable[Document], *, tokenizer: Tokenizer, folder: Path, validation_fraction: float
) -> tuple[TokenStream, TokenStream]:
    """Writes a training and a held-out stream; a document goes to one of them by the hash of its id.

    Where too few documents exist for that, the end of the stream is held out instead.
    """
    streams = write_split(documents, tokenizer=tokenizer, folder=folder, validation_fraction=validation_fraction)
    return enough_held_out(*streams, validation_fraction=validation_fraction)


def write_split(
    documents: Iterable[Document], *, tokenizer: Tokenizer, folder: Path, validation_fraction: float
) -> tuple[TokenStream, TokenStream]:
    """Writes the documents to two streams by the hash of their ids, however few become held out."""
    train, held_out = StreamWriter(folder / "train.bin", tokenizer), StreamWriter(folder / "valid.bin", tokenizer)
    for document in documents:
        share = (
            int.from_bytes(hashlib.blake2b(document.doc_id.encode(errors="replace"), digest_size=4).digest(), "big")
            / 2**32
        )
        (held_out if share < validation_fraction else train).write(document.content)
    return train.close(), held_out.close()


def enough_held_out(
    training: TokenStream, held_out: TokenStream, *, validation_fraction: float
) -> tuple[TokenStream, TokenStream]:
    """The same two streams, or, where one of them is much too short, both in a row split near the end."""
    sizes = [len(training.token_ids), len(held_out.token_ids)]
    if min(sizes) * 50 >= validation_fraction * sum(sizes):
        return training, held_out
    larger, smaller = sorted((training, held_out), key=lambda stream: -len(stream.token_ids))
    return _split_tail(larger, smaller, validation_fraction)


def _split_tail(stream: TokenStream, rest: TokenStream, fraction: float) -> tuple[TokenStream, TokenStream]:
    ids = np.concatenate([stream.token_ids, rest.token_ids]) if len(rest.token_ids) else stream.token_ids
    border = len(ids) - int(len(ids) * fraction)
    total_bytes = stream.text_bytes + rest.text_bytes
    tail_bytes = round(total_bytes * (len(ids) - border) / max(1, len(ids)))
    digest = sha256_bytes(stream.fingerprint.encode(), rest.fingerprint.encode())
    return (
        TokenStream(ids[:border], total_bytes - tail_bytes, stream.documents + rest.documents, digest),
        TokenStream(ids[border:], tail_bytes, 0, digest),
    )


def write_stream(documents: Iterable[Document], *, tokenizer: Tokenizer, path: Path) -> TokenStream:
    """Writes all documents to one stream."""
    writer = StreamWriter(path, tokenizer)
    for document in documents:
        writer.write(document.content)
    return writer.close()


class SegmentBatches:
    """The stream cut into B parallel rows; step after step every row moves on by T tokens.

    A recurrent model can therefore carry its state from step to step. Each epoch starts at another offset, drawn from
    the seed, so that segment borders move. Position (epoch, step) alone decides the batch: resuming is exact.
    """

    def __init__(
        self, stream: TokenStream, *, batch_size: int, sequence_length: int, seed: int, multiple_of: int = 1
    ) -> None:
        """Raises TrainingError when the stream is too short for one step of `multiple_of` rows."""
        self.stream, self.sequence_length, self.seed = stream, sequence_length, seed
        usable = len(stream.token_ids) - sequence_length  # leaves room for the largest offset
        self.batch_size = min(batch_size, max(0, usable - 1) // sequence_length)
        self.batch_size -= self.batch_size % multiple_of
        if self.batch_size < 1:
            needed = (multiple_of + 1) * sequence_length + 2
            raise TrainingError(
                f"only {len(stream.token_ids)} tokens of text, at least {needed} are needed; "
                "add text or lower training.sequence_length_tokens"
            )
        self.row_length = (usable - 1) // self.batch_size
        self.steps_per_epoch = self.row_length // sequence_length
        self.tokens_per_step = self.batch_size * sequence_length

    def batch(self, epoch: int, step: int, *, parts: int = 1) -> Sequence[Tensor]:
        """(B, T + 1) int64 ids, inputs and, one further on, targets; as `parts` tensors of equally many rows."""
        offset = int(np.random.default_rng((self.seed, epoch)).integers(self.sequence_length))
        start = offset + step * self.sequence_length
        rows = [
            self.stream.token_ids[row * self.row_length + start :][: self.sequence_length + 1]
            for row in range(self.batch_size)
        ]
        return torch.from_numpy(np.stack(rows).astype(np.int64)).chunk(parts)
