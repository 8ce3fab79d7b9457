"""`/`, `/health`, `/metrics`."""

import time

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST

from lm_retrieval.server.routes.access import ServedHere
from lm_retrieval.server.schemas.base import STATUS_ERRORS
from lm_retrieval.server.schemas.status import About, Health, IndexStatus, ModelStatus
from lm_retrieval.server.served import ServedIndex, ServedModel
from lm_retrieval.version import __version__

router = APIRouter(tags=["status"])
_STARTED = time.monotonic()


@router.get("/", response_model=About)
async def about(request: Request, served: ServedHere) -> About | RedirectResponse:
    """Name and version. A browser is led to the web page."""
    if served.settings.page and "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("ui/")
    return About(name="lm_retrieval", version=__version__)


@router.get("/health", responses={503: {"model": Health, "description": "Not everything is loaded yet."}})
async def health(served: ServedHere, response: Response) -> Health:
    """Status of each model and index; 503 until everything is loaded."""
    status = served.status
    response.status_code = 503 if status in ("loading", "failed") else 200
    return Health(
        status=status,
        models=[_model(model) for model in served.models.values()],
        indexes=[_index(index) for index in served.indexes.values()],
        uptime_seconds=round(time.monotonic() - _STARTED, 1),
    )


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={
        **STATUS_ERRORS,
        200: {"content": {"text/plain": {"example": 'lmr_unfinished_requests{worker="rnn"} 0.0\n'}}},
    },
)
async def metrics(served: ServedHere) -> Response:
    """Requests, latency, queues and batch sizes as Prometheus reads them."""
    return Response(served.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _model(model: ServedModel) -> ModelStatus:
    loaded = model.loaded
    if loaded is None:
        return ModelStatus(name=model.name, status=model.status)
    return ModelStatus(
        name=model.name,
        status=model.status,
        kind=loaded.kind,
        parameters=sum(loaded.model.parameter_counts().values()),
        embeddings=model.encoder is not None,
    )


def _index(index: ServedIndex) -> IndexStatus:
    searcher = index.searcher
    if searcher is None:
        return IndexStatus(name=index.name, status=index.status)
    return IndexStatus(
        name=index.name,
        status=index.status,
        documents=int(searcher.manifest["documents"]),
        backend=searcher.backend.kind,
        bm25=searcher.backend.lexical_place,
    )
