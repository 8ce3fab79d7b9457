"""The application: endpoints, middleware, and models that load while it already answers."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from lm_retrieval.server.errors import add_handlers
from lm_retrieval.server.metrics import Metrics
from lm_retrieval.server.middleware import BodyLimit, Counted, KeyRequired
from lm_retrieval.server.routes import generation, openai, retrieval, status, text
from lm_retrieval.server.served import Served
from lm_retrieval.server.settings import ServerSettings, settings_from_environment
from lm_retrieval.version import __version__

logger = logging.getLogger(__name__)

_DESCRIPTION = 'Small language models, embeddings and search. Errors: {"error": {"message", "type", "code"}}.'


def create_app(settings: ServerSettings | None = None) -> FastAPI:
    """An application; its models begin to load when it is started.

    Args:
        settings: by default the shipped models, the index built last, and what the environment says.

    Returns:
        A FastAPI application. `app.state.served` holds models and index, for what is mounted beside the endpoints.
    """
    settings = settings or settings_from_environment()
    metrics = Metrics()
    served = Served(settings, metrics=metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        served.start()
        yield
        await run_in_threadpool(served.close)

    # documentation pages that need no network
    app = FastAPIOffline(title="lm_retrieval", version=__version__, description=_DESCRIPTION, lifespan=lifespan)
    app.state.served = served
    add_handlers(app)
    for part in (status, generation, openai, retrieval, text):
        app.include_router(part.router)
    if settings.page:
        from lm_retrieval.server.ui.page import mount_page  # gradio takes seconds to import

        mount_page(app, served)
    # the last one added is the first that a request meets
    app.add_middleware(BodyLimit, max_bytes=settings.limits.max_body_bytes, seconds=settings.limits.request_seconds)
    if settings.api_key is not None:
        app.add_middleware(KeyRequired, key=settings.api_key.get_secret_value())
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    app.add_middleware(Counted, metrics=metrics)
    return app
