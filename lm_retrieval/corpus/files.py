"""Opening text files: gzip where the name says so, a declared encoding, and errors that name the place."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TextIO, cast

from lm_retrieval.errors import CorpusError
from lm_retrieval.storage import Location, opened

_BINARY_SAMPLE_BYTES = 8192


def suffix_of(path: Location) -> str:
    """The lower-case suffix that tells the format: `.txt` for `Notes.TXT` and for `notes.txt.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextmanager
def open_binary(path: Location) -> Iterator[BinaryIO]:
    """Opens a file, unpacking `.gz`.

    Raises:
        StorageError: the file cannot be opened or read.
        CorpusError: the gzip data is damaged.
    """
    with opened(path) as raw:
        if path.suffix.lower() != ".gz":
            yield raw
            return
        try:
            with gzip.open(raw) as stream:
                yield cast(BinaryIO, stream)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise CorpusError(f"{path}: damaged gzip file ({error}); unpack or copy it again") from error


def read_text(path: Location, *, encoding: str) -> str:
    """The whole file as text, line ends as newlines.

    Raises:
        CorpusError: binary data, or bytes that are not text in `encoding`.
    """
    with open_binary(path) as stream:
        data = stream.read()
    if _codec(encoding) == "utf-8-sig" and b"\0" in data[:_BINARY_SAMPLE_BYTES]:
        raise CorpusError(f"{path}: looks like a binary file, not text; remove it from the corpus or convert it")
    with decoding_errors(path, encoding):
        text = data.decode(_codec(encoding))
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def open_text(path: Location, *, encoding: str) -> Iterator[TextIO]:
    """Opens a file for reading line by line; the caller wraps reading in `decoding_errors`."""
    with open_binary(path) as stream:
        with decoding_errors(path, encoding):
            yield io.TextIOWrapper(stream, encoding=_codec(encoding), newline="")


def _codec(encoding: str) -> str:
    """UTF-8, however it is spelled, drops a byte order mark."""
    try:
        return "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    except LookupError:
        return encoding  # decoding_errors explains it


@contextmanager
def decoding_errors(path: Location, encoding: str) -> Iterator[None]:
    """Turns bytes that do not decode into a CorpusError with advice."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: not valid {encoding} near byte {error.start}; give its --encoding, for example latin-1"
        ) from error
    except LookupError as error:
        raise CorpusError(f"encoding '{encoding}' is unknown; use for example utf-8, latin-1 or cp1252") from error
