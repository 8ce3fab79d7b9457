"""`lmr evaluate` and `lmr report`."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lm_retrieval.cli.options import LOCATION, PATH, Command, device_option, dtype_option, echo_json, echo_table
from lm_retrieval.storage import Location

if TYPE_CHECKING:
    from lm_retrieval.corpus import Corpus
    from lm_retrieval.evaluation.report import Report
    from lm_retrieval.experiment import Experiment
    from lm_retrieval.records import Run
    from lm_retrieval.search import Searcher

_OUTPUT_HELP = "Folder for report.html, report.md, results.json, tables.tex and runs."
_format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "json", "markdown", "latex"]),
    default="text",
    show_default=True,
    help="Output form.",
)
_baseline_option = click.option("--baseline", help="System the others are compared with.  [default: the first row]")


@click.command(cls=Command)
@click.argument("corpora", nargs=-1, metavar="[CORPUS]...", type=LOCATION)
@click.option("--encoder", "encoders", multiple=True, help="A checkpoint; repeatable. Gives a dense and a hybrid row.")
@click.option(
    "--index",
    "indexes",
    multiple=True,
    help="An index of the CORPUS, or milvus+URI#COLLECTION; repeatable. Gives a dense and a hybrid row.",
)
@click.option(
    "--postprocess",
    "postprocesses",
    multiple=True,
    type=click.Choice(["none", "center", "whiten"]),
    help="Try every encoder with this, instead of as configured; repeatable.",
)
@click.option("--rerank", is_flag=True, help="Also a row with hybrid reordered by the encoder's language model.")
@click.option("--run", "run_files", multiple=True, type=PATH, help="A TREC run file (or .gz) as a row; repeatable.")
@click.option("--split", default="test", show_default=True, help="Which judgments: qrels/SPLIT.tsv.")
@click.option("--qrels", "qrels_file", type=PATH, help="Judgments for --run files, without a corpus.")
@click.option("--known-item", is_flag=True, help="No judgments: ask for each document by its title or first line.")
@click.option("--measure", "measures", multiple=True, help="An ir-measures name, such as nDCG@10; repeatable.")
@_baseline_option
@click.option("--output", type=PATH, help=_OUTPUT_HELP)
@_format_option
@dtype_option("auto")
@device_option
def evaluate(
    corpora: tuple[Location, ...],
    encoders: tuple[str, ...],
    indexes: tuple[str, ...],
    postprocesses: tuple[Any, ...],
    rerank: bool,
    run_files: tuple[Path, ...],
    split: str,
    qrels_file: Path | None,
    known_item: bool,
    measures: tuple[str, ...],
    baseline: str | None,
    output: Path | None,
    output_format: str,
    dtype: Any,
    device: str,
) -> None:
    """Measure rankings, and whether their differences are real.

    CORPUS is a folder with queries and judgments (BEIR layout), or a folder of such folders; several are averaged.
    Rows: BM25, LSI-256, each encoder alone (dense) and with BM25 (hybrid), and each run file. trec_eval's rules: a
    query without results counts 0, ties are broken by document id.

    \b
    Example:
      lmr evaluate corpora/python-docs --encoder lstm-base
      lmr evaluate corpora/python-docs --encoder lstm-base --output reports/docs
      lmr evaluate notes/ --known-item --encoder lstm-base
      lmr evaluate --qrels judged.qrels --run mine.run --run theirs.run.gz
    """
    from lm_retrieval.evaluation.evaluator import DEFAULT_MEASURES

    wanted = measures or DEFAULT_MEASURES
    if bool(corpora) == bool(qrels_file):
        raise click.UsageError("give a CORPUS, or --qrels FILE with --run FILE")
    if qrels_file is not None:
        if encoders or indexes or known_item or not run_files:
            raise click.UsageError("--qrels scores --run files alone; encoders and indexes need a CORPUS")
        found = _score_files(qrels_file, run_files, wanted, baseline)
    else:
        found = _rank_corpora(
            corpora,
            [(name, postprocesses, device, dtype) for name in encoders],
            indexes,
            _read_runs(run_files),
            split,
            known_item,
            wanted,
            baseline,
            rerank,
        )
    _finish(found.report, output, output_format, runs=found.runs)


@click.command(cls=Command)
@click.argument("results", nargs=-1, required=True, metavar="REPORT...", type=PATH)
@_baseline_option
@click.option("--output", type=PATH, help="Folder for report.html, report.md, results.json and tables.tex.")
@_format_option
def report(results: tuple[Path, ...], baseline: str | None, output: Path | None, output_format: str) -> None:
    """Compare earlier results: folders written by `lmr evaluate --output`.

    Systems of all of them stand side by side and are tested against each other; a warning says where corpus,
    judgments or settings differ.

    \b
    Example:
      lmr report reports/before reports/after --output reports/both
    """
    from lm_retrieval.evaluation.report import join
    from lm_retrieval.reporting.folder import read_report

    names = [path.resolve().parent.name if path.suffix == ".json" else path.resolve().name for path in results]
    labels = names if len(set(names)) == len(names) else [str(path) for path in results]
    joined = join(dict(zip(labels, map(read_report, results), strict=True)), baseline=baseline)
    _finish(joined, output, output_format)


def _rank_corpora(
    paths: tuple[Location, ...],
    encoders: Sequence[tuple[str, Sequence[str], str, Any]],
    indexes: Sequence[str],
    runs: "dict[str, Run]",
    split: str,
    known_item: bool,
    measures: Any,
    baseline: str | None,
    rerank: bool,
) -> "Experiment":
    from lm_retrieval.checkpoint import find_checkpoint
    from lm_retrieval.corpus.known_item import SPLIT
    from lm_retrieval.experiment import encoder_variants, find_collections, run_experiment

    loaded = [
        variant
        for name, postprocesses, device, dtype in encoders
        for variant in encoder_variants(find_checkpoint(name), postprocesses=postprocesses, device=device, dtype=dtype)
    ]
    with ExitStack() as stack:
        searchers = [_opened(name, stack) for name in indexes]
        if known_item:
            corpora = [_known_item(path, stack) for path in paths]
        else:
            corpora = [corpus for path in paths for corpus in find_collections(path)]
        return run_experiment(
            corpora,
            split=SPLIT if known_item else split,
            encoders=loaded,
            indexes=searchers,
            runs=runs,
            measures=measures,
            baseline=baseline,
            rerank=rerank,
        )


def _opened(name: str, stack: ExitStack) -> "tuple[str, Searcher]":
    from lm_retrieval.search import check_index, index_name, open_index

    checked = check_index(name)
    searcher = open_index(checked)
    stack.callback(searcher.close)
    # a folder and the collection that was loaded from it have one name, and are there to be compared
    return index_name(checked) if isinstance(checked, Path) else f"milvus:{index_name(checked)}", searcher


def _known_item(path: Location, stack: ExitStack) -> "Corpus":
    """The corpus with titles held out and asked for, in a folder that lives as long as the evaluation."""
    from lm_retrieval.corpus import open_corpus
    from lm_retrieval.corpus.known_item import write_known_item

    corpus = open_corpus(path)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lmr-known-item-"))) / corpus.name
    write_known_item(corpus, folder)
    return open_corpus(folder)


def _score_files(qrels_file: Path, run_files: tuple[Path, ...], measures: Any, baseline: str | None) -> "Experiment":
    from lm_retrieval.evaluation.report import compare
    from lm_retrieval.evaluation.trec import read_qrels_file
    from lm_retrieval.experiment import Experiment

    name = qrels_file.name.split(".")[0]
    runs = _read_runs(run_files)
    return Experiment(compare(read_qrels_file(qrels_file), runs, measures=measures, baseline=baseline, name=name), {})


def _read_runs(files: tuple[Path, ...]) -> "dict[str, Run]":
    from lm_retrieval.evaluation.trec import read_run

    names = [path.name.removesuffix(".gz").removesuffix(".run") for path in files]
    if len(set(names)) < len(names):
        raise click.UsageError(f"two --run files have one name ({', '.join(names)}); rename one")
    return {name: read_run(path) for name, path in zip(names, files, strict=True)}


def _finish(
    report: "Report", output: Path | None, output_format: str, runs: "dict[str, dict[str, Run]] | None" = None
) -> None:
    """Writes the folder and prints the tables."""
    from lm_retrieval.reporting.folder import PAGE_NAME, write_report
    from lm_retrieval.reporting.tables import cost_table, difference_table, macro_table, quality_table
    from lm_retrieval.reporting.text import latex, markdown

    if output is not None:
        write_report(output, report, runs=runs)
    for warning in [*report.warnings, *(f"{part.name}: {note}" for part in report.collections for note in part.notes)]:
        click.echo(warning, err=True)
    if output_format == "json":
        echo_json(report.to_dict())
    elif output_format in ("markdown", "latex"):
        click.echo(markdown(report) if output_format == "markdown" else latex(report), nl=False)
    else:
        for part in report.collections:
            for table in (quality_table(part), difference_table(part), cost_table(part)):
                _echo(table)
        _echo(macro_table(report))
    if output is not None:
        click.echo(f"{output / PAGE_NAME}", err=True)


def _echo(table: Any) -> None:
    if table is None:
        return
    click.echo(f"{table.title}")
    marks = [[cell.text + (f" ({cell.superscript})" if cell.superscript else "") for cell in row] for row in table.rows]
    echo_table(table.headers, marks)
