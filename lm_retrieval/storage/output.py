"""Output folders at a URI: a run works in a local folder, which is sent whenever it is complete."""

import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lm_retrieval.artifacts import MANIFEST_NAME, sha256_file, storage_errors
from lm_retrieval.errors import StorageError
from lm_retrieval.progress import progress
from lm_retrieval.storage.cache import WORK_NAME, cache_home, fetch, locked, read_state, write_state
from lm_retrieval.storage.connection import remote_errors
from lm_retrieval.storage.location import THREADS, Location, RemotePath
from lm_retrieval.storage.versions import (
    WAITING_NAME,
    Item,
    Version,
    local_files,
    read_version,
    upload,
    write_version,
)

logger = logging.getLogger(__name__)

_STARTED_NAME = f"{WAITING_NAME}/started"
_TOKENS_NAME = "tokens"  # a training run's token stream: large, and made again from the corpus


@dataclass(frozen=True)
class OutputFolder:
    """Where a run writes.

    Attributes:
        location: what the user asked for.
        folder: where the run writes; the same place when that is local.
    """

    location: Location
    folder: Path

    def send(self) -> None:
        """Makes the remote folder what the local one is now; nothing to do where both are the same.

        Raises:
            StorageError: the store said no, or somebody else has changed the remote folder since it was fetched; it is
                as it was, and what the run has made stays in the local folder.
        """
        if not isinstance(self.location, RemotePath):
            return
        home = self.folder.parent
        with locked(home.parent):
            before = read_version(self.location)
            known, _ = read_state(home)
            if (before.digest if before else None) != known:
                raise StorageError(
                    f"{self.location}: was changed by somebody else since this run began; what this run made is in "
                    f"{self.folder}; choose another --output"
                )
            _send(self.folder, self.location, before)


def open_output(location: Location) -> OutputFolder:
    """Prepares a folder to write to; of a remote one that exists already, what is new is fetched first.

    Raises:
        StorageError: the URI holds files but no checkpoint or index, or it cannot be read.
    """
    if isinstance(location, Path):
        return OutputFolder(location, location)
    home = cache_home(location) / WORK_NAME
    found = OutputFolder(location, home / location.name)
    with locked(home.parent), storage_errors(home):
        version = read_version(location)
        known, _ = read_state(home)
        if version is None:
            _refuse_foreign(location)
            if known is not None:  # it was there and somebody deleted it
                shutil.rmtree(home)
        elif known != version.digest:
            copies = [path for path in home.parent.iterdir() if path.is_dir() and path.name != WORK_NAME]
            fetch(location, version, home, sources=copies)
        home.mkdir(exist_ok=True)
    return found


def _mark(folder: RemotePath) -> None:
    """Marks a folder without a manifest as ours while its first files arrive."""
    marker = folder / _STARTED_NAME
    with remote_errors(marker), marker.file_system.open_output_stream(marker.path) as stream:
        stream.write(b"an upload by lmr has begun\n")


def _refuse_foreign(location: RemotePath) -> None:
    files = location.files()
    if not files and not RemotePath(location.scheme, location.authority).exists():
        raise StorageError(f"{location}: {location.missing()}; create it or check the address")
    if files and not any(name.startswith(f"{WAITING_NAME}/") for name in files):
        raise StorageError(
            f"{location}: holds {len(files)} files but no checkpoint or index ({MANIFEST_NAME} is missing); choose "
            "another --output"
        )


def _send(folder: Path, target: RemotePath, before: Version | None) -> None:
    with storage_errors(folder):
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    names = list(local_files(folder, leave_out=frozenset((_TOKENS_NAME,))))
    taken = {item.key for item in before.items.values()} if before else set()
    old = before.items if before else {}

    def placed(name: str) -> Item:
        """Where a file goes: it stays where it is if unchanged, and waits where its name is still taken."""
        path = folder / name
        size, digest = path.stat().st_size, sha256_file(path)
        if name in old and old[name].tag == digest:
            return old[name]
        return Item(size, digest, f"{WAITING_NAME}/{digest[:16]}/{name}" if name in taken else name)

    if before is None:
        _mark(target)
    with ThreadPoolExecutor(THREADS) as pool:
        items = dict(zip(names, pool.map(placed, names), strict=True))
        new = [name for name in names if items[name] != old.get(name)]
        total = sum(items[name].size for name in new)
        with progress(f"sending to {target}", total=total or 1) as advance:

            def send(name: str) -> None:
                upload(folder / name, target / items[name].key)
                advance(items[name].size)

            list(pool.map(send, new))
        version = Version(manifest, items)
        write_version(target, version)
        write_state(folder.parent, version)  # what follows changes where files lie, not what they are
        _delete(target, taken - {item.key for item in items.values()}, pool)
        _settle(target, version, pool)
    logger.info("%s: sent %d files, %.1f MB, %d unchanged", target, len(new), total / 1e6, len(names) - len(new))


def _settle(target: RemotePath, version: Version, pool: ThreadPoolExecutor) -> None:
    """Gives files that waited their own names, now that no version needs what was there; then nothing waits."""

    def settle(name: str) -> tuple[str, Item]:
        item = version.items[name]
        if item.key == name:
            return name, item
        # where the store cannot copy (HDFS, S3 objects of more than 5 GB) the file stays where it is
        with suppress(OSError, NotImplementedError):
            target.file_system.copy_file((target / item.key).path, (target / name).path)
            return name, replace(item, key=name)
        return name, item

    settled = Version(version.manifest, dict(pool.map(settle, version.items)))
    if settled != version:
        write_version(target, settled)
    waiting = {item.key for item in settled.items.values() if item.key.startswith(WAITING_NAME)}
    if not waiting:
        with remote_errors(target), suppress(FileNotFoundError):
            target.file_system.delete_dir((target / WAITING_NAME).path)
    else:
        _delete(target, {item.key for item in version.items.values()} - {i.key for i in settled.items.values()}, pool)


def _delete(target: RemotePath, keys: set[str], pool: ThreadPoolExecutor) -> None:
    def delete(key: str) -> None:
        with remote_errors(target / key), suppress(FileNotFoundError):
            target.file_system.delete_file((target / key).path)

    list(pool.map(delete, sorted(keys)))
