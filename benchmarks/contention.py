"""`lmr embed` beside other busy programs: what threads that wait by spinning cost, by how long they may spin.

    python benchmarks/contention.py corpora/python-docs --documents 300

Indexes the first documents of a corpus with each way in turns, on idle cores and beside as many busy programs as there
are cores. libgomp lets a thread spin 300,000 times unless it is told otherwise; `lmr` tells it 2,000. Writes
benchmarks/results/contention.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import click
from common import in_turns, print_rows, quick_option, spread, write_results

from lm_retrieval.corpus import open_corpus
from lm_retrieval.runtime import available_cores

WAYS = {
    "300,000 spins (libgomp's own)": {"GOMP_SPINCOUNT": "300000"},
    "2,000 spins (what lmr sets)": {},
    "no spinning": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"LMR_THREADS": "1"},
}
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "LMR_THREADS")


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--documents", default=300, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@quick_option
def main(corpus: Path, documents: int, rounds: int, quick: bool) -> None:
    """Measures every way, idle and busy."""
    documents, rounds, loads = (20, 1, (1,)) if quick else (documents, rounds, (0, available_cores()))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "corpus.jsonl"
        some = islice(open_corpus(corpus).documents(), documents)
        texts.write_text("".join(json.dumps({"_id": one.doc_id, "text": one.content}) + "\n" for one in some))
        ways = {name: lambda own=own: embed(texts, own) for name, own in WAYS.items()}
        for programs in loads:
            with busy(programs):
                seconds = in_turns(ways, rounds=rounds)
            rows += [{"busy_programs": programs, "way": name, "seconds": times} for name, times in seconds.items()]
    write_results("contention", {"documents": documents, "rows": rows}, quick=quick)
    print_rows(
        ("way", "busy programs", "s, median (range)"),
        [(row["way"], row["busy_programs"], spread(row["seconds"])) for row in rows],
    )


def embed(texts: Path, environment: dict[str, str]) -> None:
    """The command as a user runs it, into a folder of its own."""
    inherited = {name: value for name, value in os.environ.items() if name not in _THREAD_SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lm_retrieval", "embed", str(texts), "--quiet", "--output", f"{folder}/index"]
        subprocess.run(command, env=inherited | environment, check=True, capture_output=True)


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """So many programs that do nothing but count."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for program in started:
            program.kill()
            program.wait()


if __name__ == "__main__":
    main()
