"""Every error, from every layer, leaves as the envelope that OpenAI's clients understand.

The shape is `{"error": {"message", "type", "param", "code"}}`; a client that gets anything else
shows its user "no body". https://platform.openai.com/docs/guides/error-codes
"""

import errno
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field, ValidationError, field_validator
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

logger = logging.getLogger(__name__)

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


DESCRIPTIONS = {
    400: "The request is not valid",
    401: "The API key is missing or wrong",
    404: "There is no such model, file, page or batch",
    408: "The body of the request stalled",
    413: "The body of the request, or the file in it, is too large",
    415: "The body of the request has a type or an encoding that is not read",
    429: "Too much work waits already, or a rate limit is reached",
    500: "The server had an error; its log says more under the request id",
    503: "The server cannot answer now: it is shutting down, or what it needs does not work",
    504: "The answer took longer than a request may take",
    507: "The disk of the service is full",
}
RETRIED = (429, 503)

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")

LONG_WORD = re.compile(r"([^\s'\"]{64})[^\s'\"]{16,}")
MAX_MESSAGE = 1000
MAX_ENDPOINTS = 20
"""Limits of an error message: its characters, and the endpoints that it lists"""

OBJECT_TYPES = ("dict_type", "model_attributes_type", "model_type")
"""pydantic's errors where an object was wanted"""

NOT_PARSED = "There was an error parsing the body"
"""Message of the HTTPException that FastAPI raises for any error while it parses a body"""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The last is the limit of one file, by `ulimit -f` or by the file system"""

FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")


def bounded(text: str) -> str:
    """`text` with its middle and its longest words cut, as it may repeat input of the client."""
    if len(text) > MAX_MESSAGE:
        text = f"{text[: MAX_MESSAGE - 200]} … {text[-200:]}"
    return LONG_WORD.sub(r"\1…", text)


class ErrorDetail(BaseModel):
    message: str = Field(description="Explanation for a person")
    type: str = Field(description="Class of the error")
    param: str | None = Field(None, description="Field of the request that is to blame")
    code: str | None = Field(None, description="Stable name of the error, for a program")

    @field_validator("message", "param")
    @classmethod
    def bound(cls, value: str | None) -> str | None:
        return value and bounded(value)


class ErrorEnvelope(BaseModel):
    error: ErrorDetail


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors with these statuses, as the OpenAPI document describes them."""
    responses: dict[int | str, dict[str, Any]] = {
        # FastAPI would otherwise list its own 422, which no client ever sees here.
        "default": {"model": ErrorEnvelope, "description": "Any other error"}
    }
    for each in statuses:
        responses[each] = {"model": ErrorEnvelope, "description": DESCRIPTIONS[each]}
        if each in RETRIED:
            schema = {"type": "integer", "minimum": 1}
            retry_after = {"description": "Seconds to wait", "required": True, "schema": schema}
            responses[each]["headers"] = {"Retry-After": retry_after}
    return responses


class APIError(HTTPException):
    """An error with its place in the request. Raise it anywhere below the middleware."""

    def __init__(
        self,
        status_code: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code=status_code, detail=message, headers=headers)
        self.param = param
        self.code = code


def shutting_down() -> APIError:
    return APIError(
        status.HTTP_503_SERVICE_UNAVAILABLE,
        "The service is shutting down; another instance will take the request.",
        code="shutting_down",
        headers={"Retry-After": "1", "Connection": "close"},
    )


def internal_error(request_id: str) -> APIError:
    """A 500 without details: the cause is in the log, under the request id."""
    return APIError(
        status.HTTP_500_INTERNAL_SERVER_ERROR,
        f"The server had an error while processing the request. Request id: {request_id}.",
        code="internal_error",
        headers={"x-should-retry": "false"},
    )


def envelope_for(error: HTTPException) -> ErrorEnvelope:
    """The body of the error, which ends a stream just as it answers a request."""
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    known = {
        "type": ERROR_TYPES.get(error.status_code, kind),
        "param": getattr(error, "param", None),
        "code": getattr(error, "code", None),
    }
    detail: object = error.detail
    if isinstance(detail, str):
        return ErrorEnvelope(error=ErrorDetail(message=detail, **known))
    # FastAPI lets a detail be anything. One with the envelope's own fields fills them.
    if isinstance(detail, Mapping):
        with suppress(ValidationError):
            return ErrorEnvelope(error=ErrorDetail.model_validate(known | dict(detail)))
    return ErrorEnvelope(error=ErrorDetail(message=json.dumps(detail, default=str), **known))


