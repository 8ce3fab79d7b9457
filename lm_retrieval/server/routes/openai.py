"""OpenAI's endpoints: `/v1/models`, `/v1/completions`, `/v1/embeddings`."""

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic_core import to_json

from lm_retrieval.encoding.transform import unit_vectors
from lm_retrieval.server.completions import CompletionJob, as_texts, check_amount
from lm_retrieval.server.errors import invalid
from lm_retrieval.server.routes.access import LimitsHere, ServedHere
from lm_retrieval.server.schemas.base import ERRORS
from lm_retrieval.server.schemas.openai import (
    Completion,
    CompletionRequest,
    EmbeddingList,
    EmbeddingRequest,
    ModelCard,
    ModelList,
)
from lm_retrieval.server.served import ServedModel, Vector
from lm_retrieval.server.texts import token_ids_of
from lm_retrieval.server.waiting import results

router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=ERRORS)


@router.get("/models")
async def list_models(served: ServedHere) -> ModelList:
    """The models that can be used now."""
    return ModelList(data=[_card(model) for model in served.models.values() if model.status == "ready"])


@router.get("/models/{model}")
async def retrieve_model(model: str, served: ServedHere) -> ModelCard:
    """One model."""
    return _card(served.model(model))


@router.post(
    "/completions",
    response_model=Completion,
    responses={
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": "data: {…}\n\ndata: [DONE]\n\n"}}
        }
    },
)
async def complete(
    asked: CompletionRequest, request: Request, served: ServedHere, limits: LimitsHere
) -> Completion | StreamingResponse:
    """Continues texts; with `echo`, `logprobs` and `max_tokens` 0 or 1 it scores them. With `stream`: events."""
    model = served.model(asked.model)
    tokenizer = model.language_model.tokenizer
    prompts = as_texts(asked.prompt)
    check_amount(asked, len(prompts), limits)
    token_ids = await token_ids_of(tokenizer, prompts, limits=limits, allow_empty=True)
    job = CompletionJob(asked, model, prompts, token_ids)
    if asked.stream:
        pieces = job.pieces(request, seconds=limits.request_seconds)
        return StreamingResponse(
            pieces, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
    return await job.whole(request, seconds=limits.request_seconds)


@router.post("/embeddings", response_model=EmbeddingList)
async def embed(asked: EmbeddingRequest, request: Request, served: ServedHere, limits: LimitsHere) -> Response:
    """A vector of unit length for each text."""
    model = served.model(asked.model)
    encoder = model.text_encoder
    if asked.dimensions is not None and asked.dimensions > encoder.dim:
        raise invalid(f"dimensions is {asked.dimensions}; vectors of '{model.name}' have {encoder.dim}")
    token_ids = await token_ids_of(encoder.tokenizer, as_texts(asked.input), limits=limits)
    (vectors,) = await results(request, [model.encode(token_ids)], seconds=limits.request_seconds)
    shown = [_shown(vector, asked) for vector in vectors]
    count = sum(map(len, token_ids))
    # as it is: checking hundreds of thousands of numbers again would take longer than encoding; json is slow at them
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "index": place, "embedding": value} for place, value in enumerate(shown)],
        "model": model.name,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }
    return Response(to_json(answer), media_type="application/json")


def _card(model: ServedModel) -> ModelCard:
    return ModelCard(id=model.name, created=model.created)


def _shown(vector: Vector, asked: EmbeddingRequest) -> Any:
    if asked.dimensions is not None:
        vector = unit_vectors(vector[None, : asked.dimensions])[0]
    if asked.encoding_format == "base64":
        return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")
    return vector.tolist()
