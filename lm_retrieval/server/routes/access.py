"""How endpoints get at what the server holds."""

from typing import Annotated

from fastapi import Depends, Request

from lm_retrieval.server.served import Served
from lm_retrieval.server.settings import Limits


def _served(request: Request) -> Served:
    served = request.app.state.served
    assert isinstance(served, Served)
    return served


def _limits(request: Request) -> Limits:
    return _served(request).settings.limits


ServedHere = Annotated[Served, Depends(_served)]
LimitsHere = Annotated[Limits, Depends(_limits)]
