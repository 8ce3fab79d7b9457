"""JSON Lines, CSV, TSV and Parquet: one document per row."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from lm_retrieval.corpus.files import open_binary, open_text, suffix_of
from lm_retrieval.errors import CorpusError
from lm_retrieval.records import Document
from lm_retrieval.storage import Location

SUFFIXES = frozenset((".jsonl", ".csv", ".tsv", ".parquet"))

ID_COLUMNS = ("_id", "id", "doc_id", "docid", "docno")
TITLE_COLUMNS = ("title", "heading", "name", "query")
TEXT_COLUMNS = ("text", "contents", "content", "body", "abstract", "passage", "positive")
_ROWS_PER_BATCH = 1024


def read(path: Location, *, name: str, encoding: str, text_column: str | None = None) -> Iterator[tuple[Document, str]]:
    """Yields documents with their places. Without an id column, `name:row` (from 1) is the id.

    Raises:
        CorpusError: broken rows, or no column that holds text; the message names file, line and columns.
    """
    for row, place, number in _rows(path, encoding, text_column):
        text_name = _pick(row, (text_column,) if text_column else TEXT_COLUMNS)
        title_name = _pick(row, TITLE_COLUMNS)
        if text_name is None and (title_name is None or text_column):
            wanted = text_column or ", ".join(TEXT_COLUMNS)
            raise CorpusError(
                f"{place}: no text column; found: {', '.join(map(str, row)) or 'nothing'}; needed: one of {wanted} "
                "(or name yours with --text-column)"
            )
        id_name = _pick(row, ID_COLUMNS)
        doc_id = f"{name}:{number}" if id_name is None or row[id_name] is None else whole(str(row[id_name]))
        yield Document(doc_id, _text(row, title_name, place), _text(row, text_name, place)), place


def read_jsonl(path: Location, *, encoding: str = "utf-8") -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the objects of a JSON Lines file with their places.

    Raises:
        CorpusError: a line is not a JSON object; the message names file and line.
    """
    with open_text(path, encoding=encoding) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"{place}: broken JSON ({error}); every line must be one JSON object") from error
            if not isinstance(row, dict):
                raise CorpusError(f"{place}: a JSON object is needed, found {type(row).__name__}")
            yield row, place


def read_rows(path: Location) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yields every column of a JSONL or Parquet file, row by row, with the row's place.

    Raises:
        CorpusError: the file cannot be read.
    """
    if suffix_of(path) == ".jsonl":
        yield from read_jsonl(path)
    else:
        for row, place, _ in _parquet_rows(path, None, every_column=True):
            yield row, place


def _rows(path: Location, encoding: str, text_column: str | None) -> Iterator[tuple[Mapping[str, Any], str, int]]:
    match suffix_of(path):
        case ".jsonl":
            for number, (row, place) in enumerate(read_jsonl(path, encoding=encoding), start=1):
                yield row, place, number
        case ".parquet":
            yield from _parquet_rows(path, text_column)
        case suffix:
            yield from _delimited_rows(path, encoding, "\t" if suffix == ".tsv" else ",")


def _delimited_rows(path: Location, encoding: str, delimiter: str) -> Iterator[tuple[Mapping[str, Any], str, int]]:
    csv.field_size_limit(sys.maxsize)
    with open_text(path, encoding=encoding) as stream:
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
        try:
            for number, row in enumerate(reader, start=1):
                place = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    count = len(reader.fieldnames or ())
                    raise CorpusError(f"{place}: a row with more or fewer fields than the header's {count}")
                yield row, place, number
        except csv.Error as error:
            place = f"{path}, line {reader.reader.line_num}"
            raise CorpusError(f"{place}: broken row ({error}); check its quotes") from error


def _parquet_rows(
    path: Location, text_column: str | None, *, every_column: bool = False
) -> Iterator[tuple[Mapping[str, Any], str, int]]:
    import pyarrow
    import pyarrow.parquet

    text_names = {text_column} if text_column else set(TEXT_COLUMNS)
    with open_binary(path) as stream:
        try:
            with pyarrow.parquet.ParquetFile(stream) as table:
                found = table.schema_arrow.names
                wanted = set(found)
                if text_names & wanted and not every_column:
                    wanted = text_names.union(ID_COLUMNS, TITLE_COLUMNS)
                number = 0
                for batch in table.iter_batches(batch_size=_ROWS_PER_BATCH, columns=[n for n in found if n in wanted]):
                    for row in batch.to_pylist():
                        number += 1
                        yield row, f"{path}, row {number}", number
        except (pyarrow.ArrowException, OSError) as error:  # damaged pages are an OSError
            reason = " ".join(str(error).split())
            raise CorpusError(f"{path}: not a readable Parquet file ({reason}); write it again") from error


def _pick(row: Mapping[str, Any], names: tuple[str | None, ...]) -> str | None:
    return next((name for name in names if name in row), None)


def _text(row: Mapping[str, Any], name: str | None, place: str) -> str:
    value = "" if name is None or row[name] is None else row[name]
    if not isinstance(value, str):
        raise CorpusError(f"{place}: column '{name}' holds {type(value).__name__}, text is needed")
    return whole(value)


def whole(text: str) -> str:
    """A text that can be written as UTF-8. JSON can hold half a surrogate pair, which no text can."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
