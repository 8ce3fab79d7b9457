"""nDCG@10 of every system on several judged collections, in one table.

    python benchmarks/quality.py --encoder checkpoints/lstm --encoder checkpoints/transformer \
        --postprocess none --postprocess center --postprocess whiten corpora/cranfield corpora/python-docs

A row per system, a column per collection; the same figures as `lmr evaluate COLLECTION` gives one by one. Writes
benchmarks/results/quality.json and prints the Markdown table.
"""

import json
from pathlib import Path
from typing import Any

import click

from lm_retrieval.checkpoint import find_checkpoint
from lm_retrieval.corpus import open_corpus
from lm_retrieval.experiment import Comparison, compare_systems, encoder_variants
from lm_retrieval.runtime import configure_torch

RESULTS = Path(__file__).parent / "results" / "quality.json"


@click.command()
@click.argument("collections", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--encoder", "encoders", multiple=True)
@click.option("--postprocess", "postprocesses", multiple=True, default=["none", "center", "whiten"])
@click.option("--split", default="test")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", help="of the encoders' arithmetic"
)
def main(
    collections: tuple[Path, ...], encoders: tuple[str, ...], postprocesses: tuple[str, ...], split: str, dtype: Any
) -> None:
    """Evaluates every collection and prints one table."""
    configure_torch()
    comparisons = []
    for path in collections:
        variants = [
            pair
            for name in encoders
            for pair in encoder_variants(find_checkpoint(name), postprocesses=postprocesses, dtype=dtype)
        ]
        comparisons.append(compare_systems(open_corpus(path), split=split, encoders=variants))
        click.echo(f"{path.name} done", err=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([comparison.to_dict() for comparison in comparisons], indent=2) + "\n")
    print_table(comparisons)


def print_table(comparisons: list[Comparison]) -> None:
    """Markdown, the best of each column in bold."""
    columns = [{s.name: s.evaluation.measures["nDCG@10"] for s in c.systems} for c in comparisons]
    print("| nDCG@10 | " + " | ".join(comparison.corpus for comparison in comparisons) + " |")
    print("|---|" + "--:|" * len(columns))
    for name in columns[0]:
        cells = [f"{column[name]:.3f}" for column in columns]
        marked = [
            f"**{cell}**" if column[name] == max(column.values()) else cell
            for cell, column in zip(cells, columns, strict=True)
        ]
        print(f"| {name} | " + " | ".join(marked) + " |")


if __name__ == "__main__":
    main()
