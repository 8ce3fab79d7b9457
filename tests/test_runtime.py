"""The machine underneath: threads that work ahead, and what may be imported."""

import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lm_retrieval.cli.options import Bytes
from lm_retrieval.runtime import ahead, memory_budget, resident_bytes

ROOT = Path(__file__).parent.parent


def test_ahead_gives_the_same_items_in_order() -> None:
    assert list(ahead(range(100))) == list(range(100))
    assert list(ahead([])) == []
    assert list(ahead([None, 0, ""])) == [None, 0, ""]


def test_ahead_works_on_the_next_item_meanwhile_and_not_on_all() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    stream = ahead(items())
    assert next(stream) == 0
    deadline = time.monotonic() + 5
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert 2 <= len(made) <= 4
    assert list(stream) == list(range(1, 10))


def test_an_error_while_making_an_item_is_raised_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    stream = ahead(items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="no more"):
        next(stream)


def test_the_thread_ends_when_nobody_wants_more() -> None:
    before = threading.active_count()
    stream = ahead(iter(int, 1))  # without end
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.parametrize("code", ["import lm_retrieval", "from lm_retrieval.cli import main; main(['--help'])"])
def test_the_package_and_its_help_load_within_a_third_of_a_second(code: str) -> None:
    """Processor time, which other work on the machine does not lengthen much; the best of five."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3


def test_the_memory_budget_is_what_the_limit_leaves(caplog: pytest.LogCaptureFixture) -> None:
    used = resident_bytes()
    assert 10e6 < used < 20e9
    assert memory_budget(used + 500_000_000) == pytest.approx(500e6, rel=0.1)
    assert memory_budget(1_000_000) == 64 << 20  # less is not worth a name
    assert "--max-memory 1MB cannot be kept: at least " in caplog.text
    assert memory_budget() > 0
    assert memory_budget(10**15) <= 2.2 * memory_budget()  # a limit above what is free does not make more


@pytest.mark.parametrize(
    ("text", "expected"), [("500MB", 500e6), ("2GB", 2e9), ("1.5g", 1.5e9), ("64 kb", 64e3), ("77B", 77)]
)
def test_sizes_are_read_as_people_write_them(text: str, expected: float) -> None:
    assert Bytes().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "two", "-1GB", "1GiB", "GB", "1.5"])
def test_what_is_no_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(click.BadParameter, match="500MB or 2GB"):
        Bytes().convert(text, None, None)
