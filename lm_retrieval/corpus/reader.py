"""A corpus: any folder or file of text, read as a stream of documents with unique ids."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lm_retrieval.artifacts import MANIFEST_NAME
from lm_retrieval.corpus import beir, rich, tables, text
from lm_retrieval.corpus.files import suffix_of
from lm_retrieval.errors import CorpusError, MissingExtraError
from lm_retrieval.records import Document, Qrels, Query
from lm_retrieval.storage import Location, RemotePath, children, locate, read_ahead, resolved


@dataclass
class CorpusCounts:
    """What one pass over a corpus saw."""

    documents: int = 0
    empty_documents: int = 0
    duplicate_texts: int = 0
    characters: int = 0
    skipped_files: Counter[str] = field(default_factory=Counter)
    """Files of formats that cannot be read here, by suffix."""

    own_folders: int = 0
    """Checkpoints and indexes inside the corpus, which are passed over."""

    def warnings(self) -> list[str]:
        """One sentence for each thing a user should know."""
        notes = []
        if self.empty_documents:
            notes.append(f"{self.empty_documents} empty documents (kept; a search cannot find them)")
        if self.duplicate_texts:
            notes.append(f"{self.duplicate_texts} documents repeat the text of an earlier one (kept)")
        if self.own_folders:
            notes.append(f"{self.own_folders} checkpoint and index folders inside the corpus skipped")
        for suffix, count in sorted(self.skipped_files.items()):
            hint = "; pip install 'lm_retrieval[documents]' reads them" if suffix in rich.SUFFIXES else ""
            notes.append(f"{count} files skipped: format '{suffix or 'no suffix'}' is not text{hint}")
        return notes


class Corpus:
    """Documents of a folder or file, and its queries and judgments where it is a BEIR folder.

    Attributes:
        path: the folder or file.
        name: its name without suffixes, used for output folders.
        counts: what the last complete pass over `documents()` saw.
    """

    def __init__(self, path: Location, *, encoding: str = "utf-8", text_column: str | None = None) -> None:
        self.path = path
        self.name = resolved(path).name.split(".")[0] or "corpus"
        self.encoding = encoding
        self.text_column = text_column
        self.counts = CorpusCounts()
        self.judged = path.is_dir() and any((path / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz"))

    def documents(self) -> Iterator[Document]:
        """Streams the documents, files in sorted order.

        Raises:
            CorpusError: nothing to read, unreadable content, or an id that was used before (both places are named).
        """
        counts = CorpusCounts()
        ids: set[int] = set()
        texts: set[int] = set()
        for document, place in self._read(counts):
            digest = _digest(document.doc_id)
            if digest in ids:
                self._refuse_repeated_id(document.doc_id, place)
            ids.add(digest)
            counts.documents += 1
            counts.characters += len(document.content)
            if document.content.strip():
                digest = _digest(document.content)
                counts.duplicate_texts += digest in texts
                texts.add(digest)
            else:
                counts.empty_documents += 1
            yield document
        if not counts.documents:
            notes = "".join(f"; {note}" for note in counts.warnings())
            raise CorpusError(
                f"{self.path}: no documents found; supported: {', '.join(sorted(_SUFFIXES))}, .gz of these{notes}"
            )
        self.counts = counts

    def queries(self) -> list[Query]:
        """The queries of a BEIR folder."""
        return beir.read_queries(self._beir_folder())

    def qrels(self, split: str) -> Qrels:
        """The judgments of one split of a BEIR folder."""
        return beir.read_qrels(self._beir_folder(), split=split)

    @property
    def splits(self) -> list[str]:
        """Splits with judgments; empty for a corpus without any."""
        return beir.list_splits(self.path) if self.judged else []

    def _refuse_repeated_id(self, doc_id: str, place: str) -> None:
        """Reads again to name the first place: remembering every place would cost more memory than the ids do."""
        earlier = next(found for document, found in self._read(CorpusCounts()) if document.doc_id == doc_id)
        if earlier != place:
            raise CorpusError(f"{place}: document id '{doc_id}' was already used in {earlier}")

    def _beir_folder(self) -> Location:
        if not self.judged:
            raise CorpusError(
                f"{self.path}: no judgments here; a folder with corpus.jsonl, queries.jsonl and qrels/ is needed"
            )
        return self.path

    def _read(self, counts: CorpusCounts) -> Iterator[tuple[Document, str]]:
        if self.judged:
            name = "corpus.jsonl" if (self.path / "corpus.jsonl").is_file() else "corpus.jsonl.gz"
            yield from self._read_file(self.path / name, name)
        elif self.path.is_dir():
            if (self.path / "queries.jsonl").is_file():
                raise CorpusError(
                    f"{self.path}: queries but no corpus.jsonl; add it, or for the built-in corpus run "
                    "`lmr corpus build python-docs`"
                )
            for path in read_ahead(self._files(self.path, counts), wanted=_readable):
                # a file name that is not UTF-8 has no form as an id otherwise
                name = os.fsencode(_relative(path, self.path)).decode("utf-8", "replace")
                yield from self._read_or_skip(path, name, counts)
        else:
            yield from self._read_file(self.path, self.path.name)

    def _files(self, folder: Location, counts: CorpusCounts) -> Iterator[Location]:
        """Visible files in sorted order; folders that `lmr` wrote are no text of the user's."""
        if folder != self.path and _written_by_lmr(folder):
            counts.own_folders += 1
            return
        for path in children(folder):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                yield from self._files(path, counts)
            elif path.is_file():
                yield path

    def _read_or_skip(self, path: Location, name: str, counts: CorpusCounts) -> Iterator[tuple[Document, str]]:
        if not _readable(path):
            counts.skipped_files[suffix_of(path)] += 1
            return
        try:
            yield from self._read_file(path, name)
        except MissingExtraError:
            counts.skipped_files[suffix_of(path)] += 1

    def _read_file(self, path: Location, name: str) -> Iterator[tuple[Document, str]]:
        suffix = suffix_of(path)
        if suffix in text.SUFFIXES:
            yield from text.read(path, name=name, encoding=self.encoding)
        elif suffix in tables.SUFFIXES:
            yield from tables.read(path, name=name, encoding=self.encoding, text_column=self.text_column)
        elif suffix in rich.SUFFIXES:
            yield from rich.read(path, name=name)
        else:
            supported = ", ".join(sorted(_SUFFIXES))
            raise CorpusError(f"{path}: format '{suffix or 'no suffix'}' is not supported; supported: {supported}")


