"""Comparing language models: size by part, quality on one text, and what reading and writing cost."""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from lm_retrieval.errors import CheckpointError
from lm_retrieval.generation import GenerationConfig, generate
from lm_retrieval.loading import LoadedModel, load_language_model
from lm_retrieval.perplexity import perplexity
from lm_retrieval.runtime import peak_memory_bytes
from lm_retrieval.training.curves import read_metrics

_LENGTHS = (16, 32, 64, 128)  # new tokens
BATCH = 8
_REPEATS = 3


@dataclass(frozen=True)
class ModelCosts:
    """One row of the comparison.

    Attributes:
        parameters: by part of the model.
        reading_tokens_per_second: tokens scored per second on the whole text.
        single_ms_per_token, batched_ms_per_token: time per new token for one prompt, and per token of eight at once.
        latencies: (new tokens, milliseconds for one prompt, milliseconds for eight at once), for growing lengths.
        losses: (tokens seen, held-out loss in nats per token) of the training, where the folder has its metrics.
        peak_memory_bytes: of a process that did nothing else.
        sample: greedy continuation of the prompt.
    """

    name: str
    type: str
    parameters: dict[str, int]
    weights_bytes: int
    vocab_size: int
    perplexity: float
    bits_per_byte: float
    bits_per_character: float
    word_perplexity: float
    context: str
    reading_tokens_per_second: float
    single_ms_per_token: float
    batched_ms_per_token: float
    latencies: tuple[tuple[int, float, float], ...]
    losses: tuple[tuple[int, float], ...]
    peak_memory_bytes: int
    sample: str

    @property
    def total_parameters(self) -> int:
        """All trainable parameters."""
        return sum(self.parameters.values())

    def to_dict(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self) | {"total_parameters": self.total_parameters}


def compare_models(sources: Sequence[str | Path], *, texts: Sequence[str], prompt: str = "The") -> list[ModelCosts]:
    """Measures each model, a checkpoint or `hf:` one, in a process of its own, one after another.

    Raises:
        CheckpointError: a model is missing or damaged.
        CorpusError: no text to score.
    """
    rows = []
    for source in sources:
        # a fresh process: its peak memory is this model's
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                rows.append(pool.submit(_measure, source, list(texts), prompt).result())
            except BrokenProcessPool as error:
                raise CheckpointError(f"{source}: measuring ended abruptly, most likely for want of memory") from error
    return rows


def _measure(source: str | Path, texts: list[str], prompt: str) -> ModelCosts:
    loaded = load_language_model(source, device="cpu")
    model, tokenizer = loaded.model, loaded.tokenizer
    started = time.perf_counter()
    report = perplexity(model, tokenizer=tokenizer, texts=texts)
    reading = report.tokens / (time.perf_counter() - started)
    latencies = tuple(
        (length, _milliseconds(loaded, [prompt], length), _milliseconds(loaded, [prompt] * BATCH, length))
        for length in _LENGTHS
    )
    _, single, batched = latencies[-1]
    greedy = GenerationConfig(max_new_tokens=64, do_sample=False)
    return ModelCosts(
        name=loaded.name,
        type=loaded.kind,
        parameters=model.parameter_counts(),
        weights_bytes=loaded.weights_bytes,
        vocab_size=tokenizer.vocab_size,
        perplexity=report.perplexity,
        bits_per_byte=report.bits_per_byte,
        bits_per_character=report.bits_per_character,
        word_perplexity=report.word_perplexity,
        context=report.context,
        reading_tokens_per_second=reading,
        single_ms_per_token=single / _LENGTHS[-1],
        batched_ms_per_token=batched / _LENGTHS[-1] / BATCH,
        latencies=latencies,
        losses=tuple(
            (int(record["tokens"]), record["validation_loss"])
            for record in (read_metrics(loaded.folder) if loaded.folder else ())
            if "validation_loss" in record
        ),
        peak_memory_bytes=peak_memory_bytes(),
        sample=generate(model, tokenizer=tokenizer, prompts=[prompt], config=greedy)[0].text,
    )


def _milliseconds(loaded: LoadedModel, prompts: list[str], new_tokens: int) -> float:
    """Median over repeats of the time for so many new tokens of each prompt; an early end is made up for."""
    config = GenerationConfig(max_new_tokens=new_tokens)
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        results = generate(loaded.model, tokenizer=loaded.tokenizer, prompts=prompts, config=config)
        longest = max(1, *(len(result.token_ids) for result in results))
        times.append(1000 * (time.perf_counter() - started) * new_tokens / longest)
    return statistics.median(times)
