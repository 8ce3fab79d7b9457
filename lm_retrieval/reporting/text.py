"""Tables as Markdown and as LaTeX."""

from lm_retrieval.evaluation.report import CollectionReport, Report
from lm_retrieval.reporting.tables import Cell, Table, report_tables

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def markdown(report: Report) -> str:
    """The whole report, as GitHub shows it."""
    parts = ["# Ranking report\n"]
    parts += [f"> {warning}\n" for warning in report.warnings]
    for part in report.collections:
        parts += [f"> {part.name}: {note}\n" for note in part.notes]
    for table in report_tables(report):
        parts.append(f"## {table.title}\n\n{markdown_table(table)}\n")
        if table.note:
            parts.append(f"{table.note}\n")
    for part in report.collections:
        parts.append(_settings(part))
    return "\n".join(parts)


def markdown_table(table: Table) -> str:
    """One table."""

    def cell(item: Cell) -> str:
        text = item.text.replace("|", "\\|")
        text = f"**{text}**" if item.best else text
        return f"{text}<sup>{item.superscript}</sup>" if item.superscript else text

    lines = ["| " + " | ".join(header.replace("|", "\\|") for header in table.headers) + " |"]
    lines.append("|---|" + "--:|" * (len(table.headers) - 1))
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


def latex(report: Report) -> str:
    """All tables for a paper; needs the package booktabs."""
    return "% needs \\usepackage{booktabs}\n\n" + "\n".join(map(latex_table, report_tables(report)))


def latex_table(table: Table) -> str:
    """One floating table."""

    def cell(item: Cell) -> str:
        text = _escaped(item.text)
        text = f"\\textbf{{{text}}}" if item.best else text
        return f"{text}\\textsuperscript{{{item.superscript}}}" if item.superscript else text

    rows = [" & ".join(map(cell, row)) + r" \\" for row in table.rows]
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{_escaped(table.title)}. {_escaped(table.note)}}}",
        f"  \\begin{{tabular}}{{l{'r' * (len(table.headers) - 1)}}}",
        r"    \toprule",
        "    " + " & ".join(map(_escaped, table.headers)) + r" \\",
        r"    \midrule",
        *(f"    {row}" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def facts(part: CollectionReport) -> dict[str, str]:
    """What was measured, by name."""
    return {
        "documents": f"{part.documents:,}" if part.documents else "unknown",
        "judged queries": f"{part.queries:,}",
        **part.settings,
        "judgments (SHA-256)": part.qrels_sha256[:12],
        "corpus (SHA-256)": (part.corpus_sha256 or "unknown")[:12],
    }


def _settings(part: CollectionReport) -> str:
    lines = [f"- {name}: {value}" for name, value in facts(part).items()]
    return f"## {part.name}: what was measured\n\n" + "\n".join(lines) + "\n"
