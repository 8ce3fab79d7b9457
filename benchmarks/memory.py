"""Does the memory of `lmr embed` grow with the corpus? Peak memory of the whole process at two corpus sizes.

    python benchmarks/memory.py            20,000 and 200,000 chunks (about 10 minutes on 2 cores)
    python benchmarks/memory.py --quick    5,000 and 20,000 chunks, in smaller shards

Each size runs in a process of its own with a tiny, freshly initialised LSTM: what is measured is how the program holds
text and vectors, not how well it encodes. Writes benchmarks/results/memory.json and prints a Markdown table.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "memory.json"
WORDS = 4000
DOCUMENT_WORDS = 40


def write_corpus(path: Path, documents: int) -> None:
    """Documents of one chunk each, of random words."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 9))) for _ in range(WORDS)]
    with path.open("w") as stream:
        for number in range(documents):
            text = " ".join(generator.choices(words, k=DOCUMENT_WORDS))
            stream.write(json.dumps({"_id": str(number), "title": "", "text": text}) + "\n")


def embed(corpus: Path, output: Path, shard_chunks: int) -> None:
    """Indexes the corpus in this process and prints what it took as JSON."""
    from lm_retrieval.checkpoint import Checkpoint, save_checkpoint
    from lm_retrieval.config import EncoderConfig, LstmConfig, RunConfig, TokenizerConfig
    from lm_retrieval.corpus import open_corpus
    from lm_retrieval.encoding.encoder import Encoder
    from lm_retrieval.index.builder import build_index
    from lm_retrieval.models import build_model
    from lm_retrieval.runtime import peak_memory_bytes
    from lm_retrieval.tokenizer import Tokenizer

    opened = open_corpus(corpus)
    sample = [document.text for document, _ in zip(opened.documents(), range(2000), strict=False)]
    tokenizer = Tokenizer.train(sample, TokenizerConfig(vocab_size=4000))
    config = RunConfig(model=LstmConfig(num_layers=1), encoder=EncoderConfig(max_length_tokens=512))
    model = build_model(config.model, vocab_size=tokenizer.vocab_size)
    save_checkpoint(output / "model", model=model, tokenizer=tokenizer, config=config)
    encoder = Encoder(Checkpoint.load(output / "model"))
    before = peak_memory_bytes()
    started = time.perf_counter()
    report = build_index(opened, encoder=encoder, output=output / "index", shard_chunks=shard_chunks)
    figures = {
        "chunks": report.chunks,
        "seconds": round(time.perf_counter() - started, 1),
        "start_mb": round(before / 1e6),
        "peak_mb": round(peak_memory_bytes() / 1e6),
        "stages": {name: round(value, 1) for name, value in report.seconds.items()},
        "peak_mb_by_stage": {name: round(value / 1e6) for name, value in report.peak_memory_bytes.items()},
    }
    print(json.dumps(figures))


def main() -> None:
    """Runs both sizes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the size; does not write the results file")
    parser.add_argument("--embed", nargs=3, metavar=("CORPUS", "OUTPUT", "CHUNKS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.embed:
        corpus, output, shard_chunks = arguments.embed
        embed(Path(corpus), Path(output), int(shard_chunks))
        return
    rows = []
    for size in (5_000, 20_000) if arguments.quick else (20_000, 200_000):
        with tempfile.TemporaryDirectory() as name:
            corpus = Path(name) / "corpus.jsonl"
            write_corpus(corpus, size)
            shard_chunks = "512" if arguments.quick else "4096"
            command = [sys.executable, __file__, "--embed", str(corpus), name, shard_chunks]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout))
    if not arguments.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    stages = list(rows[0]["peak_mb_by_stage"])
    print("| chunks | seconds | before | " + " | ".join(f"after {stage}" for stage in stages) + " |")
    print("|--:|--:|--:|" + "--:|" * len(stages))
    for row in rows:
        peaks = " | ".join(f"{row['peak_mb_by_stage'][stage]:,} MB" for stage in stages)
        print(f"| {row['chunks']:,} | {row['seconds']} | {row['start_mb']:,} MB | {peaks} |")


if __name__ == "__main__":
    main()
