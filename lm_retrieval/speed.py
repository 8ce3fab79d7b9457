"""How fast an encoder is on this machine, and how close that is to what the processor can do."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from lm_retrieval.corpus.python_docs import python_docs
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import CorpusError
from lm_retrieval.runtime import peak_memory_bytes, reset_peak_memory

_MATRIX = 2048
_MATRIX_SECONDS = 1.5
_BUILT_IN_TEXTS = 3000
_LATENCY_QUERIES = 200
_QUERY_WORDS = 8


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        mean_tokens: per text.
        texts_per_second, tokens_per_second: text in, vectors out; median of the rounds.
        tokenizing_share: of that time.
        peak_gflops: of one large matrix product on this machine in the encoder's dtype.
        share_of_peak: the encoder's own matrix products, real tokens only, tokenizing excluded.
        latency_p50_ms, latency_p95_ms: one short query at a time.
        peak_memory_bytes: of the process while encoding.
    """

    encoder: str
    device: str
    dtype: str
    threads: int
    texts: int
    mean_tokens: float
    rounds: int
    texts_per_second: float
    tokens_per_second: float
    tokenizing_share: float
    peak_gflops: float
    share_of_peak: float
    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def measure_speed(encoder: Encoder, *, texts: Sequence[str] | None = None, seconds: float = 15.0) -> Speed:
    """Encodes texts for some seconds, then asks single queries.

    Args:
        encoder: what to measure.
        texts: by default 3,000 documentation strings of this Python.
        seconds: how long to encode.

    Raises:
        CorpusError: no text.
    """
    chosen = list(texts) if texts is not None else [doc.content for doc in islice(python_docs(), _BUILT_IN_TEXTS)]
    if not any(text.strip() for text in chosen):
        raise CorpusError("no text to measure with; give a corpus with text")
    model = encoder.model
    dtype = next(model.parameters()).dtype
    peak = matrix_gflops(dtype, model.device)
    reset_peak_memory()
    encoder.encode(chosen)  # warm: threads, caches of words and of kernels
    tokenizing: list[float] = []
    encoding: list[float] = []
    began = time.perf_counter()
    while not encoding or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        token_ids = encoder.tokenizer.encode_batch(chosen)
        tokenizing.append(time.perf_counter() - started)
        started = time.perf_counter()
        encoder.encode_tokens(token_ids)
        encoding.append(time.perf_counter() - started)
    window = encoder.max_seq_length
    lengths = [min(window, len(ids) - start) for ids in token_ids for start in range(0, max(1, len(ids)), window)]
    tokens = sum(map(len, token_ids))
    both = statistics.median(map(sum, zip(tokenizing, encoding, strict=True)))
    p50, p95 = np.percentile(_latencies(encoder, chosen), (50, 95))
    return Speed(
        encoder=encoder.name,
        device=str(model.device),
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        texts=len(chosen),
        mean_tokens=tokens / len(chosen),
        rounds=len(encoding),
        texts_per_second=len(chosen) / both,
        tokens_per_second=tokens / both,
        tokenizing_share=statistics.median(tokenizing) / both,
        peak_gflops=peak,
        share_of_peak=model.encoding_flops(lengths) / statistics.median(encoding) / (1e9 * peak),
        latency_p50_ms=float(p50),
        latency_p95_ms=float(p95),
        peak_memory_bytes=peak_memory_bytes(),
    )


def matrix_gflops(dtype: torch.dtype, device: torch.device) -> float:
    """The best of repeated products of two square matrices, in 10⁹ operations per second."""
    left, right = (torch.randn(_MATRIX, _MATRIX, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    began = time.perf_counter()
    while time.perf_counter() - began < _MATRIX_SECONDS:
        best = min(best, _timed(lambda: left @ right, device))
    return 2 * _MATRIX**3 / best / 1e9


def _timed(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _latencies(encoder: Encoder, texts: Sequence[str]) -> list[float]:
    queries = [" ".join(text.split()[:_QUERY_WORDS]) for text in texts if text.strip()][:_LATENCY_QUERIES]
    times = []
    for query in queries:
        started = time.perf_counter()
        encoder.encode(query)
        times.append(1000 * (time.perf_counter() - started))
    return times
