"""`/tokenize`, `/detokenize`, `/tokenizer_info`, `/perplexity`."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request

from lm_retrieval.perplexity import PerplexityReport, total
from lm_retrieval.server.routes.access import LimitsHere, ServedHere
from lm_retrieval.server.schemas.base import ERRORS, ModelName
from lm_retrieval.server.schemas.text import (
    DetokenizeAnswer,
    DetokenizeRequest,
    Figures,
    ModelPerplexity,
    PerplexityAnswer,
    PerplexityRequest,
    TokenizeAnswer,
    TokenizeRequest,
    TokenizerInfo,
)
from lm_retrieval.server.texts import token_ids_of
from lm_retrieval.server.waiting import results, submitted
from lm_retrieval.tokenizer import TextTokenizer, prompt_ids

router = APIRouter(tags=["text"], responses=ERRORS)


@router.post("/tokenize")
async def tokenize(asked: TokenizeRequest, served: ServedHere, limits: LimitsHere) -> TokenizeAnswer:
    """A text's tokens. The name of a begin or end mark, alone, gives the mark."""
    model = served.first(asked.model)
    loaded = model.language_model
    text = asked.text if asked.text is not None else asked.prompt or ""
    marks = _marks(loaded.tokenizer)
    if text in marks:
        token_ids = [marks[text]]
    else:
        (token_ids,) = await token_ids_of(loaded.tokenizer, [text], limits=limits, allow_empty=True)
    if asked.add_special_tokens:
        token_ids = prompt_ids(loaded.tokenizer, token_ids)
    return TokenizeAnswer(
        model=model.name,
        tokens=token_ids,
        pieces=[loaded.tokenizer.token_text(token_id) for token_id in token_ids],
        count=len(token_ids),
        max_model_len=loaded.model.context_length,
    )


@router.post("/detokenize")
async def detokenize(asked: DetokenizeRequest, served: ServedHere, limits: LimitsHere) -> DetokenizeAnswer:
    """The text of some tokens."""
    model = served.first(asked.model)
    tokenizer = model.language_model.tokenizer
    (token_ids,) = await token_ids_of(tokenizer, [asked.tokens], limits=limits, allow_empty=True)
    return DetokenizeAnswer(model=model.name, prompt=tokenizer.decode(token_ids))


@router.get("/tokenizer_info")
async def tokenizer_info(
    served: ServedHere, model: Annotated[ModelName | None, Query(examples=["rnn"])] = None
) -> TokenizerInfo:
    """Size and marks of a tokenizer, as lm-evaluation-harness asks for them."""
    found = served.first(model)
    tokenizer = found.language_model.tokenizer
    return TokenizerInfo(
        model=found.name,
        vocab_size=tokenizer.vocab_size,
        bos_token=tokenizer.mark_text(tokenizer.bos_id),
        eos_token=tokenizer.mark_text(tokenizer.eos_id) if tokenizer.eos_id >= 0 else None,
    )


@router.post("/perplexity")
async def perplexity(
    asked: PerplexityRequest, request: Request, served: ServedHere, limits: LimitsHere
) -> PerplexityAnswer:
    """How well each model predicts each text."""
    texts = [asked.text] if isinstance(asked.text, str) else asked.text
    options = asked.model_dump(include={"context", "window", "stride"}, exclude_none=True)
    models = served.chosen(asked.model)
    submissions = []
    for model in models:
        token_ids = await token_ids_of(model.language_model.tokenizer, texts, limits=limits)
        submissions.append(partial(model.perplexity, texts, tokens=[*map(len, token_ids)], **options))
    futures = submitted(submissions)
    columns = await results(request, futures, seconds=limits.request_seconds)
    return PerplexityAnswer(
        models={
            model.name: ModelPerplexity(total=_figures(total(reports)), texts=[*map(_figures, reports)])
            for model, reports in zip(models, columns, strict=True)
        }
    )


def _marks(tokenizer: TextTokenizer) -> dict[str, int]:
    return {tokenizer.mark_text(mark): mark for mark in (tokenizer.bos_id, tokenizer.eos_id) if mark >= 0}


def _figures(report: PerplexityReport) -> Figures:
    return Figures.model_validate(report.to_dict())
