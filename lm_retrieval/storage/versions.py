"""What a remote checkpoint or index holds, as one version that is whole.

The manifest is the only file that is ever replaced. The one in the store has a table `files` with name and SHA-256 of
every other file, and the key where a file waits that could not take its own name yet, because the version before still
lies there. One write of the manifest therefore changes a folder from the old version to the new one. A folder that was
copied there by other tools has no table; its listing takes the place.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_retrieval.artifacts import MANIFEST_NAME, sha256_bytes, storage_errors
from lm_retrieval.errors import StorageError
from lm_retrieval.storage.connection import remote_errors
from lm_retrieval.storage.location import RemotePath

WAITING_NAME = ".versions"
TABLE_KEY = "files"
_PIECE_BYTES = 8 << 20
_SHA256_DIGITS = 64


@dataclass(frozen=True)
class Item:
    """A file of a version.

    Attributes:
        size: in bytes.
        tag: changes when the content does: its SHA-256, or size and time of change where that is not known.
        key: where it lies below the folder.
    """

    size: int
    tag: str
    key: str

    @property
    def exact(self) -> bool:
        """Whether the tag tells the content."""
        return len(self.tag) == _SHA256_DIGITS


@dataclass(frozen=True)
class Version:
    """The whole content of a remote folder.

    Attributes:
        manifest: what `manifest.json` says, without the table of files.
        items: every other file by its name below the folder.
    """

    manifest: dict[str, Any]
    items: dict[str, Item]

    @property
    def digest(self) -> str:
        """The same for two versions only if every file is the same."""
        tags = {name: item.tag for name, item in self.items.items()}
        return sha256_bytes(json.dumps([self.manifest, tags], sort_keys=True).encode())


def read_version(folder: RemotePath) -> Version | None:
    """The version in the store, from its manifest alone where `lmr` wrote it; None without a manifest.

    Raises:
        StorageError: the manifest is no manifest, or the store does not answer.
    """
    path = folder / MANIFEST_NAME
    content = _content(path)
    if content is None:
        return None
    try:
        manifest = json.loads(content)
        table = manifest.pop(TABLE_KEY, None)
        if table is not None:
            items = {name: Item(row["bytes"], row["sha256"], row.get("key", name)) for name, row in table.items()}
            _check_names(items)
            return Version(manifest, items)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path}: damaged manifest; upload the folder again") from error
    listed = {name: entry for name, entry in folder.files().items() if not _hidden(name) and name != MANIFEST_NAME}
    return Version(manifest, {n: Item(e.size, f"{e.size}-{e.modified}", n) for n, e in listed.items()})


def _content(path: RemotePath) -> bytes | None:
    """A small file, or None where there is none; two requests."""
    with remote_errors(path):
        try:
            with path.file_system.open_input_file(path.path) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None


def _check_names(items: dict[str, Item]) -> None:
    """A name must not lead out of the folder."""
    if any(".." in name.split("/") or name.startswith("/") or "\0" in name for name in items):
        raise ValueError("a name leads out of the folder")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def local_files(folder: Path, *, leave_out: frozenset[str]) -> Iterator[str]:
    """Names of the visible files below a folder, without the manifest and without what lies in `leave_out`."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not _hidden(name) and name != MANIFEST_NAME and name.partition("/")[0] not in leave_out:
            yield name


def download(folder: RemotePath, item: Item, target: Path) -> None:
    """Writes one file of a version to a new local file and checks that it is the right one.

    Raises:
        StaleError: the file is another one now, or gone.
        StorageError: the store or the local disk said no.
    """
    source = folder / item.key
    digest, size = hashlib.sha256(), 0
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as local:
            for piece in _pieces(source):
                local.write(piece)
                digest.update(piece)
                size += len(piece)
    if size != item.size or (item.exact and digest.hexdigest() != item.tag):
        raise StaleError(f"{source}: is not the file that {MANIFEST_NAME} names")


def _pieces(source: RemotePath) -> Iterator[bytes]:
    try:
        with source.file_system.open_input_file(source.path) as stream:
            while piece := stream.read(_PIECE_BYTES):
                yield piece
    except FileNotFoundError as error:
        raise StaleError(f"{source}: is gone") from error
    except OSError as error:
        with remote_errors(source):
            raise error


def upload(source: Path, target: RemotePath) -> None:
    """Writes a local file to a store.

    Raises:
        StorageError: the store or the local disk said no.
    """
    with storage_errors(source), source.open("rb") as local:
        with remote_errors(target), target.file_system.open_output_stream(target.path) as stream:
            while piece := local.read(_PIECE_BYTES):
                stream.write(piece)


def write_version(folder: RemotePath, version: Version) -> None:
    """Makes a version, whose files are all in place, the one that readers see."""
    table = {
        name: {"bytes": item.size, "sha256": item.tag} | ({"key": item.key} if item.key != name else {})
        for name, item in sorted(version.items.items())
    }
    text = json.dumps(version.manifest | {TABLE_KEY: table}, indent=1, ensure_ascii=False) + "\n"
    path = folder / MANIFEST_NAME
    with remote_errors(path), path.file_system.open_output_stream(path.path) as stream:
        stream.write(text.encode())


class StaleError(StorageError):
    """What was about to be read has been replaced."""
