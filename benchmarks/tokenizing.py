"""Our tokenizer against SentencePiece itself on the same model: ids must be identical.

    python benchmarks/tokenizing.py --encoder lstm-base nfcorpus

Ours is timed cold (a new tokenizer each round, which fills its cache of words as it goes) and warm. In turns; medians
of the rounds. Writes benchmarks/results/tokenizing.json and prints the Markdown table.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import sentencepiece
from quality import write_results

from lm_retrieval.checkpoint import TOKENIZER_NAME, find_checkpoint
from lm_retrieval.corpus import open_corpus
from lm_retrieval.tokenizer import Tokenizer


@click.command()
@click.argument("collection", type=click.Path(path_type=Path, exists=True))
@click.option("--encoder", default="lstm-base")
@click.option("--rounds", default=5)
def main(collection: Path, encoder: str, rounds: int) -> None:
    """Times all ways in turns."""
    texts = [document.content for document in open_corpus(collection).documents()]
    size = sum(len(text.encode()) for text in texts)
    path = find_checkpoint(encoder) / TOKENIZER_NAME
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    warm = Tokenizer.load(path)
    ways: dict[str, Callable[[], Any]] = {
        "SentencePiece, one by one": lambda: [processor.encode(text) for text in texts],
        "SentencePiece, its batch call": lambda: processor.encode(texts),
        "lmr, cold": lambda: Tokenizer.load(path).encode_batch(texts),
        "lmr, warm": lambda: warm.encode_batch(texts),
    }
    expected = ways["SentencePiece, one by one"]()
    identical = sum(list(a) == list(b) for a, b in zip(expected, warm.encode_batch(texts), strict=True))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    rows = [{"way": name, "megabytes_per_second": size / 1e6 / statistics.median(t)} for name, t in times.items()]
    content = {"collection": collection.name, "documents": len(texts), "identical": identical, "rows": rows}
    write_results("tokenizing", {**content, "rounds": rounds})
    first = rows[0]["megabytes_per_second"]
    print(f"{identical:,} of {len(texts):,} documents have identical ids\n")
    print("| way | MB/s | ratio |\n|---|--:|--:|")
    for row in rows:
        print(f"| {row['way']} | {row['megabytes_per_second']:.1f} | {row['megabytes_per_second'] / first:.1f} |")


if __name__ == "__main__":
    main()
