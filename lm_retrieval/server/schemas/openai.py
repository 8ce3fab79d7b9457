"""Schemas of OpenAI's endpoints, with OpenAI's names.

What OpenAI's API has and this server does not is accepted where it asks for nothing, and refused where it asks for
something: nothing is ignored in silence but `user`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from lm_retrieval.server.schemas.base import ModelName, TokenIds, example
from lm_retrieval.server.schemas.generation import Stop

Prompt = Annotated[
    str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)],
    Field(description="A text, token ids, or several of either.", union_mode="left_to_right"),
]
_USAGE = {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}


class StreamOptions(BaseModel):
    """How to stream."""

    model_config = example({"include_usage": True})
    include_usage: bool = Field(False, description="A last chunk tells the tokens of the whole request.")


class CompletionRequest(BaseModel):
    """Texts to continue, or with `echo` and `logprobs` to score."""

    model_config = example(
        {"model": "rnn", "prompt": "The river", "max_tokens": 5, "temperature": 0, "logprobs": 1, "echo": True}
    )
    model: ModelName
    prompt: Prompt
    max_tokens: int = Field(16, ge=0)
    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float = Field(1.0, ge=1e-6, le=1)
    n: int = Field(1, ge=1, le=16, description="Texts for each prompt.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(None, ge=0, le=20, description="Show tokens, with so many alternatives.")
    echo: bool = Field(False, description="Begin with the prompt, and score it where logprobs are asked for.")
    stop: str | Stop | None = None
    seed: int | None = Field(None, description="The same seed gives the same text.")
    user: str | None = Field(None, description="Not used.")
    best_of: int | None = Field(None, description="Only equal to n.")
    suffix: None = Field(None, description="Not supported.")
    logit_bias: dict[str, float] | None = Field(None, max_length=0, description="Not supported.")
    presence_penalty: Literal[0] = Field(0, description="Not supported; see repetition_penalty.")
    frequency_penalty: Literal[0] = Field(0, description="Not supported; see repetition_penalty.")
    top_k: int = Field(0, ge=0, le=1_000_000, description="Keep the k likeliest tokens; 0 keeps all.")
    min_p: float = Field(0.0, ge=0, lt=1, description="Drop tokens below this share of the likeliest.")
    repetition_penalty: float = Field(1.0, ge=0.01, le=100, description="Above 1 makes repeats less likely.")

    @model_validator(mode="after")
    def _possible(self) -> "CompletionRequest":
        if self.best_of not in (None, self.n):
            raise ValueError("best_of is not supported; leave it out")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream")
        return self


class LogProbs(BaseModel):
    """Tokens of a text with their natural log-probabilities; offsets count characters of the text."""

    model_config = example(
        {
            "tokens": [" carries"],
            "token_logprobs": [-1.25],
            "top_logprobs": [{" carries": -1.25}],
            "text_offset": [0],
        }
    )
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text."""

    model_config = example({"text": " carries cold water.", "index": 0, "logprobs": None, "finish_reason": "length"})
    text: str
    index: int
    logprobs: LogProbs | None
    finish_reason: Literal["stop", "length"] | None = Field(description="null while a stream goes on.")


class Usage(BaseModel):
    """Tokens read and written."""

    model_config = example(_USAGE)
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """Texts, or a piece of one when streaming."""

    model_config = example(
        {
            "id": "cmpl-5f0c",
            "object": "text_completion",
            "created": 1760000000,
            "model": "rnn",
            "choices": [{"text": " carries cold water.", "index": 0, "logprobs": None, "finish_reason": "length"}],
            "usage": _USAGE,
        }
    )
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="Unix time.")
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """A model as /v1/models lists it."""

    model_config = example({"id": "rnn", "object": "model", "created": 1760000000, "owned_by": "lm_retrieval"})
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "lm_retrieval"


class ModelList(BaseModel):
    """The models that can be used now."""

    model_config = example(
        {
            "object": "list",
            "data": [{"id": "rnn", "object": "model", "created": 1760000000, "owned_by": "lm_retrieval"}],
        }
    )
    object: Literal["list"] = "list"
    data: list[ModelCard]


class EmbeddingRequest(BaseModel):
    """Texts to encode."""

    model_config = example({"model": "rnn", "input": ["merge two dictionaries", "sort a list"]})
    model: ModelName
    input: Prompt
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: little-endian float32.")
    dimensions: int | None = Field(None, ge=1, description="Keep the first so many, scaled to unit length again.")
    user: str | None = Field(None, description="Not used.")


class Embedding(BaseModel):
    """A vector of unit length."""

    model_config = example({"object": "embedding", "index": 0, "embedding": [0.6, -0.8]})
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens encoded."""

    model_config = example({"prompt_tokens": 6, "total_tokens": 6})
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """One vector for each text, in their order."""

    model_config = example(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.6, -0.8]}],
            "model": "rnn",
            "usage": {"prompt_tokens": 3, "total_tokens": 3},
        }
    )
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
