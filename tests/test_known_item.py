"""Known-item queries: held out everywhere, asked once, the same every time."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Said, make_texts, write_jsonl

from lm_retrieval.corpus import Corpus, open_corpus
from lm_retrieval.corpus.known_item import MIN_QUERIES, SPLIT, write_known_item
from lm_retrieval.errors import CorpusError
from lm_retrieval.reporting.folder import read_report

BODY = "cold water carries old bridges past the harbour every single morning"
RARE = ("zebras", "yachts", "xylophones", "wagons", "violets", "urns", "tulips", "sparrows", "ravens", "quinces")


def titled(folder: Path, count: int = 14, **changes: dict[str, object]) -> Path:
    rows = [
        {"_id": f"d{number:02}", "title": f"On {RARE[number % 10]} volume {number}", "text": f"{BODY} {number}."}
        for number in range(count)
    ]
    for row in rows:
        row.update(changes.get(str(row["_id"]), {}))
    return write_jsonl(folder / "papers.jsonl", rows)


def made(path: Path, output: Path, **options: int) -> Corpus:
    write_known_item(open_corpus(path), output, **options)
    return open_corpus(output)


def test_titles_are_asked_for_and_stand_in_no_document(tmp_path: Path) -> None:
    corpus = made(titled(tmp_path), tmp_path / "out")
    documents = {document.doc_id: document for document in corpus.documents()}
    queries = {query.query_id: query.text for query in corpus.queries()}
    assert queries == {f"title:d{number:02}": f"On {RARE[number % 10]} volume {number}" for number in range(14)}
    assert corpus.qrels(SPLIT) == {f"title:d{number:02}": {f"d{number:02}": 1} for number in range(14)}
    for number in range(14):
        document = documents[f"d{number:02}"]
        assert (document.title, document.text) == ("", f"{BODY} {number}.")
    assert [word for word in RARE if any(word in document.content for document in documents.values())] == []


def test_titles_that_are_not_asked_are_held_out_too(tmp_path: Path) -> None:
    changes = {
        "d03": {"title": "Same words"},
        "d04": {"title": "Same  WORDS"},
        "d05": {"title": "Solitary"},  # one word
        "d06": {"text": "too little text"},
    }
    corpus = made(titled(tmp_path, **changes), tmp_path / "out", most=10)
    assert {document.title for document in corpus.documents()} == {""}
    contents = " ".join(document.content for document in corpus.documents())
    assert "too little text" in contents
    for word in (*RARE, "Same", "WORDS", "Solitary"):
        assert word not in contents
    asked = {query.query_id for query in corpus.queries()}
    assert asked == {f"title:d{number:02}" for number in range(14) if number not in (3, 4, 5, 6)}


def test_titles_that_several_documents_have_are_not_asked(tmp_path: Path) -> None:
    changes = {"d03": {"title": "Same words"}, "d04": {"title": " same\n WORDS "}}
    asked = [query.query_id for query in made(titled(tmp_path, **changes), tmp_path / "out").queries()]
    assert asked == [f"title:d{number:02}" for number in range(14) if number not in (3, 4)]


def test_a_title_is_not_asked_where_another_document_with_it_has_hardly_any_text(tmp_path: Path) -> None:
    changes = {"d03": {"title": "Same words"}, "d04": {"title": "Same words", "text": "a stub"}}
    asked = [query.query_id for query in made(titled(tmp_path, **changes), tmp_path / "out").queries()]
    assert "title:d03" not in asked
    assert len(asked) == 12


def test_without_titles_the_first_lines_are_asked_and_held_out(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(12):
        (notes / f"{number:02}.txt").write_text(f"\n  About {RARE[number % 10]}  and {number}\n\n{BODY}\nlast line\n")
    (notes / "long.txt").write_text("word " * 41 + f"\n{BODY}\n")  # too long to ask
    (notes / "one-line.txt").write_text(f"{BODY} {BODY}")
    (notes / "empty.txt").write_text("")
    corpus = made(notes, tmp_path / "out")
    assert {query.query_id: query.text for query in corpus.queries()} == {
        f"title:{number:02}.txt": f"About {RARE[number % 10]} and {number}" for number in range(12)
    }
    documents = {document.doc_id: document.text for document in corpus.documents()}
    assert {documents[f"{number:02}.txt"] for number in range(12)} == {f"{BODY}\nlast line"}
    assert documents["one-line.txt"] == f"{BODY} {BODY}"
    assert documents["long.txt"] == "word " * 41 + f"\n{BODY}"
    assert documents["empty.txt"] == ""
    assert len(documents) == 15


def test_headings_of_markdown_are_titles_without_their_marks(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(10):
        marks = "#" if number % 2 else "##"
        (notes / f"{number}.md").write_text(f"{marks} All about {RARE[number]}\n\n{BODY}\n")
    corpus = made(notes, tmp_path / "out")
    assert {query.text for query in corpus.queries()} == {f"All about {word}" for word in RARE}
    assert {document.content for document in corpus.documents()} == {BODY}


@pytest.mark.parametrize("count", [0, 1, MIN_QUERIES - 1])
def test_too_few_documents_are_an_error_that_counts_them_and_nothing_is_written(tmp_path: Path, count: int) -> None:
    path = titled(tmp_path, count)
    with path.open("a") as stream:
        stream.write('{"_id": "x", "text": "a stub"}\n')
    with pytest.raises(CorpusError, match=rf"papers\.jsonl: only {count} documents .* needs at least 10"):
        write_known_item(open_corpus(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ten_documents_are_enough(tmp_path: Path) -> None:
    assert write_known_item(open_corpus(titled(tmp_path, 10)), tmp_path / "out") == 10


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_corpus_gives_the_same_files_and_another_seed_other_queries(tmp_path: Path) -> None:
    path = titled(tmp_path, 60)
    for name, options in (("one", {}), ("two", {}), ("other", {"seed": 1})):
        assert write_known_item(open_corpus(path), tmp_path / name, most=20, **options) == 20
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert set(contents(tmp_path / "one")) == {"corpus.jsonl", "queries.jsonl", f"qrels/{SPLIT}.tsv"}
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    assert one["corpus.jsonl"] == other["corpus.jsonl"]
    assert one["queries.jsonl"] != other["queries.jsonl"]


def test_of_very_many_documents_five_hundred_are_asked(tmp_path: Path) -> None:
    corpus = made(titled(tmp_path, 700), tmp_path / "out")
    asked = [query.query_id for query in corpus.queries()]
    assert len(asked) == len(set(asked)) == len(corpus.qrels(SPLIT)) == 500
    assert sum(1 for _ in corpus.documents()) == 700


# ---------------------------------------------------------------- through the command line


def notes_of(folder: Path, name: str = "note-{:02}.txt") -> Path:
    folder.mkdir()
    for number, text in enumerate(make_texts(14)):
        (folder / name.format(number)).write_text(
            f"Remember {RARE[number % 10]} {number}\n\n{text} {RARE[number % 10]}\n"
        )
    return folder


def test_the_report_says_what_known_item_queries_show_and_what_not(lmr: Callable[..., Said], tmp_path: Path) -> None:
    notes_of(tmp_path / "diary")
    said = lmr("evaluate", "diary", "--known-item", "--output", "out", "-q")
    assert said.code == 0
    (part,) = read_report(tmp_path / "out").collections
    assert (part.name, part.queries, part.documents, part.settings["split"]) == ("diary", 14, 14, "known-item")
    # one of four documents that hold the rare word, or the only one
    assert part.system("bm25").evaluation.measures["RR@10"] > 0.6
    for form in (
        said.stderr,
        (tmp_path / "out" / "report.html").read_text(),
        (tmp_path / "out" / "report.md").read_text(),
    ):
        assert "known-item queries: titles (or first lines) held out of their own documents" in form
        assert "They show how well a document is found by its author&#39;s words" in form.replace("'", "&#39;")
        assert "They do not show how well" in form
    assert sorted(path.name for path in (tmp_path / "out" / "runs" / "diary").iterdir()) == [
        "bm25.run.gz",
        "lsi-256.run.gz",
    ]


def test_reports_side_by_side_still_say_that_the_queries_are_known_items(
    lmr: Callable[..., Said], tmp_path: Path
) -> None:
    notes_of(tmp_path / "diary")
    for name in ("one", "two"):
        assert lmr("evaluate", "diary", "--known-item", "--output", name, "-q").code == 0
    said = lmr("report", "one", "two", "--output", "both")
    assert said.code == 0
    assert "known-item" in said.stderr
    assert "known-item" in (tmp_path / "both" / "report.html").read_text()


def test_files_with_spaces_in_their_names_have_a_report_too(lmr: Callable[..., Said], tmp_path: Path) -> None:
    notes_of(tmp_path / "diary", "my note {:02}.txt")
    said = lmr("evaluate", "diary", "--known-item", "--output", "out", "-q")
    assert (said.code, "Error" in said.stderr) == (0, False), said.stderr
    assert read_report(tmp_path / "out").collections[0].queries == 14


def test_the_corpus_itself_is_left_alone(lmr: Callable[..., Said], tmp_path: Path) -> None:
    before = contents(notes_of(tmp_path / "diary"))
    found = json.loads(lmr("evaluate", "diary", "--known-item", "--measure", "RR", "--format", "json", "-q").stdout)
    assert found["collections"][0]["queries"] == 14
    assert contents(tmp_path / "diary") == before
    assert [path.name for path in tmp_path.iterdir()] == ["diary"]


def test_too_few_documents_are_one_line(lmr: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "note.txt").write_text(f"A first line\n\n{BODY}\n")
    said = lmr("evaluate", "diary", "--known-item", "--output", "out", "-q")
    assert (said.code, said.stdout, said.stderr.count("\n")) == (1, "", 1)
    assert said.stderr.startswith("Error: diary: only 1 documents with a title")
    assert not (tmp_path / "out").exists()
