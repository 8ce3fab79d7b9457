"""Waiting for a worker's answer, no longer than its client does."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request

from lm_retrieval.server.errors import ApiError, as_api_error, client_gone

T = TypeVar("T")


async def results(request: Request, futures: Sequence[Future[T]], *, seconds: float) -> list[T]:
    """The results of all futures. When the client leaves or the time is up, what is unfinished is cancelled.

    Raises:
        ApiError: the client left (499), the time is up (504), or what a future raised.
    """
    gathered = asyncio.gather(*map(asyncio.wrap_future, futures))
    gone = asyncio.create_task(until_gone(request))
    try:
        await asyncio.wait((gathered, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if gathered.done():
            try:
                return list(gathered.result())
            except Exception as error:
                raise as_api_error(error) from None
        raise client_gone() if gone.done() else out_of_time(seconds)
    finally:
        gone.cancel()
        for future in futures:
            future.cancel()
        gathered.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await gathered


def submitted(submissions: Iterable[Callable[[], Future[T]]]) -> list[Future[T]]:
    """The futures of all submissions; when one is refused, those before it are cancelled.

    Raises:
        ApiError: one is refused.
    """
    futures: list[Future[T]] = []
    try:
        for submit in submissions:
            futures.append(submit())
    except ApiError:
        for future in futures:
            future.cancel()
        raise
    return futures


async def until_gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while True:
        message: Any = await request.receive()
        if message["type"] == "http.disconnect":
            return


def out_of_time(seconds: float) -> ApiError:
    """The request took too long."""
    return ApiError(504, "timeout", f"not finished within {seconds:g} seconds; ask for less")
