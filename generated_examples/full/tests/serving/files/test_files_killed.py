"""A service that is killed in the middle of an upload."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from ...conftest import Server, wait_until
from ...uploads import MULTIPART_HEADERS, kept_in, multipart

SIZE = 30_000_000
DAY = 86400


@pytest.mark.parametrize("share", [0.9, 1.0], ids=["while it arrives", "while it is stored"])
def test_nothing_is_seen_of_an_upload_that_was_cut_short(
    make_server: Callable[..., Server], tmp_path: Path, share: float
) -> None:
    folder = tmp_path / "files"
    server = make_server(files_url=folder.as_uri())
    body = multipart(b"x" * SIZE)
    lines = ["POST /v1/files HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in MULTIPART_HEADERS.items()]
    with socket.create_connection(server.address, timeout=60) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        client.sendall(body[: int(len(body) * share)])
        if share == 1.0:
            wait_until(lambda: kept_in(folder))
        server.process.kill()
        server.process.wait()
    for name in kept_in(folder):
        old = (folder / name).stat().st_mtime - 2 * DAY
        os.utime(folder / name, (old, old))

    server = make_server(files_url=folder.as_uri())
    files = httpx2.get(f"{server.url}/v1/files").json()["data"]
    if share == 1.0 and files:  # the kill came too late
        assert [file["bytes"] for file in files] == [SIZE]
        return
    assert files == []
    wait_until(lambda: not kept_in(folder))
