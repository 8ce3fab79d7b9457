"""`lmr corpus`: build, import, look."""

from pathlib import Path

import click

from lm_retrieval.cli.options import LOCATION, PATH, Group, corpus_options, echo_facts, echo_json, format_option
from lm_retrieval.storage import Location


@click.group(cls=Group)
def corpus() -> None:
    """Build, import and inspect corpora."""


@corpus.command()
@click.argument("name", type=click.Choice(["python-docs"]))
@click.option("--output", type=PATH, help="Folder to write.  [default: corpora/NAME]")
@click.option("--package", "packages", multiple=True, help="An installed package instead of the standard library.")
def build(name: str, output: Path | None, packages: tuple[str, ...]) -> None:
    """Write a built-in corpus in BEIR layout.

    python-docs is the docstrings of the running interpreter's standard library, with hand-written questions and
    judgments; with --package, those of any installed package (no judgments).

    \b
    Example:
      lmr corpus build python-docs
      lmr corpus build python-docs --package torch --output corpora/torch-docs
    """
    from lm_retrieval.corpus.builtin import build_python_docs

    folder = output or Path("corpora") / ("-".join(packages) + "-docs" if packages else name)
    count = build_python_docs(folder, packages=packages)
    click.echo(f"{folder}: {count:,} documents")


@corpus.command(name="import")
@click.argument("source")
@click.option("--output", type=PATH, help="Folder to write.  [default: corpora/DATASET]")
def import_(source: str, output: Path | None) -> None:
    """Import a test collection: `ir_datasets:cranfield`, `ir_datasets:beir/nfcorpus/test` and so on.

    Needs the extra `datasets` and, for most collections, a network.
    """
    from lm_retrieval.corpus.external import import_collection

    folder = output or Path("corpora") / source.partition(":")[2].replace("/", "-")
    count = import_collection(source, folder)
    click.echo(f"{folder}: {count:,} documents")


@corpus.command()
@click.argument("path", type=LOCATION)
@corpus_options
@format_option
def info(path: Location, encoding: str, text_column: str | None, output_format: str) -> None:
    """Count the documents of a folder or file, and warn of what is odd."""
    from lm_retrieval.corpus import open_corpus

    opened = open_corpus(path, encoding=encoding, text_column=text_column)
    for _ in opened.documents():
        pass
    counts = opened.counts
    facts = {
        "path": str(path),
        "documents": counts.documents,
        "characters": counts.characters,
        "empty_documents": counts.empty_documents,
        "duplicate_texts": counts.duplicate_texts,
        "skipped_files": sum(counts.skipped_files.values()),
        "splits": {split: len(opened.qrels(split)) for split in opened.splits},
    }
    if output_format == "json":
        echo_json(facts | {"warnings": counts.warnings()})
        return
    judged = ", ".join(f"{split} ({count} queries)" for split, count in facts["splits"].items())  # type: ignore[attr-defined]
    echo_facts(
        [
            ("corpus", path),
            ("documents", f"{counts.documents:,}"),
            ("characters", f"{counts.characters:,} ({counts.characters / max(1, counts.documents):,.0f} a document)"),
            ("judgments", judged or "none"),
        ]
    )
    for note in counts.warnings():
        click.echo(f"warning: {note}", err=True)
