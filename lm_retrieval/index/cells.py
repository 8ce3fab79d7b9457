"""Inverted files (IVF) larger than memory: built part by part, merged cell by cell into one file.

FAISS's own way of merging leaves two files that name each other by their absolute paths. Here the file is the one that
FAISS writes for an index in memory, so that it is read, moved and memory-mapped as any other.
"""

import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from lm_retrieval.artifacts import atomic_file, storage_errors

_EMPTY_LISTS_BYTES = 32  # "ilar", cells, bytes of a code, "sprs", no sizes
_ID_BYTES = 8


def write_in_parts(path: Path, index: Any, vectors: Iterator[NDArray[np.float32]], *, memory_bytes: int) -> None:
    """Adds vectors to a trained, empty index and writes it, holding `memory_bytes` of codes at most.

    Args:
        path: the index file.
        index: any FAISS index around an inverted file; it stays empty.
        vectors: (N, D) float32 pieces; the vectors are numbered in their order.
        memory_bytes: of codes and numbers in memory.
    """
    cells = faiss.extract_index_ivf(index)
    most = max(1, memory_bytes // (cells.code_size + _ID_BYTES))
    with storage_errors(path), _folder_beside(path) as folder:
        parts: list[_Part] = []
        count = first = 0
        for piece in vectors:
            index.add(np.ascontiguousarray(piece))
            count += len(piece)
            if count - first >= most:
                parts.append(_Part(folder / str(len(parts)), cells, first))
                index.reset()
                first = count
        if count > first:
            parts.append(_Part(folder / str(len(parts)), cells, first))
            index.reset()
        _merge(path, index, parts, count)


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".parts-", dir=path.parent) as folder:
        yield Path(folder)


class _Part:
    """The cells of some of the vectors, in a file.

    Attributes:
        sizes: (cells,) vectors in each cell.
    """

    def __init__(self, path: Path, cells: Any, first: int) -> None:
        """Writes what `cells` holds; its vectors are numbered from 0 there and from `first` here."""
        lists, self._code_size = cells.invlists, cells.code_size
        self.sizes = np.array([lists.list_size(cell) for cell in range(cells.nlist)], np.int64)
        with path.open("wb") as stream:
            for cell, size in enumerate(self.sizes.tolist()):
                if size:
                    stream.write(faiss.rev_swig_ptr(lists.get_codes(cell), size * self._code_size).tobytes())
                    stream.write((faiss.rev_swig_ptr(lists.get_ids(cell), size) + first).astype("<i8").tobytes())
        self._stream = path.open("rb")

    def next_cell(self, cell: int) -> tuple[bytes, bytes]:
        """Codes and numbers of the next cell; cells are asked for in their order."""
        size = int(self.sizes[cell])
        return self._stream.read(size * self._code_size), self._stream.read(size * _ID_BYTES)

    def close(self) -> None:
        self._stream.close()


def _merge(path: Path, index: Any, parts: list[_Part], count: int) -> None:
    cells = faiss.extract_index_ivf(index)
    cells.ntotal = index.ntotal = count
    head = faiss.serialize_index(index).tobytes()
    expected = b"ilar" + struct.pack("<qq", cells.nlist, cells.code_size) + b"sprs" + bytes(8)
    assert head[-_EMPTY_LISTS_BYTES:] == expected, "FAISS changed its file format"
    sizes = sum((part.sizes for part in parts), np.zeros(cells.nlist, np.int64))
    try:
        with atomic_file(path, "wb") as stream:
            stream.write(head[: -8 - 4])
            stream.write(b"full" + struct.pack("<q", cells.nlist) + sizes.astype("<i8").tobytes())
            for cell in range(cells.nlist):
                found = [part.next_cell(cell) for part in parts]
                for column in (0, 1):
                    for piece in found:
                        stream.write(piece[column])
    finally:
        for part in parts:
            part.close()
