"""Many clients of one server, in processes of their own.

Each client is one connection that asks, waits for the answer, and asks again. They are written on asyncio's streams,
because an answer costs httpx as much processor time as it costs the server: it would measure httpx.
"""

import asyncio
import multiprocessing
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

BROKEN = 0
"""In place of a status: the connection broke."""
_PAUSE_SECONDS = 0.2  # after a 429


class Call(NamedTuple):
    """A request as it goes over the wire, and what it is counted as."""

    name: str
    request: bytes


@dataclass
class Answers:
    """What clients got.

    Attributes:
        latencies: seconds from request to answer, by the name of the call; 429 is not among them.
        statuses: how often each status came, by name.
        seconds: how long it took.
        client_load: share of a core that the busiest client process used.
    """

    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: float = 0.0
    client_load: float = 0.0

    @property
    def per_second(self) -> float:
        """Answers with status 200."""
        return sum(map(len, self.latencies.values())) / self.seconds

    def total(self) -> Counter[int]:
        """How often each status came."""
        return sum(self.statuses.values(), Counter())

    def add(self, other: "Answers") -> None:
        """Joins what another process got at the same time."""
        for name, values in other.latencies.items():
            self.latencies[name] += values
        for name, counts in other.statuses.items():
            self.statuses[name] += counts
        self.seconds = max(self.seconds, other.seconds)
        self.client_load = max(self.client_load, other.client_load)


def get(name: str, path: str) -> Call:
    """A GET."""
    return Call(name, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


def post(name: str, path: str, body: bytes) -> Call:
    """A POST of JSON."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return Call(name, f"{head}\r\n\r\n".encode() + body)


class Load:
    """Client processes that are kept between measurements."""

    def __init__(self, *, processes: int = 2) -> None:
        self._processes = processes
        self._pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
        self._pool.submit(time.sleep, 0).result()

    def start(self, url: str, calls: Sequence[Call], *, clients: int, seconds: float) -> "Future[Answers]":
        """Asks for so long; every client draws from `calls` in an order of its own."""
        shares = [clients // self._processes + (place < clients % self._processes) for place in range(self._processes)]
        futures = [
            self._pool.submit(_run, url, calls, share, seconds, seed) for seed, share in enumerate(shares) if share
        ]
        joined: Future[Answers] = Future()

        def check(_: "Future[Answers]") -> None:
            if all(future.done() for future in futures) and not joined.done():
                answers = Answers()
                for future in futures:
                    answers.add(future.result())
                joined.set_result(answers)

        for future in futures:
            future.add_done_callback(check)
        return joined

    def run(self, url: str, calls: Sequence[Call], *, clients: int, seconds: float) -> Answers:
        """As `start`, and waits."""
        return self.start(url, calls, clients=clients, seconds=seconds).result(seconds + 60)

    def close(self) -> None:
        """Ends the processes."""
        self._pool.shutdown()


def _run(url: str, calls: Sequence[Call], clients: int, seconds: float, seed: int) -> Answers:
    return asyncio.run(_ask_all(url, calls, clients, seconds, seed))


async def _ask_all(url: str, calls: Sequence[Call], clients: int, seconds: float, seed: int) -> Answers:
    address = urlsplit(url)
    connections = [await asyncio.open_connection(address.hostname, address.port) for _ in range(clients)]
    answers = Answers()
    started, worked = time.perf_counter(), time.process_time()
    until = started + seconds
    await asyncio.gather(
        *(
            _ask(reader, writer, calls, until, answers, random.Random(1000 * seed + place))
            for place, (reader, writer) in enumerate(connections)
        )
    )
    answers.seconds = time.perf_counter() - started
    answers.client_load = (time.process_time() - worked) / answers.seconds
    for _, writer in connections:
        writer.close()
    return answers


async def _ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    calls: Sequence[Call],
    until: float,
    answers: Answers,
    generator: random.Random,
) -> None:
    while (asked := time.perf_counter()) < until:
        call = generator.choice(calls)
        try:
            writer.write(call.request)
            status = await _answer(reader)
        except (OSError, EOFError, ValueError):
            answers.statuses[call.name][BROKEN] += 1
            return
        answers.statuses[call.name][status] += 1
        if status == 200:
            answers.latencies[call.name].append(time.perf_counter() - asked)
        elif status == 429:
            await asyncio.sleep(_PAUSE_SECONDS)


async def _answer(reader: asyncio.StreamReader) -> int:
    """Reads one answer; all that are asked for here say how long they are."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, _, rest = head.partition(b"content-length:")
    await reader.readexactly(int(rest.partition(b"\r\n")[0]))
    return int(head.split(b" ", 2)[1])
