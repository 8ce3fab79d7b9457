"""How endpoints get at what the server holds."""

from typing import Annotated

from fastapi import Depends, Request

from lm_retrieval.server.served import Served
from lm_retrieval.server.settings import Limits


# not `def`: FastAPI would call them in a thread of their own, two for each request
async def _served(request: Request) -> Served:
    served = request.app.state.served
    assert isinstance(served, Served)
    return served


async def _limits(served: Annotated[Served, Depends(_served)]) -> Limits:
    return served.settings.limits


ServedHere = Annotated[Served, Depends(_served)]
LimitsHere = Annotated[Limits, Depends(_limits)]