class ErrorResponse(JSONResponse):
    """The answer to a request that failed. It leaves the code of its error in the request's state."""

    def __init__(self, error: HTTPException) -> None:
        self.code = getattr(error, "code", None)
        body = envelope_for(error).model_dump()
        super().__init__(body, error.status_code, headers=error.headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["error_code"] = self.code
        await super().__call__(scope, receive, send)


def error_response(error: HTTPException) -> JSONResponse:
    return ErrorResponse(error)


def location(loc: Sequence[str | int], body: object, *, missing: bool = False) -> str | None:
    """`("body", "messages", 0, "role")` → `messages[0].role`; None for the body as a whole.

    pydantic also names the member of a union that it tried, by type or tag, which is no part of the
    path: those names are not in the body. Neither is a field that is missing, which comes last.
    """
    if isinstance(body, FormData):  # flat, with names such as `expires_after[seconds]`
        return str(loc[1]) if len(loc) > 1 else None
    path = ""
    # A query has one parameter, and no union.
    value = body if loc[0] == "body" else dict.fromkeys(loc[1:2])
    for place, part in enumerate(loc[1:], 2):
        if isinstance(part, int):
            path += f"[{part}]"
            inside = isinstance(value, list) and part < len(value)
            value = value[part] if isinstance(value, list) and inside else None
        elif isinstance(value, Mapping) and part in value:
            path += f".{part}" if part.isidentifier() else ""
            value = value[part]
        elif missing and place == len(loc):
            path += f".{part}"
    return path.removeprefix(".") or None


def allowed_methods(request: Request) -> str:
    """The methods of all routes at the URL. Starlette's own header knows the first one's alone."""

    path, root_path = request.scope["path"], request.scope["root_path"]

    def is_allowed(method: str) -> bool:
        scope = {"type": "http", "method": method, "path": path, "root_path": root_path}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    allowed = set(filter(is_allowed, METHODS))
    if "GET" in allowed:
        allowed.add("HEAD")
    return ", ".join(sorted(allowed))


def unknown_url(request: Request) -> str:
    """The message of a 404 for a URL that no route has. A wrong base URL is the usual cause."""
    known = [
        f"{'/'.join(sorted(route.methods or ()))} {route.path_format}"
        for route in iter_route_contexts(request.app.routes)
        if getattr(route, "include_in_schema", False)
    ]
    asked = f"Unknown URL: {request.method} {bounded(request.url.path)}."
    return f"{asked} This service has: {', '.join(known[:MAX_ENDPOINTS])}."


def unparsed_body(error: HTTPException) -> APIError:
    """The error of a body that is not valid JSON or not a valid form, by its parser's exception."""
    match error.__cause__:
        case UnicodeDecodeError():
            message, code = "The body is not valid UTF-8.", "invalid_json"
        case RecursionError():
            message, code = "The body is not valid JSON: it is nested too deeply.", "invalid_json"
        case ValueError():
            message, code = "The body is not valid JSON: a number is too long.", "invalid_json"
        case _:
            message, code = str(error.detail), "invalid_form"
    return APIError(error.status_code, message, code=code, headers=error.headers)


def type_wanted(request: Request, body: object) -> str | None:
    """The Content-Type that the route wants, if that of the request is another one."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if isinstance(body, bytes):  # as it came: FastAPI parses JSON of a JSON type alone
        return "application/json"
    if isinstance(body, FormData) and given not in FORM_TYPES:
        return FORM_TYPES[0]
    return None


def no_room(cause: OSError) -> APIError:
    """The error for a body that could not be put on the disk while it arrived."""
    logger.error("a body cannot be kept while it arrives", exc_info=cause)
    full = cause.errno in DISK_FULL
    return insufficient_storage(
        status.HTTP_507_INSUFFICIENT_STORAGE if full else status.HTTP_503_SERVICE_UNAVAILABLE
    )


def insufficient_storage(status_code: int = status.HTTP_507_INSUFFICIENT_STORAGE) -> APIError:
    return APIError(
        status_code,
        "The service has no room for the body of the request.",
        code="insufficient_storage",
        headers={"Retry-After": "30"},
    )


async def handle_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, OSError):  # FastAPI makes a 400 of it
        error = no_room(error.__cause__)
    if error.status_code == status.HTTP_405_METHOD_NOT_ALLOWED:
        error.headers = {**(error.headers or {}), "Allow": allowed_methods(request)}
    if error.status_code == status.HTTP_404_NOT_FOUND and error.detail == "Not Found":
        error.detail = unknown_url(request)
    if error.detail == NOT_PARSED or isinstance(error.__context__, MultiPartException):
        error = unparsed_body(error)
    return error_response(error)


async def handle_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    if wanted := type_wanted(request, error.body):
        message = f"Content-Type must be {wanted}."
        return error_response(
            APIError(
                status.HTTP_415_UNSUPPORTED_MEDIA_TYPE, message, code="unsupported_content_type"
            )
        )
    problems = error.errors()
    # Every member of a union reports errors. The member that was meant is the one whose type fits,
    # or else the one with the longest path.
    field = problems[0]["loc"][:2]
    problem = max(
        (problem for problem in problems if problem["loc"][:2] == field),
        key=lambda problem: (not problem["type"].endswith("_type"), len(problem["loc"])),
    )
    param = location(problem["loc"], error.body, missing=problem["type"] == "missing")
    message = problem["msg"].removeprefix("Value error, ")
    code = "missing_required_parameter" if problem["type"] == "missing" else "invalid_value"
    if problem["type"] == "json_invalid":
        param, code = None, "invalid_json"
        message = f"The body is not valid JSON: {problem['ctx']['error']}."
    elif problem["loc"] == ("body",) and problem["type"] == "missing":
        code, message = "invalid_json", "The body is empty. Send a JSON object."
    elif problem["loc"] == ("body",) and problem["type"] in OBJECT_TYPES:
        message = "The body must be a JSON object."
    return error_response(
        APIError(
            status.HTTP_400_BAD_REQUEST,
            f"{param}: {message}" if param else message,
            param=param,
            code=code,
        )
    )


def add_error_handlers(app: FastAPI) -> None:
    """Any other exception becomes a 500, which ErrorMiddleware logs and answers."""
    app.add_exception_handler(HTTPException, handle_http_exception)
    app.add_exception_handler(RequestValidationError, handle_validation_error)
