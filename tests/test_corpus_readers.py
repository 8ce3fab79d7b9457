"""Readers: every format gives the documents a user wrote; a broken file is named with the place and what is needed."""

import csv
import gzip
import importlib.util
import json
import os
import re
import sys
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lm_retrieval.corpus import Corpus, open_corpus
from lm_retrieval.corpus.beir import read_qrels, read_queries, write_documents, write_qrels, write_queries
from lm_retrieval.errors import CorpusError, MissingExtraError
from lm_retrieval.records import Document, Judgment, Query

COLLECTIONS = Path(os.environ.get("LMR_DATA", Path(__file__).parents[2] / "shared" / "data")) / "collections"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, **options) -> list[Document]:
    return list(open_corpus(path, **options).documents())


def error_of(path: Path, **options) -> str:
    """The message of the CorpusError that reading `path` raises: one line that names the path."""
    with pytest.raises(CorpusError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_parquet(path: Path, **columns: list) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def needs(module: str):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


# ---------------------------------------------------------------- text files


@pytest.mark.parametrize(
    ("name", "content", "title", "text"),
    [
        ("a.txt", "one\ntwo\n", "", "one\ntwo\n"),
        ("A.TXT", "one", "", "one"),
        ("a.txt", "one\r\ntwo\rthree\n", "", "one\ntwo\nthree\n"),
        ("a.txt", "\ufeffone", "", "one"),
        ("a.txt", "# one\ntwo", "", "# one\ntwo"),
        ("a.txt", "日本語 \U0001f600\u2028x", "", "日本語 \U0001f600\u2028x"),
        ("a.md", "# The title\n\nbody\n", "The title", "body"),
        ("a.md", "# The title ##\r\n\r\nbody\r\n", "The title", "body"),
        ("a.md", "\n# The title\n    code\n", "The title", "    code"),
        ("a.md", "# Only a title", "Only a title", ""),
        ("a.md", "# Learning C#\n\nbody", "Learning C#", "body"),
        ("a.md", "#hashtag\nbody", "", "#hashtag\nbody"),
        ("a.md", "body\n\n# Later\n", "", "body\n\n# Later\n"),
        ("a.md", "## Second level\nbody", "", "## Second level\nbody"),
        ("a.rst", "The title\n=========\n\nbody\n", "The title", "body"),
        ("a.rst", "=====\nTitle\n=====\n\nbody\n", "Title", "body"),
        ("a.rst", "\nTitle\r\n-----\r\nbody", "Title", "body"),
        ("a.rst", "no title\nbody\n", "", "no title\nbody\n"),
    ],
)
def test_text_file_is_one_document_and_its_heading_the_title(tmp_path, name, content, title, text):
    assert read(write(tmp_path / name, content)) == [Document(name, title, text)]


def test_encoding_is_obeyed(tmp_path):
    path = write(tmp_path / "a.txt", "café".encode("latin-1"))
    assert read(path, encoding="latin-1") == [Document("a.txt", "", "café")]


def test_utf16_text_is_not_mistaken_for_a_binary_file(tmp_path):
    path = write(tmp_path / "a.txt", "café".encode("utf-16"))
    assert read(path, encoding="utf-16") == [Document("a.txt", "", "café")]


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "utf8"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_byte_order_mark_is_dropped_however_utf8_is_spelled(tmp_path, name, encoding):
    content = {"a.txt": "one", "a.jsonl": '{"text": "one"}\n', "a.csv": "text\none\n"}[name]
    documents = read(write(tmp_path / name, "\ufeff" + content), encoding=encoding)
    assert [document.text for document in documents] == ["one"]


# ---------------------------------------------------------------- tables

ROWS = [Document("7", "First", 'one, "two"\nthree'), Document("x-8", "", "zwei ü")]


def table_file(folder: Path, suffix: str) -> Path:
    path = folder / f"table{suffix}"
    rows = [{"_id": row.doc_id, "title": row.title, "text": row.text} for row in ROWS]
    if suffix == ".jsonl":
        return write(path, "".join(json.dumps(row) + "\n" for row in rows))
    if suffix == ".parquet":
        return write_parquet(path, **{name: [row[name] for row in rows] for name in rows[0]})
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_table_rows_are_documents(tmp_path, suffix):
    assert read(table_file(tmp_path, suffix)) == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_gzipped_table_reads_like_the_table(tmp_path, suffix):
    packed = write(tmp_path / f"packed{suffix}.gz", gzip.compress(table_file(tmp_path, suffix).read_bytes()))
    assert read(packed) == ROWS


@pytest.mark.parametrize(("name", "title", "text"), [("a.txt.gz", "", "# T\nbody"), ("a.md.GZ", "T", "body")])
def test_gzipped_text_reads_like_the_text(tmp_path, name, title, text):
    path = write(tmp_path / name, gzip.compress(b"# T\nbody"))
    assert read(path) == [Document(name, title, text)]


def test_gzip_of_several_members_is_read_to_its_end(tmp_path):
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"one ") + gzip.compress(b"two"))
    assert read(path)[0].text == "one two"


