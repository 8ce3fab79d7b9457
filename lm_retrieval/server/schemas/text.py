"""Schemas of `/tokenize`, `/detokenize`, `/tokenizer_info` and `/perplexity`."""

from typing import Annotated

from pydantic import BaseModel, Field, model_validator

from lm_retrieval.perplexity import Context
from lm_retrieval.server.schemas.base import ModelName, TokenId, example

_FIGURES = {
    "perplexity": 196.3,
    "word_perplexity": 4123.0,
    "byte_perplexity": 4.46,
    "bits_per_byte": 2.157,
    "bits_per_character": 2.157,
    "nll": 52.8,
    "tokens": 10,
    "words": 6,
    "characters": 35,
    "bytes": 35,
    "documents": 1,
    "context": "carried",
    "window": 256,
    "stride": 256,
}


class TokenizeRequest(BaseModel):
    """A text to cut into tokens."""

    model_config = example({"text": "merge two dictionaries", "model": "rnn"})
    text: str | None = None
    prompt: str | None = Field(None, description="Another name for text.")
    model: ModelName | None = Field(None, description="By default the first.")
    add_special_tokens: bool = Field(False, description="Put the begin mark in front.")

    @model_validator(mode="after")
    def _one_text(self) -> "TokenizeRequest":
        if (self.text is None) == (self.prompt is None):
            raise ValueError("give text or prompt, one of them")
        return self


class TokenizeAnswer(BaseModel):
    """Token ids and each token as text."""

    model_config = example(
        {"model": "rnn", "tokens": [812, 77, 4031], "pieces": ["merge", " two", " dictionaries"], "count": 3,
         "max_model_len": None}
    )  # fmt: skip
    model: str
    tokens: list[int]
    pieces: list[str]
    count: int
    max_model_len: int | None = Field(description="The model's context window; null is unlimited.")


class DetokenizeRequest(BaseModel):
    """Token ids to join."""

    model_config = example({"tokens": [812, 77, 4031], "model": "rnn"})
    tokens: list[TokenId]
    model: ModelName | None = Field(None, description="By default the first.")


class DetokenizeAnswer(BaseModel):
    """The text; begin and end marks vanish."""

    model_config = example({"model": "rnn", "prompt": "merge two dictionaries"})
    model: str
    prompt: str


class TokenizerInfo(BaseModel):
    """The marks of the first model's tokenizer, or of the one named."""

    model_config = example({"model": "rnn", "vocab_size": 16000, "bos_token": "<s>", "eos_token": "</s>"})
    model: str
    vocab_size: int
    bos_token: str
    eos_token: str | None


class PerplexityRequest(BaseModel):
    """Texts to score, as of `lmr perplexity`."""

    model_config = example({"text": "The river carries cold water."})
    text: str | Annotated[list[str], Field(min_length=1)]
    model: ModelName | None = Field(None, description="By default every model.")
    context: Context | None = Field(None, description="By default carried for recurrent models, disjoint for others.")
    window: int | None = Field(None, ge=1, le=8192, description="Tokens read at once.")
    stride: int | None = Field(None, ge=1, le=8192, description="Step of strided windows.")


class Figures(BaseModel):
    """How well a model predicts; compare models by bits per byte."""

    model_config = example(_FIGURES)
    perplexity: float
    word_perplexity: float
    byte_perplexity: float
    bits_per_byte: float
    bits_per_character: float
    nll: float = Field(description="Nats, of all tokens.")
    tokens: int
    words: int
    characters: int
    bytes: int
    documents: int
    context: Context
    window: int
    stride: int


class ModelPerplexity(BaseModel):
    """One model: all texts together, and each."""

    model_config = example({"total": _FIGURES, "texts": [_FIGURES]})
    total: Figures
    texts: list[Figures]


class PerplexityAnswer(BaseModel):
    """Figures of each model, by its name."""

    model_config = example({"models": {"rnn": {"total": _FIGURES, "texts": [_FIGURES]}}})
    models: dict[str, ModelPerplexity]
