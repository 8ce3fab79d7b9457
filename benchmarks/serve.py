"""A server under load: how much it answers, how quickly, with how much memory, and what sharing batches brings.

    python benchmarks/serve.py --clients 200 --seconds 20 corpora/python-docs

Starts `lmr serve` with the shipped encoders and an index of the corpus on a port of this machine. First many clients
ask for everything in turns: only 200 and 429 may come, and memory must not grow after it has warmed up. Then embeddings
of short texts: one client with one text a request, many clients with one text each, one client with many texts a
request, in turns; medians of the rounds. The clients share the machine with the server. Writes
benchmarks/results/serve.json.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from clients import Answers, Call, Load, get, post
from common import print_rows, quick_option, texts_by_kind, write_results

TEXTS_AT_ONCE = 256
MAX_GROWTH = 0.1
"""Of the memory after the warm-up: what it may have grown by at the end."""
_MIX = {"embeddings": 4, "tokenize": 3, "search": 2, "generate": 1, "health": 1}


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--clients", default=200, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="Of the mixed load.")
@click.option("--rounds", default=5, show_default=True, help="Of the embeddings.")
@quick_option
def main(corpus: Path, clients: int, seconds: float, rounds: int, quick: bool) -> None:
    """Measures a server on this machine."""
    clients, seconds, rounds = (min(clients, 50), 3.0, 1) if quick else (clients, seconds, rounds)
    texts = texts_by_kind(corpus)["short texts"][:2000]
    with tempfile.TemporaryDirectory() as folder, _server(_index(corpus, Path(folder)), Path(folder)) as server:
        load = Load()
        try:
            mixed = _mixed(load, server, texts, clients=clients, seconds=seconds)
            batched = _batched(load, server, texts, clients=clients, seconds=seconds / 10, rounds=rounds)
        finally:
            load.close()
    write_results("serve", {"clients": clients, "seconds": seconds, **mixed, "embeddings": batched}, quick=quick)
    _print(mixed, batched, clients)
    if mixed["wrong_statuses"] or not mixed["memory_flat"]:
        raise SystemExit(1)


class _Server:
    """A process that runs `lmr serve`."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process, self.url = process, url

    def read(self, path: str) -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url + path, timeout=30) as answer:
            return str(answer.read().decode())

    def memory_mb(self) -> float:
        """Resident memory."""
        command = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024

    def batch_sizes(self) -> dict[str, tuple[float, float]]:
        """Texts and batches so far, by worker and operation."""
        found: dict[str, list[float]] = {}
        pattern = re.compile(r'lmr_batch_texts_(sum|count)\{operation="(.+?)",worker="(.+?)"\} (\S+)')
        for kind, operation, worker, value in pattern.findall(self.read("/metrics")):
            found.setdefault(f"{worker} {operation}", [0.0, 0.0])[kind == "count"] = float(value)
        return {name: (texts, batches) for name, (texts, batches) in found.items()}


