"""Local copies of remote checkpoints and indexes: complete or absent, one folder for each version.

`CACHE/KEY/VERSION/NAME` is a version of the folder NAME that its URI ends in. A process that still reads the version
before keeps it: one earlier version stays.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lm_retrieval.artifacts import MANIFEST_NAME, sha256_bytes, sha256_file, storage_errors, write_json
from lm_retrieval.errors import StorageError
from lm_retrieval.progress import progress
from lm_retrieval.storage.connection import endpoint
from lm_retrieval.storage.location import THREADS, RemotePath, locate
from lm_retrieval.storage.versions import Item, StaleError, Version, download, read_version

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "LMR_CACHE"
WORK_NAME = "work"
_STATE_NAME = "files.json"
_ATTEMPTS = 3
_KEPT_VERSIONS = 2


def local_folder(place: "str | Path | RemotePath", *, leave_out: frozenset[str] = frozenset()) -> Path:
    """The folder meant by a path or URI, on this machine; of a remote one what is new is fetched.

    Args:
        place: the folder.
        leave_out: names of files that are not needed.

    Raises:
        StorageError: there is no complete checkpoint or index at the URI, or it cannot be read or kept.
    """
    location = locate(place)
    if isinstance(location, Path):
        return location
    home = cache_home(location)
    with locked(home):
        folder = _current(location, home, leave_out)
    return folder / location.name


def _current(location: RemotePath, home: Path, leave_out: frozenset[str]) -> Path:
    """The copy of the version that is in the store now, fetched where it is not here."""
    tried: list[Version] = []
    stale: StaleError | None = None
    while True:
        version = read_version(location)
        if version is None:
            raise StorageError(_nothing(location))
        version = replace(version, items={n: item for n, item in version.items.items() if n not in leave_out})
        if version in tried or len(tried) == _ATTEMPTS:
            raise StorageError(
                f"{stale}; if another process is writing there, try again in a moment, else send it again"
            )
        folder = home / version.digest[:16]
        try:
            if not folder.is_dir():
                fetch(location, version, folder, sources=_copies(home))
                _forget_others(home, folder)
            os.utime(folder)
            return folder
        except StaleError as error:
            tried, stale = [*tried, version], error


def _nothing(location: RemotePath) -> str:
    if not location.exists():
        return f"{location}: {location.missing()}; check the address"
    return f"{location}: not a complete checkpoint or index ({MANIFEST_NAME} is missing); upload it again"


def cache_home(location: RemotePath) -> Path:
    """Where everything about a URI is kept on this machine."""
    base = os.environ.get(CACHE_VARIABLE)
    if base is None:
        base = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lm_retrieval")
    key = sha256_bytes(str(location).encode(), (endpoint(location.scheme) or "").encode())[:16]
    return Path(base).expanduser().absolute() / key


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Lets one process at a time change the copies of a URI; others wait."""
    with storage_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        stream = (home / "lock").open("w")
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def fetch(location: RemotePath, version: Version, folder: Path, *, sources: list[Path]) -> None:
    """Brings a version to `folder`; files that one of the `sources` has are taken from there.

    Raises:
        StaleError: the version was replaced meanwhile.
    """
    staging = folder.with_name(f".{folder.name}.partial")
    known = [(source, read_state(source)[1]) for source in sources]
    fetched: list[int] = []
    with storage_errors(staging):
        shutil.rmtree(staging, ignore_errors=True)
        (staging / location.name).mkdir(parents=True)

        def bring(name: str) -> None:
            item, target = version.items[name], staging / location.name / name
            for source, tags in known:
                changeable = WORK_NAME in (source.name, folder.name)
                if tags.get(name) == item.tag and _take(source / location.name / name, target, item, changeable):
                    break
            else:
                download(location, item, target)
                fetched.append(item.size)
            advance(item.size)

        with progress(f"fetching {location}", total=sum(item.size for item in version.items.values()) or 1) as advance:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(bring, version.items))
        if not all(item.exact for item in version.items.values()) and _changed(location, version):
            raise StaleError(f"{location}: was changed while it was read")
        write_json(staging / location.name / MANIFEST_NAME, version.manifest)
        write_state(staging, version)
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    unchanged = len(version.items) - len(fetched)
    rest = f", {unchanged} unchanged" if unchanged else ""
    logger.info("%s: fetched %d files, %.1f MB%s", location, len(fetched), sum(fetched) / 1e6, rest)


def _changed(location: RemotePath, version: Version) -> bool:
    now = read_version(location)
    return now is None or any(now.items.get(name) != item for name, item in version.items.items())


def _take(source: Path, target: Path, item: Item, changeable: bool) -> bool:
    """Takes an unchanged file from another copy; one that a run may change is looked at and not shared."""
    if not source.is_file() or source.stat().st_size != item.size:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    if not changeable:
        os.link(source, target)
        return True
    if not item.exact or sha256_file(source) != item.tag:
        return False
    shutil.copyfile(source, target)
    return True


def _copies(home: Path) -> list[Path]:
    """Every copy of a URI, the newest first."""
    with storage_errors(home):
        found = [path for path in home.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return sorted(found, key=lambda path: -path.stat().st_mtime)


def _forget_others(home: Path, folder: Path) -> None:
    for path in home.glob(".*.partial"):  # of fetches that were killed
        shutil.rmtree(path, ignore_errors=True)
    versions = [path for path in _copies(home) if path.name not in (WORK_NAME, folder.name)]
    for path in versions[_KEPT_VERSIONS - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


def read_state(home: Path) -> tuple[str | None, dict[str, str]]:
    """The digest of the version that a copy was last alike, and its files' tags."""
    try:
        state = json.loads((home / _STATE_NAME).read_text(encoding="utf-8"))
        return state["version"], state["tags"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, {}


def write_state(home: Path, version: Version) -> None:
    """Notes that a copy is alike a version."""
    tags = {name: item.tag for name, item in version.items.items()}
    write_json(home / _STATE_NAME, {"version": version.digest, "tags": tags})
