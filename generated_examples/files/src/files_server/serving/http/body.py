"""Limits of a request's body: its size, the cost of parsing it, and the wait for its next piece."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress

from fastapi import status
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import APIError, error_response

MAX_STRUCTURE = 1_000_000
"""Limit of `parse_cost` for a JSON body: parsing it blocks the event loop for at most 50 ms"""

SMALL = 64 * 1024
LARGE_BODIES = 16
"""JSON bodies are kept in memory. All those above SMALL together may take as much as LARGE_BODIES
of the largest size, so that large bodies that stall leave room for small ones.
"""

LINGER_SECONDS = 5.0
LINGER_SIZE = 8 * 1024 * 1024
"""Limits of reading on after an answer that came before the end of its request. A client that still
sends when its connection is closed may never see the answer.
"""

SLOW_SECONDS = 10.0
MIN_RATE = 500
"""Lowest average of bytes a second, after SLOW_SECONDS of waiting, the longest pause not counted.
(Apache's mod_reqtimeout has the same default.)
"""


def parse_cost(body: bytes) -> int:
    """Cost of parsing and validating, in commas: 20 for a member of an object, 5 for a list or an
    object. These characters count inside of strings too, as telling them apart needs a parser.
    """
    opened = body.count(b"[") + body.count(b"{")
    return 20 * body.count(b":") + 5 * opened + body.count(b",")


class BodyMiddleware:
    """Stops a body that is too large, too intricate or stalled while it arrives.

    FastAPI's own `max_body_size` answers in plain text, which OpenAI's clients cannot read.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        timeout_seconds: float,
        uploads: Mapping[str, int] | None = None,
    ) -> None:
        """
        Args:
            limit: of the bodies, in bytes.
            timeout_seconds: how long a client may send nothing before its body is complete.
            uploads: the paths with another limit, whose bodies are not parsed as JSON.
        """
        self.app = app
        self.limit = limit
        self.timeout_seconds = timeout_seconds
        self.uploads = uploads or {}
        self.held = 0
        """Bytes of the bodies that are not small"""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = Body(self, scope["path"], receive, send)
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "")
        encoding = headers.get("content-encoding", "identity").lower()
        body.is_text = "json" in headers.get("content-type", "")
        try:
            if encoding != "identity":
                await error_response(body.encoded(encoding))(scope, receive, body.send)
            elif announced.isdecimal() and int(announced) > body.limit:
                await error_response(body.too_large())(scope, receive, body.send)
            else:
                await self.app(scope, body.receive, body.send)
        finally:
            self.held -= body.held


class Body:
    """`receive` and `send` of one request."""

    def __init__(self, limits: BodyMiddleware, path: str, receive: Receive, send: Send) -> None:
        self.limit = limits.uploads.get(path, limits.limit)
        self.held = 0
        self._limits = limits
        self.is_json = path not in limits.uploads
        self.is_text = False
        self._receive, self._send = receive, send
        self._size = self._structure = 0
        self._waited = self._longest_wait = 0.0
        self._complete = self._refused = self._answered = False

    async def receive(self) -> Message:
        if self._complete:  # the next message is the client's disconnect, hours later at times
            return await self._receive()
        try:
            message = await self._wait_for_piece()
        except TimeoutError as error:
            if self._answered:
                return {"type": "http.disconnect"}
            raise APIError(
                status.HTTP_408_REQUEST_TIMEOUT,
                str(error),
                code="request_timeout",
                headers={"Connection": "close"},
            ) from None
        piece = message.get("body", b"")
        self._complete = not message.get("more_body", False)
        self._size += len(piece)
        if self._size > self.limit:
            raise self.too_large()
        if self.is_json:
            self._count(piece)
        return message

    async def _wait_for_piece(self) -> Message:
        """Raises TimeoutError, in one sentence, for a client that stalls or is too slow."""
        started = time.monotonic()
        silence = self._limits.timeout_seconds
        try:
            async with asyncio.timeout(silence):
                message = await self._receive()
        except TimeoutError:
            late = f"Nothing of the body has arrived for {silence:g} seconds."
            raise TimeoutError(late) from None
        wait = time.monotonic() - started
        self._waited += wait
        self._longest_wait = max(self._longest_wait, wait)
        slow = self._waited - self._longest_wait
        if message.get("more_body") and slow > SLOW_SECONDS and self._size < MIN_RATE * slow:
            raise TimeoutError(f"The body arrives with less than {MIN_RATE} bytes a second.")
        return message

    def _count(self, piece: bytes) -> None:
        if self.is_text and b"\0" in piece:  # as UTF-16 has, which Python's JSON would read
            raise self.refusal(
                "The body is not valid UTF-8 text: it has a NUL byte.",
                status.HTTP_400_BAD_REQUEST,
                "invalid_json",
            )
        self._structure += parse_cost(piece)
        if self._structure > MAX_STRUCTURE:
            raise self.refusal(
                "The request body has too many values. Send them in several requests."
            )
        if self._size > SMALL:
            self.held += len(piece)
            self._limits.held += len(piece)
            if self._limits.held > LARGE_BODIES * self._limits.limit:
                raise self.refusal(
                    "Too many large requests at once.",
                    status.HTTP_429_TOO_MANY_REQUESTS,
                    "overloaded",
                    {"Retry-After": "1"},
                )

    async def send(self, message: Message) -> None:
        self._answered = True
        if self._refused and not self._complete and is_last(message):
            await self._send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    await self._skip_rest()
            message = {"type": "http.response.body"}
        await self._send(message)

    async def _skip_rest(self) -> None:
        size, more = 0, True
        while more and size <= LINGER_SIZE:
            message = await self._receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)

    def encoded(self, encoding: str) -> APIError:
        return self.refusal(
            f"The Content-Encoding {encoding!r} is not read. Send the body as it is.",
            status.HTTP_415_UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            {"Accept-Encoding": "identity"},
        )

    def too_large(self) -> APIError:
        return self.refusal(f"The request body is too large. The limit is {self.limit} bytes.")

    def refusal(
        self,
        message: str,
        status_code: int = status.HTTP_413_CONTENT_TOO_LARGE,
        code: str = "content_too_large",
        headers: Mapping[str, str] | None = None,
    ) -> APIError:
        self._refused = True
        headers = {"Connection": "close", **(headers or {})}
        return APIError(status_code, message, code=code, headers=headers)


def is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)
