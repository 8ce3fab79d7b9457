"""`/generate`: one prompt or several, for one model or for all side by side."""

import secrets
from collections.abc import Sequence
from functools import partial

from fastapi import APIRouter, Request

from lm_retrieval.generation import Continuation, Generation
from lm_retrieval.server.completions import SEED_BITS, check_new_tokens
from lm_retrieval.server.routes.access import LimitsHere, ServedHere
from lm_retrieval.server.schemas.base import ERRORS
from lm_retrieval.server.schemas.generation import BatchRequest, BatchTexts, Controls, GenerateRequest, Texts
from lm_retrieval.server.served import ServedModel
from lm_retrieval.server.settings import Limits
from lm_retrieval.server.texts import token_ids_of
from lm_retrieval.server.waiting import results, submitted

router = APIRouter(tags=["generate"], responses=ERRORS)


@router.post("/generate")
async def generate(asked: GenerateRequest, request: Request, served: ServedHere, limits: LimitsHere) -> Texts:
    """One text from each model."""
    models = served.chosen(None)
    return (await _texts(request, models, [asked.prompt], asked, limits))[0]


@router.post("/generate/batch")
async def generate_batch(asked: BatchRequest, request: Request, served: ServedHere, limits: LimitsHere) -> BatchTexts:
    """One text from each model for each prompt."""
    models = served.chosen(asked.model)
    return BatchTexts(results=await _texts(request, models, asked.prompts, asked, limits))


@router.post("/generate/{model}")
async def generate_one(
    model: str, asked: GenerateRequest, request: Request, served: ServedHere, limits: LimitsHere
) -> Texts:
    """One text from one model."""
    return (await _texts(request, served.chosen(model), [asked.prompt], asked, limits))[0]


async def _texts(
    request: Request, models: Sequence[ServedModel], prompts: Sequence[str], controls: Controls, limits: Limits
) -> list[Texts]:
    """For each prompt the texts by the name of their model."""
    config = controls.config(seed=secrets.randbits(SEED_BITS))
    check_new_tokens(config.max_new_tokens, limits)
    rows: list[list[Continuation]] = []
    for model in models:
        tokenizer = model.language_model.tokenizer
        read = await token_ids_of(tokenizer, prompts, limits=limits, allow_empty=True)
        rows.append([Continuation(tokenizer, ids, config) for ids in read])
    futures = submitted(partial(model.write, texts) for model, texts in zip(models, rows, strict=True))
    columns = await results(request, futures, seconds=limits.request_seconds)
    return [_answer(models, [column[place] for column in columns]) for place in range(len(prompts))]


def _answer(models: Sequence[ServedModel], generations: Sequence[Generation]) -> Texts:
    texts = {model.name: generation.text for model, generation in zip(models, generations, strict=True)}
    if len(models) == 1:
        texts["generated_text"] = generations[0].text
    return Texts(texts)
