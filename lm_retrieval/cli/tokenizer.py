"""`lmr tokenizer`: train, encode, decode, look."""

import sys
from pathlib import Path

import click

from lm_retrieval.cli.options import LOCATION, PATH, Group, corpus_options, echo_facts, echo_json, format_option
from lm_retrieval.storage import Location


@click.group(cls=Group)
def tokenizer() -> None:
    """Train and use SentencePiece tokenizers."""


@tokenizer.command()
@click.argument("corpus", type=LOCATION)
@click.option("--output", type=PATH, required=True, help="File to write, for example tokenizer.model.")
@click.option("--vocab-size", type=click.IntRange(min=4), default=8000, show_default=True, help="Number of tokens.")
@click.option(
    "--type", "kind", type=click.Choice(["bpe", "char"]), default="bpe", show_default=True, help="Model type."
)
@click.option(
    "--normalizer",
    type=click.Choice(["identity", "nmt_nfkc", "nmt_nfkc_cf"]),
    default="identity",
    show_default=True,
    help="identity round-trips exactly; nmt_nfkc unifies Unicode and white space; _cf also folds case.",
)
@corpus_options
def train(
    corpus: Location, output: Path, vocab_size: int, kind: str, normalizer: str, encoding: str, text_column: str | None
) -> None:
    """Train a tokenizer on a corpus. The same text gives the same tokenizer."""
    from lm_retrieval.config import TokenizerConfig
    from lm_retrieval.corpus import open_corpus
    from lm_retrieval.tokenizer import Tokenizer

    opened = open_corpus(corpus, encoding=encoding, text_column=text_column)
    config = TokenizerConfig(type=kind, vocab_size=vocab_size, normalizer=normalizer)  # type: ignore[arg-type]
    trained = Tokenizer.train((document.content for document in opened.documents()), config)
    trained.save(output)
    click.echo(f"{output}: {trained.vocab_size:,} tokens")
    if trained.vocab_size < vocab_size and kind == "bpe":
        click.echo(f"warning: the text supports {trained.vocab_size} tokens, not {vocab_size}", err=True)


@tokenizer.command()
@click.argument("model", type=PATH)
@click.argument("text", default="-")
@click.option("--pieces", is_flag=True, help="Show the pieces instead of the ids.")
def encode(model: Path, text: str, pieces: bool) -> None:
    """Print the token ids of TEXT, or of each line of standard input (-)."""
    from lm_retrieval.tokenizer import Tokenizer

    loaded = Tokenizer.load(model)
    for line in _lines(text):
        click.echo(" ".join(loaded.pieces(line) if pieces else map(str, loaded.encode(line))))


@tokenizer.command()
@click.argument("model", type=PATH)
@click.argument("ids", nargs=-1)
def decode(model: Path, ids: tuple[str, ...]) -> None:
    """Print the text of token IDS, or of each line of ids on standard input."""
    from lm_retrieval.errors import TokenizerError
    from lm_retrieval.tokenizer import Tokenizer

    loaded = Tokenizer.load(model)
    for line in [" ".join(ids)] if ids and ids != ("-",) else _lines("-"):
        numbers = line.split()
        wrong = next((n for n in numbers if not n.isdigit() or int(n) >= loaded.vocab_size), None)
        if wrong is not None:
            raise TokenizerError(f"'{wrong}' is not a token id; ids are 0 to {loaded.vocab_size - 1}")
        click.echo(loaded.decode([int(number) for number in numbers]))


@tokenizer.command()
@click.argument("model", type=PATH)
@format_option
def info(model: Path, output_format: str) -> None:
    """Show size and fingerprint of a tokenizer."""
    from lm_retrieval.tokenizer import Tokenizer

    loaded = Tokenizer.load(model)
    facts = {
        "vocab_size": loaded.vocab_size,
        "lossless": loaded.lossless,
        "bos_id": loaded.bos_id,
        "eos_id": loaded.eos_id,
        "sha256": loaded.fingerprint,
    }
    if output_format == "json":
        echo_json(facts)
    else:
        echo_facts(facts.items())


def _lines(text: str) -> list[str]:
    return [line.rstrip("\n") for line in sys.stdin] if text == "-" else [text]
