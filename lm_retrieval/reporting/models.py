"""Language models side by side: a table, and a page with curves and samples."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lm_retrieval.artifacts import atomic_file, write_json
from lm_retrieval.comparison import BATCH, ModelCosts
from lm_retrieval.reporting import plots
from lm_retrieval.reporting.folder import PAGE_NAME, RESULTS_NAME
from lm_retrieval.reporting.html import render
from lm_retrieval.reporting.tables import Cell, Table
from lm_retrieval.reporting.text import markdown_table

_ROWS: dict[str, Callable[[ModelCosts], str]] = {
    "weights on disk (MB)": lambda row: f"{row.weights_bytes / 1e6:.1f}",
    "vocabulary": lambda row: f"{row.vocab_size:,}",
    "perplexity per token": lambda row: f"{row.perplexity:.2f}",
    "perplexity per word": lambda row: f"{row.word_perplexity:.1f}",
    "bits per byte": lambda row: f"{row.bits_per_byte:.3f}",
    "bits per character": lambda row: f"{row.bits_per_character:.3f}",
    "context": lambda row: row.context,
    "reading, tokens/s": lambda row: f"{row.reading_tokens_per_second:,.0f}",
    "writing, ms/token, one prompt": lambda row: f"{row.single_ms_per_token:.2f}",
    f"writing, ms/token, {BATCH} prompts": lambda row: f"{row.batched_ms_per_token:.2f}",
    "peak memory (MB)": lambda row: f"{row.peak_memory_bytes / 1e6:,.0f}",
}
_NOTE = (
    "Perplexity per token and per word depend on the vocabulary: compare models of different tokenizers by bits per "
    "byte. Memory: of a process that does nothing else, Python and libraries included."
)


def model_table(rows: Sequence[ModelCosts]) -> Table:
    """A column per model."""
    parts = sorted({part for row in rows for part in row.parameters})
    lines: list[tuple[str, Callable[[ModelCosts], str]]] = [
        ("type", lambda row: row.type),
        ("parameters", lambda row: f"{row.total_parameters:,}"),
        *((f"– {part}", _part(part)) for part in parts),
        *_ROWS.items(),
    ]
    cells = tuple((Cell(label), *(Cell(value(row)) for row in rows)) for label, value in lines)
    return Table("Language models", ("", *(row.name for row in rows)), cells, _NOTE)


def models_page(rows: Sequence[ModelCosts], *, prompt: str, title: str = "Language models side by side") -> str:
    """One HTML file in the style of the ranking report."""
    return render(
        "models.html.j2",
        title=title,
        table=model_table(rows),
        prompt=prompt,
        rows=rows,
        split_svg=plots.stacked({row.name: row.parameters for row in rows}, x="parameters"),
        loss_svg=plots.curves(
            [
                (row.name, [tokens for tokens, _ in row.losses], [loss for _, loss in row.losses])
                for row in rows
                if len(row.losses) > 1
            ],
            x="tokens seen",
            y="held-out loss (nats per token)",
        ),
        latency_svg=plots.curves(
            [
                (f"{row.name}, {count}", lengths, times)
                for row in rows
                for count, lengths, times in (
                    ("one prompt", [entry[0] for entry in row.latencies], [entry[1] for entry in row.latencies]),
                    (f"{BATCH} prompts", [entry[0] for entry in row.latencies], [entry[2] for entry in row.latencies]),
                )
            ],
            x="new tokens",
            y="milliseconds",
        ),
    )


def write_models(folder: Path, rows: Sequence[ModelCosts], *, prompt: str) -> None:
    """Writes `report.html`, `report.md` and `results.json`.

    Raises:
        StorageError: the file system refused.
    """
    write_json(folder / RESULTS_NAME, {"kind": "models", "prompt": prompt, "models": [row.to_dict() for row in rows]})
    table = model_table(rows)
    samples = "".join(f"\n**{row.name}**: {prompt}{row.sample}\n" for row in rows)
    contents = {
        "report.md": f"# {table.title}\n\n{markdown_table(table)}\n{table.note}\n{samples}",
        PAGE_NAME: models_page(rows, prompt=prompt),
    }
    for name, content in contents.items():
        with atomic_file(folder / name) as stream:
            stream.write(content)


def _part(name: str) -> Callable[[ModelCosts], str]:
    return lambda row: f"{row.parameters.get(name, 0):,}"
