"""Training a language model: `lmr train` against a plain PyTorch loop.

    python benchmarks/train.py corpora/python-docs

The rival has the same model, batches, learning rate, clipping and dtype, and what small projects write: AdamW as it
comes, `model(...)` to full logits, `cross_entropy(logits.float())`. Every run is a process of its own, so that its peak
memory is its own; runs take turns, medians of the rounds. Writes benchmarks/results/train.json.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from common import print_rows, quick_option, write_results
from torch.nn import functional

from lm_retrieval.checkpoint import find_checkpoint, read_config
from lm_retrieval.config import RunConfig
from lm_retrieval.corpus import open_corpus
from lm_retrieval.models import build_model, detach_state
from lm_retrieval.runtime import configure_torch, peak_memory_bytes, resolve_dtype, seed_everything
from lm_retrieval.tokenizer import Tokenizer
from lm_retrieval.training.batches import SegmentBatches, write_stream
from lm_retrieval.training.run import train

WARM_UP_STEPS = 5
SETTINGS = {
    "warmup_steps": 0,
    "min_learning_rate_ratio": 1.0,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "eval_interval_steps": 10_000,
    "eval_max_tokens": 1000,
    "log_interval_steps": WARM_UP_STEPS,
    "save_interval_seconds": 10_000.0,
    "max_time_seconds": None,
    "sample_prompt": "",
}


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--model", "names", multiple=True, default=["lstm-base", "transformer-base"], help="Repeatable.")
@click.option("--dtype", "dtypes", multiple=True, default=["float32", "bfloat16"], help="Repeatable.")
@click.option("--steps", default=30)
@click.option("--rows", default=32, help="Rows of a batch.")
@click.option("--length", default=128, help="Tokens of a row.")
@click.option("--rounds", default=3)
@click.option("--one", hidden=True, help="Only this run, in this process; prints JSON.")
@quick_option
def main(
    corpus: Path,
    names: tuple[str, ...],
    dtypes: tuple[str, ...],
    steps: int,
    rows: int,
    length: int,
    rounds: int,
    one: str | None,
    quick: bool,
) -> None:
    """Times both in turns."""
    if quick:
        names, dtypes, steps, rows, length, rounds = names[:1], ("float32",), 2 * WARM_UP_STEPS, 4, 32, 1
    if one is not None:
        print(json.dumps(_run(corpus, one, names[0], dtypes[0], steps, rows, length)))
        return
    results: list[dict[str, Any]] = []
    for name in names:
        for dtype in dtypes:
            found: dict[str, list[dict[str, Any]]] = {"lmr train": [], "plain loop": []}
            for _ in range(rounds):
                for way, runs in found.items():
                    sizes = {"--steps": steps, "--rows": rows, "--length": length, "--model": name, "--dtype": dtype}
                    options = [str(part) for item in sizes.items() for part in item]
                    command = [sys.executable, __file__, str(corpus), "--one", way, *options]
                    runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
            results += [{"model": name, "dtype": dtype, "way": way, **_summary(runs)} for way, runs in found.items()]
    facts = {"corpus": corpus.name, "steps": steps, "rows": rows, "length": length, "rounds": rounds}
    write_results("train", {**facts, "results": results}, quick=quick)
    print_rows(
        ["model", "dtype", "way", "tokens/s", "peak memory", f"loss of steps {steps - WARM_UP_STEPS + 1} to {steps}"],
        [
            (
                row["model"],
                row["dtype"],
                row["way"],
                f"{row['tokens_per_second']:,.0f}",
                f"{row['peak_memory_bytes'] / 1e6:,.0f} MB",
                f"{row['losses'][-1]:.4f}",
            )
            for row in results
        ],
        left=3,
    )


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    middle = {name: statistics.median(run[name] for run in runs) for name in ("tokens_per_second", "peak_memory_bytes")}
    return {**middle, "losses": runs[0]["losses"]}


def _run(corpus: Path, way: str, name: str, dtype: str, steps: int, rows: int, length: int) -> dict[str, Any]:
    """Tokens per second after the first steps, peak memory, and the mean loss of every five steps."""
    configure_torch()
    folder = find_checkpoint(name)
    config = read_config(folder)
    changes = {**SETTINGS, "precision": dtype, "max_steps": steps, "batch_size": rows, "sequence_length_tokens": length}
    config = config.model_copy(update={"training": config.training.model_copy(update=changes)})
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    with tempfile.TemporaryDirectory() as place:
        ours = way == "lmr train"
        rates, losses = (_lmr if ours else _plain)(corpus, config, tokenizer, Path(place))
    return {
        "tokens_per_second": statistics.median(rates),
        "peak_memory_bytes": peak_memory_bytes(),
        "losses": [round(loss, 4) for loss in losses],
    }


def _lmr(corpus: Path, config: RunConfig, tokenizer: Tokenizer, folder: Path) -> tuple[list[float], list[float]]:
    opened = open_corpus(corpus)
    # a held-out text of its own: both ways learn from every document
    train(opened, config=config, output=folder / "model", validation=opened, tokenizer=tokenizer, device="cpu")
    records = [json.loads(line) for line in (folder / "model" / "metrics.jsonl").read_text().splitlines()]
    logged = [record for record in records if "loss" in record]
    return [record["tokens_per_second"] for record in logged[1:]], [record["loss"] for record in logged]


def _plain(corpus: Path, config: RunConfig, tokenizer: Tokenizer, folder: Path) -> tuple[list[float], list[float]]:
    settings = config.training
    stream = write_stream(open_corpus(corpus).documents(), tokenizer=tokenizer, path=folder / "tokens.bin")
    batches = SegmentBatches(
        stream, batch_size=settings.batch_size, sequence_length=settings.sequence_length_tokens, seed=settings.seed
    )
    seed_everything(settings.seed)
    model = build_model(config.model, vocab_size=tokenizer.vocab_size)
    betas = (settings.beta1, settings.beta2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=betas, weight_decay=0.0)
    dtype = resolve_dtype(settings.precision, torch.device("cpu"))
    state, rates, losses, recent = None, [], [], []
    started = time.perf_counter()
    for step in range(settings.max_steps or 0):
        batch = batches.batch(0, step)[0]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = model(batch[:, :-1], state)
            logits = model.logits(output.hidden)  # (B, T, V)
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        state = detach_state(output.state) if model.recurrent else None
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
        optimizer.step()
        recent.append(float(loss.detach()))
        if (step + 1) % WARM_UP_STEPS == 0:
            now = time.perf_counter()
            rates.append(WARM_UP_STEPS * batches.tokens_per_step / (now - started))
            losses.append(statistics.mean(recent))
            started, recent = now, []
    return rates[1:], losses


if __name__ == "__main__":
    main()
