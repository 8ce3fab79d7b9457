"""Writing the built-in corpus: documents of the running interpreter, questions and judgments from this project."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from lm_retrieval.artifacts import storage_errors
from lm_retrieval.corpus.beir import write_documents
from lm_retrieval.corpus.python_docs import python_docs
from lm_retrieval.errors import CorpusError

_PACKAGE = Path(__file__).resolve().parents[1]
# in an installed package the questions lie inside it, in a source tree beside it
_QUESTION_FOLDERS = (_PACKAGE / "corpora" / "python-docs", _PACKAGE.parent / "corpora" / "python-docs")
_QUESTION_FILES = ("queries.jsonl", "qrels/dev.tsv", "qrels/test.tsv")


def build_python_docs(folder: Path, *, packages: Sequence[str] = ()) -> int:
    """Writes `corpus.jsonl` and, for the standard library, queries and judgments; returns the number of documents.

    Raises:
        CorpusError: a package cannot be imported.
        StorageError: the folder cannot be written.
    """
    count = write_documents(folder, python_docs(packages))
    if not packages:
        source = next((path for path in _QUESTION_FOLDERS if (path / _QUESTION_FILES[0]).is_file()), None)
        if source is None:
            raise CorpusError("the questions of python-docs are missing from this installation; install it again")
        for name in _QUESTION_FILES:
            target = folder / name
            with storage_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.resolve() != (source / name).resolve():
                    shutil.copyfile(source / name, target)
    return count