@pytest.mark.parametrize("id_name", ["_id", "id", "doc_id", "docid", "docno"])
@pytest.mark.parametrize("text_name", ["text", "contents", "content", "body", "abstract", "passage"])
def test_usual_column_names_are_understood(tmp_path, id_name, text_name):
    path = write(tmp_path / "a.jsonl", json.dumps({"other": 1, id_name: "d", text_name: "one"}) + "\n")
    assert read(path) == [Document("d", "", "one")]


@pytest.mark.parametrize("title_name", ["title", "heading", "name"])
def test_usual_title_columns_are_understood(tmp_path, title_name):
    path = write(tmp_path / "a.csv", f"id,{title_name},text\n1,The title,one\n")
    assert read(path) == [Document("1", "The title", "one")]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_text_column_option_names_the_column(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        write(path, '{"id": "d", "story": "one", "text": "other"}\n')
    elif suffix == ".parquet":
        write_parquet(path, id=["d"], story=["one"], text=["other"])
    else:
        write(path, "id,story,text\nd,one,other\n".replace(",", "\t" if suffix == ".tsv" else ","))
    assert read(path, text_column="story") == [Document("d", "", "one")]


def test_numeric_ids_become_strings(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"id": 1, "text": "a"}\n{"id": "2", "text": "b"}\n')
    assert [document.doc_id for document in read(path)] == ["1", "2"]
    table = write_parquet(tmp_path / "b.parquet", id=[3, 4], text=["a", "b"])
    assert [document.doc_id for document in read(table)] == ["3", "4"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_missing_ids_become_name_and_row(tmp_path, suffix):
    path = tmp_path / "sub" / f"a{suffix}"
    path.parent.mkdir()
    if suffix == ".jsonl":
        write(path, '{"text": "a"}\n\n{"text": "b", "id": null}\n')
    elif suffix == ".csv":
        write(path, "text\na\nb\n")
    else:
        write_parquet(path, text=["a", "b"])
    assert [document.doc_id for document in read(tmp_path)] == [f"sub/a{suffix}:1", f"sub/a{suffix}:2"]


def test_crlf_rows_read_like_lf_rows(tmp_path):
    assert read(write(tmp_path / "a.csv", "id,text\r\n1,one\r\n2,two\r\n")) == [
        Document("1", "", "one"),
        Document("2", "", "two"),
    ]
    assert read(write(tmp_path / "a.jsonl", '{"id": 1, "text": "one"}\r\n')) == [Document("1", "", "one")]


def test_parquet_larger_than_a_batch_keeps_order_and_rows(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", text=[f"text {number}" for number in range(3000)])
    documents = read(path)
    assert [document.text for document in documents] == [f"text {number}" for number in range(3000)]
    assert documents[-1].doc_id == "a.parquet:3000"


def test_csv_field_longer_than_the_csv_modules_default_limit(tmp_path):
    text = "word " * 40_000
    assert read(write(tmp_path / "a.csv", f"id,text\n1,{text}\n")) == [Document("1", "", text)]


def test_row_with_a_title_only_is_a_document(tmp_path):
    assert read(write(tmp_path / "a.jsonl", '{"id": "1", "title": "T"}\n')) == [Document("1", "T", "")]


def test_half_a_surrogate_pair_in_json_becomes_a_replacement_character(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"id": "1", "text": "cut \\ud83d here, whole \\ud83d\\ude00"}\n')
    assert read(path) == [Document("1", "", "cut \ufffd here, whole \U0001f600")]


def test_fifty_megabytes_on_one_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"some words " * 4_800_000)
    corpus = open_corpus(path)
    assert [len(document.text) for document in corpus.documents()] == [52_800_000]
    assert (corpus.counts.documents, corpus.counts.characters) == (1, 52_800_000)


# ---------------------------------------------------------------- html, pdf, docx


def pdf_bytes(text: str) -> bytes:
    """A one-page PDF that shows `text`."""
    drawing = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R\n"
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawing), drawing),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Title (The PDF title) >>",
    ]
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    rows = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer\n<< /Size 7 /Root 1 0 R /Info 6 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(data)
    return data + b"xref\n0 7\n0000000000 65535 f \n" + rows + trailer


