"""Bodies and heads that never end: clients that stall cost next to nothing."""

import json
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from embeddings_server.serving.http import body
from embeddings_server.serving.http.body import BodyMiddleware
from embeddings_server.serving.http.errors import APIError
from embeddings_server.serving.http.protocol import (
    MAX_PIPELINED,
    SPARE_CONNECTIONS,
    connection_limit,
)

from ...conftest import Server, wait_until

PATH = "/v1/embeddings"
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    connection.settimeout(30)
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def status_of(connection: socket.socket) -> int:
    """Status of the next answer, which is read to its end and no further."""
    with HTTPResponse(connection) as answer:
        answer.begin()
        answer.read()
        return answer.status


def test_a_stalled_body_is_a_408(make_server: Callable[..., Any]) -> None:
    server = make_server(body_timeout_seconds=0.5)
    before = server.resident_bytes()
    stalled = [socket.create_connection(server.address) for _ in range(200)]
    for connection in stalled:
        connection.sendall(f'{HEAD}Content-Length: 99\r\n\r\n{{"model": "'.encode())
    assert httpx2.get(f"{server.url}/v1/models").status_code == 200
    assert server.resident_bytes() - before < 15_000_000
    for connection in stalled:
        head, _, body = answer_of(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408")
        assert json.loads(body)["error"]["code"] == "request_timeout"
        connection.close()


def test_what_is_no_http_is_a_400(narrow_server: Server) -> None:
    with socket.create_connection(narrow_server.address) as connection:
        connection.sendall(f"{HEAD}Content-Length: -1\r\n\r\n".encode())
        head, _, body = answer_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_a_head_that_never_ends_is_cut_off(make_server: Callable[..., Any]) -> None:
    server = make_server()
    with socket.create_connection(server.address) as connection:
        with suppress(ConnectionError):
            connection.sendall(f"{HEAD}X-Filler: {'a' * 500_000}".encode())
            answer_of(connection)  # a TimeoutError where the server waits for more
        assert httpx2.get(f"{server.url}/v1/models").status_code == 200


@pytest.fixture(scope="module")
def guarded_server(start: Callable[..., Server]) -> Server:
    return start(api_keys="sk-one")


ANSWERED = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n"
"""A request that can be answered, for want of a key, before its end"""


MODELS = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"

END = "0\r\n\r\n"


def seconds_of_an_answer(server: Server) -> float:
    started = time.monotonic()
    assert httpx2.get(f"{server.url}/v1/models").status_code in (200, 401)
    return time.monotonic() - started


@pytest.mark.parametrize(
    ("opening", "piece", "most"),
    [
        ("0\r\n", "X-A: " + "b" * 80 + "\r\n", 1_000_000),
        ("0\r\n", "a:\r\n", 1_000_000),
        ("0\r\nX: ", "a" * 1000, 1_000_000),
        ("0\r\n", "a" * 1000, 1_000_000),
        ("1;", "a" * 1000, 1_000_000),
        ("", "1;ext=" + "a" * 100 + "\r\nx\r\n", 1_000_000),
        ("", "0", 1_000_000),
        ("", "10000\r\n" + "x" * 65536 + "\r\n", 20_000_000),
        (END, "\r\n", 1_000_000),
        (END, MODELS.decode(), 1_000_000),
        (END + "GET /v1/models HTTP/1.1\r\n", "a:\r\n", 1_000_000),
    ],
    ids=[
        "trailers",
        "small trailers",
        "one trailer's value",
        "one trailer's name",
        "one extension",
        "extensions",
        "a size in zeros",
        "body after the answer",
        "blank lines",
        "requests",
        "headers",
    ],
)
@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
@pytest.mark.parametrize("refused", [False, True], ids=["open", "refused"])
def test_what_is_no_body_is_cut_off(
    narrow_server: Server,
    guarded_server: Server,
    refused: bool,
    kept: bool,
    opening: str,
    piece: str,
    most: int,
) -> None:
    server = guarded_server if refused else narrow_server
    before = server.resident_bytes()
    pieces = piece.encode() * (65536 // len(piece) + 1)
    sent, slowest, largest = 0, 0.0, 0
    with socket.create_connection(server.address, timeout=30) as connection:
        if kept:
            connection.sendall(MODELS)
            assert status_of(connection) == (401 if refused else 200)
        connection.sendall((ANSWERED + opening).encode())
        with suppress(ConnectionError):
            while sent < most + 40_000_000:
                for _ in range(16):
                    connection.sendall(pieces)
                    sent += len(pieces)
                slowest = max(slowest, seconds_of_an_answer(server))
                largest = max(largest, server.resident_bytes())
    # Buffers of the kernel on both sides take bytes that the server has not read.
    assert sent < most + 10_000_000
    assert max(largest, server.resident_bytes()) - before < 20_000_000
    assert max(slowest, seconds_of_an_answer(server)) < 5


def test_a_few_requests_at_once_are_answered_in_turn(narrow_server: Server) -> None:
    paths = [f"/v1/models/{number}" for number in range(MAX_PIPELINED)]
    requests = [f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths]
    with socket.create_connection(narrow_server.address, timeout=30) as connection:
        connection.sendall("".join(requests).encode())
        received = b""
        while received.count(b"HTTP/1.1 404") < MAX_PIPELINED or not received.endswith(b"}"):
            received += connection.recv(65536)
    named = re.findall(rb"model '(\d+)'", received)
    assert [int(number) for number in named] == list(range(MAX_PIPELINED))


def test_small_chunks_are_a_body(narrow_server: Server) -> None:
    chunks = "".join(f"1\r\n{character}\r\n" for character in " " * 30_000 + "[]")
    with socket.create_connection(narrow_server.address, timeout=30) as connection:
        connection.sendall(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n".encode())
        assert status_of(connection) == 400
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status_of(connection) == 200


async def read_in_pieces(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> int:
    """The bytes that the service reads of a body that comes byte by byte, with these waits.

    The waits are those of a clock of its own, as a busy machine adds to any real one.
    """
    size = 0
    now = 0.0
    left = iter(waits)
    monkeypatch.setattr(body, "time", SimpleNamespace(monotonic=lambda: now))

    async def receive() -> dict[str, Any]:
        nonlocal now
        now += next(left)
        return {"type": "http.request", "body": b" ", "more_body": size < len(waits) - 1}

    async def read(scope: Any, receive: Any, send: Any) -> None:
        nonlocal size
        while (await receive())["more_body"]:
            size += 1

    middleware = BodyMiddleware(read, limit=1000, timeout_seconds=60)
    await middleware({"type": "http", "path": "/", "headers": []}, receive, lambda _: None)  # type: ignore[arg-type, return-value]
    return size


@pytest.mark.anyio
async def test_a_slow_body_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(APIError, match="bytes a second") as error:
        await read_in_pieces([2.5] * 100, monkeypatch)
    assert error.value.status_code == 408
    assert await read_in_pieces([0.05] * 100, monkeypatch) == 99
    assert await read_in_pieces([0.05] * 50 + [25] + [0.05] * 49, monkeypatch) == 99


def test_connections_beyond_the_limit(make_server: Callable[..., Server]) -> None:
    server = make_server(max_connections=3)
    with ExitStack() as idle:
        for _ in range(3):
            idle.enter_context(socket.create_connection(server.address))
        wait_until(lambda: httpx2.get(f"{server.url}/v1/models").status_code == 503)
        refused = httpx2.get(f"{server.url}/v1/models")
        assert refused.json()["error"]["code"] == "overloaded"
        assert refused.headers["retry-after"] == "1"
        assert httpx2.get(f"{server.url}/health/live").status_code == 200
        for _ in range(SPARE_CONNECTIONS):
            idle.enter_context(socket.create_connection(server.address))
        with socket.create_connection(server.address) as none_left:
            assert answer_of(none_left).startswith(b"HTTP/1.1 503 Service Unavailable")
    wait_until(lambda: httpx2.get(f"{server.url}/v1/models").status_code == 200)
    assert server.log.read_text().count("more than 3 connections") == 1


@pytest.mark.parametrize(("files", "most"), [(1_048_576, 1000), (1024, 896), (64, 22), (-1, 1000)])
def test_fewer_connections_than_open_files(
    monkeypatch: pytest.MonkeyPatch, files: int, most: int
) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert connection_limit(1000).most == most


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_what_still_drains(
    make_server: Callable[..., Server], second: signal.Signals
) -> None:
    server = make_server(drain_seconds=60)
    with socket.create_connection(server.address) as stalled:
        stalled.sendall(f"{HEAD}Content-Length: 99\r\n\r\n".encode())
        assert httpx2.get(f"{server.url}/v1/models").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining: 1 requests in flight" in server.log.read_text())
        server.process.send_signal(second)
        assert server.process.wait(10) == -second
