"""The built-in corpus: the standard library's docstrings, the same everywhere, and the judgments that ship with it."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lm_retrieval.corpus import Corpus, open_corpus
from lm_retrieval.corpus.beir import list_splits, read_qrels, read_queries
from lm_retrieval.corpus.builtin import build_python_docs
from lm_retrieval.corpus.python_docs import python_docs
from lm_retrieval.errors import CorpusError
from lm_retrieval.records import Document

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "corpora" / "python-docs"
SECRET = "a-password-in-an-environment-variable"
BUILD = (
    "import sys; from pathlib import Path; from lm_retrieval.corpus.builtin import build_python_docs\n"
    "for folder in sys.argv[1:]: print(build_python_docs(Path(folder)))"
)


def build(*folders: Path, seed: str, **variables: str) -> list[int]:
    """Builds the corpus in a process of its own: importing every module leaves traces."""
    environment = {**os.environ, "PYTHONHASHSEED": seed, **variables}
    command = [sys.executable, "-c", BUILD, *map(str, folders)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return [int(line) for line in done.stdout.split()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("python-docs")
    paths = {name: base / name for name in ("first", "same process", "other process")}
    counts = build(paths["first"], paths["same process"], seed="1", SOME_TOKEN=SECRET)
    counts += build(paths["other process"], seed="2")
    assert min(counts) > 4000
    return paths


@pytest.fixture(scope="module")
def corpus(folders) -> Corpus:
    return open_corpus(folders["first"])


@pytest.fixture(scope="module")
def documents(corpus) -> dict[str, Document]:
    return {document.doc_id: document for document in corpus.documents()}


def differences(one: Path, other: Path) -> list[str]:
    first, second = ({document.doc_id: document for document in open_corpus(path).documents()} for path in (one, other))
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


@pytest.mark.parametrize(
    ("doc_id", "title", "words"),
    [
        ("str.join", "str.join(iterable, /)", "Concatenate any number of strings"),
        ("itertools.chain", "class itertools.chain", "Return a chain object"),
        ("os.path.join", "os.path.join(a, *p)", "Join two or more pathname components"),
        ("sorted", "sorted(iterable, /, *, key=None, reverse=False)", "Return a new list"),
        ("asyncio.wait", "asyncio.wait(fs, *, timeout=None, return_when='ALL_COMPLETED')", "Wait for the Futures"),
        ("json", "module json", "JSON"),
        ("collections.OrderedDict.move_to_end", "collections.OrderedDict.move_to_end(key, last=True)", "Move an exist"),
        ("pathlib.PurePath.parent", "pathlib.PurePath.parent", "The logical parent of the path"),
    ],
)
def test_well_known_objects_are_documents(documents, doc_id, title, words):
    assert documents[doc_id].title == title
    assert words in documents[doc_id].text


@pytest.mark.parametrize("doc_id", ["posixpath.join", "this", "antigravity", "test.support", "idlelib"])
def test_aliases_and_modules_left_out_are_no_documents(documents, doc_id):
    assert doc_id not in documents


def test_ids_are_sorted_and_unique(corpus):
    ids = [document.doc_id for document in corpus.documents()]
    assert ids == sorted(set(ids))


def test_every_document_has_a_title_and_a_text(corpus, documents):
    assert all(document.title and document.text.strip() for document in documents.values())
    assert corpus.counts.empty_documents == 0


def test_same_process_gives_the_same_documents_again(folders):
    assert differences(folders["first"], folders["same process"]) == []


def test_another_process_gives_the_same_documents(folders):
    assert differences(folders["first"], folders["other process"]) == []


def test_no_object_addresses(documents):
    address = re.compile(r" at 0x[0-9a-fA-F]{6,}")
    assert [document.doc_id for document in documents.values() if address.search(f"{document[1]} {document[2]}")] == []


def test_no_environment_variables(documents):
    assert [name for name, document in documents.items() if SECRET in document.content] == []


def test_no_paths_of_this_machine(documents):
    paths = {sys.prefix, sys.base_prefix, str(ROOT)} - {"/", "/usr", "/usr/local"}
    found = [name for name, document in documents.items() if any(path in document.content for path in paths)]
    assert found == []


def test_installed_package_is_read_and_nothing_else():
    found = {document.doc_id: document for document in python_docs(["click"])}
    assert found["click.echo"].title == "click.echo(message=None, file=None, nl=True, err=False, color=None)"
    assert found["click"].title == "module click"
    assert {name.split(".")[0] for name in found} == {"click"}


def test_package_corpus_has_documents_but_no_questions(tmp_path):
    count = build_python_docs(tmp_path, packages=["click"])
    corpus = open_corpus(tmp_path)
    assert [document.doc_id for document in corpus.documents()] == [item.doc_id for item in python_docs(["click"])]
    assert corpus.counts.documents == count
    assert corpus.splits == []
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_unknown_package_is_named():
    with pytest.raises(CorpusError, match="package 'no_such_package_here' cannot be imported; install it first"):
        list(python_docs(["click", "no_such_package_here"]))


def test_unknown_package_leaves_no_files(tmp_path):
    with pytest.raises(CorpusError):
        build_python_docs(tmp_path / "out", packages=["no_such_package_here"])
    assert list(tmp_path.rglob("*.jsonl*")) == []


# ---------------------------------------------------------------- the questions and judgments that ship


def test_built_corpus_carries_the_shipped_questions(folders):
    names = [path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*") if path.suffix in (".jsonl", ".tsv")]
    for name in sorted(set(names) - {"corpus.jsonl"}):
        assert (folders["first"] / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_every_question_is_judged_in_exactly_one_split():
    queries = [query.query_id for query in read_queries(SHIPPED)]
    judged = [query_id for split in list_splits(SHIPPED) for query_id in read_qrels(SHIPPED, split=split)]
    assert len(queries) >= 150
    assert sorted(judged) == sorted(queries)
    assert list_splits(SHIPPED) == ["dev", "test"]


def test_questions_are_distinct_and_not_blank():
    texts = Counter(query.text.strip().lower() for query in read_queries(SHIPPED))
    assert "" not in texts
    assert texts.most_common(1)[0][1] == 1


@pytest.mark.parametrize("split", ["dev", "test"])
def test_every_question_has_a_relevant_answer_and_grades_differ(split):
    qrels = read_qrels(SHIPPED, split=split)
    assert [query_id for query_id, grades in qrels.items() if max(grades.values()) < 1] == []
    assert len({grade for grades in qrels.values() for grade in grades.values() if grade > 0}) > 1


def test_judged_documents_exist_in_the_running_python(documents):
    judged = {
        doc_id for split in ("dev", "test") for grades in read_qrels(SHIPPED, split=split).values() for doc_id in grades
    }
    assert len(judged & documents.keys()) >= 0.95 * len(judged)
