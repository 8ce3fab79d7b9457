"""Errors as clients see them: one JSON shape, `{"error": {"message", "type", "code"}}`, which OpenAI's clients read.

Messages are written here or by the library for users; paths, tracebacks and whatever a library says about itself stay
in the server's log.
"""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lm_retrieval.errors import ConfigError, CorpusError, TokenizerError

logger = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed"}
_SHOWN_PROBLEMS = 3


class ApiError(Exception):
    """An answer other than success.

    Attributes:
        status: of HTTP.
        code: for programs, such as `model_not_found`.
        retry_after_seconds: when to come again, for 429 and 503.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after_seconds = retry_after_seconds

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        headers = {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def response(self) -> JSONResponse:
        """As an answer."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def invalid(message: str, *, code: str = "invalid_value") -> ApiError:
    """A request that is well-formed and cannot be carried out (422)."""
    return ApiError(422, code, message)


def too_large(message: str) -> ApiError:
    """A request beyond a limit of size (413)."""
    return ApiError(413, "request_too_large", message)


def client_gone() -> ApiError:
    """The client closed the connection: nobody reads this answer, but the metrics count it (499)."""
    return ApiError(499, "client_gone", "the client closed the connection")


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told about an error; one that is not the request's fault goes to the log in full."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ConfigError | CorpusError | TokenizerError):
        return invalid(str(error))
    logger.error("a request failed", exc_info=error)
    return ApiError(500, "internal_error", "the server could not do this; its log says why")


def add_handlers(app: FastAPI) -> None:
    """Gives every error of `app` the one shape."""

    async def on_error(_: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = _CODES.get(error.status_code, "invalid_request")
        response = ApiError(error.status_code, code, str(error.detail)).response()
        response.headers.update(error.headers or {})
        return response

    async def on_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return invalid(_describe(error), code="invalid_request").response()

    app.add_exception_handler(ApiError, on_error)
    for kind in (ConfigError, CorpusError, TokenizerError):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(Exception, on_error)


def _describe(error: RequestValidationError) -> str:
    """The first problems, each with its place in the request."""
    problems = []
    for problem in error.errors()[:_SHOWN_PROBLEMS]:
        place = ".".join(str(part) for part in problem["loc"] if part not in ("body", "query"))
        message = str(problem["msg"]).removeprefix("Value error, ")
        problems.append(f"{place}: {message}" if place else message)
    return "; ".join(problems)
