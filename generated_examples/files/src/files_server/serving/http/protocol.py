"""uvicorn's HTTP/1.1 with limits that it lacks: bytes of a connection that are not part of a body,
bytes after an early answer, pipelined requests, and the number of connections. Its own error
responses get the envelope.

A client that never sends the end of its headers would keep its connection for ever, and whatever it
has sent of them in memory.
"""

import asyncio
import logging
import time
from http import HTTPStatus
from typing import Any

from fastapi import status
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .body import LINGER_SECONDS, LINGER_SIZE
from .errors import APIError, error_response
from .middleware import asks_for_probe

logger = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
HEAD_SIZE = 64 * 1024
"""Limit of a request's bytes that are not its body: the head, the framing of chunks, trailers"""

FRAMING = 8
"""Bytes of framing that are allowed for each byte of the body. A chunk of one byte has five."""

PIECE_SIZE = 16 * 1024
"""Bytes that are parsed before they are counted"""

MAX_PIPELINED = 16
"""Requests of a connection that wait for the one before them to be answered"""

SPARE_CONNECTIONS = 16
"""Connections beyond the limit on which a load balancer may still ask for health"""

SECONDS_BETWEEN_WARNINGS = 10.0


class ConnectionLimit:
    """Limit of the connections of one server, with a warning at most every few seconds."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._next_warning = 0.0

    def warn(self) -> None:
        now = time.monotonic()
        if now >= self._next_warning:
            self._next_warning = now + SECONDS_BETWEEN_WARNINGS
            logger.warning("more than %d connections: new ones are refused", self.most)


def connection_limit(wanted: int) -> ConnectionLimit:
    """`wanted` connections, or as many as the open files of this process allow.

    Without a free file descriptor, the event loop drops new connections without an answer or a
    line in the log, health checks included.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return ConnectionLimit(wanted)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return ConnectionLimit(wanted)
    return ConnectionLimit(min(wanted, files - min(128, 2 * files // 3)))


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose next head is too slow, or that sends too much beside its bodies."""

    _in_head = False
    _in_message = False
    _timer: asyncio.TimerHandle | None = None
    _overhead = 0
    """Bytes of the current request that are not its body, less what framing may take of them"""
    _body = 0
    """Bytes of the body in the piece that is being parsed"""
    _rest = 0
    """Bytes of the current request since it was answered"""
    _running: RequestResponseCycle | None = None
    """The request that is being answered; `cycle` is the one that came last"""

    def __init__(self, *args: Any, limit: ConnectionLimit, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limit = limit

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer(HEAD_SECONDS)
        excess = len(self.connections) - self._limit.most
        if excess > 0:
            self._limit.warn()
            self.app = health_only(self.app)
        if excess > SPARE_CONNECTIONS:
            self._refuse(too_many_connections())

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE_SIZE):
            self._parse(data[start : start + PIECE_SIZE])
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
        # uvicorn stops its idle timer at any data, and starts it again only after an answer.
        idle = self.cycle is not None and self.cycle.response_complete and not self._in_message
        if idle and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _parse(self, piece: bytes) -> None:
        self._body = 0
        self._rest += len(piece) if self._answered else 0
        self._overhead += len(piece)
        super().data_received(piece)
        self._overhead = max(0, self._overhead - (1 + FRAMING) * self._body)
        if self._overhead > HEAD_SIZE or self._rest > LINGER_SIZE:
            self.transport.close()

    @property
    def _answered(self) -> bool:
        """The current request has been answered before all of it has arrived."""
        in_body = self._in_message and not self._in_head
        return in_body and self.cycle is not None and self.cycle.response_complete

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._overhead = self._rest = 0
        self._start_timer(HEAD_SECONDS)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers are dropped: no route reads them, and uvicorn would keep them in memory.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        if self.transport.is_closing():  # no request after this one will be answered
            return
        super().on_headers_complete()
        if not self.pipeline:
            self._running = self.cycle
        elif len(self.pipeline) > MAX_PIPELINED:
            self.transport.close()
        else:
            self.flow.resume_reading()  # or the end of the connection would not be noticed

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        self._running = following
        if self._answered:
            self._start_timer(LINGER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        self._refuse(APIError(status.HTTP_400_BAD_REQUEST, msg, code="invalid_http"))

    def _refuse(self, error: APIError) -> None:
        """Sends an error that answers no request, and closes the connection."""
        response = error_response(error)
        response.headers["connection"] = "close"
        reason = HTTPStatus(response.status_code).phrase
        head = [f"HTTP/1.1 {response.status_code} {reason}".encode()]
        head += [name + b": " + value for name, value in response.raw_headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))
        self.transport.close()

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def health_only(app: ASGIApp) -> ASGIApp:
    """The app for connections beyond the limit: answers health, refuses everything else."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and asks_for_probe(scope):
            await app(scope, receive, send)
        else:
            await error_response(too_many_connections())(scope, receive, send)

    return answer


def too_many_connections() -> APIError:
    return APIError(
        status.HTTP_503_SERVICE_UNAVAILABLE,
        "Too many connections.",
        code="overloaded",
        headers={"Retry-After": "1", "Connection": "close"},
    )
