"""What the schemas share."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
ModelName = Annotated[str, Field(min_length=1, max_length=200, description="One of GET /v1/models.")]


def example(value: dict[str, Any]) -> ConfigDict:
    """Settings of a schema with an example of it."""
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [value]})


class ErrorDetail(BaseModel):
    """What went wrong."""

    model_config = example(
        {
            "message": "there is no model 'x' here; there are: rnn, transformer",
            "type": "invalid_request_error",
            "code": "model_not_found",
        }
    )
    message: str
    type: str
    code: str


class ErrorAnswer(BaseModel):
    """Every error has this shape."""

    model_config = example(
        {
            "error": {
                "message": "there is no model 'x' here; there are: rnn, transformer",
                "type": "invalid_request_error",
                "code": "model_not_found",
            }
        }
    )
    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The body is no text."},
    401: {"model": ErrorAnswer, "description": "A key is needed."},
    404: {"model": ErrorAnswer, "description": "No such model, index or path."},
    408: {"model": ErrorAnswer, "description": "The body came too slowly."},
    413: {"model": ErrorAnswer, "description": "Too large a body, or too many texts."},
    422: {"model": ErrorAnswer, "description": "A field is missing, unknown, or out of range."},
    429: {"model": ErrorAnswer, "description": "Too many requests are waiting; see Retry-After."},
    500: {"model": ErrorAnswer, "description": "The server failed; its log says why."},
    503: {"model": ErrorAnswer, "description": "Still loading, could not be loaded, or shutting down."},
    504: {"model": ErrorAnswer, "description": "Not finished in time."},
}
STATUS_ERRORS: dict[int | str, dict[str, Any]] = {code: ERRORS[code] for code in (401, 500)}