def docx_file(path: Path) -> Path:
    import docx

    document = docx.Document()
    document.core_properties.title = "The Word title"
    document.add_paragraph("First paragraph.")
    document.add_paragraph("Second one.")
    document.save(str(path))
    return path


@needs("pypdf")
def test_pdf_gives_title_and_text(tmp_path):
    path = write(tmp_path / "a.pdf", pdf_bytes("Hello from a page"))
    assert read(path) == [Document("a.pdf", "The PDF title", "Hello from a page")]


@needs("docx")
def test_word_file_gives_title_and_paragraphs(tmp_path):
    path = docx_file(tmp_path / "a.docx")
    assert read(path) == [Document("a.docx", "The Word title", "First paragraph.\nSecond one.")]


@needs("trafilatura")
@pytest.mark.parametrize("name", ["a.html", "a.htm"])
def test_html_gives_title_and_main_text_without_markup(tmp_path, name):
    body = "The wing stalls when the angle of attack is too large. " * 5
    page = f"<html><head><title>On wings</title><style>p {{}}</style></head><body><p>{body}</p></body></html>"
    (document,) = read(write(tmp_path / name, page))
    assert (document.doc_id, document.title) == (name, "On wings")
    assert document.text.strip() == body.strip()


RICH = {
    "a.html": ("trafilatura", b"<html><body><p>Hello</p></body></html>"),
    "a.pdf": ("pypdf", pdf_bytes("Hello")),
    "a.docx": ("docx", b"PK"),
}


@pytest.mark.parametrize("name", RICH)
def test_missing_extra_is_an_error_for_a_single_file(tmp_path, monkeypatch, name):
    module, content = RICH[name]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'lm_retrieval[documents]'")):
        read(write(tmp_path / name, content))


@pytest.mark.parametrize("name", RICH)
def test_missing_extra_is_counted_in_a_folder(tmp_path, monkeypatch, name):
    module, content = RICH[name]
    monkeypatch.setitem(sys.modules, module, None)
    write(tmp_path / name, content)
    write(tmp_path / "b.txt", "one")
    corpus = open_corpus(tmp_path)
    assert [document.doc_id for document in corpus.documents()] == ["b.txt"]
    suffix = Path(name).suffix
    assert corpus.counts.skipped_files == {suffix: 1}
    assert corpus.counts.warnings() == [
        f"1 files skipped: format '{suffix}' is not text; pip install 'lm_retrieval[documents]' reads them"
    ]


