"""`/search` and `/rerank`."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request

from lm_retrieval.search import Mode
from lm_retrieval.server.errors import invalid
from lm_retrieval.server.routes.access import LimitsHere, ServedHere
from lm_retrieval.server.schemas.base import ERRORS
from lm_retrieval.server.schemas.retrieval import (
    HitAnswer,
    IndexName,
    QueryText,
    RerankAnswer,
    Reranked,
    RerankRequest,
    SearchAnswer,
    SearchRequest,
)
from lm_retrieval.server.served import Served, ServedModel
from lm_retrieval.server.settings import Limits
from lm_retrieval.server.texts import token_ids_of
from lm_retrieval.server.waiting import results

router = APIRouter(tags=["search"], responses=ERRORS)


@router.post("/search")
async def search(asked: SearchRequest, request: Request, served: ServedHere, limits: LimitsHere) -> SearchAnswer:
    """The best documents of the index, with snippets."""
    return await _search(asked, request, served, limits)


@router.get("/search")
async def search_by_address(
    q: Annotated[QueryText, Query(examples=["merge two dictionaries"])],
    request: Request,
    served: ServedHere,
    limits: LimitsHere,
    k: Annotated[int, Query(ge=1, examples=[3])] = 10,
    mode: Annotated[Mode, Query(examples=["hybrid"])] = "hybrid",
    index: Annotated[IndexName | None, Query(examples=["demo"])] = None,
) -> SearchAnswer:
    """As POST, for a browser."""
    return await _search(
        SearchRequest.model_validate({"query": q, "k": k, "mode": mode, "index": index}), request, served, limits
    )


@router.post("/rerank")
async def rerank(asked: RerankRequest, request: Request, served: ServedHere, limits: LimitsHere) -> RerankAnswer:
    """Orders documents by how well they answer a query."""
    model = served.first(asked.model)
    tokenizer = model.language_model.tokenizer
    token_ids = await token_ids_of(tokenizer, [asked.query, *asked.documents], limits=limits, allow_empty=True)
    if asked.method == "lm":
        sizes = [*map(len, token_ids[1:])]
        future = model.likelihood(asked.query, asked.documents, tokens=sizes)
        (scores,) = await results(request, [future], seconds=limits.request_seconds)
    else:
        scores = await _similarities(request, model, token_ids, limits)
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    return RerankAnswer(
        model=model.name,
        results=[
            Reranked(
                index=place,
                relevance_score=scores[place],
                document=asked.documents[place] if asked.return_documents else None,
            )
            for place in order[: asked.top_n]
        ],
        total_tokens=sum(map(len, token_ids)),
    )


async def _similarities(
    request: Request, model: ServedModel, token_ids: list[list[int]], limits: Limits
) -> list[float]:
    """Cosines of the first text with the others."""
    encoder = model.text_encoder
    (vectors,) = await results(request, [model.encode(token_ids)], seconds=limits.request_seconds)
    return [float(value) for value in encoder.similarity(vectors[0], np.stack(vectors[1:]))[0]]


async def _search(asked: SearchRequest, request: Request, served: Served, limits: Limits) -> SearchAnswer:
    index = served.index(asked.index)
    if asked.k > limits.max_hits:
        raise invalid(f"k is {asked.k}; at most {limits.max_hits} hits can be asked for")
    future = index.search(asked.query, **asked.model_dump(exclude={"query", "index"}))
    (found,) = await results(request, [future], seconds=limits.request_seconds)
    return SearchAnswer(query=asked.query, hits=[HitAnswer.model_validate(hit.to_dict()) for hit in found[0]])
