"""Teachers that need no outside model: a corpus's own word statistics, alone or with what an encoder knows already.

Shapes: N texts, D dimensions.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.artifacts import sha256_bytes
from lm_retrieval.corpus.pairs import Pair
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import ConfigError
from lm_retrieval.index.lsi import LsiIndex
from lm_retrieval.records import Document
from lm_retrieval.training.teacher import CachedTeacher, SentenceTransformerTeacher, Teacher

AUTO, LSI, NONE = "auto", "lsi", "none"
_MAX_DOCUMENTS = 20_000
_SHARES = tuple(step / 10 for step in range(1, 10))


class LsiTeacher:
    """TF-IDF and a truncated SVD of a corpus."""

    def __init__(self, contents: Sequence[str]) -> None:
        """Fits on texts; more than 20,000 are sampled evenly."""
        step = max(1, -(-len(contents) // _MAX_DOCUMENTS))
        self.name = LSI
        self.fingerprint = sha256_bytes(*(content.encode(errors="replace") for content in contents))
        self._index = LsiIndex(islice(contents, 0, None, step))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """(N, D) float16 unit vectors."""
        return np.asarray(self._index.encode(texts), np.float16)


class BlendedTeacher:
    """Two teachers side by side: a similarity is `share` of the first's and the rest of the second's."""

    def __init__(self, first: Teacher | Encoder, second: Teacher, *, share: float) -> None:
        """`share` is between 0 and 1."""
        self.name = f"{second.name} with {share:.0%} {first.name}"
        self.fingerprint = sha256_bytes(first.fingerprint.encode(), second.fingerprint.encode(), self.name.encode())
        self.first, self.second, self.share = first, second, share

    def encode(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """(N, D1 + D2) float16 vectors; those of length 1 on both sides have length 1."""
        sides = (self.share**0.5 * self.first.encode(texts), (1 - self.share) ** 0.5 * self.second.encode(texts))
        return np.asarray(np.hstack(sides), np.float16)


def find_teacher(
    name: str,
    *,
    documents: Mapping[str, Document],
    cache: Path,
    encoder: Encoder | None,
    held_out: Sequence[Pair],
) -> Teacher | None:
    """The teacher meant by `lsi`, `none`, a folder, or `auto`: `lsi` where there are documents.

    `lsi` blends in what the encoder knows already, in the share that finds most held-out pairs.

    Raises:
        ConfigError: `lsi` without the documents of a corpus.
        CheckpointError: the folder is no sentence-transformers model.
    """
    if name == NONE or (name == AUTO and not documents):
        return None
    if name not in (AUTO, LSI):
        return CachedTeacher(SentenceTransformerTeacher(Path(name)), cache)
    if not documents:
        raise ConfigError("--teacher lsi learns from the documents of a corpus; pairs alone have none")
    lsi = LsiTeacher([document.content for document in documents.values()])
    if encoder is None:
        return lsi
    return BlendedTeacher(encoder, lsi, share=best_share(encoder, lsi, held_out))


def best_share(first: Teacher | Encoder, second: Teacher, pairs: Sequence[Pair]) -> float:
    """The share of the first teacher's similarities that ranks the pairs' documents best (mean reciprocal rank)."""
    own = np.arange(len(pairs))
    queries, documents = [pair.query for pair in pairs], [pair.positive for pair in pairs]
    scores = [
        teacher.encode(queries).astype(np.float32) @ teacher.encode(documents).astype(np.float32).T
        for teacher in (first, second)
    ]
    quality = {}
    for share in _SHARES:
        mixed = share * scores[0] + (1 - share) * scores[1]
        ranks = 1 + (mixed > mixed[own, own][:, None]).sum(1)
        quality[share] = float((1 / ranks).mean())
    best = max(quality.values())
    near = [share for share, value in quality.items() if value >= best - 0.002]
    return near[len(near) // 2]
