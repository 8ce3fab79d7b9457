r"""Answering queries: warm, what our layer adds to FAISS and bm25s; cold, a whole `lmr search` process.

    python benchmarks/search.py --sizes 5000 --sizes 100000 --sizes 1000000 --index INDEX corpora/python-docs

Warm: random unit vectors in an exact FAISS index, and BM25 over documents drawn from the words of the corpus by their
frequency; our classes and the libraries themselves answer the same queries one at a time, in turns. Ours must find
what they find. Cold: wall time of a new process from start to printed hits, every mode, with what was imported.
Medians of the rounds. Writes benchmarks/results/search.json.
"""

import json
import logging
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import bm25s
import click
import faiss
import numpy as np
from common import in_turns, print_rows, quick_option, write_results

from lm_retrieval.corpus import open_corpus
from lm_retrieval.corpus.words import Analyzer
from lm_retrieval.index import vectors
from lm_retrieval.index.lexical import K1, B, LexicalIndex
from lm_retrieval.runtime import thread_count

DIM = 256
HITS = 10
QUERIES = 20
QUERY_WORDS = 4
DOCUMENT_WORDS = 40
HEAVY = ("torch", "bm25s", "scipy", "pydantic", "transformers")


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--sizes", multiple=True, type=int, default=[5_000, 100_000], help="Vectors and documents; repeatable.")
@click.option(
    "--index", "indexes", multiple=True, type=click.Path(path_type=Path), help="For cold searches; repeatable."
)
@click.option("--query", default="history of the roman empire")
@click.option("--rounds", default=7)
@quick_option
def main(corpus: Path, sizes: tuple[int, ...], indexes: tuple[Path, ...], query: str, rounds: int, quick: bool) -> None:
    """Times warm and cold searches."""
    sizes, rounds = ((500,), 1) if quick else (sizes, rounds)
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    faiss.omp_set_num_threads(thread_count())
    warm = [row for size in sizes for row in (_faiss_row(size, rounds), _bm25_row(corpus, size, rounds))]
    cold = [row for index in indexes for row in _cold_rows(index, query, rounds)]
    write_results("search", {"rounds": rounds, "warm": warm, "cold": cold}, quick=quick)
    print_rows(
        ["warm, one query at a time", "documents", "library, ms", "ours, ms", "ratio", "same hits"],
        [
            (
                row["what"],
                f"{row['size']:,}",
                f"{row['library_ms']:.3f}",
                f"{row['ours_ms']:.3f}",
                f"{row['ratio']:.2f}",
                "yes" if row["same"] else "NO",
            )
            for row in warm
        ],
    )
    if cold:
        print()
        print_rows(
            ["cold: lmr search", "chunks", "wall s, median (range)", "of the heavy packages it imports"],
            [
                (
                    row["mode"],
                    f"{row['chunks']:,}",
                    f"{row['seconds']:.2f} ({row['fastest']:.2f} to {row['slowest']:.2f})",
                    ", ".join(row["imports"]) or "none",
                )
                for row in cold
            ],
        )


def _compared(what: str, size: int, rounds: int, library: Any, ours: Any, *, same: bool) -> dict[str, Any]:
    seconds = {
        way: statistics.median(times)
        for way, times in in_turns({"library": library, "ours": ours}, rounds=rounds).items()
    }
    return {
        "what": what,
        "size": size,
        "library_ms": 1000 * seconds["library"] / QUERIES,
        "ours_ms": 1000 * seconds["ours"] / QUERIES,
        "ratio": seconds["ours"] / seconds["library"],
        "same": same,
    }


def _faiss_row(size: int, rounds: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    queries = _unit(generator.standard_normal((QUERIES, DIM), np.float32))

    def shards() -> Any:
        source = np.random.default_rng(1)
        for start in range(0, size, 4096):
            yield _unit(source.standard_normal((min(4096, size - start), DIM), np.float32))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.faiss"
        vectors.build(path, shards=shards, count=size, dim=DIM, factory=vectors.EXACT)
        index = faiss.IndexFlatIP(DIM)
        for part in shards():
            index.add(part)
        opened = vectors.VectorIndex.read(path)
        rows = [opened.search(query[None], HITS)[0].rows.tolist() for query in queries]
        same = rows == index.search(queries, HITS)[1].tolist()
        return _compared(
            "FAISS Flat",
            size,
            rounds,
            lambda: [index.search(query[None], HITS) for query in queries],
            lambda: [opened.search(query[None], HITS) for query in queries],
            same=same,
        )


def _bm25_row(corpus: Path, size: int, rounds: int) -> dict[str, Any]:
    analyzer = Analyzer()
    counts = Counter(term for document in open_corpus(corpus).documents() for term in analyzer.terms(document.content))
    # words that the analyzer gives back as they are
    words = [word for word, _ in counts.most_common() if analyzer.terms(word) == [word]]
    shares = np.array([counts[word] for word in words], float)
    generator = np.random.default_rng(0)
    drawn = generator.choice(len(words), size=(size, DOCUMENT_WORDS), p=shares / shares.sum()).astype(np.int32)
    queries = [" ".join(words[place] for place in drawn[row, :QUERY_WORDS]) for row in range(QUERIES)]
    model = bm25s.BM25(k1=K1, b=B, method="lucene")
    tokens = bm25s.tokenization.Tokenized(ids=list(drawn), vocab={word: place for place, word in enumerate(words)})
    model.index(tokens, show_progress=False, create_empty_token=False)
    with tempfile.TemporaryDirectory() as folder:
        LexicalIndex.build(" ".join(words[place] for place in row) for row in drawn).save(Path(folder) / "bm25")
        opened = LexicalIndex.open(Path(folder) / "bm25")

        def library() -> Any:
            asked = [[analyzer.terms(query)] for query in queries]
            return [model.retrieve(terms, k=HITS, show_progress=False, n_threads=0) for terms in asked]

        same = all(
            np.allclose(opened.search(query, HITS)[1], found.scores[0], rtol=1e-5)
            for query, found in zip(queries, library(), strict=True)
        )
        return _compared(
            "BM25", size, rounds, library, lambda: [opened.search(query, HITS) for query in queries], same=same
        )


def _cold_rows(index: Path, query: str, rounds: int) -> list[dict[str, Any]]:
    chunks = json.loads((index / "manifest.json").read_text())["chunks"]
    command = [str(Path(sys.executable).with_name("lmr")), "search", query, "--index", str(index), "--mode"]
    modes = ("hybrid", "dense", "bm25")
    ways = {mode: lambda mode=mode: subprocess.run([*command, mode], check=True, capture_output=True) for mode in modes}
    code = (
        "import sys; from lm_retrieval.cli import main; sys.argv[0] = 'lmr'; main(sys.argv[1:]); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    rows = []
    for mode, seconds in in_turns(ways, rounds=rounds).items():
        done = subprocess.run([sys.executable, "-c", code, *command[1:], mode], check=True, capture_output=True)
        imports = json.loads(done.stderr.decode().splitlines()[-1].replace("'", '"'))
        times = {"seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds)}
        rows.append({"mode": mode, "chunks": chunks, **times, "imports": imports})
    return rows


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