_SUFFIXES = text.SUFFIXES | tables.SUFFIXES | rich.SUFFIXES


def _readable(path: Location) -> bool:
    """Whether the name says that this is a format read here; packed documents are not."""
    packed = path.suffix.lower() == ".gz" and suffix_of(path) in rich.SUFFIXES
    return not packed and suffix_of(path) in _SUFFIXES


def _relative(path: Location, folder: Location) -> str:
    if isinstance(path, RemotePath):
        assert isinstance(folder, RemotePath)
        return path.relative_to(folder).as_posix()
    assert isinstance(folder, Path)
    return path.relative_to(folder).as_posix()


def _written_by_lmr(folder: Location) -> bool:
    """A checkpoint or index, finished or in the making."""
    if (folder / "tokenizer.model").is_file() or (folder / "vectors.faiss").is_file():
        return True
    manifest = folder / MANIFEST_NAME
    return manifest.is_file() and b'"lm_retrieval_version"' in manifest.read_bytes()[:4096]


def _digest(text: str) -> int:
    """64 bits that stand for a text: a set of them is a small fraction of the texts."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "big")


def open_corpus(path: Location | str, *, encoding: str = "utf-8", text_column: str | None = None) -> Corpus:
    """Opens a folder or file of text as a corpus; nothing is read yet.

    Args:
        path: path or URI (`s3://`, `gs://`, `hdfs://`, `file://`) of a folder, or of a `.txt .md .rst .jsonl .csv .tsv
            .parquet` file (also `.gz`); `.html .pdf .docx` with an extra. A folder with `corpus.jsonl` is read as a
            BEIR collection.
        encoding: of text files.
        text_column: column of tables that holds the text, when it has no usual name.

    Raises:
        CorpusError: there is nothing at `path`.
        StorageError: a URI that cannot be used, or its store does not answer.
    """
    place = locate(path)
    if not place.exists():
        missing = place.missing() if isinstance(place, RemotePath) else "no such file or folder"
        raise CorpusError(f"{place}: {missing}; check the path")
    return Corpus(place, encoding=encoding, text_column=text_column)
