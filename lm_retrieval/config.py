"""Typed settings: defaults < TOML file < `--set section.key=value`. An unknown key is an error.

Each component sees only its own section. Units are in the names: `_tokens`, `_steps`, `_seconds`.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from lm_retrieval.errors import ConfigError

Pooling = Literal["mean", "weightedmean", "max", "lasttoken", "mean_sqrt_len_tokens", "learned"]
Layers = Literal["last", "first_last"]
Postprocess = Literal["none", "center", "whiten"]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenizerConfig(Section):
    """How a SentencePiece tokenizer is trained."""

    type: Literal["bpe", "char"] = "bpe"
    vocab_size: PositiveInt = 8000
    normalizer: Literal["identity", "nmt_nfkc", "nmt_nfkc_cf"] = "identity"
    """`identity` round-trips exactly; `nmt_nfkc` unifies Unicode and white space; `_cf` also folds case."""
    max_training_bytes: PositiveInt = 32_000_000
    """A larger corpus is sampled evenly, line by line."""


class LstmConfig(Section):
    """Embedding → LSTM → linear head (Zaremba et al., 2014, arXiv:1409.2329)."""

    type: Literal["lstm"] = "lstm"
    embedding_dim: PositiveInt = 256
    hidden_dim: PositiveInt = 256
    num_layers: PositiveInt = 2
    dropout: Dropout = 0.2
    tie_weights: bool = False
    """The head reuses the embedding table, behind a projection where the two widths differ."""


class TransformerConfig(Section):
    """A causal Transformer (Vaswani et al., 2017, arXiv:1706.03762): post-norm, sinusoidal positions."""

    type: Literal["transformer"] = "transformer"
    embedding_dim: PositiveInt = 256
    hidden_dim: PositiveInt | None = None
    """Width of the blocks, where it is not `embedding_dim` (Lan et al., 2019, arXiv:1909.11942, factorise so)."""
    num_layers: PositiveInt = 3
    num_heads: PositiveInt = 4
    feedforward_dim: PositiveInt = 512
    dropout: Dropout = 0.2
    max_length: PositiveInt = 256
    """Context window, in tokens."""
    norm: Literal["post", "pre"] = "post"
    positions: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"
    activation: Literal["relu", "gelu"] = "relu"
    tie_weights: bool = False

    @model_validator(mode="after")
    def _whole_heads(self) -> "TransformerConfig":
        if self.width % (2 * self.num_heads):
            raise ValueError(f"{'hidden' if self.hidden_dim else 'embedding'}_dim must be a multiple of 2 * num_heads")
        return self

    @property
    def width(self) -> int:
        """Width of the blocks."""
        return self.hidden_dim or self.embedding_dim


class GptConfig(TransformerConfig):
    """The GPT-2 arrangement of the same blocks: pre-norm, learned positions, GELU."""

    type: Literal["gpt"] = "gpt"  # type: ignore[assignment]
    num_layers: PositiveInt = 6
    feedforward_dim: PositiveInt = 1024
    max_length: PositiveInt = 128
    norm: Literal["post", "pre"] = "pre"
    positions: Literal["sinusoidal", "learned", "rotary"] = "learned"
    activation: Literal["relu", "gelu"] = "gelu"


class BigramConfig(Section):
    """A table of next-token scores: the baseline every model must beat."""

    type: Literal["bigram"] = "bigram"


ModelConfig = Annotated[LstmConfig | TransformerConfig | GptConfig | BigramConfig, Field(discriminator="type")]


class TrainingConfig(Section):
    """Budgets, batches, optimisation and evaluation of one training run. The first budget reached ends it."""

    max_steps: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    max_epochs: PositiveInt | None = 5
    max_time_seconds: Annotated[float, Field(gt=0)] | None = None

    batch_size: PositiveInt = 32
    """Rows of a step, over all micro-batches and processes."""
    accumulation_steps: PositiveInt = 1
    """A step's rows are worked through in this many micro-batches: same gradients, less memory."""
    sequence_length_tokens: PositiveInt = 128
    carry_state: bool = True
    """Recurrent models start a segment from the state at the end of the one before."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    min_learning_rate_ratio: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Cosine decay ends at this share of learning_rate."""
    warmup_steps: NonNegativeInt = 100
    weight_decay: NonNegativeFloat = 0.01
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    stored_precision: Literal["float32", "float16"] = "float32"
    """Of the weights in the checkpoint; what `--resume` needs is float32 in any case."""
    compile: bool = False
    seed: NonNegativeInt = 1

    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Share of the documents held out when no validation corpus is given."""
    eval_interval_steps: PositiveInt = 500
    eval_max_tokens: PositiveInt = 200_000
    patience_evaluations: PositiveInt | None = None
    """Stop after this many evaluations without a better validation loss."""
    save_interval_seconds: Annotated[float, Field(gt=0)] = 120.0
    log_interval_steps: PositiveInt = 20
    sample_prompt: str = ""
    sample_tokens: NonNegativeInt = 40


class EncoderConfig(Section):
    """How hidden states become one vector per text."""

    pooling: Pooling = "mean"
    """`learned` is what `lmr tune` trains: token weights, token vectors and a projection of the hidden states."""
    layers: Layers = "last"
    """`first_last` averages the input embedding and the last layer."""
    postprocess: Postprocess = "none"
    normalize: bool = True
    max_length_tokens: PositiveInt = 256
    """Longest window that is encoded at once; longer texts are split, never cut."""
    overlap_tokens: NonNegativeInt = 32

    @model_validator(mode="after")
    def _overlap_fits(self) -> "EncoderConfig":
        if self.overlap_tokens * 2 > self.max_length_tokens:
            raise ValueError("overlap_tokens may be at most half of max_length_tokens")
        return self


class TuningConfig(Section):
    """Contrastive training of an encoder: the data of a step, and the weight of each term of its loss."""

    max_length_tokens: PositiveInt = 128
    """Longer texts are cut here while training."""
    max_text_characters: PositiveInt = 1000
    """Longer texts are cut here first, for the teacher too."""
    token_dropout: Dropout = 0.3
    """Share of the tokens left out of each text, drawn anew each time."""
    contrastive_weight: NonNegativeFloat = 1.0
    teacher_weight: NonNegativeFloat = 1.0
    """Weight of the teacher's similarities, where there is a teacher."""
    next_token_weight: NonNegativeFloat = 0.0
    """Weight of the language model's own loss, so that the checkpoint goes on generating."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Start of the learned temperature."""
    teacher_temperature: Annotated[float, Field(gt=0)] = 0.05
    words_only: bool = False
    """Leave the language model out: only token vectors and weights learn; eleven times the steps. A first stage."""
    token_learning_rate_ratio: Annotated[float, Field(gt=0)] = 3.0
    """Token vectors and weights learn so many times faster: each token is in few of the steps."""
    train_language_model: bool = False
    """false: only the pooling learns, two and a half times the steps, and the language model writes as before."""
    max_pairs: PositiveInt = 1_000_000
    """Of more pairs so many are drawn."""
    hard_negatives: NonNegativeInt = 0
    """Negatives mined for each labelled pair."""
    spans_per_document: NonNegativeInt = 6
    """Random spans asked for in each unlabelled document."""
    spans_per_positive: NonNegativeInt = 0
    """Random spans asked for, too, in each positive of a file of pairs."""
    validation_pairs: PositiveInt = 1024
    """At most so many pairs, and at most a tenth of all, are held out."""


