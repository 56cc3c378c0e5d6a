"""What every request passes, as plain ASGI.

Not `@app.middleware("http")`: it hides a client's disconnect from the routes, so work for clients
that are long gone would go on.
"""

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Sequence

from fastapi import status
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .drain import Drain
from .errors import APIError, error_response, internal_error, shutting_down
from .logs import request_id_var

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("access")

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for the access log: nobody was there to take the answer."""

HEALTH_PATHS = ("/health", "/health/live", "/health/ready")


def asks_for_health(scope: Scope) -> bool:
    """Whether a load balancer may be asking, which has no key and wants to know of a shutdown."""
    path: str = scope["path"]
    return path.rstrip("/") in HEALTH_PATHS


class RequestContextMiddleware:
    """Outermost: the request id, one access line, and a 500 for what nobody else has caught."""

    VALID_ID = re.compile(r"[\x21-\x7e]{1,128}")

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if self.VALID_ID.fullmatch(given) else uuid.uuid4().hex
        token = request_id_var.set(request_id)
        started = time.perf_counter()
        response_status: int | None = None
        sent = 0

        async def send_with_id(message: Message) -> None:
            nonlocal response_status, sent
            if message["type"] == "http.response.start":
                response_status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            response_status = CLIENT_CLOSED_REQUEST
        except Exception:
            logger.exception("unhandled error")
            if response_status is not None:
                raise  # too late for a status: uvicorn closes the connection, the client notices
            await error_response(internal_error(request_id))(scope, receive, send_with_id)
        finally:
            access_logger.info(
                "request",
                extra={
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": response_status or CLIENT_CLOSED_REQUEST,
                    "duration_ms": round((time.perf_counter() - started) * 1000, 1),
                    "bytes": sent,
                    "client": scope["client"][0] if scope.get("client") else None,
                },
            )
            request_id_var.reset(token)


class DrainMiddleware:
    """Counts the requests in flight, and turns new ones away once the service is leaving."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or asks_for_health(scope):
            await self.app(scope, receive, send)
            return
        if self.drain.draining:
            await error_response(shutting_down())(scope, receive, send)
            return
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        self.drain.enter()
        try:
            await self.app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            if not self.drain.draining:
                raise
            # The drain time is over. Who has not got a status yet gets one that is worth a retry;
            # a stream has said so in its last event, and of a download uvicorn cuts the connection.
            if not started:
                await error_response(shutting_down())(scope, receive, send)
        finally:
            self.drain.leave()


class APIKeyMiddleware:
    """Asks for `Authorization: Bearer KEY`, except where a load balancer asks for health."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self.keys = [key.encode() for key in keys]

    def accepts(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        # Every key is compared, each in constant time: the answer's timing tells nothing.
        matches = [hmac.compare_digest(given.strip().encode("latin-1"), key) for key in self.keys]
        return scheme.lower() == "bearer" and any(matches)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Browsers ask with OPTIONS, and never with a key, whether they may send one.
        if scope["type"] != "http" or asks_for_health(scope) or scope["method"] == "OPTIONS":
            await self.app(scope, receive, send)
            return
        if self.accepts(Headers(scope=scope).get("authorization", "")):
            await self.app(scope, receive, send)
            return
        refused = APIError(
            status.HTTP_401_UNAUTHORIZED,
            "Missing or wrong API key. Send it as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error_response(refused)(scope, receive, send)
