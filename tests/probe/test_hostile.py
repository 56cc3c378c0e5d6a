"""`infer-scaffold probe` on servers that send anything, and without an end."""

import gzip
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from infer_scaffold.probe.sse import parse
from tests.hostile import run_bounded

Answer = Callable[[str, socket.socket], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server that reads the head of each request and does what `answer` says."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:

        def handle(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                head = b""
                while b"\r\n\r\n" not in head and (read := connection.recv(65536)):
                    head += read
                if head:  # Else the client has left before it asked.
                    answer(head.split(b" ", 2)[1].decode(), connection)
                    time.sleep(0.1)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=handle, args=[connection], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def reply(
    body: bytes, headers: str = "content-type: application/json\r\n", status: str = "200 OK"
) -> bytes:
    head = f"HTTP/1.1 {status}\r\n{headers}content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode("latin-1") + body


MODELS = reply(json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())
BOMB = b"".join([gzip.compress(bytes(1 << 20))] * 200)  # one after the other they are one body
OPEN = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def endless(
    connection: socket.socket, piece: bytes, pause: float = 0.0, head: bytes = OPEN
) -> None:
    connection.sendall(head)
    while True:
        connection.sendall(piece)
        time.sleep(pause)


BODIES: dict[str, Callable[[socket.socket], None]] = {
    "deep JSON": lambda c: c.sendall(reply(b'{"a":' * 200_000)),
    "deep JSON that ends": lambda c: c.sendall(reply(b"[" * 900 + b"]" * 900)),
    "deep objects": lambda c: c.sendall(reply(b'{"choices":' * 800 + b"1" + b"}" * 800)),
    "long number": lambda c: c.sendall(reply(b"9" * 100_000)),
    "endless body": lambda c: endless(c, b"a" * 65_536),
    "endless events": lambda c: endless(c, b'data: {"choices":[]}\n\n' * 1000),
    "endless event": lambda c: endless(c, b"data: " + b"x" * 65_536),
    "trickle": lambda c: endless(c, b"a", 0.5),
    "trickle of events": lambda c: endless(c, b"data: 1\n\n", 0.5),
    "slow head": lambda c: endless(c, b"x: y\r\n", 0.5, b"HTTP/1.1 200 OK\r\n"),
    "endless head": lambda c: endless(
        c, b"x: " + b"y" * 65_536 + b"\r\n", 0, b"HTTP/1.1 200 OK\r\n"
    ),
    "endless header": lambda c: endless(c, b"y" * 65_536, 0, b"HTTP/1.1 200 OK\r\nx: "),
    "silence": lambda c: time.sleep(30),
    "end": lambda c: None,
    "gzip bomb": lambda c: c.sendall(reply(BOMB, "content-encoding: gzip\r\n")),
    "odd text": lambda c: c.sendall(reply(b"\xff\xfe\x1b]0;pwned\x07\xc2\x9b2J")),
    "odd headers": lambda c: c.sendall(reply(b"{}", "content-type: \x1b[2J\xff\r\nx: \xe4\r\n")),
    "odd chunks": lambda c: c.sendall(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n"
    ),
    "endless chunk size": lambda c: endless(
        c, b"0" * 65_536, 0, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    ),
    "odd length": lambda c: c.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{}"),
    "cut": lambda c: c.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}"),
    "redirect to itself": lambda c: c.sendall(reply(b"", "location: /\r\n", "302 Found")),
    "redirect away": lambda c: c.sendall(reply(b"", "location: file:///\x1b\r\n", "307 T")),
    "no HTTP": lambda c: c.sendall(b"SSH-2.0-OpenSSH_9.2\x1b[2J\r\n"),
    "no status": lambda c: c.sendall(b"HTTP/1.1 9999 \x1b[2J\r\n\r\n"),
}


@pytest.mark.parametrize(
    ("body", "layout"),
    list(zip(BODIES.values(), itertools.cycle(["text", "junit"]), strict=False)),
    ids=BODIES,
)
def test_a_server_that_always_answers_so(
    body: Callable[[socket.socket], None], layout: str, tmp_path: Path
) -> None:
    with serving(lambda path, connection: body(connection)) as address:
        outcome = run_bounded(
            "probe", address, "--timeout", "1", "--max-seconds", "2", "--format", layout,
            "--select", "IS302,IS501,IS7", cwd=tmp_path, seconds=30,
        )  # fmt: skip

    _require_told(outcome.code, outcome.out, outcome.err, layout)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_chat_that_answers_so(body: Callable[[socket.socket], None], tmp_path: Path) -> None:
    def answer(path: str, connection: socket.socket) -> None:
        if path.endswith("/completions"):
            seen.append(path)
            if len(seen) > 1:  # The first one asks whether there is chat.
                return body(connection)
            return connection.sendall(reply(b'{"choices": []}'))
        return connection.sendall(MODELS)

    seen: list[str] = []
    with serving(answer) as address:
        outcome = run_bounded(
            "probe", address, "--timeout", "1", "--max-seconds", "4",
            "--select", "IS302,IS501", cwd=tmp_path, seconds=40,
        )  # fmt: skip

    assert outcome.code == 1
    _require_told(outcome.code, outcome.out, outcome.err, "text")


def _require_told(code: object, out: str, err: str, layout: str) -> None:
    assert code in (1, 3)
    assert err.count("\n") == (1 if code == 3 else 0)
    assert not set(out + err) & set("\x1b\x07\x9b")
    if layout == "junit":
        suite = ET.fromstring(out)  # noqa: S314
        assert int(suite.get("errors", 0)) >= (code == 3)
    elif code == 3:
        assert out == ""


@pytest.mark.parametrize("status", ["500 Oh", "429 Slow", "503 No"])
def test_chat_that_always_fails_is_no_absent_chat(status: str, tmp_path: Path) -> None:
    def answer(path: str, connection: socket.socket) -> None:
        failed = path.endswith("/completions")
        connection.sendall(reply(b"{}", status=status) if failed else MODELS)

    with serving(answer) as address:
        outcome = run_bounded("probe", address, "--select", "IS302,IS501", cwd=tmp_path)

    assert outcome.code == 1
    assert "not asked: no model answers chat requests" not in outcome.out


def test_an_end_for_all_of_it(tmp_path: Path) -> None:
    def answer(path: str, connection: socket.socket) -> None:
        time.sleep(0 if path in ("/", "/v1/models") else 0.5)
        connection.sendall(MODELS)

    started = time.monotonic()
    with serving(answer) as address:
        outcome = run_bounded("probe", address, "--max-seconds", "5", cwd=tmp_path)

    assert time.monotonic() - started < 25
    assert outcome.code == 1
    assert "no end within the 5 s of --max-seconds" in outcome.out
    assert "could not be asked: the 5 s of --max-seconds are over" in outcome.out


@pytest.mark.parametrize(
    ("address", "code"),
    [("http://a..b", 3), ("http://\x1b[2J/", 2), ("http://" + "a" * 70 + ".b", 3)],
)
def test_odd_addresses(address: str, code: int, tmp_path: Path) -> None:
    outcome = run_bounded("probe", address, cwd=tmp_path)

    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (code, "", 1)


def test_many_small_reads_take_no_time() -> None:
    reads = [(0.0, b"x")] * 300_000
    started = time.monotonic()

    events, rest = parse([(0.0, b"data: "), *reads, (1.0, b"\n"), (2.0, b"\ndata: \xe2\x80\xa8")])

    assert time.monotonic() - started < 10
    assert (len(events), events[0].at, rest) == (1, 2.0, b"data: \xe2\x80\xa8")
