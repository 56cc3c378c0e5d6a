"""Bodies and heads that never end: clients that stall cost next to nothing."""

import json
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from .conftest import Server, wait_until

PATH = "/v1/embeddings"
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    connection.settimeout(30)
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


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
