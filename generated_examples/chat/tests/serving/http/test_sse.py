"""The stream itself: its headers, its heartbeat, and that it ends with its client."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pydantic import BaseModel, Field
from starlette.types import Message

from chat_server.serving.http.sse import PING, EventStream, event, named_event

pytestmark = pytest.mark.anyio


class Data(BaseModel):
    text: str
    absent: str | None = None


async def slow_events(closed: list[str], pause: float) -> AsyncGenerator[bytes]:
    try:
        for number in range(3):
            await asyncio.sleep(pause)
            yield event(Data(text=str(number)))
    finally:
        closed.append("events")


SCOPE: dict[str, Any] = {"type": "http", "http_version": "1.1", "headers": []}


async def run(
    response: EventStream, disconnect_after: float = 60, http_version: str = "1.1"
) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(disconnect_after)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await response(SCOPE | {"http_version": http_version}, receive, send)
    return sent


def stream(closed: list[str], *, pause: float = 0.0, heartbeat_seconds: float = 0.0) -> EventStream:
    resources = AsyncExitStack()
    resources.callback(closed.append, "resources")
    return EventStream(slow_events(closed, pause), resources, heartbeat_seconds)


def test_an_event_is_one_line_of_json() -> None:
    assert event(Data(text="a\nb")) == b'data: {"text":"a\\nb"}\n\n'


class Outer(BaseModel):
    kind: str = Field(alias="type")
    given: str | None = None
    absent: str | None = None
    inner: Data


class MoreData(Data):
    number: int


def test_an_event_with_a_name_has_what_was_set() -> None:
    """Null where it was set to None, and all fields of a subclass."""
    data = Outer(type="t", given=None, inner=MoreData(text="a\nb", number=1))
    expected = b'{"type":"t","given":null,"inner":{"text":"a\\nb","number":1}}'
    assert named_event("t", data) == b"event: t\ndata: " + expected + b"\n\n"


async def test_headers_and_framing() -> None:
    closed: list[str] = []
    start, *bodies = await run(stream(closed))
    headers = dict(start["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"x-accel-buffering"] == b"no"
    assert headers[b"connection"] == b"keep-alive"
    assert b"content-length" not in headers
    assert [body["body"] for body in bodies[:3]] == [event(Data(text=t)) for t in "012"]
    assert closed == ["events", "resources"]


async def test_http_2_has_no_connection_header() -> None:
    start, *_ = await run(stream([]), http_version="2")
    assert b"connection" not in dict(start["headers"])


async def test_heartbeat_fills_silences_only() -> None:
    bodies = [m.get("body") for m in await run(stream([], pause=0.1, heartbeat_seconds=0.04))]
    assert bodies.count(PING) >= 3
    assert bodies[-1] == b""
    bodies = [m.get("body") for m in await run(stream([], pause=0.01, heartbeat_seconds=1.0))]
    assert PING not in bodies


async def test_client_that_leaves_ends_the_work() -> None:
    closed: list[str] = []
    sent = await asyncio.wait_for(run(stream(closed, pause=30), disconnect_after=0.05), 5)
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert closed == ["events", "resources"]


async def test_resources_are_freed_even_if_nothing_was_ever_sent() -> None:
    closed: list[str] = []

    async def receive() -> Message:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def broken_send(message: Message) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await stream(closed)(SCOPE, receive, broken_send)
    assert closed == ["resources"]


async def cut_off(sent: list[Message], send_seconds: float = 0.0) -> None:
    """Runs a stream that the shutdown cancels after its first event."""

    async def receive() -> Message:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if len(sent) == 2:
            await asyncio.sleep(send_seconds)
        sent.append(message)

    response = stream([], pause=0.01)
    running = asyncio.create_task(response(SCOPE, receive, send))
    while len(sent) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_stream_that_is_cut_off_says_so_and_ends() -> None:
    sent: list[Message] = []
    await cut_off(sent)
    *_, last, end = sent
    assert json.loads(last["body"].removeprefix(b"data: "))["error"]["code"] == "shutting_down"
    assert end == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_client_that_stopped_reading_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chat_server.serving.http.sse.LAST_EVENT_SECONDS", 0.01)
    await asyncio.wait_for(cut_off([], send_seconds=60), 5)