class RunConfig(Section):
    """Everything a checkpoint needs to be made again."""

    model: ModelConfig = LstmConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    training: TrainingConfig = TrainingConfig()
    encoder: EncoderConfig = EncoderConfig()
    tuning: TuningConfig = TuningConfig()


def load_config(
    path: Path | None = None, *, overrides: Iterable[str] = (), defaults: RunConfig | None = None
) -> RunConfig:
    """Reads a TOML file and applies `section.key=value` overrides; without a file `defaults` are overridden.

    Raises:
        ConfigError: no such file, broken TOML, an unknown key, or a value of the wrong type or range.
    """
    values: dict[str, Any] = defaults.model_dump(mode="json") if defaults else {}
    where = "configuration"
    if path is not None:
        where = str(path)
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such configuration file; see configs/ for the presets") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{path}: cannot be read as TOML: {error}") from error
    for override in overrides:
        _apply_override(values, override)
    return parse_config(values, where=where)


def parse_config(values: Mapping[str, Any], *, where: str) -> RunConfig:
    """Checks a mapping of sections; `where` names its source in error messages.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type or range.
    """
    filled = dict(values)
    model = filled.get("model")
    if isinstance(model, Mapping) and "type" not in model:
        filled["model"] = {"type": "lstm", **model}
    try:
        return RunConfig.model_validate(filled)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error


def parse_duration(text: str) -> float:
    """Seconds from `90`, `90s`, `5m` or `1.5h`.

    Raises:
        ConfigError: not a duration.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match or float(match[1]) <= 0:
        raise ConfigError(f"'{text}' is not a duration; write for example 90s, 5m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, raw = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (separator and dot and name):
        raise ConfigError(f"--set {override}: write section.key=value, for example training.max_steps=100")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    group = values.setdefault(section, {})
    if not isinstance(group, dict):
        raise ConfigError(f"--set {override}: '{section}' is not a section")
    group[name] = value


def _explain(error: ValidationError) -> str:
    problems = []
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        if location[:1] == ["model"] and len(location) > 1:
            del location[1]  # the union's tag, which the user did not write as a key
        key = ".".join(location)
        if item["type"] == "extra_forbidden":
            problems.append(f"unknown key '{key}'{_suggestion(location)}")
        else:
            problems.append(f"{key}: {item['msg']} (found {item.get('input')!r})")
    return "; ".join(problems)


def _suggestion(location: list[str]) -> str:
    sections = {name: field.default for name, field in RunConfig.model_fields.items()}
    if len(location) == 1:
        known = list(sections)
    elif location[0] == "model":
        models = (LstmConfig, TransformerConfig, GptConfig, BigramConfig)
        known = sorted({name for model in models for name in model.model_fields})
    else:
        known = list(type(sections[location[0]]).model_fields)
    near = difflib.get_close_matches(location[-1], known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(known)}"
