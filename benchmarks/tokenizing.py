"""Our tokenizer against SentencePiece itself on the same model: ids must be identical.

    python benchmarks/tokenizing.py nfcorpus

Ours is timed cold (a new tokenizer each round, which fills its cache of words as it goes) and warm. In turns; medians
of the rounds. Writes benchmarks/results/tokenizing.json.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import sentencepiece
from common import in_turns, print_rows, quick_option, write_results

from lm_retrieval.checkpoint import TOKENIZER_NAME, find_checkpoint
from lm_retrieval.corpus import open_corpus
from lm_retrieval.tokenizer import Tokenizer


@click.command()
@click.argument("collection", type=click.Path(path_type=Path, exists=True))
@click.option("--encoder", default="lstm-base")
@click.option("--rounds", default=5)
@quick_option
def main(collection: Path, encoder: str, rounds: int, quick: bool) -> None:
    """Times all ways in turns."""
    texts = [document.content for document in open_corpus(collection).documents()]
    texts, rounds = (texts[:50], 1) if quick else (texts, rounds)
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
    seconds = {name: statistics.median(times) for name, times in in_turns(ways, rounds=rounds).items()}
    rates = {name: size / 1e6 / value for name, value in seconds.items()}
    facts = {"collection": collection.name, "documents": len(texts), "identical": identical, "rounds": rounds}
    write_results("tokenizing", {**facts, "megabytes_per_second": rates}, quick=quick)
    one_by_one, batch, *_ = rates.values()
    print(f"{identical:,} of {len(texts):,} documents have identical ids\n")
    print_rows(
        ["way", "MB/s", "against one by one", "against the batch call"],
        [(name, f"{rate:.1f}", f"{rate / one_by_one:.1f}", f"{rate / batch:.1f}") for name, rate in rates.items()],
    )


if __name__ == "__main__":
    main()
