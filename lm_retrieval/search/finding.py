"""Which index is meant: a folder, the name of one in `indexes/`, or a Milvus collection."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lm_retrieval.artifacts import MANIFEST_NAME, find_folder
from lm_retrieval.errors import IndexFormatError
from lm_retrieval.search.searcher import Searcher
from lm_retrieval.storage import is_uri, local_folder

if TYPE_CHECKING:
    from lm_retrieval.encoding.encoder import Encoder

MILVUS_PREFIX = "milvus+"


def open_index(name: Path | str | None, *, encoder: "Encoder | None" = None) -> Searcher:
    """Opens a folder, an index of that name in `indexes/`, or a Milvus collection; without a name the index built last.

    Args:
        name: for Milvus `milvus+URI#COLLECTION`: `milvus+notes.db#notes` is a file of Milvus Lite,
            `milvus+http://host:19530#notes` a server; without `#COLLECTION` the only one there.
        encoder: encodes the queries, instead of the index's own copy.

    Raises:
        IndexFormatError: there is no such index, or it is damaged or not complete.
        MismatchError: the index was built with another encoder.
        StorageError: Milvus cannot be reached.
        MissingExtraError: Milvus is asked for and its extra is not installed.
    """
    if isinstance(name, str) and name.startswith(MILVUS_PREFIX):
        from lm_retrieval.scale.milvus import open_collection

        return Searcher(open_collection(name.removeprefix(MILVUS_PREFIX)), encoder=encoder)
    return Searcher(find_index(None if name is None else str(name)), encoder=encoder)


def check_index(name: str) -> Path | str:
    """A folder that is there, or the address of a collection: what `open_index` takes later.

    Raises:
        IndexFormatError: there is no such folder.
        ConfigError: the address cannot be used.
    """
    if not name.startswith(MILVUS_PREFIX):
        return find_index(name)
    from lm_retrieval.scale.milvus_client import parse_address

    parse_address(name.removeprefix(MILVUS_PREFIX))
    return name


def index_name(index: Path | str) -> str:
    """What an index is called: its folder, or the collection, else the file or host that it is in."""
    if isinstance(index, str) and index.startswith(MILVUS_PREFIX):
        from lm_retrieval.scale.milvus_client import parse_address

        return parse_address(index.removeprefix(MILVUS_PREFIX)).name
    return Path(index).resolve().name


def find_index(name: str | None, *, folder: Path = Path("indexes")) -> Path:
    """The folder meant by a path or by the name of a folder in `indexes/`; without a name the index built last.

    Raises:
        IndexFormatError: there is none; the message lists what there is.
    """
    if name is None:
        return newest_index(folder)
    if is_uri(name):
        return local_folder(name)
    if name.endswith(".db") and Path(name).exists():
        raise IndexFormatError(f"{name}: a Milvus database; name a collection of it: milvus+{name}#COLLECTION")
    found = find_folder(name, folder)
    if found is not None:
        return found
    known = sorted(path.parent.name for path in folder.glob(f"[!.]*/{MANIFEST_NAME}"))
    hint = f"found in {folder}: {', '.join(known)}" if known else "build one with `lmr embed CORPUS`"
    raise IndexFormatError(f"{name}: no such index; {hint}")


def newest_index(folder: Path = Path("indexes")) -> Path:
    """The index built last among the folders in `folder`.

    Raises:
        IndexFormatError: there is none.
    """
    found: Iterable[Path] = folder.glob(f"[!.]*/{MANIFEST_NAME}") if folder.is_dir() else ()
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise IndexFormatError(f"{folder}: no index here yet; build one with `lmr embed CORPUS`")
    return newest.parent
