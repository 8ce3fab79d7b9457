"""Pairs: made from plain text, from judgments and from files; every span is outside its own other side."""

import json
import re
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import make_texts, write_jsonl

from lm_retrieval.corpus.pairs import Pair, corpus_pairs, holds_pairs, judged_pairs, read_pairs, span_pairs
from lm_retrieval.errors import CorpusError
from lm_retrieval.records import Document, Query

WORDS = " ".join(f"w{number}" for number in range(100))
MARKDOWN = """Some words before any heading stand here.

# First   part ##

The first part has five words.

Second part
===========

The second part has five words too.
It has a second line.

### Too short

three words only

Third part
~~~~~~~~~~
The third part ends the text."""


def spans(document: Document, **options: int) -> list[Pair]:
    return [pair for pair in corpus_pairs([document], **options) if pair.source == "spans"]


def test_a_title_is_asked_for_its_text() -> None:
    pairs = list(corpus_pairs([Document("d1", " A title ", "Its text.\n"), Document("d2", "", "no title")]))
    assert pairs == [Pair("A title", "Its text.", "d1", "titles")]


def test_a_title_without_text_and_a_text_without_words_give_no_pair() -> None:
    assert (
        list(corpus_pairs([Document("a", "only a title", "  "), Document("b", "", ""), Document("c", "", "x")])) == []
    )


def test_each_heading_is_asked_for_the_section_up_to_the_next_one() -> None:
    pairs = [pair for pair in corpus_pairs([Document("m", "", MARKDOWN)]) if pair.source == "titles"]
    assert [(pair.query, pair.positive) for pair in pairs] == [
        ("First   part", "The first part has five words."),
        ("Second part", "The second part has five words too.\nIt has a second line."),
        ("Third part", "The third part ends the text."),
    ]
    assert {pair.document for pair in pairs} == {"m"}


def test_a_span_is_taken_out_of_the_rest_of_its_document() -> None:
    found = [pair for number in range(40) for pair in spans(Document(f"d{number}", "A title", WORDS))]
    assert len(found) == 120
    for pair in found:
        size = len(pair.query.split())
        assert 4 <= size <= 16
        assert pair.query in WORDS
        rest = pair.positive.removeprefix("A title\n").split()
        assert sorted(rest + pair.query.split()) == sorted(WORDS.split())
        assert rest == [word for word in WORDS.split() if word not in set(pair.query.split())]
    assert {len(pair.query.split()) for pair in found} == set(range(4, 17))
    firsts = [int(re.findall(r"\d+", pair.query)[0]) for pair in found]
    assert min(firsts) < 10
    assert max(firsts) > 70


def test_the_text_around_a_span_keeps_its_line_breaks() -> None:
    text = "\n\n".join(make_texts(20))
    for pair in spans(Document("d", "", text), spans_per_document=6):
        first = text.index(pair.query)
        assert pair.positive == f"{text[:first]} {text[first + len(pair.query) :]}".strip()


@pytest.mark.parametrize(("words", "wanted", "found"), [(23, 3, 0), (24, 3, 2), (100, 3, 3), (100, 9, 5), (100, 0, 0)])
def test_a_short_text_gives_fewer_spans_and_a_very_short_one_none(words: int, wanted: int, found: int) -> None:
    document = Document("d", "", " ".join(f"w{number}" for number in range(words)))
    assert len(spans(document, spans_per_document=wanted)) == found


def test_a_document_has_its_own_spans_for_a_seed_whatever_stands_before_it() -> None:
    first, second = Document("a", "", WORDS), Document("b", "", WORDS)
    both = list(corpus_pairs([first, second], seed=3))
    assert both[3:] == list(corpus_pairs([second], seed=3))
    assert [pair.query for pair in both[:3]] != [pair.query for pair in both[3:]]
    assert list(corpus_pairs([second], seed=4)) != both[3:]


# ---------------------------------------------------------------- spans of positives


