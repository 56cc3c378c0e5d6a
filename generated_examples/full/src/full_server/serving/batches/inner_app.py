"""Answers a request inside of the service, by the same routes as one that comes over HTTP.

The middleware is left out: it limits and logs clients, and none waits for the answer.
"""

import asyncio
import logging
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.datastructures import Headers
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Message

from ..http.client import client_var
from ..http.errors import envelope_for, internal_error
from ..http.logs import request_id_var
from ..http.token_usage import TokenUsage, token_usage_var

logger = logging.getLogger(__name__)


class InnerAnswer(NamedTuple):
    """The whole answer to a request."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    usage: TokenUsage


class InnerApp:
    """The routes of a service and the handlers of their errors."""

    def __init__(self, app: FastAPI) -> None:
        self._outer = app
        self._app: ASGIApp = ExceptionMiddleware(
            AsyncExitStackMiddleware(app.router), handlers=app.exception_handlers
        )

    async def post(self, path: str, body: bytes, key_name: str | None) -> InnerAnswer:
        """The answer to a JSON body. Cancelling this cancels the work of the request.

        It belongs into a task of its own, whose context it changes.
        """
        request_id = uuid.uuid4().hex
        request_id_var.set(request_id)
        usage = TokenUsage()
        token_usage_var.set(usage)
        client_var.set(f"batches of {key_name or 'all'}")
        exchange = Exchange(body)
        state: dict[str, Any] = {"log_fields": {}, "token_usage": usage, "handler": path}
        if key_name is not None:
            state["key_name"] = key_name
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "client": None,
            "server": None,
            "app": self._outer,
            "state": state,
        }
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            logger.exception("unhandled error")
            error = internal_error(request_id)
            content = envelope_for(error).model_dump_json().encode()
            return InnerAnswer(
                error.status_code, Headers(error.headers), content, request_id, usage
            )
        content = b"".join(exchange.parts)
        return InnerAnswer(exchange.status, exchange.headers, content, request_id, usage)


class Exchange:
    """`receive` and `send` of one request, whose client never leaves."""

    def __init__(self, body: bytes) -> None:
        self.status = 500
        self.headers = Headers()
        self.parts: list[bytes] = []
        self._body: bytes | None = body

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = Headers(raw=message["headers"])
        elif message["type"] == "http.response.body":
            self.parts.append(message.get("body", b""))
