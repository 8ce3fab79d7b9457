"""`lmr evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lm_retrieval.cli.options import PATH, Command, device_option, echo_json, echo_table

if TYPE_CHECKING:
    from lm_retrieval.experiment import Comparison


@click.command(cls=Command)
@click.argument("corpus", type=PATH)
@click.option("--encoder", "encoders", multiple=True, help="A checkpoint; repeatable. Gives a dense and a hybrid row.")
@click.option(
    "--postprocess",
    "postprocesses",
    multiple=True,
    type=click.Choice(["none", "center", "whiten"]),
    help="Try every encoder with this, instead of as configured; repeatable.",
)
@click.option("--split", default="test", show_default=True, help="Which judgments: qrels/SPLIT.tsv.")
@click.option("--measure", "measures", multiple=True, help="An ir-measures name, such as nDCG@10; repeatable.")
@click.option("--rerank", is_flag=True, help="Also a row with hybrid reordered by the encoder's language model.")
@click.option("--runs-output", type=PATH, help="Folder for one TREC run file per system.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["text", "json", "markdown"]),
    default="text",
    show_default=True,
    help="Output form.",
)
@device_option
def evaluate(
    corpus: Path,
    encoders: tuple[str, ...],
    postprocesses: tuple[Any, ...],
    split: str,
    measures: tuple[str, ...],
    rerank: bool,
    runs_output: Path | None,
    output_format: str,
    device: str,
) -> None:
    """Measure rankings on a corpus with queries and judgments (BEIR layout).

    Rows: BM25, LSI-256, and each encoder alone (dense) and with BM25 (hybrid). trec_eval's rules: a query without
    results counts 0, ties are broken by document id.

    \b
    Example:
      lmr evaluate corpora/python-docs --split dev
      lmr evaluate corpora/python-docs --encoder python-docs-lstm --format markdown
    """
    from lm_retrieval.checkpoint import find_checkpoint
    from lm_retrieval.corpus import open_corpus
    from lm_retrieval.evaluation.evaluator import DEFAULT_MEASURES
    from lm_retrieval.evaluation.trec import write_run
    from lm_retrieval.experiment import compare_systems, encoder_variants

    comparison = compare_systems(
        open_corpus(corpus),
        split=split,
        encoders=[
            pair
            for name in encoders
            for pair in encoder_variants(find_checkpoint(name), postprocesses=postprocesses, device=device)
        ],
        measures=measures or DEFAULT_MEASURES,
        rerank=rerank,
    )
    if runs_output is not None:
        for system in comparison.systems:
            tag = system.name.replace(":", "-").replace("/", "-")
            write_run(runs_output / f"{tag}.run", system.run, tag=tag)
    if comparison.judgments_without_document:
        click.echo(
            f"{comparison.judgments_without_document} judgments left out: the corpus has no such document", err=True
        )
    if output_format == "json":
        echo_json(comparison.to_dict())
    else:
        _echo(comparison, markdown=output_format == "markdown")


def _echo(comparison: "Comparison", *, markdown: bool) -> None:
    names = list(comparison.systems[0].evaluation.measures)
    headers = ["system", *names, "judged@10"]
    rows = [
        [
            system.name,
            *(f"{system.evaluation.measures[name]:.3f}" for name in names),
            f"{100 * system.evaluation.judged_at_10:.0f} %",
        ]
        for system in comparison.systems
    ]
    if markdown:
        click.echo("| " + " | ".join(headers) + " |")
        click.echo("|---|" + "--:|" * (len(headers) - 1))
        for row in rows:
            click.echo("| " + " | ".join(row) + " |")
        return
    click.echo(
        f"{comparison.corpus}, {comparison.split}: {comparison.documents:,} documents, {comparison.queries} queries"
    )
    echo_table(headers, rows)
