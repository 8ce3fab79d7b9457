"""`lmr bench`."""

from typing import Any

import click

from lm_retrieval.cli.options import (
    LOCATION,
    Command,
    corpus_options,
    device_option,
    dtype_option,
    echo_facts,
    echo_json,
    format_option,
    human_bytes,
)
from lm_retrieval.storage import Location


@click.command(cls=Command)
@click.argument("encoder", default="lstm-base")
@click.option("--corpus", "corpus_path", type=LOCATION, help="Text to encode.  [default: this Python's documentation]")
@click.option("--seconds", default=15.0, show_default=True, help="How long to encode.")
@dtype_option("auto")
@device_option
@corpus_options
@format_option
def bench(
    encoder: str,
    corpus_path: Location | None,
    seconds: float,
    dtype: Any,
    device: str,
    encoding: str,
    text_column: str | None,
    output_format: str,
) -> None:
    """How fast is ENCODER on this machine? Half a minute gives the answer.

    \b
    Example:
      lmr bench
      lmr bench transformer-base --corpus notes/ --threads 1
    """
    from itertools import islice

    from lm_retrieval.checkpoint import find_checkpoint
    from lm_retrieval.corpus import open_corpus
    from lm_retrieval.encoding.encoder import Encoder
    from lm_retrieval.speed import measure_speed

    texts = None
    if corpus_path is not None:
        documents = open_corpus(corpus_path, encoding=encoding, text_column=text_column).documents()
        texts = [document.content for document in islice(documents, 3000)]
    loaded = Encoder.load(find_checkpoint(encoder), device=device, dtype=dtype)
    speed = measure_speed(loaded, texts=texts, seconds=seconds)
    if output_format == "json":
        echo_json(speed.to_dict())
        return
    echo_facts(
        [
            ("encoder", f"{speed.encoder}, {speed.dtype}, {speed.device}, {speed.threads} threads"),
            ("texts", f"{speed.texts:,}, {speed.mean_tokens:.0f} tokens on average, {speed.rounds} rounds"),
            ("texts/s", f"{speed.texts_per_second:,.0f}"),
            ("tokens/s", f"{speed.tokens_per_second:,.0f}"),
            ("tokenizing", f"{speed.tokenizing_share:.0%} of the time"),
            ("processor", f"{speed.peak_gflops:,.0f} GFLOP/s in one large matrix product"),
            ("share of that", f"{speed.share_of_peak:.0%}, tokenizing excluded"),
            ("one query", f"{speed.latency_p50_ms:.1f} ms median, {speed.latency_p95_ms:.1f} ms at 95 %"),
            ("peak memory", human_bytes(speed.peak_memory_bytes)),
        ]
    )
