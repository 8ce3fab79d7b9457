"""A location is a local path or a URI; a URI has the part of `pathlib.Path` that readers need."""

import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast
from urllib.parse import unquote

from lm_retrieval.artifacts import storage_errors
from lm_retrieval.errors import StorageError
from lm_retrieval.storage.connection import file_system, remote_errors

SCHEMES = ("s3", "gs", "hdfs", "file")
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_BUFFER_BYTES = 4 << 20
_AHEAD_BYTES = 4 << 20
_AHEAD_FILES = 16
THREADS = 8


class Entry(NamedTuple):
    """A file in a listing."""

    size: int
    modified: int
    """Nanoseconds since 1970; object stores know seconds."""


class RemotePath:
    """A file or folder of an object store or of HDFS: `scheme://authority/part/part`.

    S3 and GCS keys are taken as they are written, without percent-decoding, as their own tools do.
    """

    def __init__(
        self,
        scheme: str,
        authority: str,
        parts: tuple[str, ...] = (),
        *,
        listing: "_Listing | None" = None,
        content: bytes | None = None,
    ) -> None:
        """A path; `listing` answers questions about it without a request, `content` is its data read before."""
        self.scheme, self.authority, self.parts = scheme, authority, parts
        self._listing, self._content = listing, content

    def __str__(self) -> str:
        return "/".join((f"{self.scheme}://{self.authority}", *self.parts))

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: "RemotePath") -> bool:
        return self.parts < other.parts

    def __truediv__(self, name: str | PurePosixPath) -> "RemotePath":
        parts = (*self.parts, *filter(None, str(name).split("/")))
        return RemotePath(self.scheme, self.authority, parts, listing=self._listing)

    @property
    def name(self) -> str:
        """The last part; of a whole bucket its name."""
        return self.parts[-1] if self.parts else self.authority

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def suffixes(self) -> list[str]:
        return PurePosixPath(self.name).suffixes

    @property
    def file_system(self) -> Any:
        """The `pyarrow.fs.FileSystem` that holds it."""
        return file_system(self.scheme, self.authority)

    @property
    def path(self) -> str:
        """What the file system calls it."""
        return "/".join(("", *self.parts)) or "/" if self.scheme == "hdfs" else "/".join((self.authority, *self.parts))

    def relative_to(self, folder: "RemotePath") -> PurePosixPath:
        """The way from a folder above."""
        return PurePosixPath(*self.parts[len(folder.parts) :])

    def exists(self) -> bool:
        """Whether there is a file or a folder. StorageError where the store does not answer."""
        return self._kind() != "NotFound"

    def is_file(self) -> bool:
        return self._kind() == "File"

    def is_dir(self) -> bool:
        return self._kind() == "Directory"

    def size(self) -> int:
        """Bytes of a file."""
        return self._listing[self].size if self._listing else int(self._info().size)

    def iterdir(self) -> Iterator["RemotePath"]:
        """What is in this folder; it is listed anew, all levels at once, unless it comes from a listing."""
        listing = self._listing or _Listing(self)
        for name in listing.names(self):
            yield RemotePath(self.scheme, self.authority, (*self.parts, name), listing=listing)

    def files(self) -> "dict[str, Entry]":
        """Every file below by its relative path, listed anew; empty where there is no such folder."""
        return {"/".join(parts): entry for parts, entry in _Listing(self).entries.items()}

    def read_bytes(self) -> bytes:
        with opened(self) as stream:
            return stream.read()

    def with_content(self, content: bytes) -> "RemotePath":
        """The same path with its data, which is then not read again."""
        return RemotePath(self.scheme, self.authority, self.parts, listing=self._listing, content=content)

    def missing(self) -> str:
        """Why there is nothing here, in words."""
        whole = RemotePath(self.scheme, self.authority)
        return "no such bucket" if self.scheme != "hdfs" and not whole.exists() else "no such file or folder"

    @property
    def content(self) -> bytes | None:
        """Data read before."""
        return self._content

    def _kind(self) -> str:
        return self._listing.kind(self) if self._listing else str(self._info().type.name)

    def _info(self) -> Any:
        with remote_errors(self):
            return self.file_system.get_file_info(self.path)


Location: TypeAlias = Path | RemotePath


