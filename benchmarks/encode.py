"""Documents per second, text in → vectors out, of our encoders and of sentence-transformers models.

    python benchmarks/encode.py --encoder lstm-base --encoder transformer-base \
        --sentence-transformer MiniLM=path/to/all-MiniLM-L6-v2 nfcorpus

Peers run in float32 (their default), bfloat16 and torch's dynamic int8. Two kinds of text: documents, and short ones
(titles and queries). All systems encode the same texts, tokenizing included, in turns; each figure is the median of the
rounds. The first peer is what the ratios refer to. A second table gives what is left of the processor: the matrix
products of real tokens against one large matrix product in the same dtype. On a machine with a GPU everything runs
there. Writes benchmarks/results/encode.json.
"""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from common import in_turns, print_rows, quick_option, texts_by_kind, write_results

from lm_retrieval.checkpoint import find_checkpoint
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.runtime import configure_torch, resolve_device
from lm_retrieval.speed import measure_speed

Encode = Callable[[list[str]], Any]


@click.command()
@click.argument("collection", type=click.Path(path_type=Path, exists=True))
@click.option("--encoder", "encoders", multiple=True, default=["lstm-base", "transformer-base"])
@click.option("--dtype", "dtypes", multiple=True, default=["float32", "bfloat16"])
@click.option("--sentence-transformer", "peers", multiple=True, metavar="NAME=PATH", help="A peer; repeatable.")
@click.option("--documents", default=64, help="Texts of each kind that a peer encodes.")
@click.option("--factor", default=16, help="Our encoders get so many times more, for a round long enough to time.")
@click.option("--rounds", default=5)
@click.option("--seconds", default=8.0, help="How long each encoder is measured for its share of the peak.")
@click.option("--threads", type=int, default=None)
@quick_option
def main(
    collection: Path,
    encoders: tuple[str, ...],
    dtypes: tuple[Any, ...],
    peers: tuple[str, ...],
    documents: int,
    factor: int,
    rounds: int,
    seconds: float,
    threads: int | None,
    quick: bool,
) -> None:
    """Times all systems in turns."""
    if quick:
        documents, factor, rounds, seconds = 8, 2, 1, 0.1
    configure_torch(threads)
    kinds = texts_by_kind(collection)
    loaded = [
        Encoder.load(find_checkpoint(name), dtype=dtype, threads=threads) for name in encoders for dtype in dtypes
    ]
    systems: dict[str, tuple[Encode, int]] = {}
    for peer in peers:
        name, _, folder = peer.partition("=")
        for dtype in (*dtypes, "int8"):
            systems[f"{name} {dtype}"] = (_peer(folder, dtype), documents)
    for encoder in loaded:
        systems[f"{encoder.name} {encoder.dtype}"] = (encoder.encode, documents * factor)
    rows = [row for kind, texts in kinds.items() for row in _rates(kind, texts, systems, rounds)]
    shares = [_share(encoder, kind, texts[:1024], seconds) for encoder in loaded for kind, texts in kinds.items()]
    facts = {"collection": collection.name, "device": str(resolve_device()), "rounds": rounds}
    write_results("encode", {**facts, "rows": rows, "share_of_peak": shares}, quick=quick)
    first = next(iter(systems))
    print_rows(
        ["texts", "system", "texts/s (slowest to fastest round)", f"ratio to {first}"],
        [
            (
                f"{row['texts']}, {row['mean_characters']} characters",
                row["system"],
                f"{row['per_second']:,.0f} ({row['slowest']:,.0f} to {row['fastest']:,.0f})",
                f"{row['ratio']:.1f}",
            )
            for row in rows
        ],
        left=2,
    )
    print()
    print_rows(
        ["encoder", "texts", "tokens/s", "tokenizing", "matrix product, GFLOP/s", "share of it"],
        [
            (
                f"{row['encoder']} {row['dtype']}",
                row["kind"],
                f"{row['tokens_per_second']:,.0f}",
                f"{row['tokenizing_share']:.0%}",
                f"{row['peak_gflops']:,.0f}",
                f"{row['share_of_peak']:.0%}",
            )
            for row in shares
        ],
        left=2,
    )


def _rates(kind: str, texts: list[str], systems: dict[str, tuple[Encode, int]], rounds: int) -> list[dict[str, Any]]:
    chosen = {name: texts[:count] for name, (_, count) in systems.items()}
    ways = {name: partial(encode, chosen[name]) for name, (encode, _) in systems.items()}
    rates = {name: [len(chosen[name]) / s for s in seconds] for name, seconds in in_turns(ways, rounds=rounds).items()}
    first = statistics.median(next(iter(rates.values())))
    return [
        {
            "texts": kind,
            "mean_characters": round(sum(map(len, texts)) / len(texts)),
            "system": name,
            "per_second": round(statistics.median(values), 1),
            "slowest": round(min(values), 1),
            "fastest": round(max(values), 1),
            "ratio": round(statistics.median(values) / first, 1),
        }
        for name, values in rates.items()
    ]


def _share(encoder: Encoder, kind: str, texts: list[str], seconds: float) -> dict[str, Any]:
    return {"kind": kind, **measure_speed(encoder, texts=texts, seconds=seconds).to_dict()}


def _peer(folder: str, dtype: str) -> Encode:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device=str(resolve_device()), local_files_only=True)
    if dtype == "int8":  # torch's own: weights and activations of linear layers
        model = torch.ao.quantization.quantize_dynamic(model.cpu(), {torch.nn.Linear}, dtype=torch.qint8)
    else:
        model = model.to(getattr(torch, dtype))
    return lambda texts: model.encode(texts, show_progress_bar=False, normalize_embeddings=True, convert_to_tensor=True)


if __name__ == "__main__":
    main()
