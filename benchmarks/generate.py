"""Milliseconds per new token: ours, reading the whole text again for every token, and transformers' GPT-2.

    python benchmarks/generate.py

Greedy, one prompt. The rival of each of our models is the same model without its state; GPT-2 is transformers' own
class with as many layers, heads, dimensions and pieces as our Transformer, random weights, its key/value cache on. The
models are the shipped ones, which are tiny, and a GPT of configs/gpt.toml with random weights. In turns; medians of the
rounds. Writes benchmarks/results/generate.json.
"""

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from common import in_turns, print_rows, quick_option, write_results

from lm_retrieval.checkpoint import Checkpoint, find_checkpoint
from lm_retrieval.config import load_config
from lm_retrieval.generation import GenerationConfig, generate
from lm_retrieval.models import build_model
from lm_retrieval.models.precision import in_precision
from lm_retrieval.runtime import Precision, configure_torch

CONFIGS = Path(__file__).parent.parent / "configs"
PROMPT = "the river runs through the old town and"


@click.command()
@click.option("--model", "names", multiple=True, default=["lstm-base", "transformer-base"], help="Repeatable.")
@click.option("--config", "configs", multiple=True, default=["gpt"], help="A random model of configs/NAME.toml.")
@click.option("--tokens", "lengths", multiple=True, default=[64, 256], help="New tokens; repeatable.")
@click.option("--dtype", default="float32")
@click.option("--rounds", default=5)
@quick_option
def main(
    names: tuple[str, ...],
    configs: tuple[str, ...],
    lengths: tuple[int, ...],
    dtype: Precision,
    rounds: int,
    quick: bool,
) -> None:
    """Times all ways in turns."""
    lengths, rounds, configs = ((8,), 1, ()) if quick else (lengths, rounds, configs)
    configure_torch()
    rows: list[dict[str, Any]] = []
    for length in lengths:
        ways: dict[str, Any] = {}
        rival_of: dict[str, str] = {}
        for name, checkpoint in _models(names, configs, dtype):
            checkpoint.tokenizer.eos_id = -1  # no text ends early: every way writes as many tokens
            ours, again = f"{name}, lmr", f"{name}, whole text again for each token"
            ways |= {ours: partial(_ours, checkpoint, length), again: partial(_again, checkpoint, length)}
            rival_of |= {ours: ours, again: ours}
            if checkpoint.config.model.type != "lstm" and (peer := _gpt2(checkpoint, length)) is not None:
                ways[f"GPT-2 of the size of {name}, transformers.generate"] = peer
                rival_of[f"GPT-2 of the size of {name}, transformers.generate"] = ours
            same = sum(a == b for a, b in zip(ways[ours](), ways[again](), strict=True))
            click.echo(f"{name}: {same} of {length} tokens are the same both ways", err=True)
        times = {way: 1000 * statistics.median(s) / length for way, s in in_turns(ways, rounds=rounds).items()}
        rows += [
            {"tokens": length, "way": way, "ms_per_token": value, "ratio": value / times[rival_of[way]]}
            for way, value in times.items()
        ]
    write_results("generate", {"dtype": dtype, "rounds": rounds, "rows": rows}, quick=quick)
    print_rows(
        ["new tokens", "way", "ms per token", "times as long as ours"],
        [(row["tokens"], row["way"], f"{row['ms_per_token']:.2f}", f"{row['ratio']:.1f}") for row in rows],
        left=2,
    )


def _models(names: tuple[str, ...], configs: tuple[str, ...], dtype: Precision) -> Iterator[tuple[str, Checkpoint]]:
    for name in names:
        yield name, Checkpoint.load(find_checkpoint(name), dtype=dtype)
    for name in configs:
        config = load_config(CONFIGS / f"{name}.toml", overrides=("model.max_length=512",))
        like = Checkpoint.load(find_checkpoint("lstm-base"))
        model = build_model(config.model, vocab_size=like.tokenizer.vocab_size).eval()
        yield name, replace(like, model=in_precision(model, dtype), config=config, pooling=None)


def _ours(checkpoint: Checkpoint, length: int) -> tuple[int, ...]:
    config = GenerationConfig(max_new_tokens=length, do_sample=False)
    return generate(checkpoint.model, tokenizer=checkpoint.tokenizer, prompts=[PROMPT], config=config)[0].token_ids


@torch.inference_mode()
def _again(checkpoint: Checkpoint, length: int) -> tuple[int, ...]:
    tokenizer, model = checkpoint.tokenizer, checkpoint.model
    ids = [tokenizer.bos_id, *tokenizer.encode(PROMPT)]
    start = len(ids)
    for _ in range(length):
        ids.append(int(model.logits(model(torch.tensor([ids])).hidden[:, -1]).argmax()))
    return tuple(ids[start:])


def _gpt2(checkpoint: Checkpoint, length: int) -> Any:
    """Transformers' GPT-2 in the shape of our Transformer; None where transformers is not installed."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        click.echo("transformers is not installed: without GPT-2", err=True)
        return None
    model = checkpoint.model
    config: Any = checkpoint.config.model
    shape = GPT2Config(
        vocab_size=model.vocab_size,
        n_positions=config.max_length,
        n_embd=model.hidden_dim,
        n_layer=config.num_layers,
        n_head=config.num_heads,
        n_inner=config.feedforward_dim,
    )
    peer = GPT2LMHeadModel(shape).eval().to(next(model.parameters()).dtype)
    ids = torch.tensor([[checkpoint.tokenizer.bos_id, *checkpoint.tokenizer.encode(PROMPT)]])
    options = {"min_new_tokens": length, "max_new_tokens": length, "do_sample": False, "pad_token_id": 0}
    return partial(peer.generate, ids, attention_mask=torch.ones_like(ids), **options)


if __name__ == "__main__":
    main()
