"""Token streams that process 0 writes, for the other processes to read: one copy for each machine."""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import distributed

from lm_retrieval.artifacts import storage_errors
from lm_retrieval.training.batches import TokenStream
from lm_retrieval.training.processes import rank, shared, together, told, wait_for_all

_PIECE_BYTES = 1 << 26


class _Described(NamedTuple):
    """A stream without its ids."""

    stream: TokenStream
    file: Path | None
    """Where the ids are; None where there are none."""
    size_bytes: int


def shared_streams(write: Callable[[], Sequence[TokenStream]]) -> list[TokenStream]:
    """The streams that process 0 writes, memory-mapped on every process.

    The processes of its machine read its files. Each other machine is sent a copy, which takes up space in its
    temporary folder for as long as a process reads it and has no name there any more.

    Raises:
        PeerError: process 0 could not write them; there its own error is raised.
        StorageError: a copy cannot be written.
    """
    written: list[TokenStream] = []
    if not together():
        return list(write())

    def describe() -> list[_Described]:
        written.extend(write())
        return [_described(stream) for stream in written]

    described = shared(describe)
    machines = told(os.environ.get("GROUP_RANK") or socket.gethostname())
    leaders = [machines.index(name) for name in dict.fromkeys(machines)]  # the first process of each
    mine = machines.index(machines[rank()])
    folder = Path(tempfile.mkdtemp(prefix="lmr-tokens-")) if rank() == mine != 0 else None
    group = distributed.new_group(leaders, backend="gloo") if len(leaders) > 1 else None
    files = [item.file for item in described]
    if group is not None and rank() == mine:
        files = [_sent(item, place, folder, group) for place, item in enumerate(described)]
    files = told(files)[mine]
    streams = written or [_opened(item, file) for item, file in zip(described, files, strict=True)]
    wait_for_all()  # all have the files open
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return streams


def _described(stream: TokenStream) -> _Described:
    ids = stream.token_ids
    file = Path(str(ids.filename)) if isinstance(ids, np.memmap) else None
    return _Described(replace(stream, token_ids=np.zeros(0, ids.dtype)), file, ids.nbytes)


def _opened(item: _Described, file: Path | None) -> TokenStream:
    if file is None:
        return item.stream
    with storage_errors(file):
        return replace(item.stream, token_ids=np.memmap(file, dtype=item.stream.token_ids.dtype, mode="r"))


def _sent(item: _Described, place: int, folder: Path | None, group: distributed.ProcessGroup) -> Path | None:
    """Sends a file to the other machines, or writes the one that is sent to this machine; its place here."""
    if item.file is None:
        return None
    file = item.file if folder is None else folder / f"{place}.bin"
    with storage_errors(file), file.open("rb" if folder is None else "wb") as stream:
        for start in range(0, item.size_bytes, _PIECE_BYTES):
            piece = np.zeros(min(_PIECE_BYTES, item.size_bytes - start), np.uint8)
            if folder is None:
                piece[:] = np.frombuffer(stream.read(len(piece)), np.uint8)
            distributed.broadcast(torch.from_numpy(piece), src=0, group=group)
            if folder is not None:
                stream.write(piece.tobytes())
    return file
