"""What a folder is: checkpoint, index or corpus, without loading it."""

import json
from typing import Any

from lm_retrieval.artifacts import MANIFEST_NAME, folder_bytes, read_manifest, storage_errors
from lm_retrieval.corpus import open_corpus
from lm_retrieval.errors import LmRetrievalError
from lm_retrieval.storage import Location, RemotePath
from lm_retrieval.storage.versions import Version, read_version


def describe(path: Location) -> dict[str, Any]:
    """Facts by name: those of the manifest, or of one pass over a corpus; `bytes` is the size on disk.

    Raises:
        CorpusError: there is nothing at `path`, or nothing that can be read.
        LmRetrievalError: the manifest is damaged or of another format version.
    """
    if isinstance(path, RemotePath):
        version = read_version(path)
        return _describe_corpus(path) if version is None else _with_size(path, version)
    manifest = path / MANIFEST_NAME
    if not manifest.is_file():
        return _describe_corpus(path)
    with storage_errors(manifest):
        try:
            kind = str(json.loads(manifest.read_text(encoding="utf-8"))["kind"])
        except (ValueError, KeyError, TypeError) as error:
            raise LmRetrievalError(f"{manifest}: damaged manifest; build the folder again") from error
    return read_manifest(path, kind=kind, error=LmRetrievalError) | {"bytes": folder_bytes(path)}


def _describe_corpus(path: Location) -> dict[str, Any]:
    corpus = open_corpus(path)
    for _ in corpus.documents():
        pass
    counts = corpus.counts
    return {
        "kind": "corpus",
        "documents": counts.documents,
        "characters": counts.characters,
        "empty_documents": counts.empty_documents,
        "duplicate_texts": counts.duplicate_texts,
        "splits": {split: len(corpus.qrels(split)) for split in corpus.splits},
        "bytes": _corpus_bytes(path),
    }


def _with_size(path: RemotePath, version: Version) -> dict[str, Any]:
    """What the manifest says; nothing else is fetched."""
    if "kind" not in version.manifest:
        raise LmRetrievalError(f"{path}: damaged manifest; build the folder again")
    return version.manifest | {"bytes": sum(item.size for item in version.items.values())}


def _corpus_bytes(path: Location) -> int:
    if isinstance(path, RemotePath):
        return path.size() if path.is_file() else sum(entry.size for entry in path.files().values())
    return folder_bytes(path) if path.is_dir() else path.stat().st_size