def test_folder_where_every_file_needs_the_extra_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    write(tmp_path / "a.pdf", pdf_bytes("Hello"))
    assert "pip install 'lm_retrieval[documents]'" in error_of(tmp_path)


def broken_docx(kind: str, folder: Path) -> Path:
    path = folder / "a.docx"
    if kind == "not a zip":
        return write(path, b"PK\x03\x04 nothing more")
    if kind == "broken xml":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("[Content_Types].xml", "broken <")
        return path
    data = docx_file(path).read_bytes()
    if kind == "cut short":
        return write(path, data[: len(data) // 2])
    if kind == "broken directory":
        return write(path, data.replace(b"PK\x01\x02", b"PK\x01\x07"))
    return write(path, data[:60] + bytes(140) + data[200:])


@needs("docx")
@pytest.mark.parametrize("kind", ["not a zip", "cut short", "broken xml", "broken directory", "broken member"])
def test_damaged_word_file_is_named(tmp_path, kind):
    path = broken_docx(kind, tmp_path)
    assert str(path) in error_of(path)


@needs("pypdf")
@pytest.mark.parametrize("content", [b"", b"junk", b"%PDF-1.4\n", pdf_bytes("Hello")[:150]])
def test_damaged_pdf_is_named(tmp_path, content):
    path = write(tmp_path / "a.pdf", content)
    assert str(path) in error_of(path)


# ---------------------------------------------------------------- folders


def test_nested_folder_is_read_in_sorted_order_without_hidden_files(tmp_path):
    for name in ["b/z.txt", "b/a.md", "a.txt", "c.jsonl", ".hidden.txt", ".git/x.txt", "b/.cache/y.txt", "a/n/d.txt"]:
        write(tmp_path / name, '{"id": "row", "text": "x"}\n' if name.endswith("jsonl") else f"text of {name}")
    documents = read(tmp_path)
    assert [document.doc_id for document in documents] == ["a/n/d.txt", "a.txt", "b/a.md", "b/z.txt", "row"]
    assert documents[0].text == "text of a/n/d.txt"


def test_unknown_suffixes_are_counted_not_read(tmp_path):
    for name in ["a.txt", "b.PNG", "c.png", "Makefile", "d.tar.gz"]:
        write(tmp_path / name, "x")
    corpus = open_corpus(tmp_path)
    assert [document.doc_id for document in corpus.documents()] == ["a.txt"]
    assert corpus.counts.skipped_files == {".png": 2, "": 1, ".tar": 1}
    assert corpus.counts.warnings() == [
        "1 files skipped: format 'no suffix' is not text",
        "2 files skipped: format '.png' is not text",
        "1 files skipped: format '.tar' is not text",
    ]


def test_empty_and_repeated_texts_are_kept_and_counted(tmp_path):
    for name, text in {"a.txt": "same", "b.txt": "", "c.txt": " \n", "d.txt": "same", "e.txt": "same"}.items():
        write(tmp_path / name, text)
    corpus = open_corpus(tmp_path)
    assert [document.text for document in corpus.documents()] == ["same", "", " \n", "same", "same"]
    counts = corpus.counts
    assert (counts.documents, counts.empty_documents, counts.duplicate_texts, counts.characters) == (5, 2, 2, 14)
    assert counts.warnings() == [
        "2 empty documents (kept; a search cannot find them)",
        "2 documents repeat the text of an earlier one (kept)",
    ]


def test_documents_can_be_read_again_with_the_same_result(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.txt", "same")
    corpus = open_corpus(tmp_path)
    assert list(corpus.documents()) == list(corpus.documents())
    assert (corpus.counts.documents, corpus.counts.duplicate_texts) == (2, 1)


@pytest.mark.parametrize(
    ("name", "expected"), [("notes", "notes"), ("a.jsonl.gz", "a"), ("my.corpus", "my"), (".hidden", "corpus")]
)
def test_corpus_name_is_the_path_without_suffixes(tmp_path, name, expected):
    assert Corpus(tmp_path / name).name == expected


# ---------------------------------------------------------------- BEIR folders


def write_beir(folder: Path) -> Path:
    write(folder / "corpus.jsonl", '{"_id": "d1", "title": "T", "text": "one"}\n{"_id": "d2", "text": "two"}\n')
    write(folder / "queries.jsonl", '{"_id": "q1", "text": "which one"}\n{"_id": 2, "text": "other"}\n')
    write(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n2\td2\t1\n")
    write(folder / "qrels" / "dev.tsv", "query-id\tcorpus-id\tscore\r\nq1\td1\t1\r\n")
    write(folder / "notes.txt", "not a document of the collection")
    return folder


def test_beir_folder_gives_documents_queries_and_judgments(tmp_path):
    corpus = open_corpus(write_beir(tmp_path))
    assert corpus.judged
    assert list(corpus.documents()) == [Document("d1", "T", "one"), Document("d2", "", "two")]
    assert corpus.queries() == [Query("q1", "which one"), Query("2", "other")]
    assert corpus.splits == ["dev", "test"]
    assert corpus.qrels("test") == {"q1": {"d1": 2, "d2": 0}, "2": {"d2": 1}}
    assert corpus.qrels("dev") == {"q1": {"d1": 1}}


def test_gzipped_beir_corpus_is_read(tmp_path):
    write_beir(tmp_path)
    data = (tmp_path / "corpus.jsonl").read_bytes()
    (tmp_path / "corpus.jsonl").unlink()
    write(tmp_path / "corpus.jsonl.gz", gzip.compress(data))
    corpus = open_corpus(tmp_path)
    assert [document.doc_id for document in corpus.documents()] == ["d1", "d2"]
    assert corpus.qrels("dev") == {"q1": {"d1": 1}}


def test_what_is_written_is_read_back_exactly(tmp_path):
    odd = 'é "quoted", \\ back\nnew\tline \u2028\u0085\U0001f600\0 end '
    documents = [Document("d 1", odd, odd), Document('"d2"', "", ""), Document("ü/3", "T", " x\n")]
    queries = [Query("q1", odd), Query("#2", "zwei")]
    judgments = [Judgment("q1", "d 1", 2), Judgment("q1", '"d2"', 0), Judgment("#2", "ü/3", -1)]
    assert write_documents(tmp_path, iter(documents)) == 3
    write_queries(tmp_path, queries)
    write_qrels(tmp_path, judgments, split="test")
    corpus = open_corpus(tmp_path)
    assert list(corpus.documents()) == documents
    assert corpus.queries() == queries
    assert corpus.qrels("test") == {"q1": {"d 1": 2, '"d2"': 0}, "#2": {"ü/3": -1}}


@pytest.mark.parametrize(
    ("name", "documents", "empty", "judged"),
    [
        ("cranfield", 1400, 2, {"test": (225, 1837), "strict": (225, 1612)}),
        ("nfcorpus", 3633, 0, {"test": (323, 12334), "train": (2590, 110575)}),
        ("adi", 82, 0, {"test": (35, 170)}),
    ],
)
def test_real_collections_have_the_published_counts(name, documents, empty, judged):
    if not (COLLECTIONS / name).is_dir():
        pytest.skip(f"{COLLECTIONS / name} is not here; set LMR_DATA")
    corpus = open_corpus(COLLECTIONS / name)
    ids = {document.doc_id for document in corpus.documents()}
    assert (corpus.counts.documents, corpus.counts.empty_documents, len(ids)) == (documents, empty, documents)
    queries = {query.query_id for query in corpus.queries()}
    for split, (query_count, judgment_count) in judged.items():
        qrels = corpus.qrels(split)
        assert (len(qrels), sum(map(len, qrels.values()))) == (query_count, judgment_count)
        assert qrels.keys() <= queries
        assert {doc_id for judgments in qrels.values() for doc_id in judgments} <= ids


# ---------------------------------------------------------------- errors of files


def test_missing_path_is_named(tmp_path):
    with pytest.raises(CorpusError, match=re.escape(f"{tmp_path / 'none'}: no such file or folder")):
        open_corpus(tmp_path / "none")


def test_empty_folder_names_what_is_supported(tmp_path):
    message = error_of(tmp_path)
    assert message.startswith(f"{tmp_path}: no documents found; supported: ")
    assert all(suffix in message for suffix in [".txt", ".jsonl", ".parquet", ".pdf", ".gz"])


@pytest.mark.parametrize(("name", "content"), [("a.csv", "id,text\n"), ("a.jsonl", "\n"), ("a.tsv", "")])
def test_table_without_rows_is_an_error(tmp_path, name, content):
    assert "no documents found" in error_of(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["a.png", "Makefile"])
def test_single_file_of_an_unknown_format_names_what_is_supported(tmp_path, name):
    path = write(tmp_path / name, "x")
    message = error_of(path)
    assert message.startswith(f"{path}: format '{path.suffix or 'no suffix'}' is not supported; supported: ")
    assert ".txt" in message


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8"])
def test_binary_file_with_a_text_suffix_is_refused(tmp_path, encoding):
    path = write(tmp_path / "a.txt", b"\x7fELF\x02\x01\0\0rest")
    assert error_of(path, encoding=encoding).startswith(f"{path}: looks like a binary file")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b"caf\xe9"), ("a.jsonl", b'{"text": "caf\xe9"}\n'), ("a.csv", b"text\ncaf\xe9\n")],
)
def test_invalid_utf8_is_named_with_advice_and_the_advice_works(tmp_path, name, content):
    path = write(tmp_path / name, content)
    message = error_of(path)
    assert message.startswith(f"{path}: not valid utf-8")
    assert "--encoding" in message
    assert "latin-1" in message
    assert [document.text for document in read(path, encoding="latin-1")] == ["café"]


@pytest.mark.parametrize(("name", "content"), [("a.txt", "x"), ("a.jsonl", '{"text": "x"}\n'), ("a.csv", "text\nx\n")])
def test_unknown_encoding_names_usual_ones(tmp_path, name, content):
    message = error_of(write(tmp_path / name, content), encoding="klingon")
    assert "'klingon' is unknown" in message
    assert "utf-8" in message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "b"', "broken JSON"),
        ("text", "broken JSON"),
        ('{"text": "b"} {}', "broken JSON"),
        ("[" * 100_000, "broken JSON"),
        ('["b"]', "a JSON object is needed, found list"),
        ("null", "a JSON object is needed, found NoneType"),
        ('{"text": 5}', "column 'text' holds int, text is needed"),
        ('{"text": "b", "title": ["T"]}', "column 'title' holds list, text is needed"),
    ],
)
def test_broken_json_line_is_named(tmp_path, line, reason):
    path = write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n\n{line}\n')
    assert error_of(path).startswith(f"{path}, line 3: {reason}")