class _Listing:
    """One recursive listing of a folder."""

    def __init__(self, base: RemotePath) -> None:
        from pyarrow import fs

        self._depth = len(base.parts)
        self.entries: dict[tuple[str, ...], Entry] = {}
        self._children: dict[tuple[str, ...], set[str]] = {(): set()}
        with remote_errors(base):
            found = base.file_system.get_file_info(fs.FileSelector(base.path, recursive=True, allow_not_found=True))
        skipped = len(tuple(filter(None, base.path.split("/"))))
        for info in found:
            parts = tuple(filter(None, info.path.split("/")))[skipped:]
            if info.type == fs.FileType.File:
                self.entries[parts] = Entry(int(info.size), int(info.mtime_ns or 0))
            elif parts:
                self._children.setdefault(parts, set())
            for depth in range(len(parts)):
                self._children.setdefault(parts[:depth], set()).add(parts[depth])

    def __getitem__(self, path: RemotePath) -> Entry:
        return self.entries[path.parts[self._depth :]]

    def kind(self, path: RemotePath) -> str:
        parts = path.parts[self._depth :]
        return "File" if parts in self.entries else "Directory" if parts in self._children else "NotFound"

    def names(self, path: RemotePath) -> list[str]:
        return sorted(self._children.get(path.parts[self._depth :], ()))


def is_uri(place: object) -> bool:
    """Whether a text names a place by a URI rather than by a path."""
    return _URI.match(str(place)) is not None


def locate(place: "str | Path | RemotePath") -> Location:
    """The location that a path or URI means; a `file://` URI is a local path.

    Raises:
        StorageError: an unknown scheme, or credentials within the URI.
    """
    if isinstance(place, Path | RemotePath):
        return place
    found = _URI.match(place)
    if found is None:
        return Path(place)
    scheme, rest = found["scheme"].lower(), found["rest"]
    if scheme not in SCHEMES:
        raise StorageError(f"{scheme}://: not supported; supported: {', '.join(f'{name}://' for name in SCHEMES)}")
    authority, _, path = rest.partition("/")
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise StorageError(f"{place}: a file URI has three slashes: file:///folder")
        return Path("/" + unquote(path))
    if scheme != "hdfs" and set("@:") & set(authority):
        raise StorageError(
            f"{scheme}://: credentials do not belong into an address, which ends up in logs; set AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or GOOGLE_APPLICATION_CREDENTIALS"
        )
    if not authority and scheme != "hdfs":
        raise StorageError(f"{place}: no bucket; write {scheme}://BUCKET/FOLDER")
    return RemotePath(scheme, authority, tuple(filter(None, path.split("/"))))


def resolved(place: "str | Path | RemotePath") -> Location:
    """The location in full, as manifests record it."""
    location = locate(place)
    return location.resolve() if isinstance(location, Path) else location


def children(folder: Location) -> list[Location]:
    """What is in a folder, sorted by Unicode code points wherever it lies."""
    found: list[Location] = [*folder.iterdir()]
    return sorted(found, key=lambda path: path.name)


@contextmanager
def opened(path: Location) -> Iterator[BinaryIO]:
    """Opens a file for reading its bytes; Parquet by random access, all else as a stream.

    Raises:
        StorageError: the file cannot be opened or read.
    """
    if isinstance(path, Path):
        with storage_errors(path), path.open("rb") as local:
            yield local
    elif path.content is not None:
        yield io.BytesIO(path.content)
    else:
        with remote_errors(path):
            if ".parquet" in (suffix.lower() for suffix in path.suffixes):
                remote = path.file_system.open_input_file(path.path)
            else:
                remote = path.file_system.open_input_stream(path.path, compression=None, buffer_size=_BUFFER_BYTES)
            with remote:
                yield cast(BinaryIO, remote)


def read_ahead(paths: Iterable[Location], *, wanted: Callable[[Location], bool]) -> Iterator[Location]:
    """The same paths in their order; small remote files that are wanted are read by threads before their turn."""
    waiting: deque[tuple[Location, Future[bytes] | None]] = deque()
    pool = ThreadPoolExecutor(THREADS)

    def next_one() -> Location:
        path, reading = waiting.popleft()
        return path.with_content(reading.result()) if isinstance(path, RemotePath) and reading else path

    try:
        for path in paths:
            small = isinstance(path, RemotePath) and wanted(path) and path.size() <= _AHEAD_BYTES
            waiting.append((path, pool.submit(path.read_bytes) if small else None))
            if isinstance(path, Path) or len(waiting) > _AHEAD_FILES:
                yield next_one()
        while waiting:
            yield next_one()
    finally:
        pool.shutdown(cancel_futures=True)
