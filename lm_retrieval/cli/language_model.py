"""`lmr perplexity`, `lmr generate`, `lmr compare`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lm_retrieval.cli.options import (
    LOCATION,
    PATH,
    Command,
    corpus_options,
    device_option,
    dtype_option,
    echo_facts,
    echo_json,
    echo_table,
    format_option,
)
from lm_retrieval.storage import Location

if TYPE_CHECKING:
    from lm_retrieval.generation import GenerationConfig
    from lm_retrieval.loading import LoadedModel


@click.command(cls=Command)
@click.argument("checkpoint")
@click.argument("paths", nargs=-1, required=True, type=LOCATION)
@click.option(
    "--context",
    type=click.Choice(["carried", "disjoint", "strided"]),
    help="carried: the recurrent state goes on through a document (LSTM default); disjoint: every window starts anew "
    "(Transformer default); strided: windows overlap.",
)
@click.option(
    "--window", type=click.IntRange(min=1), help="Tokens read at once.  [default: the context window, or 256]"
)
@click.option("--stride", type=click.IntRange(min=1), help="Step of strided windows.  [default: half a window]")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Windows side by side.")
@dtype_option("float32")
@device_option
@corpus_options
@format_option
def perplexity(
    checkpoint: str,
    paths: tuple[Location, ...],
    context: Any,
    window: int | None,
    stride: int | None,
    batch_size: int,
    dtype: Any,
    device: str,
    encoding: str,
    text_column: str | None,
    output_format: str,
) -> None:
    """How well a language model predicts text: perplexity, bits per byte and per character.

    Bits per byte compare models with different tokenizers; perplexities per token do not. CHECKPOINT may be
    hf:PATH_OR_NAME, a model of Hugging Face transformers (extra hf).
    """
    from lm_retrieval.corpus import open_corpus
    from lm_retrieval.loading import load_language_model
    from lm_retrieval.perplexity import perplexity as measure

    loaded = load_language_model(checkpoint, device=device, dtype=dtype)
    texts = (
        document.content
        for path in paths
        for document in open_corpus(path, encoding=encoding, text_column=text_column).documents()
    )
    report = measure(
        loaded.model,
        tokenizer=loaded.tokenizer,
        texts=texts,
        context=context,
        window=window,
        stride=stride,
        batch_size=batch_size,
    )
    if output_format == "json":
        echo_json({"checkpoint": loaded.name, **report.to_dict()})
        return
    how = f"{report.context}, window {report.window} tokens"
    echo_facts(
        [
            ("checkpoint", loaded.name),
            ("perplexity", f"{report.perplexity:.3f} per token"),
            ("word perplexity", f"{report.word_perplexity:,.5g}"),
            ("bits per byte", f"{report.bits_per_byte:.4f}"),
            ("bits per character", f"{report.bits_per_character:.4f}"),
            ("text", f"{report.documents:,} documents, {report.tokens:,} tokens, {report.bytes:,} bytes"),
            ("context", how + (f", stride {report.stride}" if report.context == "strided" else "")),
        ]
    )


@click.command(cls=Command)
@click.argument("checkpoints", nargs=-1, required=True)
@click.option("--prompt", "prompts", multiple=True, help="Text to continue; repeatable; - reads lines from stdin.")
@click.option("--prompts-file", type=LOCATION, help="A file with one prompt per line.")
@click.option("--interactive", is_flag=True, help="Ask for prompts until an empty line.")
@click.option("--preset", type=click.Choice(["precise", "balanced", "creative"]), help="Sampling controls in one word.")
@click.option("--max-new-tokens", type=int, help="Most tokens to add.  [default: 64]")
@click.option("--temperature", type=float, help="Below 1 sharpens, above 1 flattens.  [default: 1.0]")
@click.option("--top-k", type=int, help="Keep the k likeliest tokens; 0 keeps all.  [default: 0]")
@click.option("--top-p", type=float, help="Keep the likeliest tokens of this total probability.  [default: 1.0]")
@click.option("--min-p", type=float, help="Drop tokens below this share of the likeliest.  [default: 0]")
@click.option("--repetition-penalty", type=float, help="Above 1 makes repeats less likely.  [default: 1.0]")
@click.option("--seed", type=int, help="The same seed gives the same text.  [default: 0]")
@click.option("--stop", "stop_strings", multiple=True, help="End before this text; repeatable.")
@click.option("--greedy", is_flag=True, help="Always the likeliest token.")
@click.option("--beams", "num_beams", type=int, help="Beam search with so many beams.")
@dtype_option("float32")
@device_option
@format_option
def generate(
    checkpoints: tuple[str, ...],
    prompts: tuple[str, ...],
    prompts_file: Location | None,
    interactive: bool,
    preset: str | None,
    greedy: bool,
    dtype: Any,
    device: str,
    output_format: str,
    **controls: Any,
) -> None:
    """Continue text with one language model, or with several side by side.

    \b
    Example:
      lmr generate checkpoints/lstm --prompt "The river" --preset balanced
      lmr generate lstm transformer --prompt "The river" --seed 3
      lmr generate lstm hf:models/gpt2 --prompt "The river"
    """
    from lm_retrieval.generation import PRESETS, GenerationConfig
    from lm_retrieval.loading import load_language_model

    chosen = {name: value for name, value in controls.items() if value not in (None, ())}
    if greedy or chosen.get("num_beams", 1) > 1:
        chosen["do_sample"] = False
    config = replace(PRESETS[preset] if preset else GenerationConfig(), **chosen)
    texts = _prompts(prompts, prompts_file)
    if not texts and not interactive:
        raise click.UsageError("give --prompt TEXT, --prompts-file FILE, --prompt - or --interactive")
    models = [load_language_model(name, device=device, dtype=dtype) for name in checkpoints]
    if interactive:
        while prompt := click.prompt("prompt", default="", show_default=False):
            _continue(models, [prompt], config, output_format)
    else:
        _continue(models, texts, config, output_format)


@click.command(cls=Command)
@click.argument("checkpoints", nargs=-1, required=True)
@click.option("--text", "text_paths", multiple=True, required=True, type=LOCATION, help="Text to score; repeatable.")
@click.option("--prompt", default="The", show_default=True, help="Prompt for the latency runs and the sample.")
@click.option("--output", type=PATH, help="Folder for report.html, report.md and results.json.")
@corpus_options
@format_option
def compare(
    checkpoints: tuple[str, ...],
    text_paths: tuple[Location, ...],
    prompt: str,
    encoding: str,
    text_column: str | None,
    output: Path | None,
    output_format: str,
) -> None:
    """Compare language models: parameters by part, perplexity, bits per byte, latency, tokens/s, memory.

    Each model is measured in a process of its own.

    \b
    Example:
      lmr compare wikitext-lstm wikitext-transformer --text test.txt --output reports/models
      lmr compare wikitext-lstm hf:models/gpt2 --text test.txt
    """
    from lm_retrieval.comparison import compare_models
    from lm_retrieval.corpus import open_corpus
    from lm_retrieval.loading import check_source
    from lm_retrieval.reporting.folder import PAGE_NAME
    from lm_retrieval.reporting.models import model_table, write_models

    texts = [
        document.content
        for path in text_paths
        for document in open_corpus(path, encoding=encoding, text_column=text_column).documents()
    ]
    for name in checkpoints:
        check_source(name)
    rows = compare_models(checkpoints, texts=texts, prompt=prompt)
    if output is not None:
        write_models(output, rows, prompt=prompt)
        click.echo(f"{output / PAGE_NAME}", err=True)
    if output_format == "json":
        echo_json([row.to_dict() for row in rows])
        return
    table = model_table(rows)
    echo_table(table.headers, [[cell.text for cell in line] for line in table.rows])
    for row in rows:
        click.echo(f"{row.name}: {prompt}{row.sample}")


def _prompts(prompts: tuple[str, ...], path: Location | None) -> list[str]:
    from lm_retrieval.corpus.files import read_text

    texts = [line for prompt in prompts for line in (sys.stdin.read().splitlines() if prompt == "-" else [prompt])]
    return texts + (read_text(path, encoding="utf-8").splitlines() if path else [])


def _continue(models: list["LoadedModel"], prompts: list[str], config: "GenerationConfig", output_format: str) -> None:
    from lm_retrieval.generation import generate as run
    from lm_retrieval.generation import stream

    if output_format == "text" and len(models) == len(prompts) == 1 and config.num_beams == 1:
        click.echo(prompts[0], nl=False)
        for piece in stream(models[0].model, tokenizer=models[0].tokenizer, prompt=prompts[0], config=config):
            click.echo(piece, nl=False)
        click.echo()
        return
    columns = [run(model.model, tokenizer=model.tokenizer, prompts=prompts, config=config) for model in models]
    if output_format == "json":
        echo_json(
            [
                {
                    "prompt": prompt,
                    "generations": {
                        model.name: {
                            "text": results[place].text,
                            "tokens": len(results[place].token_ids),
                            "log_probability": results[place].log_probability,
                            "finish_reason": results[place].finish_reason,
                        }
                        for model, results in zip(models, columns, strict=True)
                    },
                }
                for place, prompt in enumerate(prompts)
            ]
        )
    elif len(models) == 1:
        for result in columns[0]:
            click.echo(f"{result.prompt}{result.text}\n")
    else:
        rows = [[p + results[place].text for results in columns] for place, p in enumerate(prompts)]
        echo_table([model.name for model in models], rows, left=len(models))