def test_wrong_columns_name_what_was_found_and_what_is_needed(tmp_path):
    csv_path = write(tmp_path / "a.csv", "id,story\n1,one\n")
    json_path = write(tmp_path / "a.jsonl", '{"id": 1, "story": "one"}\n')
    parquet_path = write_parquet(tmp_path / "a.parquet", id=[1], story=["one"])
    for path, place in [(csv_path, "line 2"), (json_path, "line 1"), (parquet_path, "row 1")]:
        message = error_of(path)
        assert message.startswith(f"{path}, {place}: no text column; found: id")
        assert "needed: one of text, contents" in message
        assert "--text-column" in message


def test_all_columns_of_a_wrong_table_are_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", id=[1], story=["one"])
    assert "found: id, story;" in error_of(path)


def test_wrong_text_column_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "id,text\n1,one\n")
    message = error_of(path, text_column="story")
    assert "found: id, text; needed: one of story" in message


def test_duplicate_id_names_both_places(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n{"id": "1", "text": "c"}\n')
    assert error_of(path) == f"{path}, line 3: document id '1' was already used in {path}, line 1"


def test_duplicate_id_across_files_names_both_files(tmp_path):
    first = write(tmp_path / "a.csv", "id,text\nx,one\n")
    second = write_parquet(tmp_path / "b.parquet", id=["y", "x"], text=["a", "b"])
    assert error_of(tmp_path) == f"{second}, row 2: document id 'x' was already used in {first}, line 2"


def gzip_damage(kind: str) -> bytes:
    lines = "".join(json.dumps({"id": number, "text": f"{number * 7919 % 10007}"}) + "\n" for number in range(5000))
    data = bytearray(gzip.compress(lines.encode(), mtime=0))
    match kind:
        case "cut short":
            del data[len(data) // 2 :]
        case "no gzip":
            data[:2] = b"no"
        case "wrong checksum":
            data[-6] ^= 0xFF
        case "broken stream":
            data[1000:1200] = bytes(byte ^ 0x55 for byte in data[1000:1200])
    return bytes(data)


@pytest.mark.parametrize("kind", ["cut short", "no gzip", "wrong checksum"])
@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_damaged_gzip_is_named(tmp_path, name, kind):
    path = write(tmp_path / name, gzip_damage(kind))
    message = error_of(path)
    assert message.startswith(f"{path}: damaged gzip file")
    assert "copy it again" in message


def test_damage_inside_the_gzip_stream_is_named(tmp_path):
    path = write(tmp_path / "a.txt.gz", gzip_damage("broken stream"))
    assert error_of(path).startswith(f"{path}: damaged gzip file")


@pytest.mark.parametrize("kind", ["empty", "junk", "cut short", "broken page header", "broken page"])
def test_damaged_parquet_is_named(tmp_path, kind):
    path = write_parquet(tmp_path / "a.parquet", text=[f"{number * 7919 % 10007} text" for number in range(5000)])
    data = path.read_bytes()
    third = len(data) // 3
    damaged = {
        "empty": b"",
        "junk": b"junk" * 10,
        "cut short": data[:-100],
        "broken page header": data[:4] + bytes(400) + data[404:],
        "broken page": data[:third] + bytes(byte ^ 0x55 for byte in data[third : 2 * third]) + data[2 * third :],
    }[kind]
    assert error_of(write(path, damaged)).startswith(f"{path}: not a readable Parquet file")


@pytest.mark.parametrize("row", ["2,b,c", "2"])
def test_csv_row_with_the_wrong_number_of_fields_is_named(tmp_path, row):
    path = write(tmp_path / "a.csv", f"id,text\n1,a\n{row}\n3,c\n")
    assert error_of(path) == f"{path}, line 3: a row with more or fewer fields than the header's 2"


@pytest.mark.parametrize("row", ['2,"b"c', '2,"b'])
def test_csv_row_with_broken_quotes_is_named(tmp_path, row):
    path = write(tmp_path / "a.csv", f"id,text\n1,a\n{row}\n")
    message = error_of(path)
    assert message.startswith(f"{path}, line 3: broken row")
    assert "check its quotes" in message


# ---------------------------------------------------------------- errors of queries and judgments

HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        ("qid\tdoc\trel\nq\td\t1\n", "line 1", "found 'qid doc rel'; needed the header 'query-id corpus-id score'"),
        ("q\td\t1\n", "line 1", "needed the header"),
        ("", "line 1", "needed the header"),
        (HEADER + "q\td\t1\nq\td2\n", "line 3", "2 columns, 3 are needed (query-id, corpus-id, score)"),
        (HEADER + "q\t0\td\t1\n", "line 2", "4 columns, 3 are needed"),
        (HEADER + "q\td\thigh\n", "line 2", "score 'high' is not a whole number"),
        (HEADER + "q\td\t0.5\n", "line 2", "score '0.5' is not a whole number"),
        (HEADER + "q\td\t1\nq\te\t1\nq\td\t0\n", "line 4", "query 'q' and document 'd' are judged twice"),
    ],
)
def test_broken_judgments_are_named(tmp_path, content, place, reason):
    path = write(tmp_path / "qrels" / "test.tsv", content)
    with pytest.raises(CorpusError) as caught:
        read_qrels(tmp_path, split="test")
    assert str(caught.value).startswith(f"{path}, {place}: ")
    assert reason in str(caught.value)


