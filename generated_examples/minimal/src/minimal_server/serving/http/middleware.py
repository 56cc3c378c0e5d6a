"""The middleware around all routes, as plain ASGI.

Not `@app.middleware("http")`: it hides a client's disconnect from the routes, so work for clients
that are long gone would go on.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from fastapi import status
from fastapi.routing import iter_route_contexts
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import ALL_METHODS, CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from .api_keys import APIKeys
from .client import client_var
from .drain import Drain
from .errors import APIError, error_response, internal_error, shutting_down
from .http_metrics import CLIENT_CLOSED_REQUEST, METRICS_NAME, METRICS_PATH, HTTPMetrics
from .logs import STANDARD_FIELDS, request_id_var
from .page import PAGE_NAME, PAGE_PATH
from .token_usage import TokenUsage, token_usage_var
from .tracing import trace_var

if TYPE_CHECKING:
    from .otel import Tracer

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("access")

HEALTH_PATHS = ("/health", "/health/live", "/health/ready")
DOCS_PATHS = ("/docs", "/openapi.json")


def asks_for_health(scope: Scope) -> bool:
    """True for the health paths, which load balancers call without a key and during a shutdown."""
    path: str = scope["path"]
    return path.rstrip("/") in HEALTH_PATHS


def asks_for_metrics(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.rstrip("/") == METRICS_PATH


def asks_for_probe(scope: Scope) -> bool:
    """True for what the infrastructure asks for, by address and at any time."""
    return asks_for_health(scope) or asks_for_metrics(scope)


def asks_for_docs(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.rstrip("/") in DOCS_PATHS or path.startswith("/docs/")


def asks_for_route(scope: Scope, path: str, name: str) -> bool:
    """True where the route with this path and name answers, and not one of the owner's before it."""
    if scope["type"] != "http" or (scope["path"].rstrip("/") or "/") != path:
        return False
    found = (each.name for each in matches(scope, path) if each.match is Match.FULL)
    return next(found, None) == name


