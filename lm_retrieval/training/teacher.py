"""Teachers: encoders whose similarities another encoder learns to reproduce, and a cache of what they said.

Shapes: N texts, D dimensions of the teacher.
"""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.artifacts import atomic_file, sha256_bytes, sha256_file, storage_errors
from lm_retrieval.errors import CheckpointError, MissingExtraError
from lm_retrieval.progress import progress, silent
from lm_retrieval.runtime import fast_bfloat16, resolve_device

Vectors = NDArray[np.float16]
_PART_TEXTS = 2048
_KEY_BYTES = 16


class Teacher(Protocol):
    """Anything that turns texts into unit vectors."""

    name: str
    fingerprint: str

    def encode(self, texts: Sequence[str]) -> Vectors:
        """(N, D) float16 unit vectors."""
        ...


class SentenceTransformerTeacher:
    """A sentence-transformers model in a folder (extra `teacher`); no network is ever asked."""

    def __init__(self, path: Path, *, device: str = "auto") -> None:
        """Loads the model.

        Raises:
            CheckpointError: the folder is missing or holds no sentence-transformers model.
            MissingExtraError: sentence-transformers is not installed.
        """
        if not (path / "modules.json").is_file():
            raise CheckpointError(
                f"{path}: not a sentence-transformers model (modules.json is missing); give the folder of one, or 'lsi'"
            )
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtraError("a sentence-transformers teacher", extra="teacher") from error
        target = resolve_device(device)
        try:
            self._model: Any = SentenceTransformer(str(path), device=str(target), local_files_only=True)
        except Exception as error:  # whatever its files make the library raise
            raise CheckpointError(f"{path}: cannot be loaded as a sentence-transformers model ({error})") from error
        if fast_bfloat16(target):
            import torch

            self._model = self._model.to(torch.bfloat16)
        self.name = path.resolve().name
        weights = sorted(path.rglob("*.safetensors")) or sorted(path.rglob("*.json"))
        self.fingerprint = sha256_bytes(*(sha256_file(file).encode() for file in weights))

    def encode(self, texts: Sequence[str]) -> Vectors:
        """(N, D) float16 unit vectors."""
        vectors = self._model.encode(
            list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False, convert_to_tensor=True
        )
        return np.asarray(vectors.float().cpu().numpy(), np.float16)


class CachedTeacher:
    """A teacher that is asked once per text: its vectors are kept in Parquet parts in a folder."""

    def __init__(self, teacher: Teacher, folder: Path) -> None:
        """Opens or starts the cache of this teacher below `folder`."""
        self._teacher = teacher
        self.name, self.fingerprint = teacher.name, teacher.fingerprint
        self.folder = folder / f"{teacher.name}-{teacher.fingerprint[:12]}"
        self._rows: dict[bytes, tuple[int, int]] = {}
        self._parts: list[Vectors] = []
        for path in sorted(self.folder.glob("part-*.parquet")):
            self._add(*_read_part(path))

    def encode(self, texts: Sequence[str], *, show_progress: bool = False) -> Vectors:
        """(N, D) float16 unit vectors; texts not seen before are given to the teacher and kept.

        Raises:
            StorageError: the cache cannot be written.
        """
        keys = [_key(text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._rows}
        order = list(missing.items())
        with progress("teacher", total=len(order)) if show_progress and order else nullcontext(silent) as advance:
            for start in range(0, len(order), _PART_TEXTS):
                part = order[start : start + _PART_TEXTS]
                vectors = self._teacher.encode([text for _, text in part])
                _write_part(self.folder / f"part-{len(self._parts):05}.parquet", [key for key, _ in part], vectors)
                self._add([key for key, _ in part], vectors)
                advance(len(part))
        if not keys:
            return np.zeros((0, 0), np.float16)
        places = (self._rows[key] for key in keys)
        return np.stack([self._parts[part][row] for part, row in places])

    def knows(self, text: str) -> bool:
        """Whether the vector of a text is at hand already."""
        return _key(text) in self._rows

    def _add(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        number = len(self._parts)
        self._parts.append(vectors)
        self._rows.update((key, (number, row)) for row, key in enumerate(keys))


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=_KEY_BYTES).digest()


def _write_part(path: Path, keys: list[bytes], vectors: Vectors) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"key": pa.array(keys, pa.binary(_KEY_BYTES)), "vector": flat})
    with atomic_file(path, "wb") as stream:
        pq.write_table(table, stream, compression="none")


def _read_part(path: Path) -> tuple[list[bytes], Vectors]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with storage_errors(path):
        try:
            table = pq.read_table(path)
            column = table.column("vector").combine_chunks()
            vectors = column.flatten().to_numpy().reshape(len(table), -1)
            return table.column("key").to_pylist(), vectors
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            raise CheckpointError(f"{path}: damaged teacher vectors; delete the file, they are made again") from error
