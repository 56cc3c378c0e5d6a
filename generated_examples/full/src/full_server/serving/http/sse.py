"""Server-sent events: one event, and the response that sends them as they come.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from .errors import envelope_for, shutting_down

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
"""A comment: clients skip it, proxies see that the connection lives."""


LAST_EVENT_SECONDS = 1.0
"""Time to send the last event of a stream that is cut off: its client may have stopped reading"""


def event(data: BaseModel) -> bytes:
    """`data` as one event. Absent optional fields are left out, as OpenAI does."""
    return b"data: " + data.model_dump_json(exclude_none=True).encode() + b"\n\n"


def named_event(name: str, data: BaseModel) -> bytes:
    """`data` as one event with a name. Fields that were never set are left out; others may be null."""
    text = data.model_dump_json(exclude_unset=True, by_alias=True, serialize_as_any=True)
    return f"event: {name}\ndata: {text}\n\n".encode()


class EventStream(StreamingResponse):
    """A stream of events that proxies do not buffer, with a comment after each long silence.

    Errors that have a status of their own must be raised before this response is returned.

    FastAPI's `EventSourceResponse` serves routes that yield: an error before their first event is
    a 200 with an empty body, the heartbeat is fixed at 15 s, `[DONE]` is sent as a JSON string, and
    a stream that a shutdown cuts off ends without an event that says so.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes], resources: AsyncExitStack, heartbeat_seconds: float
    ) -> None:
        """`resources` is closed when the stream ends or the client goes away."""
        headers = {
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",  # nginx would collect the events
        }
        super().__init__(events, headers=headers)
        self.events = events
        self.resources = resources
        self.heartbeat_seconds = heartbeat_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["http_version"] == "1.1" and not wants_close(scope):
            self.headers["Connection"] = "keep-alive"
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            # Here and not in the generator: one that was never started runs no `finally`.
            async with self.resources, aclosing(self.events):
                await super().__call__(scope, receive, send_and_note)
        except asyncio.CancelledError:
            # Only the shutdown cancels requests. The client learns that its answer is not whole.
            if started:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LAST_EVENT_SECONDS):
                        await send_shutdown_event(send)
            raise

    async def stream_response(self, send: Send) -> None:
        if not self.heartbeat_seconds:
            await super().stream_response(send)
            return

        last_sent = time.monotonic()
        finished = False

        async def send_and_note(message: Message) -> None:
            nonlocal last_sent, finished
            finished = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)
            last_sent = time.monotonic()

        async def beat() -> None:
            while not finished:
                silence = time.monotonic() - last_sent
                if silence >= self.heartbeat_seconds:
                    await send_and_note(
                        {"type": "http.response.body", "body": PING, "more_body": True}
                    )
                    silence = 0.0
                await asyncio.sleep(self.heartbeat_seconds - silence)

        heartbeat = asyncio.create_task(beat())
        try:
            await super().stream_response(send_and_note)
        finally:
            heartbeat.cancel()
            with suppress(asyncio.CancelledError):
                await heartbeat


def wants_close(scope: Scope) -> bool:
    """True if the client asks for `Connection: close`, which the response must then repeat."""
    options = Headers(scope=scope).get("connection", "").lower().split(",")
    return "close" in map(str.strip, options)


async def send_shutdown_event(send: Send) -> None:
    error = event(envelope_for(shutting_down()))
    await send({"type": "http.response.body", "body": error, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
