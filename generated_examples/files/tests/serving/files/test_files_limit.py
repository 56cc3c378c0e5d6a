"""Uploads that are too large or end too early: the limit acts while they arrive."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.datastructures import UploadFile
from starlette.testclient import TestClient

from files_server.serving.files.store import FileStore

from ...conftest import Server
from ...uploads import MULTIPART_HEADERS, kept_in, multipart, upload

pytestmark = pytest.mark.anyio

LIMIT = 300_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def client(make_client: Callable[..., TestClient], folder: Path) -> TestClient:
    return make_client(files_url=folder.as_uri(), max_upload_size=LIMIT)


class ChunkedUpload:
    """An upload without Content-Length, chunk by chunk as a server hands it to the service."""

    def __init__(self, body: bytes) -> None:
        chunks = [body[start : start + 65536] for start in range(0, len(body), 65536)]
        self.messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": chunk, "more_body": index < len(chunks) - 1}
            for index, chunk in enumerate(chunks)
        ]
        self.received = 0
        self.status: int | None = None
        self.received_before_the_status = 0

    async def receive(self) -> dict[str, Any]:
        if self.received == len(self.messages):
            await asyncio.Event().wait()
        self.received += 1
        return self.messages[self.received - 1]

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.received_before_the_status = self.received

    async def run(self, client: TestClient) -> None:
        app: Any = client.app
        async with app.router.lifespan_context(app) as state:
            scope = {
                "type": "http",
                "http_version": "1.1",
                "method": "POST",
                "path": "/v1/files",
                "query_string": b"",
                "headers": [(key.encode(), val.encode()) for key, val in MULTIPART_HEADERS.items()],
                "state": state,
            }
            await asyncio.wait_for(app(scope, self.receive, self.send), 10)


def test_the_limit_is_about_the_file_alone(client: TestClient, folder: Path) -> None:
    with client:
        assert upload(client, b"x" * LIMIT).status_code == 200
        answer = upload(client, b"x" * (LIMIT + 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "content_too_large"
    assert len(kept_in(folder)) == 2


def test_announced_body(client: TestClient, folder: Path) -> None:
    with client:
        answer = upload(client, b"x" * LIMIT * 2)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "content_too_large"
    assert kept_in(folder) == []


async def test_chunked_body_is_cut_off_while_it_arrives(client: TestClient, folder: Path) -> None:
    request = ChunkedUpload(multipart(b"x" * LIMIT * 10))
    await request.run(client)
    assert request.status == 413
    assert request.received_before_the_status < len(request.messages) / 5
    assert kept_in(folder) == []


async def test_chunked_body_within_the_limit(client: TestClient, folder: Path) -> None:
    request = ChunkedUpload(multipart(b"x" * LIMIT))
    await request.run(client)
    assert request.status == 200
    assert len(kept_in(folder)) == 2


async def test_client_gone_while_it_sends(client: TestClient, folder: Path) -> None:
    request = ChunkedUpload(multipart(b"x" * LIMIT))
    request.messages[2:] = [{"type": "http.disconnect"}]
    await request.run(client)
    assert request.status != 200
    assert kept_in(folder) == []


async def test_client_gone_while_it_waits(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = False

    async def save_for_ever(self: FileStore, *_: object, **__: object) -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    monkeypatch.setattr(FileStore, "save", save_for_ever)
    request = ChunkedUpload(multipart(b"hello"))
    request.messages.append({"type": "http.disconnect"})
    await request.run(client)
    assert request.status is None
    assert cancelled


def test_stalled_uploads_stay_out_of_memory(make_server: Callable[..., Server]) -> None:
    server = make_server()
    before = server.resident_bytes()
    half = multipart(b"x" * 1_800_000)[:900_000]
    lines = ["POST /v1/files HTTP/1.1", "Host: x", "Content-Length: 1800000"]
    lines += [f"{name}: {value}" for name, value in MULTIPART_HEADERS.items()]
    with ExitStack() as stalled:
        for _ in range(150):
            client = stalled.enter_context(socket.create_connection(server.address, timeout=60))
            client.sendall("\r\n".join([*lines, "", ""]).encode() + half)
        assert httpx2.get(f"{server.url}/v1/files").status_code == 200
        assert server.resident_bytes() - before < 100_000_000  # of 135 MB that have arrived


@pytest.mark.parametrize(
    ("problem", "status"),
    [(errno.EDQUOT, 507), (errno.EMFILE, 503), (errno.EIO, 503)],
)
def test_no_room_to_keep_an_upload_while_it_arrives(
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    problem: int,
    status: int,
) -> None:
    async def fail(*_: object) -> None:
        raise OSError(problem, os.strerror(problem))

    monkeypatch.setattr(UploadFile, "write", fail)
    with client:
        answer = upload(client, b"x" * 100_000)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == "insufficient_storage"
    assert os.strerror(problem) in caplog.text
