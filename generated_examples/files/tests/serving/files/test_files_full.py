"""Uploads to disks without room, as the service meets them: real limits, real mounts."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ...conftest import Server
from ...uploads import kept_in, pdf_of

resource = pytest.importorskip("resource")

MEMORY = 64 * 1024
"""Bytes of an upload that are in memory; what is larger is spooled to the disk"""


def upload(server: Server, content: bytes, **fields: str) -> httpx2.Response:
    return httpx2.post(
        f"{server.url}/v1/files",
        files={"file": ("a.pdf", content)},
        data={"purpose": "user_data", **fields},
        timeout=60,
    )


def assert_full(response: httpx2.Response) -> None:
    assert response.status_code == 507
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("server_error", "insufficient_storage")
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process")
def test_files_beyond_the_limit_of_the_system(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    server = make_server(files_url=folder.as_uri())
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
    pdf = pdf_of((72, 72)) + bytes(MEMORY - 5000)

    in_store = upload(server, bytes(MEMORY - 1000))
    in_spool = upload(server, bytes(MEMORY * 3))
    in_spool_of_pdf = upload(server, pdf, convert_pdf="true")

    for response in (in_store, in_spool, in_spool_of_pdf):
        assert_full(response)
    log = server.log.read_text()
    assert log.count(" ERROR ") == 3
    assert log.count("File too large (os error 27)") == 1
    assert log.count("[Errno 27] File too large") == 2
    assert kept_in(folder) == []
    assert upload(server, b"small").status_code == 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("place", ["store", "spool"])
def test_a_full_disk(
    make_server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    small_disk: Path,
    place: str,
) -> None:
    if place == "spool":
        monkeypatch.setenv("TMPDIR", str(small_disk))
    folder = (small_disk if place == "store" else tmp_path) / "files"
    server = make_server(files_url=folder.as_uri())

    assert_full(upload(server, bytes(3_000_000)))

    log = server.log.read_text()
    assert log.count(" ERROR ") == 1
    assert "No space left on device" in log
    assert kept_in(folder) == kept_in(small_disk) == []
    assert upload(server, bytes(100_000)).status_code == 200
    server.process.kill()
    server.process.wait()
