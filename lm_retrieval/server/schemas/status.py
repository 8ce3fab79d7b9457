"""Schemas of `/` and `/health`."""

from typing import Literal

from pydantic import BaseModel

from lm_retrieval.server.schemas.base import example


class About(BaseModel):
    """Who answers."""

    model_config = example({"name": "lm_retrieval", "version": "0.1.0"})
    name: str
    version: str


_MODEL = {"name": "rnn", "status": "ready", "kind": "lstm", "parameters": 5816320, "embeddings": True}
_INDEX = {"name": "demo", "status": "ready", "documents": 6952, "backend": "an index folder", "bm25": "here"}


class ModelStatus(BaseModel):
    """One model; what is not known before it is loaded is null."""

    model_config = example(_MODEL)
    name: str
    status: Literal["loading", "ready", "failed"]
    kind: str | None = None
    parameters: int | None = None
    embeddings: bool | None = None


class IndexStatus(BaseModel):
    """One index."""

    model_config = example(_INDEX)
    name: str
    status: Literal["loading", "ready", "failed"]
    documents: int | None = None
    backend: str | None = None
    """What holds it."""
    bm25: str | None = None
    """Where words are ranked."""


class Health(BaseModel):
    """`ready` when everything is loaded; `degraded` when some of it could not be."""

    model_config = example({"status": "ready", "models": [_MODEL], "indexes": [_INDEX], "uptime_seconds": 12.5})
    status: Literal["loading", "ready", "degraded", "failed"]
    models: list[ModelStatus]
    indexes: list[IndexStatus]
    uptime_seconds: float
