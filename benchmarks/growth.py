r"""How time, memory, disk and queries grow with the corpus: 1,000 to a million chunks.

    python benchmarks/growth.py pairs/ --text-column positive --sizes 1000 --sizes 10000 --sizes 100000 --sizes 1000000

The documents of the corpus are cut into pieces of at most 45 words (about 64 tokens), a chunk each. Of each size:
`lmr embed` in a process of its own (time and peak memory by stage); then, for each kind of FAISS index, its build,
bytes, recall@10 against exact search, and the time of a dense and of a hybrid query, one at a time; `{cells}` in its
name is the number of cells for so many vectors. `--kill` ends the
embedding of each size half way, with SIGKILL, and starts it again. Writes growth.json and growth.svg to
benchmarks/results.
"""

import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import RESULTS, print_rows, quick_option, write_results

from lm_retrieval.artifacts import folder_bytes
from lm_retrieval.corpus import open_corpus
from lm_retrieval.errors import ConfigError
from lm_retrieval.index.builder import SHARD_CHUNKS, build_index, rebuild_vectors
from lm_retrieval.index.vectors import cells_for
from lm_retrieval.runtime import configure_torch, peak_memory_bytes

PIECE_WORDS = 45
QUERIES = 200
QUERY_WORDS = 6
Row = dict[str, Any]


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--text-column", default=None)
@click.option("--encoder", default="lstm-base")
@click.option("--sizes", multiple=True, type=int, default=[1_000, 10_000, 100_000], help="Chunks; repeatable.")
@click.option(
    "--factory",
    "factories",
    multiple=True,
    default=["Flat", "HNSW32", "IVF{cells},PQ64"],
    show_default=True,
    help="FAISS indexes besides the one chosen by size.",
)
@click.option("--max-memory", type=int, help="Bytes that `lmr embed` may take.")
@click.option("--kill", is_flag=True, help="Kill the embedding half way and start it again.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the indexes here.")
@click.option("--embed", "embedded", nargs=2, type=click.Path(path_type=Path), hidden=True)
@quick_option
def main(
    corpus: Path,
    text_column: str | None,
    encoder: str,
    sizes: tuple[int, ...],
    factories: tuple[str, ...],
    max_memory: int | None,
    kill: bool,
    folder: Path | None,
    embedded: tuple[Path, Path] | None,
    quick: bool,
) -> None:
    """Measures one size after the other."""
    if embedded is not None:
        print(json.dumps(embed(*embedded, encoder, max_memory)))
        return
    if quick:
        sizes, factories = sizes[:1] if sizes[0] < 1000 else (200, 400), ("HNSW32",)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        home = folder or Path(temporary)
        for size in sizes:
            source, index = home / f"{size}.jsonl", home / f"index-{size}"
            write_pieces(corpus, text_column, source, size)
            row = {
                "encoder": encoder,
                "max_memory_bytes": max_memory,
                **embed_in_process(source, index, encoder, kill=kill, max_memory=max_memory),
            }
            row["indexes"] = [measure_index(index, row["factory"])]
            for name in factories:
                factory = name.format(cells=cells_for(row["chunks"]))
                if factory == row["factory"]:
                    continue
                try:
                    row["indexes"].append(measure_index(index, factory))
                except ConfigError as error:  # too few vectors for so many cells
                    click.echo(str(error), err=True)
            click.echo(json.dumps(row), err=True)
            rows.append(row)
            write_results("growth", rows, quick=quick)
    print_rows(
        [
            *("chunks", "embedding, s", "chunks/s", "peak memory", "index folder", "FAISS", "its bytes", "recall@10"),
            *("dense query, ms (p50, p95)", "hybrid query, ms (p50, p95)"),
        ],
        [cells for row in rows for cells in table_rows(row)],
    )
    if not quick:
        draw(rows)


def table_rows(row: Row) -> Iterator[list[str]]:
    """A line for each kind of index; what is common to them stands in the first."""
    first = [
        f"{row['chunks']:,}",
        f"{row['seconds']:,.0f}",
        f"{row['chunks'] / row['seconds']:,.0f}",
        f"{row['peak_memory_bytes'] / 1e6:,.0f} MB",
        f"{row['folder_bytes'] / 1e6:,.0f} MB",
    ]
    for place, index in enumerate(row["indexes"]):
        latencies = [f"{index[mode][0]:.1f}, {index[mode][1]:.1f}" for mode in ("dense_ms", "hybrid_ms")]
        faiss_bytes = f"{index['bytes'] / 1e6:,.1f} MB"
        yield [*(first if not place else [""] * 5), index["factory"], faiss_bytes, f"{index['recall']:.3f}", *latencies]


def write_pieces(corpus: Path, text_column: str | None, path: Path, count: int) -> None:
    """Different texts of at most 45 words, one a line."""
    if path.exists():
        return
    seen: set[int] = set()
    with path.open("w") as stream:
        for document in open_corpus(corpus, text_column=text_column).documents():
            words = document.content.split()
            for start in range(0, len(words), PIECE_WORDS):
                text = " ".join(words[start : start + PIECE_WORDS])
                if hash(text) in seen:
                    continue
                seen.add(hash(text))
                stream.write(json.dumps({"_id": str(len(seen)), "title": "", "text": text}) + "\n")
                if len(seen) == count:
                    return
    raise click.ClickException(f"{corpus}: only {len(seen):,} pieces of text, {count:,} are wanted")


