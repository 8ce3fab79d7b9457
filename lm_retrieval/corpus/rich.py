"""HTML, PDF and Word files through their own libraries (extra `documents`): one document per file."""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from lm_retrieval.corpus.files import suffix_of
from lm_retrieval.errors import CorpusError, MissingExtraError
from lm_retrieval.records import Document
from lm_retrieval.storage import Location, opened


def read(path: Location, *, name: str) -> Iterator[tuple[Document, str]]:
    """Yields the file's one document and its place.

    Raises:
        MissingExtraError: the extra is not installed.
        CorpusError: the file cannot be converted.
    """
    suffix = suffix_of(path)
    try:
        with opened(path) as stream:
            title, text = _CONVERTERS[suffix](_seekable(stream))
    except ImportError as error:
        raise MissingExtraError(f"reading {suffix} files", extra="documents") from error
    except (ValueError, KeyError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error) as error:
        raise CorpusError(f"{path}: cannot be converted to text ({error}); remove or repair it") from error
    yield Document(name, title, text), name


def _seekable(stream: BinaryIO) -> BinaryIO:
    """The stream, or what it holds where it can only be read from front to back."""
    return stream if stream.seekable() else io.BytesIO(stream.read())


def _html(stream: BinaryIO) -> tuple[str, str]:
    import trafilatura

    page = stream.read()
    metadata = trafilatura.extract_metadata(page)
    text = trafilatura.extract(page, include_comments=False, favor_recall=True) or ""
    return (metadata.title or "" if metadata else ""), text


def _pdf(stream: BinaryIO) -> tuple[str, str]:
    import pypdf
    from pypdf.errors import PyPdfError

    try:
        with pypdf.PdfReader(stream) as reader:
            title = (reader.metadata.title if reader.metadata else None) or ""
            return str(title), "\n\n".join(page.extract_text() for page in reader.pages)
    except PyPdfError as error:
        raise ValueError(str(error)) from error


def _docx(stream: BinaryIO) -> tuple[str, str]:
    import docx
    from docx.opc.exceptions import PackageNotFoundError

    try:
        document = docx.Document(stream)
    except PackageNotFoundError as error:
        raise ValueError(str(error)) from error
    return document.core_properties.title or "", "\n".join(_docx_lines(document))


def _docx_lines(document: Any) -> Iterator[str]:
    """Paragraphs and the rows of tables, in reading order."""
    for block in document.iter_inner_content():
        if hasattr(block, "rows"):
            yield from (" | ".join(cell.text for cell in row.cells) for row in block.rows)
        else:
            yield block.text


_CONVERTERS: dict[str, Callable[[BinaryIO], tuple[str, str]]] = {
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".docx": _docx,
}
SUFFIXES = frozenset(_CONVERTERS)