def test_missing_split_lists_the_splits_there_are(tmp_path):
    with pytest.raises(CorpusError, match="no judgments for split 'train'; found: dev, test"):
        open_corpus(write_beir(tmp_path)).qrels("train")


def test_missing_split_of_a_folder_without_judgments_says_none(tmp_path):
    write(tmp_path / "corpus.jsonl", '{"_id": "d", "text": "x"}\n')
    with pytest.raises(CorpusError, match="no judgments for split 'test'; found: none"):
        open_corpus(tmp_path).qrels("test")


@pytest.mark.parametrize(
    ("lines", "place", "reason"),
    [
        ('{"_id": "q", "text": "a"}\n{"_id": "q", "text": "b"}\n', "line 2", "query id 'q' was used before"),
        ('{"id": "q", "text": "a"}\n', "line 1", "found id, text; needed: _id, text"),
        ('{"_id": "q"}\n', "line 1", "found _id; needed: _id, text"),
        ('{"_id": "q", "text": null}\n', "line 1", "text"),
        ('{"_id": "q", "text": "a"\n', "line 1", "broken JSON"),
    ],
)
def test_broken_queries_are_named(tmp_path, lines, place, reason):
    path = write(tmp_path / "queries.jsonl", lines)
    with pytest.raises(CorpusError) as caught:
        read_queries(tmp_path)
    assert str(caught.value).startswith(f"{path}, {place}: ")
    assert reason in str(caught.value)


