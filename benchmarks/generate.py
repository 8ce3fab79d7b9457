"""Milliseconds per new token: ours, reading the whole text again for every token, and transformers' GPT-2.

    python benchmarks/generate.py

Greedy, one prompt. The rival of each of our models is the same model without its state; GPT-2 is transformers' own
class with as many layers, heads, dimensions and pieces as our Transformer, random weights, its key/value cache on. In
turns; medians of the rounds. Writes benchmarks/results/generate.json.
"""

import statistics
from functools import partial
from typing import Any

import click
import torch
from common import in_turns, print_rows, quick_option, write_results

from lm_retrieval.checkpoint import Checkpoint, find_checkpoint
from lm_retrieval.generation import GenerationConfig, generate
from lm_retrieval.runtime import Precision, configure_torch

PROMPT = "the river runs through the old town and"


@click.command()
@click.option("--model", "names", multiple=True, default=["lstm-base", "transformer-base"], help="Repeatable.")
@click.option("--tokens", "lengths", multiple=True, default=[64, 256], help="New tokens; repeatable.")
@click.option("--dtype", default="float32")
@click.option("--rounds", default=5)
@quick_option
def main(names: tuple[str, ...], lengths: tuple[int, ...], dtype: Precision, rounds: int, quick: bool) -> None:
    """Times all ways in turns."""
    lengths, rounds = ((8,), 1) if quick else (lengths, rounds)
    configure_torch()
    rows: list[dict[str, Any]] = []
    for length in lengths:
        ways: dict[str, Any] = {}
        rival_of: dict[str, str] = {}
        for name in names:
            checkpoint = Checkpoint.load(find_checkpoint(name), dtype=dtype)
            checkpoint.tokenizer.eos_id = -1  # no text ends early: every way writes as many tokens
            ours, again = f"{name}, lmr", f"{name}, whole text again for each token"
            ways |= {ours: partial(_ours, checkpoint, length), again: partial(_again, checkpoint, length)}
            rival_of |= {ours: ours, again: ours}
            if checkpoint.config.model.type == "transformer" and (peer := _gpt2(checkpoint, length)) is not None:
                ways["GPT-2 of the same size, transformers.generate"] = peer
                rival_of["GPT-2 of the same size, transformers.generate"] = ours
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