def test_a_span_of_a_positive_asks_for_the_whole_of_it() -> None:
    pairs = [Pair(f"q{number}", f"n{number} {WORDS}", f"d{number}", "mine", ("no answer",)) for number in range(60)]
    found = list(span_pairs(pairs, spans_per_positive=2))
    assert len(found) == 120
    for place, pair in enumerate(found):
        answered = pairs[place // 2]
        assert pair == Pair(pair.query, answered.positive, answered.document, "mine spans")
        assert f" {pair.query} " in f" {answered.positive} "
    assert {len(pair.query.split()) for pair in found} == set(range(4, 17))
    firsts = [int(re.findall(r"w(\d+)", pair.query)[0]) for pair in found]
    assert min(firsts) < 10
    assert max(firsts) > 70


def test_a_document_with_several_pairs_has_spans_once() -> None:
    pairs = [Pair(f"q{number}", WORDS, document, "mine") for number, document in enumerate("abaca")]
    found = list(span_pairs(pairs, spans_per_positive=2))
    assert Counter(pair.document for pair in found) == {"a": 2, "b": 2, "c": 2}
    assert list(span_pairs(pairs)) == [found[0], found[2], found[4]]


def test_a_positive_has_its_own_spans_for_a_seed_whatever_stands_before_it() -> None:
    first, second = (Pair("q", WORDS, document, "mine") for document in "ab")
    both = list(span_pairs([first, second], seed=3, spans_per_positive=3))
    assert both[3:] == list(span_pairs([second], seed=3, spans_per_positive=3))
    assert [pair.query for pair in both[:3]] != [pair.query for pair in both[3:]]
    assert list(span_pairs([second], seed=4, spans_per_positive=3)) != both[3:]


@pytest.mark.parametrize(("words", "wanted", "found"), [(23, 3, 0), (24, 3, 2), (100, 3, 3), (100, 9, 5), (100, 0, 0)])
def test_a_short_positive_gives_fewer_spans_and_a_very_short_one_none(words: int, wanted: int, found: int) -> None:
    pair = Pair("q", " ".join(f"w{number}" for number in range(words)), "d", "mine")
    assert len(list(span_pairs([pair], spans_per_positive=wanted))) == found


# ---------------------------------------------------------------- judgments

DOCUMENTS = {
    "d1": Document("d1", "One", "the first text"),
    "d2": Document("d2", "", "the second text"),
    "d3": Document("d3", "", "  "),
}
QUERIES = [Query("q1", "first?"), Query("q2", "second?")]


def test_each_relevant_document_of_a_judged_query_is_a_pair() -> None:
    qrels = {"q2": {"d2": 1, "d1": 2}, "q1": {"d1": 1, "d2": 0, "d3": 1}}
    assert list(judged_pairs(DOCUMENTS, QUERIES, qrels)) == [
        Pair("second?", "the second text", "d2", "labels"),
        Pair("second?", "One\nthe first text", "d1", "labels"),
        Pair("first?", "One\nthe first text", "d1", "labels"),
    ]


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ({"q9": {"d1": 1}}, "query 'q9' is judged but has no text"),
        ({"q1": {"d9": 1}}, "query 'q1' points to document 'd9', which the corpus has not"),
        ({"q1": {"d9": 0}}, "document 'd9'"),
    ],
)
def test_judgments_of_unknown_queries_and_documents_are_refused(qrels: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        list(judged_pairs(DOCUMENTS, QUERIES, qrels))


# ---------------------------------------------------------------- files


def test_jsonl_and_parquet_hold_the_same_pairs(tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": "b", "negatives": ["c", "d"]}, {"query": "e", "positive": "f", "negatives": []}]
    expected = [Pair("a", "b", "b", "mine", ("c", "d")), Pair("e", "f", "f", "mine")]
    assert list(read_pairs(write_jsonl(tmp_path / "mine.jsonl", rows))) == expected
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "mine.parquet")
    assert list(read_pairs(tmp_path / "mine.parquet")) == expected


def test_a_single_negative_may_be_a_plain_text(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"query": "a", "positive": "b", "negatives": "one text"}])
    assert list(read_pairs(path)) == [Pair("a", "b", "b", "p", ("one text",))]


def test_every_table_of_a_folder_is_read_and_is_a_source_of_its_own(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "two.jsonl", [{"query": "c", "positive": "d"}])
    write_jsonl(tmp_path / "one.part.jsonl", [{"query": "a", "positive": "b"}])
    (tmp_path / "readme.txt").write_text("not a table")
    assert [(pair.query, pair.source) for pair in read_pairs(tmp_path)] == [("a", "one"), ("c", "two")]


def test_ids_stand_for_the_documents_of_a_corpus(tmp_path: Path) -> None:
    rows = [
        {"query": "a", "positive_id": "d1"},
        {"query": "b", "positive_id": "d2", "negative_ids": ["d1"]},
    ]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    assert list(read_pairs(path, documents=DOCUMENTS)) == [
        Pair("a", "One\nthe first text", "d1", "p"),
        Pair("b", "the second text", "d2", "p", ("One\nthe first text",)),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "a"}, r"p\.jsonl, line 2: columns query and positive \(texts\) are needed; found: query"),
        ({"question": "a", "answer": "b"}, r"line 2: columns query and positive.*found: question, answer"),
        ({"query": 3, "positive": "b"}, "line 2: columns query and positive"),
        ({"query": "a", "positive": ["b"]}, "line 2: columns query and positive"),
        ({"query": "a", "positive": "b", "negatives": ["c", None]}, "line 2: columns query and positive"),
        ({"query": "a", "positive_id": "d9"}, "line 2: document 'd9' is not in the corpus"),
        ({"query": "a", "positive_id": "d1", "negative_ids": ["d8"]}, "line 2: document 'd8' is not in the corpus"),
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = write_jsonl(tmp_path / "p.jsonl", [{"query": "good", "positive": "row"}, row])
    with pytest.raises(CorpusError, match=message):
        list(read_pairs(path, documents=DOCUMENTS))


def test_a_place_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"absent\.jsonl: no pairs here"):
        list(read_pairs(tmp_path / "absent.jsonl"))
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(CorpusError, match="no pairs here; a .jsonl or .parquet file"):
        list(read_pairs(tmp_path))


def test_files_of_pairs_are_told_from_files_of_documents(tmp_path: Path, judged: Path, notes: Path) -> None:
    for columns, are_pairs in (
        (("query", "positive"), True),
        (("query", "positive_id"), True),
        (("query", "positive", "negatives"), True),
        (("query", "text"), False),
        (("_id", "text"), False),
    ):
        rows = [dict.fromkeys(columns, "x")]
        folder = tmp_path / "_".join(columns)
        path = write_jsonl(folder / "t.jsonl", rows)
        table = tmp_path / f"{folder.name}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
        assert [holds_pairs(place) for place in (path, folder, table)] == [are_pairs] * 3, columns
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert not any(map(holds_pairs, (judged, notes, notes / "long.md", empty, tmp_path / "absent")))


def test_a_beir_folder_holds_documents_even_where_their_table_has_other_columns_too(tmp_path: Path) -> None:
    row = {"_id": "1", "text": "x", "query": "q", "positive": "p"}
    (tmp_path / "corpus.jsonl").write_text(json.dumps(row) + "\n")
    assert not holds_pairs(tmp_path)
