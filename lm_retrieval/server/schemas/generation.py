"""Schemas of `/generate`."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, RootModel, model_validator

from lm_retrieval.generation import GenerationConfig
from lm_retrieval.server.schemas.base import ModelName, example

Stop = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=4)]
_GREEDY_BELOW = 1e-3  # scores divided by less would no longer be numbers
_CONTROLS = {"max_tokens": 40, "temperature": 0.8, "top_k": 50, "top_p": 0.95, "seed": 7}


class Controls(BaseModel):
    """Sampling controls; left out, they are as of `lmr generate`, but for the seed, which is drawn."""

    max_tokens: int | None = Field(None, ge=1, description="Most tokens to add.  [default: 64]")
    max_length: int | None = Field(None, ge=1, description="Another name for max_tokens.")
    temperature: float = Field(1.0, ge=0, le=10, description="0 takes the likeliest token each time.")
    top_k: int = Field(0, ge=0, le=1_000_000, description="Keep the k likeliest tokens; 0 keeps all.")
    top_p: float = Field(1.0, ge=1e-6, le=1, description="Keep the likeliest tokens of this total probability.")
    min_p: float = Field(0.0, ge=0, lt=1, description="Drop tokens below this share of the likeliest.")
    repetition_penalty: float = Field(1.0, ge=0.01, le=100, description="Above 1 makes repeats less likely.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="The same seed gives the same text.")
    stop: str | Stop | None = Field(None, description="The text ends before the first of these.")

    @model_validator(mode="after")
    def _one_length(self) -> "Controls":
        if self.max_tokens is not None and self.max_length is not None:
            raise ValueError("give max_tokens or max_length, not both")
        return self

    def config(self, *, seed: int) -> GenerationConfig:
        """As the library takes them; `seed` where none was given."""
        return sampling(
            max_new_tokens=self.max_tokens or self.max_length or GenerationConfig().max_new_tokens,
            temperature=self.temperature,
            stop=self.stop,
            seed=seed if self.seed is None else self.seed,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )


def sampling(
    *, max_new_tokens: int, temperature: float, stop: str | list[str] | None, seed: int, **filters: Any
) -> GenerationConfig:
    """Settings of generation; a temperature of 0, or next to it, is greedy decoding."""
    greedy = temperature < _GREEDY_BELOW
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=not greedy,
        temperature=1.0 if greedy else temperature,
        stop_strings=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        seed=seed,
        **filters,
    )


class GenerateRequest(Controls):
    """One prompt."""

    model_config = example({"prompt": "The river", **_CONTROLS})
    prompt: str


class BatchRequest(Controls):
    """Several prompts, for one model or for all."""

    model_config = example({"prompts": ["The river", "A theorem"], **_CONTROLS})
    prompts: list[str] = Field(min_length=1)
    model: ModelName | None = None


class Texts(RootModel[dict[str, str]]):
    """What each model added to the prompt, by its name; of one model alone also as `generated_text`."""

    model_config = {
        "json_schema_extra": {"examples": [{"rnn": " carries cold water.", "transformer": " is wide and old."}]}
    }


class BatchTexts(BaseModel):
    """One answer as of /generate for each prompt, in their order."""

    model_config = example(
        {"results": [{"rnn": " carries cold water.", "transformer": " is wide."}, {"rnn": " is", "transformer": " of"}]}
    )
    results: list[Texts]
