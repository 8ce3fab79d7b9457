"""The folder of a report: `report.html`, `report.md`, `results.json`, `tables.tex` and `runs/`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from lm_retrieval.artifacts import atomic_file, storage_errors, write_json
from lm_retrieval.errors import EvaluationError
from lm_retrieval.evaluation.evaluator import trec_order
from lm_retrieval.evaluation.report import Report
from lm_retrieval.evaluation.trec import write_run
from lm_retrieval.records import Run
from lm_retrieval.reporting.html import ranking_page
from lm_retrieval.reporting.text import latex, markdown

RESULTS_NAME = "results.json"
PAGE_NAME = "report.html"


def write_report(folder: Path, report: Report, *, runs: Mapping[str, Mapping[str, Run]] | None = None) -> None:
    """Writes all files, each whole or not at all.

    Args:
        folder: where to; files of an earlier report there are replaced.
        report: what to write.
        runs: collection → system → run, written as `runs/COLLECTION/SYSTEM.run.gz`.

    White space in ids, which a TREC file cannot hold, is written there as in a web address: `my%20note.txt`.

    Raises:
        StorageError: the file system refused.
    """
    for collection, systems in (runs or {}).items():
        for tag, run in zip(_tags(systems), systems.values(), strict=True):
            write_run(folder / "runs" / collection / f"{tag}.run.gz", _in_trec_form(run), tag=tag)
    write_json(folder / RESULTS_NAME, report.to_dict())
    contents = {"report.md": markdown(report), "tables.tex": latex(report), PAGE_NAME: ranking_page(report)}
    for name, content in contents.items():
        with atomic_file(folder / name) as stream:
            stream.write(content)


def read_report(path: Path) -> Report:
    """Reads the results of an earlier report, by its folder or its `results.json`.

    Raises:
        EvaluationError: there are none, or they are damaged.
    """
    file = path / RESULTS_NAME if path.is_dir() else path
    if not file.is_file():
        raise EvaluationError(f"{path}: no {RESULTS_NAME} here; make one with `lmr evaluate CORPUS --output {path}`")
    with storage_errors(file):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EvaluationError(f"{file}: damaged ({error}); evaluate again") from error
    try:
        return Report.from_dict(content)
    except EvaluationError as error:
        raise EvaluationError(f"{file}: {error}") from error


def _tags(names: Iterable[str]) -> list[str]:
    """Systems' names as names of files and tags of runs, each of its own."""
    tags: list[str] = []
    for name in names:
        plain = "".join(character if character.isalnum() or character in "-+._" else "-" for character in name)
        number = 1
        tag = plain
        while tag.lower() in {other.lower() for other in tags}:
            number += 1
            tag = f"{plain}-{number}"
        tags.append(tag)
    return tags


def _in_trec_form(run: Run) -> Run:
    """The ranking that was scored: by score, ties as trec_eval breaks them."""
    return {
        _without_space(query_id): {_without_space(doc_id): scores[doc_id] for doc_id in trec_order(scores)}
        for query_id, scores in run.items()
    }


def _without_space(name: str) -> str:
    return "".join(quote(character) if character.isspace() else character for character in name)
