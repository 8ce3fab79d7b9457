"""Writing an array to a `.npy` file piece by piece, without holding it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


@contextmanager
def array_writer(path: Path, *, dtype: DTypeLike, shape: tuple[int, ...]) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Gives a function that appends rows; together they must be of `shape`, as `np.load` will say."""
    kind = np.dtype(dtype)
    with path.open("wb") as stream:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)

        def append(rows: NDArray[Any]) -> None:
            stream.write(np.ascontiguousarray(rows, kind).data)

        yield append
