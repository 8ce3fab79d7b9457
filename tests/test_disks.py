"""Disks that fill up, turn read-only or vanish while an index is built: a clear error, the earlier index whole, and the
same command goes on. On real small file systems."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import make_texts, write_jsonl

from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.errors import StorageError
from lm_retrieval.index.builder import build_index
from lm_retrieval.index.engines import Site, ThisProcess
from lm_retrieval.index.report import BuildReport
from lm_retrieval.index.shards import Outcome, Work
from lm_retrieval.search import Searcher

pytestmark = pytest.mark.skipif(
    shutil.which("mount") is None or os.geteuid() != 0, reason="needs to mount a small file system"
)
QUESTION = "the river carries cold water"


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    ended = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", str(folder)], capture_output=True)
    if ended.returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)  # a reader may still have files open


@pytest.fixture
def corpus_path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in make_texts(60, seed=4)])


class Interrupted(ThisProcess):
    """Something happens after some shards."""

    def __init__(self, event: Callable[[], object], after: int) -> None:
        self.event, self.after = event, after

    def run(self, works: Iterator[Work], *, site: Site, encoder: Encoder) -> Iterator[Outcome]:
        for place, outcome in enumerate(super().run(works, site=site, encoder=encoder)):
            if place == self.after:
                self.event()
            yield outcome


def build(
    corpus: Path, encoder: Encoder, output: Path, event: Callable[[], object] | None = None, *, after: int = 5
) -> BuildReport:
    engine = Interrupted(event, after) if event else None
    return build_index(open_corpus(corpus), encoder=encoder, output=output, shard_chunks=2, engine=engine)


def grow(corpus: Path) -> None:
    with corpus.open("a") as stream:
        stream.writelines(f'{{"text": "{text}"}}\n' for text in make_texts(60, seed=9))


@pytest.mark.parametrize("when", ["at once", "in the middle", "at the end"])
def test_a_full_disk(disk: Path, corpus_path: Path, encoder: Encoder, when: str) -> None:
    output = disk / "index"
    first = build(corpus_path, encoder, output)
    expected = Searcher(output).search(QUESTION)
    grow(corpus_path)
    filler = disk / "filler"

    def fill() -> None:
        filler.write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize))

    if when == "at once":
        fill()
    event = None if when == "at once" else fill
    with pytest.raises(StorageError, match="the disk is full; free some space and run the same command again"):
        build(corpus_path, encoder, output, event, after=59 if when == "at the end" else 35)
    assert Searcher(output).search(QUESTION) == expected
    filler.unlink()
    report = build(corpus_path, encoder, output)
    assert report.documents == 2 * first.documents
    assert report.resumed + report.encoded + report.reused == report.chunks
    assert (report.resumed > 0) == (when != "at once")
    if when == "at the end":
        assert report.encoded == 0


def test_a_disk_that_turns_read_only(disk: Path, corpus_path: Path, encoder: Encoder, tmp_path: Path) -> None:
    output = disk / "index"
    build(corpus_path, encoder, output)
    expected = Searcher(output).search(QUESTION)
    grow(corpus_path)
    with pytest.raises(StorageError, match="the file system is read-only"):
        build(corpus_path, encoder, output, lambda: mount("-o", "remount,ro", disk))
    assert Searcher(output).search(QUESTION) == expected
    with pytest.raises(StorageError, match="the file system is read-only"):
        build(corpus_path, encoder, output)
    mount("-o", "remount,rw", disk)
    assert build(corpus_path, encoder, output).resumed > 0


def test_a_disk_that_vanishes(disk: Path, corpus_path: Path, encoder: Encoder, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    mount("--bind", disk, place)
    build(corpus_path, encoder, place / "index")
    with pytest.raises(StorageError, match=r"has gone while it was being written.*unmounted"):
        build(corpus_path, encoder, place / "new", lambda: subprocess.run(["umount", "-l", place], check=True))
    assert not list(place.iterdir()), "written where the disk had been"
    mount("--bind", disk, place)
    try:
        assert Searcher(place / "index").search(QUESTION)
        assert build(corpus_path, encoder, place / "new").resumed > 0
    finally:
        subprocess.run(["umount", place], check=True)