def embed(source: Path, index: Path, encoder: str, max_memory: int | None) -> Row:
    """Indexes in this process and says what it took."""
    from lm_retrieval.checkpoint import find_checkpoint
    from lm_retrieval.encoding.encoder import Encoder

    configure_torch()
    loaded = Encoder.load(find_checkpoint(encoder), dtype="auto")
    start = peak_memory_bytes()
    started = time.perf_counter()
    report = build_index(open_corpus(source), encoder=loaded, output=index, max_memory_bytes=max_memory)
    return {
        "chunks": report.chunks,
        "resumed": report.resumed,
        "factory": report.factory,
        "seconds": time.perf_counter() - started,
        "stages": report.seconds,
        "memory_before_bytes": start,
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_memory_bytes_by_stage": report.peak_memory_bytes,
    }


def embed_in_process(source: Path, index: Path, encoder: str, *, kill: bool, max_memory: int | None) -> Row:
    """The same in a process of its own; with `kill`, one is killed on the way and another one goes on."""
    command = [sys.executable, __file__, str(source), "--encoder", encoder, "--embed", str(source), str(index)]
    if max_memory is not None:
        command += ["--max-memory", str(max_memory)]
    killed_after = 0.0
    shards = index.with_name(f".{index.name}.partial") / "embeddings"
    total = sum(1 for _ in source.open()) // SHARD_CHUNKS
    if kill and total > 1:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            if len(list(shards.glob("part-*.parquet"))) >= total // 2:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed_after = time.perf_counter() - started
                break
            time.sleep(0.2)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    curve = memory_curve(process)
    output, _ = process.communicate()
    if process.returncode:
        raise click.ClickException(f"embedding {source} failed")
    row: Row = json.loads(output)
    row["seconds"] += killed_after
    row["memory_curve"] = curve
    return {**row, "killed_after_seconds": killed_after, "folder_bytes": folder_bytes(index)}


def memory_curve(process: subprocess.Popen[str]) -> list[tuple[float, int]]:
    """Seconds and resident bytes of a process as long as it runs, at most 200 points."""
    points: list[tuple[float, int]] = []
    started = time.perf_counter()
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmRSS:")]
        if lines:
            points.append((round(time.perf_counter() - started, 1), int(lines[0].split()[1]) * 1024))
        time.sleep(0.5)
    return points[:: max(1, len(points) // 200)]


def measure_index(index: Path, factory: str) -> Row:
    """Builds another FAISS index where it is another one, and asks it single queries in a fresh process."""
    manifest = json.loads((index / "manifest.json").read_text())
    seconds = 0.0
    if manifest["factory"] != factory:
        started = time.perf_counter()
        rebuild_vectors(index, factory=factory)
        seconds = time.perf_counter() - started
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import growth; growth.ask({str(index)!r})"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    recall = json.loads((index / "manifest.json").read_text())["recall_at_10"]
    size = (index / "vectors.faiss").stat().st_size
    return {"factory": factory, "rebuild_seconds": seconds, "bytes": size, "recall": recall, **json.loads(done.stdout)}


def ask(index: str) -> None:
    """Prints the 50th and 95th percentile, in ms, of single queries made of words of the corpus."""
    from lm_retrieval.search import Searcher

    searcher = Searcher(index)
    source = json.loads((Path(index) / "manifest.json").read_text())["corpus_path"]
    texts = islice(open_corpus(Path(source)).documents(), 0, None, 3)
    queries = [" ".join(document.text.split()[3 : 3 + QUERY_WORDS]) for document in islice(texts, QUERIES)]
    queries = [query for query in queries if query]
    figures: Row = {}
    for mode in ("dense", "hybrid"):
        times = []
        for query in queries:
            started = time.perf_counter()
            searcher.search(query, mode=mode)  # type: ignore[arg-type]
            times.append(1000 * (time.perf_counter() - started))
        figures[f"{mode}_ms"] = np.percentile(times[10:], (50, 95)).tolist()
    figures["resident_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(figures))


def draw(rows: list[Row]) -> None:
    """Four small pictures on logarithmic axes, each with a straight line for comparison, and memory over time."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    chunks = [row["chunks"] for row in rows]
    pictures = {
        "embedding, s": [row["seconds"] for row in rows],
        "index folder, MB": [row["folder_bytes"] / 1e6 for row in rows],
        "peak memory of lmr embed, MB": [row["peak_memory_bytes"] / 1e6 for row in rows],
        "hybrid query, ms (median)": [row["indexes"][0]["hybrid_ms"][0] for row in rows],
    }
    figure, axes = pyplot.subplots(1, 5, figsize=(18, 3.4), layout="constrained")
    curve = np.array(rows[-1]["memory_curve"])
    axes[-1].plot(curve[:, 0], curve[:, 1] / 1e6, color="#2a6f97")
    axes[-1].set_ylim(bottom=0)
    axes[-1].set_title(f"memory, MB, embedding {chunks[-1]:,} chunks", fontsize=10)
    axes[-1].set_xlabel("seconds")
    axes[-1].grid(alpha=0.3)
    for axis, (title, values) in zip(axes, pictures.items(), strict=False):
        axis.loglog(chunks, values, marker="o", color="#2a6f97")
        axis.loglog(chunks, [values[0] * count / chunks[0] for count in chunks], ls=":", color="#999", label="linear")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("chunks")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "growth.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