def _index(corpus: Path, folder: Path) -> Path:
    index = folder / "index"
    command = [sys.executable, "-m", "lm_retrieval", "embed", str(corpus), "--output", str(index), "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    return index


@contextmanager
def _server(index: Path, folder: Path) -> Iterator[_Server]:
    command = [sys.executable, "-m", "lm_retrieval", "serve", "--port", "0", "--index", str(index)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            addresses = (re.search(r"http://[^/\s]+", line) for line in process.stdout)
            server = _Server(process, next(found[0] for found in addresses if found))
            _wait_until_ready(server)
            yield server
        finally:
            process.terminate()
            process.communicate()


def _wait_until_ready(server: _Server) -> None:
    for _ in range(600):
        try:
            server.read("/health")
            return
        except OSError:  # 503 while it loads
            time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def _calls(texts: Sequence[str]) -> dict[str, list[Call]]:
    """Every kind of request, one for each text."""

    def all_of(name: str, path: str, **body: Any) -> list[Call]:
        (key,) = [key for key, value in body.items() if value is None]
        return [post(name, path, json.dumps({**body, key: text}).encode()) for text in texts]

    return {
        "embeddings": all_of("embeddings", "/v1/embeddings", model="rnn", input=None),
        "tokenize": all_of("tokenize", "/tokenize", text=None),
        "search": all_of("search", "/search", query=None, k=10),
        "generate": all_of("generate", "/generate", prompt=None, max_tokens=8),
        "health": [get("health", "/health")] * len(texts),
    }


def _mixed(load: Load, server: _Server, texts: Sequence[str], *, clients: int, seconds: float) -> dict[str, Any]:
    """All kinds of requests from all clients."""
    kinds = _calls(texts)
    mix = [call for name, share in _MIX.items() for call in kinds[name][:500] * share]
    started, memory = time.monotonic(), [(0.0, server.memory_mb())]
    running = load.start(server.url, mix, clients=clients, seconds=seconds)
    while not running.done():
        time.sleep(0.25)
        memory.append((time.monotonic() - started, server.memory_mb()))
    answers = running.result()
    warm_up = min(5.0, seconds / 2)
    warm = next(value for when, value in memory if when >= warm_up)
    last = memory[-1][1]
    return {
        "requests": [_row(name, answers) for name in _MIX],
        "per_second": answers.per_second,
        "client_load": answers.client_load,
        "wrong_statuses": sum(count for status, count in answers.total().items() if status not in (200, 429)),
        "memory_mb": {"start": memory[0][1], "warm": warm, "end": last, "most": max(value for _, value in memory)},
        "memory_seconds": {"warm": warm_up, "end": memory[-1][0]},
        "memory_flat": last <= warm * (1 + MAX_GROWTH),
        "batch_texts": {name: texts / max(1, batches) for name, (texts, batches) in server.batch_sizes().items()},
    }


def _row(name: str, answers: Answers) -> dict[str, Any]:
    times = sorted(answers.latencies[name]) or [0.0]
    row: dict[str, Any] = {"endpoint": name, "per_second": len(answers.latencies[name]) / answers.seconds}
    for percent in (50, 95, 99):
        row[f"p{percent}_ms"] = 1000 * times[min(len(times) - 1, len(times) * percent // 100)]
    return {**row, "statuses": {str(status): count for status, count in sorted(answers.statuses[name].items())}}


def _batched(
    load: Load, server: _Server, texts: Sequence[str], *, clients: int, seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """Embeddings by one client, by many, and many in a request."""
    single = _calls(texts)["embeddings"]
    at_once = min(TEXTS_AT_ONCE, len(texts))
    bodies = [
        {"model": "rnn", "input": texts[start : start + at_once]}
        for start in range(0, len(texts) - at_once + 1, at_once)
    ]
    many = [post("embeddings", "/v1/embeddings", json.dumps(body).encode()) for body in bodies]
    ways = {
        "one client, one text a request": (single, 1, 1),
        f"{clients} clients, one text a request": (single, clients, 1),
        f"one client, {at_once} texts a request": (many, 1, at_once),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    loads: dict[str, list[float]] = {name: [] for name in ways}
    batches: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first warms up
        for name, (calls, count, size) in ways.items():
            before = server.batch_sizes().get("rnn encode", (0.0, 0.0))
            answers = load.run(server.url, calls, clients=count, seconds=seconds)
            after = server.batch_sizes()["rnn encode"]
            if number:
                rates[name].append(answers.per_second * size)
                loads[name].append(answers.client_load)
                batches[name].append((after[0] - before[0]) / (after[1] - before[1]))
    alone = statistics.median(next(iter(rates.values())))
    return [
        {
            "way": name,
            "texts_per_second": statistics.median(values),
            "slowest": min(values),
            "fastest": max(values),
            "ratio": statistics.median(values) / alone,
            "batch_texts": statistics.median(batches[name]),
            "client_load": statistics.median(loads[name]),
        }
        for name, values in rates.items()
    ]


def _print(mixed: dict[str, Any], batched: list[dict[str, Any]], clients: int) -> None:
    print_rows(
        [f"{clients} clients at once", "requests/s", "p50, ms", "p95, ms", "p99, ms", "statuses"],
        [
            (
                row["endpoint"],
                f"{row['per_second']:,.0f}",
                *(f"{row[f'p{percent}_ms']:.0f}" for percent in (50, 95, 99)),
                ", ".join(f"{status}: {count:,}" for status, count in row["statuses"].items()),
            )
            for row in mixed["requests"]
        ],
    )
    memory, times = mixed["memory_mb"], mixed["memory_seconds"]
    flat = "flat" if mixed["memory_flat"] else f"GROWING by more than {MAX_GROWTH:.0%}"
    print(
        f"\n{mixed['per_second']:,.0f} requests/s in all; "
        f"the busier client process used {mixed['client_load']:.0%} of a core\n"
        f"memory: {memory['start']:.0f} MB at the start, {memory['warm']:.0f} MB after {times['warm']:.1f} s, "
        f"{memory['end']:.0f} MB after {times['end']:.1f} s: {flat}"
    )
    sizes = ", ".join(f"{name} {size:.1f}" for name, size in mixed["batch_texts"].items())
    print(f"texts in a batch, on average: {sizes}\n")
    print_rows(
        ["embeddings", "texts/s (slowest to fastest round)", "ratio", "texts in a batch", "client, of a core"],
        [
            (
                row["way"],
                f"{row['texts_per_second']:,.0f} ({row['slowest']:,.0f} to {row['fastest']:,.0f})",
                f"{row['ratio']:.1f}",
                f"{row['batch_texts']:.1f}",
                f"{row['client_load']:.0%}",
            )
            for row in batched
        ],
    )


if __name__ == "__main__":
    main()