def test_missing_queries_file_is_named(tmp_path):
    write(tmp_path / "corpus.jsonl", '{"_id": "d", "text": "x"}\n')
    with pytest.raises(CorpusError, match=r"no queries\.jsonl"):
        open_corpus(tmp_path).queries()


def test_queries_and_judgments_of_a_plain_folder_say_what_is_needed(tmp_path):
    corpus = open_corpus(write(tmp_path / "a.txt", "x").parent)
    assert corpus.splits == []
    for call in (corpus.queries, lambda: corpus.qrels("test")):
        with pytest.raises(CorpusError, match=r"corpus\.jsonl, queries\.jsonl and qrels/ is needed"):
            call()


def test_checkpoints_and_indexes_inside_the_corpus_are_passed_over_and_counted(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    checkpoint = tmp_path / "checkpoints" / "notes-lstm"
    checkpoint.mkdir(parents=True)
    (checkpoint / "tokenizer.model").write_bytes(b"x")
    (checkpoint / "metrics.jsonl").write_text('{"step": 1}\n')
    index = tmp_path / "indexes" / "notes"
    index.mkdir(parents=True)
    (index / "manifest.json").write_text('{"kind": "index", "lm_retrieval_version": "0.1.0"}')
    (index / "README.md").write_text("# not mine")
    corpus = open_corpus(tmp_path)
    assert [document.doc_id for document in corpus.documents()] == ["note.txt"]
    assert corpus.counts.own_folders == 2
    assert "2 checkpoint and index folders inside the corpus skipped" in corpus.counts.warnings()[0]


def test_a_file_name_that_is_not_utf8_gets_a_readable_id(tmp_path):
    import os

    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as stream:  # noqa: PTH123
        stream.write("text")
    assert [document.doc_id for document in open_corpus(tmp_path).documents()] == ["caf\ufffd.txt"]


def test_a_collection_whose_documents_are_not_built_yet_says_how(tmp_path):
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "x"}\n')
    with pytest.raises(CorpusError, match="no corpus.jsonl.*lmr corpus build python-docs"):
        list(open_corpus(tmp_path).documents())
