"""What a folder is: checkpoint, index or corpus, without loading it."""

import json
from pathlib import Path
from typing import Any

from lm_retrieval.artifacts import MANIFEST_NAME, folder_bytes, read_manifest, storage_errors
from lm_retrieval.corpus import open_corpus
from lm_retrieval.errors import LmRetrievalError


def describe(path: Path) -> dict[str, Any]:
    """Facts by name: those of the manifest, or of one pass over a corpus; `bytes` is the size on disk.

    Raises:
        CorpusError: there is nothing at `path`, or nothing that can be read.
        LmRetrievalError: the manifest is damaged or of another format version.
    """
    manifest = path / MANIFEST_NAME
    if not manifest.is_file():
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
            "bytes": folder_bytes(path) if path.is_dir() else path.stat().st_size,
        }
    with storage_errors(manifest):
        try:
            kind = str(json.loads(manifest.read_text(encoding="utf-8"))["kind"])
        except (ValueError, KeyError, TypeError) as error:
            raise LmRetrievalError(f"{manifest}: damaged manifest; build the folder again") from error
    return read_manifest(path, kind=kind, error=LmRetrievalError) | {"bytes": folder_bytes(path)}
