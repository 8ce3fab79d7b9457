"""What a server is told: models, index, limits; from the command line and the environment."""

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, field_validator

from lm_retrieval.config import Section
from lm_retrieval.errors import ConfigError, IndexFormatError
from lm_retrieval.loading import default_name
from lm_retrieval.runtime import Precision
from lm_retrieval.search import find_index
from lm_retrieval.storage import is_uri

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = frozenset({"batch", "generated_text"})  # a path below /generate, and a key of its answer


class ModelSource(NamedTuple):
    """A model to serve: what requests call it, and a checkpoint or `hf:` model."""

    name: str
    source: str


DEFAULT_MODELS = (ModelSource("rnn", "lstm-base"), ModelSource("transformer", "transformer-base"))


class Limits(Section):
    """What one request may ask for. Beyond: 413 for too large a body or too many texts, 422 for the others."""

    max_body_bytes: PositiveInt = 2_000_000
    max_texts: PositiveInt = 256
    max_text_tokens: PositiveInt = 8192
    max_request_tokens: PositiveInt = 131_072
    """All texts together."""
    max_new_tokens: PositiveInt = 1024
    max_hits: PositiveInt = 100
    max_waiting_requests: PositiveInt = 512
    """Accepted and unfinished, for each model; beyond: 429."""
    request_seconds: PositiveFloat = 60.0
    """For reading a request, and for answering it; beyond: 408 or 504."""


class Batching(Section):
    """How requests share batches."""

    window_seconds: Annotated[float, Field(ge=0)] = 0.004
    """How long a request waits for others when the model is idle."""
    max_batch_tokens: PositiveInt = 8192
    max_writing_rows: PositiveInt = 64
    """Texts that a model writes at the same time."""


class ServerSettings(Section):
    """Everything a server needs to know."""

    models: tuple[ModelSource, ...] = DEFAULT_MODELS
    index: Path | str | None = None
    """A folder, or `milvus+URI#COLLECTION`."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    allowed_origins: tuple[str, ...] = ()
    api_key: SecretStr | None = None
    device: str = "auto"
    dtype: Precision = "float32"
    page: bool = False
    """Whether `/ui` is there; the extra `ui` is needed."""
    limits: Limits = Limits()
    batching: Batching = Batching()
    shutdown_seconds: PositiveInt = 30
    """What is running may take so long to finish when the server is told to stop."""

    @field_validator("models")
    @classmethod
    def _distinct_names(cls, models: tuple[ModelSource, ...]) -> tuple[ModelSource, ...]:
        names = [model.name for model in models]
        for name in names:
            if not _NAME.fullmatch(name) or name in _RESERVED:
                raise ValueError(f"'{name}' cannot be the name of a model; use letters, digits, '.', '_' and '-'")
            if names.count(name) > 1:
                raise ValueError(f"two models are called '{name}'; write NAME=PATH to give another name")
        return models

    @property
    def local(self) -> bool:
        """Whether only programs on this machine can reach the server."""
        return self.host in ("127.0.0.1", "localhost", "::1")


def parse_model(text: str) -> ModelSource:
    """`NAME=PATH`, or a path or name alone, whose last part then names it."""
    name, separator, source = text.partition("=")
    if separator and name and source and not is_uri(name):
        return ModelSource(name, source)
    return ModelSource(default_name(text), text)


def default_index() -> Path | None:
    """The index built last in `indexes/`; None where there is none."""
    try:
        return find_index(None)
    except IndexFormatError:
        return None


def page_installed() -> bool:
    """Whether the extra `ui` is here."""
    return importlib.util.find_spec("gradio") is not None


def read_environment(environment: Mapping[str, str] = os.environ) -> dict[str, object]:
    """Settings by name from PORT, ALLOWED_ORIGIN (comma-separated), LMR_API_KEY and LMR_PAGE (0 or 1).

    Raises:
        ConfigError: PORT is not a port, or LMR_PAGE neither 0 nor 1.
    """
    found: dict[str, object] = {}
    if port := environment.get("PORT"):
        if not port.isdecimal() or int(port) > 65535:
            raise ConfigError(f"PORT={port}: a whole number from 0 to 65535 is needed")
        found["port"] = int(port)
    if origins := environment.get("ALLOWED_ORIGIN"):
        found["allowed_origins"] = split_origins([origins])
    if page := environment.get("LMR_PAGE"):
        if page not in ("0", "1"):
            raise ConfigError(f"LMR_PAGE={page}: 0 (without the web page) or 1 is needed")
        found["page"] = page == "1"
    if key := environment.get("LMR_API_KEY"):
        found["api_key"] = SecretStr(key)
    return found


def split_origins(values: Sequence[str]) -> tuple[str, ...]:
    """Origins from comma-separated lists, without the slash that browsers do not send."""
    return tuple(origin.strip().rstrip("/") for value in values for origin in value.split(",") if origin.strip())


def settings_from_environment() -> ServerSettings:
    """The shipped models, the index built last, and what the environment says.

    Raises:
        ConfigError: an environment variable cannot be used.
    """
    return ServerSettings.model_validate({"index": default_index(), "page": page_installed(), **read_environment()})
