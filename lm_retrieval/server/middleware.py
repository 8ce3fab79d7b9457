"""What every request goes through: counting, the key, and the size of its body."""

import asyncio
import hmac
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lm_retrieval.server.errors import ApiError, client_gone, too_large
from lm_retrieval.server.metrics import Metrics

PAGE_FOLDER = "/ui/"
OPEN_PATHS = frozenset({"/", "/health", "/docs", "/redoc", "/openapi.json", "/ui", "/favicon.ico"})
OPEN_FOLDERS = ("/static-offline-docs/", PAGE_FOLDER)
"""What needs no key: nothing here computes, or tells what others do; the page asks for the key itself."""


class Counted:
    """Counts answers and times them."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            # the pattern of the route, not the path: paths of strangers must not become names
            path = "/ui" if scope["path"].startswith(PAGE_FOLDER) else getattr(scope.get("route"), "path", "other")
            method = scope["method"] if path != "other" else "any"
            self._metrics.answered(method, path, status, time.perf_counter() - started)


class KeyRequired:
    """Refuses requests without the key, as `Authorization: Bearer KEY`."""

    def __init__(self, app: ASGIApp, *, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _open(scope["path"]):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                refusal = ApiError(401, "invalid_api_key", "a valid key is needed: Authorization: Bearer KEY")
                await refusal.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyLimit:
    """Reads the body before anything else does, up to its limits of size and time."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float) -> None:
        self._app, self._max_bytes, self._seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # the page has its own limit: files are uploaded there
        own = scope["type"] == "http" and scope["path"].startswith(PAGE_FOLDER)
        if scope["type"] != "http" or own or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self._seconds)
        except TimeoutError:
            slow = ApiError(408, "timeout", f"the body was not sent within {self._seconds:g} seconds")
            await slow.response()(scope, receive, send)
            return
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        first = True

        async def replay() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        limit = too_large(f"the body is larger than {self._max_bytes:,} bytes")
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise limit
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise client_gone()
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_bytes:
                raise limit
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


def _open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)