async def refuse(error: APIError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a request, or a WebSocket before it is accepted, with an error."""
    denial = "websocket.http.response" in scope.get("extensions", {})
    if scope["type"] == "websocket" and not denial:
        await send({"type": "websocket.close", "code": 1008, "reason": ""})  # a 403
        return
    await error_response(error)(scope, receive, send)


def status_of(message: Message) -> int | None:
    """The status that a message gives the answer, a WebSocket's included."""
    match message["type"]:
        case "http.response.start" | "websocket.http.response.start":
            return int(message["status"])
        case "websocket.accept":
            return status.HTTP_101_SWITCHING_PROTOCOLS
        case "websocket.close":
            return status.HTTP_403_FORBIDDEN
    return None


def announced_length(scope: Scope) -> int | None:
    """Bytes of the body that the head of the request announces."""
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() else None


def size_of(message: Message) -> int:
    """Bytes of the body, or of the WebSocket's message, in a message."""
    text = message.get("text") or ""
    return len(message.get("body") or message.get("bytes") or text.encode())


class RequestContextMiddleware:
    """Outermost: the request id, one access line, the metrics and the trace of the request."""

    VALID_ID = re.compile(r"[\x21-\x7e]{1,128}")

    def __init__(
        self,
        app: ASGIApp,
        metrics: HTTPMetrics,
        log_probes: bool = False,
        tracer: "Tracer | None" = None,
    ) -> None:
        """
        Args:
            log_probes: probes leave an access line too, and not only where they fail.
            tracer: records requests, except for probes.
        """
        self.app = app
        self.metrics = metrics
        self.log_probes = log_probes
        self.tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if self.VALID_ID.fullmatch(given) else uuid.uuid4().hex
        token = request_id_var.set(request_id)
        client_token = client_var.set("{}:{}".format(*(scope.get("client") or ("", ""))))
        usage = TokenUsage()
        usage_token = token_usage_var.set(usage)
        tracer = None if asks_for_probe(scope) else self.tracer
        trace = tracer.request(scope, request_id) if tracer else None
        trace_token = trace_var.set(trace)
        started = time.perf_counter()
        response_status: int | None = None
        sent = 0
        method = scope.get("method", "GET")  # of a WebSocket
        # A dictionary of this request: a host may share the state among requests.
        own_state = {"log_fields": {}, "token_usage": usage}
        state = scope["state"] = {**(scope.get("state") or {}), **own_state}

        async def send_with_id(message: Message) -> None:
            nonlocal response_status, sent
            if response_status is None and (response_status := status_of(message)):
                message.setdefault("headers", [])
                MutableHeaders(scope=message)["x-request-id"] = request_id
            sent += 0 if method == "HEAD" else size_of(message)  # the server drops that body
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            response_status = CLIENT_CLOSED_REQUEST
        finally:
            answered = response_status or CLIENT_CLOSED_REQUEST
            seconds = time.perf_counter() - started
            self.metrics.answered(
                handler=state.get("handler"),
                method=method,
                status=answered,
                seconds=seconds,
                request_bytes=announced_length(scope),
                response_bytes=sent,
                reason=state.get("error_code"),
            )
            if key_name := state.get("key_name"):
                self.metrics.answered_key(key_name, answered, usage)
            if answered >= 400 or self.log_probes or not asks_for_probe(scope):
                own = {k: v for k, v in state["log_fields"].items() if k not in STANDARD_FIELDS}
                access_logger.info(
                    "request",
                    extra={
                        **own,
                        "method": method,
                        "path": scope["path"],
                        "status": answered,
                        "duration_ms": round(seconds * 1000, 1),
                        "bytes": sent,
                        "client": scope["client"][0] if scope.get("client") else None,
                    },
                )
            if trace is not None:
                handler, reason = state.get("handler"), state.get("error_code")
                trace.end(handler=handler, status=answered, reason=reason)
            trace_var.reset(trace_token)
            client_var.reset(client_token)
            request_id_var.reset(token)
            token_usage_var.reset(usage_token)


class OriginMiddleware(CORSMiddleware):
    """CORS: which origins' pages may read answers. It is outside of all middleware that answers.

    Without credentials, which are cookies: a key is a header that the page itself sends.
    """

    EXPOSED = (
        *("Allow", "Content-Disposition", "Retry-After", "WWW-Authenticate", "X-Request-Id"),
        "X-Should-Retry",
        *(
            f"X-RateLimit-{figure}-{of}"
            for figure in ("Limit", "Remaining", "Reset")
            for of in ("Requests", "Tokens")
        ),
    )

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=ALL_METHODS,
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=self.EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        message = f"{bytes(response.body).decode()}. INFER_CORS_ORIGINS lists the allowed origins."
        kept = {
            name: value
            for name, value in response.headers.items()
            if name not in ("content-length", "content-type")
        }
        return error_response(APIError(400, message, code="cors_refused", headers=kept))


class ErrorMiddleware:
    """Logs exceptions that no handler has caught, and answers with a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except (ClientDisconnect, WebSocketDisconnect):
            if scope["type"] == "http":
                raise
        except Exception:
            logger.exception("unhandled error")
            if started:
                raise  # too late for a status: uvicorn closes the connection, the client notices
            await refuse(internal_error(request_id_var.get() or ""), scope, receive, send)


class TrustedHostMiddleware:
    """Refuses requests to hosts that are not listed, except for probes: these use addresses.

    It stops DNS rebinding: a page whose own name resolves to this address could read answers.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        """`hosts` are names; `*.example.com` stands for all below example.com."""
        self.app = app
        self.hosts = {host for host in hosts if not host.startswith("*.")}
        self.suffixes = tuple(host[1:] for host in hosts if host.startswith("*."))

    def trusts(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.hosts or bool(self.suffixes and name.endswith(self.suffixes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or asks_for_probe(scope):
            await self.app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        if self.trusts(host):
            await self.app(scope, receive, send)
            return
        message = f"The host {host[:64]!r} is not one that INFER_TRUSTED_HOSTS lists."
        refused = APIError(status.HTTP_400_BAD_REQUEST, message, code="untrusted_host")
        await refuse(refused, scope, receive, send)


class CrossSiteMiddleware:
    """Refuses requests that pages of other sites can send without a preflight: forms, WebSockets.

    For a service without keys, which any page in a browser of its network can reach.
    """

    NO_PREFLIGHT = ("", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
    """Types of bodies for which a browser sends no CORS preflight"""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self.app = app
        self.origins = origins

    def refuses(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or origin in self.origins:
            return False
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        is_read = scope.get("method") in ("GET", "HEAD", "OPTIONS")
        if is_read or (scope["type"] == "http" and media_type not in self.NO_PREFLIGHT):
            return False
        site = headers.get("sec-fetch-site")  # where it is missing, the page is not on HTTPS
        if site is not None:
            return site not in ("same-origin", "none")
        return urlsplit(origin).netloc != headers.get("host")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or not self.refuses(scope):
            await self.app(scope, receive, send)
            return
        message = "The page is of another site. INFER_CORS_ORIGINS lists those that may send this."
        refused = APIError(status.HTTP_403_FORBIDDEN, message, code="cross_site")
        await refuse(refused, scope, receive, send)


class RouteMiddleware:
    """Finds the route that is meant: with or without a slash at the end, and GET's for HEAD.

    Starlette redirects to an absolute URL instead, which is wrong behind a proxy that ends TLS.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            path, handler = route_of(scope)
            scope["state"]["handler"] = handler
            scope = {**scope, "path": path}
            if scope["type"] == "http" and scope["method"] == "HEAD":
                has_head = any(each.match is Match.FULL for each in matches(scope, scope["path"]))
                scope["method"] = "HEAD" if has_head else "GET"  # the server drops the body
        await self.app(scope, receive, send)


class RouteMatch(NamedTuple):
    """A route that has a path, with this method or another one."""

    match: Match
    path: str
    """The path of the route, with its parameters as names"""
    name: str
    mounted: bool
    """It is another app, and what is below its path is for that app to resolve."""


def matches(scope: Scope, path: str) -> Iterator[RouteMatch]:
    asked = {**scope, "path": path}
    for context in iter_route_contexts(scope["app"].routes):
        match, _ = context.matches(asked)
        if match is not Match.NONE:
            mounted = isinstance(context.route, Mount)
            name = getattr(context.route, "name", "")
            yield RouteMatch(match, context.path or "/", name, mounted)


def route_of(scope: Scope) -> tuple[str, str | None]:
    """The request's path as the route has it that is meant, and the path of that route.

    The request's own path and None if there is none.
    """
    path: str = scope["path"]
    bare = path.rstrip("/")
    for candidate in (bare, f"{bare}/") if bare else ("/",):
        mounted = None
        for found in matches(scope, candidate):
            if not found.mounted:
                return candidate, found.path
            mounted = found.path
        if mounted is not None:
            return path if path.startswith(candidate) else candidate, mounted
    return path, None


class DrainMiddleware:
    """Counts the requests in flight, and turns new ones away once the service is leaving."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or asks_for_probe(scope):
            await self.app(scope, receive, send)
            return
        if self.drain.draining:
            await refuse(shutting_down(), scope, receive, send)
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
            # The drain time is over. A request without a status yet gets one that is worth a retry;
            # a stream has sent its error event, and uvicorn closes the connection of a download.
            if not started:
                await refuse(shutting_down(), scope, receive, send)
            elif scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1012, "reason": "restart"})
        finally:
            self.drain.leave()


class APIKeyMiddleware:
    """Asks for `Authorization: Bearer KEY`, except where a load balancer asks for health.

    It leaves the name of the key in the state of the request, and in its access line.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: APIKeys,
        public_docs: bool = False,
        public_metrics: bool = False,
        public_page: bool = False,
    ) -> None:
        self.app = app
        self.keys = keys
        self.public_docs = public_docs
        self.public_metrics = public_metrics
        self.public_page = public_page

    def is_open(self, scope: Scope) -> bool:
        return (
            asks_for_health(scope)
            or (self.public_docs and asks_for_docs(scope))
            or (self.public_metrics and asks_for_route(scope, METRICS_PATH, METRICS_NAME))
            or (self.public_page and asks_for_route(scope, PAGE_PATH, PAGE_NAME))
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self.is_open(scope):
            await self.app(scope, receive, send)
            return
        name = self.keys.name_of(Headers(scope=scope).get("authorization", ""))
        if name is not None:
            scope["state"]["key_name"] = scope["state"]["log_fields"]["key_name"] = name
            client_var.set(name)
            await self.app(scope, receive, send)
            return
        refused = APIError(
            status.HTTP_401_UNAUTHORIZED,
            "Missing or wrong API key. Send it as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await refuse(refused, scope, receive, send)
