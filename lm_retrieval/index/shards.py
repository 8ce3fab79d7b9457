"""What is done with one shard of a corpus: its documents are cut into chunks, encoded, and written.

Engines decide where that happens; whoever does it gets the same shard.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm_retrieval.artifacts import require_folder
from lm_retrieval.corpus.chunking import Chunk, chunk_text
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import LmRetrievalError
from lm_retrieval.index.store import (
    EarlierPlaces,
    Place,
    PlacedVectors,
    Shard,
    Store,
    content_hash,
    drop_shard,
    shard_is_written,
    spans_of,
    write_shard,
)
from lm_retrieval.records import Document

_CHARACTERS_PER_TOKEN = 4


class Work(NamedTuple):
    """A shard that is still to be made."""

    number: int
    documents: list[Document]
    hashes: list[str]
    """Content hash of each document."""
    places: list[Place | None]
    """Where an earlier index has the vectors of each document, if it has."""


class Outcome(NamedTuple):
    """What making a shard came to; `seconds` is its time by stage, wherever it was spent."""

    number: int
    chunks: int
    empty_documents: int
    split_documents: int
    tokens: int = 0
    encoded: int = 0
    reused: int = 0
    resumed: int = 0
    seconds: dict[str, float] = {}  # noqa: RUF012 - a tuple's default is never changed


class Prepared(NamedTuple):
    """A shard whose texts are cut."""

    work: Work
    chunks: list[list[Chunk]]
    seconds: float


def plan(
    documents: Iterable[Document], *, earlier: EarlierPlaces, shard_chunks: int, window_tokens: int
) -> Iterator[Work]:
    """Cuts a stream of documents into shards of about `shard_chunks` chunks, by their lengths alone.

    Every engine plans alike: one goes on where another was stopped.
    """
    window = window_tokens * _CHARACTERS_PER_TOKEN
    number = size = 0
    held: list[Document] = []
    for document in documents:
        held.append(document)
        size += max(1, len(document.content) // window)
        if size >= shard_chunks:
            yield _work(number, held, earlier)
            number, size, held = number + 1, 0, []
    if held:
        yield _work(number, held, earlier)


def _work(number: int, documents: list[Document], earlier: EarlierPlaces) -> Work:
    hashes = [content_hash(document) for document in documents]
    places = [earlier.find(document.doc_id, digest) for document, digest in zip(documents, hashes, strict=True)]
    return Work(number, documents, hashes, places)


def finished(folder: Path, work: Work) -> Outcome | None:
    """What an interrupted run made of this shard, if it is whole and of the same documents; else it is deleted."""
    if not shard_is_written(folder, work.number):
        return None
    try:
        store = Store(folder, numbers=[work.number])
        doc_ids, hashes = store.shard_key(0)
        if hashes == work.hashes and doc_ids == [document.doc_id for document in work.documents]:
            counts = store.chunk_counts(0)
            chunks = len(store.vectors(0))
            return Outcome(work.number, chunks, counts.count(0), sum(count > 1 for count in counts), resumed=chunks)
    except LmRetrievalError:
        pass
    drop_shard(folder, work.number)
    return None


def cut(work: Work, *, encoder: Encoder) -> Prepared:
    """Cuts the texts of a shard."""
    started = time.perf_counter()
    chunks = [list(chunks_of(document, encoder=encoder)) for document in work.documents]
    return Prepared(work, chunks, time.perf_counter() - started)


def chunks_of(document: Document, *, encoder: Encoder) -> Iterator[Chunk]:
    """A document as the encoder's windows."""
    return chunk_text(
        document.content,
        tokenizer=encoder.tokenizer,
        max_tokens=encoder.max_seq_length,
        overlap_tokens=min(encoder.config.overlap_tokens, encoder.max_seq_length // 2),
    )


def encode(prepared: Prepared, *, encoder: Encoder, earlier: PlacedVectors | None) -> tuple[Shard, Outcome]:
    """Encodes a shard; vectors that an earlier index has are taken from there."""
    seconds = {"tokenize": prepared.seconds}
    work, chunks = prepared.work, prepared.chunks
    known = [
        earlier.read(place) if earlier is not None and place is not None and place.chunks == len(pieces) else None
        for place, pieces in zip(work.places, chunks, strict=True)
    ]
    fresh = [piece.token_ids for old, pieces in zip(known, chunks, strict=True) if old is None for piece in pieces]
    with _timed(seconds, "encode"):
        encoded = encoder.encode_tokens(fresh, normalize_embeddings=True)
    parts, place = [np.zeros((0, encoder.dim), np.float32)], 0
    for old, pieces in zip(known, chunks, strict=True):
        parts.append(encoded[place : place + len(pieces)] if old is None else old)
        place += len(pieces) if old is None else 0
    vectors = np.ascontiguousarray(np.concatenate(parts))
    outcome = Outcome(
        work.number,
        len(vectors),
        sum(not pieces for pieces in chunks),
        sum(len(pieces) > 1 for pieces in chunks),
        tokens=sum(len(piece.token_ids) for pieces in chunks for piece in pieces),
        encoded=len(fresh),
        reused=len(vectors) - len(fresh),
        seconds=seconds,
    )
    return Shard(work.documents, work.hashes, list(map(spans_of, chunks)), vectors), outcome


def write(folder: Path, shard: Shard, outcome: Outcome) -> Outcome:
    """Writes an encoded shard."""
    require_folder(folder)
    with _timed(outcome.seconds, "write"):
        write_shard(folder, outcome.number, shard)
    return outcome


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
