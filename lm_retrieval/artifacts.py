"""Folders that describe themselves: manifests, fingerprints, and writes that are whole or absent."""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lm_retrieval.errors import LmRetrievalError, StorageError
from lm_retrieval.version import __version__

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns what the operating system says about `path` into a StorageError with advice."""
    try:
        yield
    except OSError as error:
        raise _explain(error, Path(error.filename) if isinstance(error.filename, str) else path) from error


def _explain(error: OSError, path: Path) -> LmRetrievalError:
    reasons = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again",
        errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
        errno.EACCES: "no permission; choose another folder or change its permissions",
        errno.EPERM: "not permitted; choose another folder or change its permissions",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOENT: "no such file or folder; check the path",
        errno.EISDIR: "this is a folder, a file is needed",
        errno.EEXIST: "a file is in the way, a folder is needed; choose another path",
        errno.ENOTDIR: "a part of this path is a file, a folder is needed",
        errno.EIO: "the device reported an input/output error; check the disk",
    }
    # pyarrow's have no number
    number = error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else 0)
    return StorageError(f"{path}: {reasons.get(number, error.strerror or str(error))}")


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` and renames it over `path` when the block ends well.

    Raises:
        StorageError: the file system refused; what was at `path` before is untouched.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.chmod(0o666 & ~_umask())
            try:
                temporary.replace(path)
            except OSError as error:
                raise _explain(error, path) from error
        finally:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def replace_folder(source: Path, target: Path) -> None:
    """Moves the finished folder `source` to `target`, taking away what was there before."""
    with storage_errors(target):
        old = _old_name(target)
        if old.exists():
            shutil.rmtree(old)
        if target.exists():
            target.rename(old)
        try:
            source.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    if old.exists():
        try:
            shutil.rmtree(old)
        except OSError as error:  # the new folder is in its place all the same
            logger.warning("%s: what was there before could not be deleted (%s)", old, error.strerror or error)


def require_folder(path: Path) -> None:
    """Checks that a folder that is being written is still there.

    Where a disk was unmounted its folder may be made again, on another disk, and half of the work would go there.

    Raises:
        StorageError: it has gone.
    """
    if not path.is_dir():
        raise StorageError(
            f"{path}: has gone while it was being written; if its disk was unmounted, mount it and run the same "
            "command again"
        )


def recover_folder(target: Path) -> None:
    """Puts back what a kill in the middle of `replace_folder` left under another name."""
    with storage_errors(target):
        if not target.exists() and _old_name(target).exists():
            _old_name(target).rename(target)


def _old_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


@contextlib.contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Lets one process at a time write `path`; the kernel releases the lock even after kill -9.

    Raises:
        StorageError: another process is writing the same folder, or it could not be written anyway.
    """
    path = path.resolve()
    with storage_errors(path):
        if path.exists() and not path.is_dir():
            raise FileExistsError(errno.EEXIST, "not a folder", str(path))
        if path.exists() and not os.access(path, os.W_OK):
            read_only = os.statvfs(path).f_flag & os.ST_RDONLY
            raise OSError(errno.EROFS if read_only else errno.EACCES, "not writable", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_path = path.with_name(f".{path.name}.lock")
        handle = os.open(lock_path, os.O_RDONLY | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"{path}: another process is writing this folder; wait for it or choose another --output"
                raise StorageError(message) from None
            yield
        finally:
            os.close(handle)


def sha256_bytes(*parts: bytes) -> str:
    """Hex SHA-256 of the parts, each preceded by its length so that no two splits collide."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with storage_errors(path), path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def folder_bytes(path: Path) -> int:
    """The size of every file below `path`, in bytes."""
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as readable JSON, atomically."""
    with atomic_file(path) as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


def write_manifest(folder: Path, *, kind: str, content: dict[str, Any]) -> None:
    """Writes `manifest.json`: its presence says that the folder is complete."""
    head = {"kind": kind, "format_version": FORMAT_VERSION, "lm_retrieval_version": __version__}
    write_json(folder / MANIFEST_NAME, head | content)


def find_folder(name: str, home: Path) -> Path | None:
    """The folder meant by a path or by a name in `home`; one with a manifest comes first. None where there is none."""
    places = [path for path in (Path(name), home / name) if path.is_dir()]
    return next((path for path in places if (path / MANIFEST_NAME).is_file()), places[0] if places else None)


def read_manifest(folder: Path, *, kind: str, error: type[LmRetrievalError]) -> dict[str, Any]:
    """Reads a manifest and checks its kind and version.

    Raises:
        error: the folder or manifest is missing, damaged, of another kind, or of a newer format.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise error(f"{folder}: no such {kind} folder; check the path")
    if not path.is_file():
        raise error(f"{folder}: not a complete {kind} ({MANIFEST_NAME} is missing); build it again or check the path")
    with storage_errors(path):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            found_kind, version = manifest["kind"], manifest["format_version"]
        except (ValueError, KeyError, TypeError) as problem:
            raise error(f"{path}: damaged manifest; build the {kind} again") from problem
    if found_kind != kind:
        raise error(f"{folder}: this is a {found_kind}, a {kind} is needed")
    if version != FORMAT_VERSION:
        raise error(
            f"{folder}: format version {version}, this program reads {FORMAT_VERSION}; "
            f"install the version of lm_retrieval that wrote it, or build the {kind} again"
        )
    return dict(manifest)
