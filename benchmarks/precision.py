r"""float32, bfloat16 and int8 side by side: size, speed, rankings, perplexity.

    python benchmarks/precision.py --encoder lstm-base --encoder transformer-base --text wikitext2/test.txt \
        nfcorpus cranfield corpora/python-docs

Dense and hybrid search of each collection as `lmr evaluate` does it, test split. The overlap is the share of the ten
best
documents of a query that float32 has among its ten best, over all queries. int8 rounds the weights and computes in
bfloat16 where that is fast; its size is that of a checkpoint made by `lmr quantize`. Writes
benchmarks/results/precision.json.
"""

import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
import torch
from common import in_turns, print_rows, quick_option, texts_by_kind, write_results

from lm_retrieval.checkpoint import Checkpoint, find_checkpoint
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.experiment import run_experiment
from lm_retrieval.perplexity import perplexity
from lm_retrieval.runtime import Precision, configure_torch

DTYPES: tuple[Precision, ...] = tuple(dtype for dtype in get_args(Precision) if dtype not in ("auto", "float16"))
TOP = 10
Run = dict[str, dict[str, float]]


@click.command()
@click.argument("collections", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--encoder", "names", multiple=True, default=["lstm-base", "transformer-base"], help="Repeatable.")
@click.option("--language-model", "language_models", multiple=True, help="For the perplexity.  [default: the encoders]")
@click.option("--text", type=click.Path(path_type=Path, exists=True), required=True, help="For the perplexity.")
@click.option("--documents", default=512, help="Texts that are timed.")
@click.option("--rounds", default=5)
@quick_option
def main(
    collections: tuple[Path, ...],
    names: tuple[str, ...],
    language_models: tuple[str, ...],
    text: Path,
    documents: int,
    rounds: int,
    quick: bool,
) -> None:
    """Measures every encoder in every dtype."""
    documents, rounds = (16, 1) if quick else (documents, rounds)
    configure_torch()
    passages = [document.content[: 2000 if quick else None] for document in open_corpus(text).documents()]
    rows = []
    for name, language_model in zip(names, language_models or names, strict=True):
        encoders = {dtype: Encoder.load(find_checkpoint(name), dtype=dtype) for dtype in DTYPES}
        texts = texts_by_kind(collections[0])["documents"][:documents]
        seconds = in_turns({d: partial(encoder.encode, texts) for d, encoder in encoders.items()}, rounds=rounds)
        exact: dict[str, Run] = {}
        for dtype, encoder in encoders.items():
            scores, runs = _ranked(encoder, collections)
            exact = exact or runs
            checkpoint = Checkpoint.load(find_checkpoint(language_model), dtype=dtype)
            report = perplexity(checkpoint.model, tokenizer=checkpoint.tokenizer, texts=passages)
            rows.append(
                {
                    "encoder": name,
                    "dtype": dtype,
                    "bytes": _stored_bytes(encoder, dtype),
                    "documents_per_second": len(texts) / statistics.median(seconds[dtype]),
                    "nDCG@10": scores,
                    "top_10_overlap": {system: _overlap(exact[system], runs[system]) for system in runs},
                    "language_model": language_model,
                    "perplexity": report.perplexity,
                }
            )
    facts = {"collections": [path.name for path in collections], "text": text.name, "rounds": rounds}
    write_results("precision", {**facts, "rows": rows}, quick=quick)
    systems = list(rows[0]["nDCG@10"])
    print_rows(
        ["encoder", "dtype", "weights", "documents/s", *systems, "smallest overlap of the top 10", "perplexity"],
        [
            (
                row["encoder"],
                row["dtype"],
                f"{row['bytes'] / 1e6:.1f} MB",
                f"{row['documents_per_second']:,.0f}",
                *(f"{row['nDCG@10'][system]:.4f}" for system in systems),
                f"{min(row['top_10_overlap'].values()):.1%}",
                f"{row['perplexity']:.2f}",
            )
            for row in rows
        ],
        left=2,
    )


def _ranked(encoder: Encoder, collections: tuple[Path, ...]) -> tuple[dict[str, float], dict[str, Run]]:
    """nDCG@10 and run of dense and hybrid search of every collection."""
    scores, runs = {}, {}
    for path in collections:
        corpus = open_corpus(path)
        found = run_experiment([corpus], split="test", encoders=[("encoder", encoder)])
        for system in found.report.collections[0].systems:
            mode, _, which = system.name.partition(":")
            if which:
                scores[f"{corpus.name}, {mode}"] = system.evaluation.measures["nDCG@10"]
                runs[f"{corpus.name}, {mode}"] = found.runs[corpus.name][system.name]
    return scores, runs


def _overlap(exact: Run, run: Run) -> float:
    """Mean share of the exact top ten that is in the other one."""
    shares = []
    for query_id, ranking in exact.items():
        best, found = (set(sorted(r, key=lambda doc_id: -r[doc_id])[:TOP]) for r in (ranking, run[query_id]))
        shares.append(len(best & found) / max(1, len(best)))
    return statistics.mean(shares)


def _stored_bytes(encoder: Encoder, dtype: str) -> int:
    stored: Any = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(Path(folder) / "encoder", dtype=stored[dtype])
        return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))


if __name__ == "__main__":
    main()
