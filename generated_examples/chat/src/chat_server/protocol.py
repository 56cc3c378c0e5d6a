"""uvicorn's HTTP/1.1 with what it lacks: bounds on the head of a request, and the envelope around
what it says itself.

A client that never sends the end of its headers would keep its connection for ever, and whatever it
has sent of them in memory.
"""

import asyncio

from fastapi import status
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import APIError, error_response

HEAD_SECONDS = 10.0
HEAD_SIZE = 64 * 1024


class BoundedHeadProtocol(HttpToolsProtocol):
    """Closes a connection whose next head is too slow or too large."""

    _in_head = False
    _head_size = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head:
            self._head_size += len(data)
            if self._head_size > HEAD_SIZE:
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_size = True, 0
        self._start_timer()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        error = APIError(status.HTTP_400_BAD_REQUEST, msg, code="invalid_http")
        body = bytes(error_response(error).body)
        head = [
            "HTTP/1.1 400 Bad Request",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
