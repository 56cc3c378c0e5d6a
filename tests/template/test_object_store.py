"""Uploads and batches in a bucket: replicas share them, and what is cut short leaves nothing.

Against moto's server, which speaks S3 over HTTP.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx2
import pytest

from tests.conftest import Boot, CopyRendering
from tests.server import Server

MIB = 2**20
PATH = "/v1/files"
BOUNDARY = "----parts"
HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
).encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an S3 server."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield found[0]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A new bucket, which the environment says how to reach."""
    environment = {
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    name = re.sub("[^a-z0-9]", "", tmp_path.name.lower())[-50:]
    return boto3.resource("s3").create_bucket(Bucket=name)


Replica = Callable[[], Server]


@pytest.fixture
def replicas(boot: Boot, bucket: Any, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Two services on one bucket."""
    settings = {"files_url": f"s3://{bucket.name}/uploads", "max_upload_size": 2**31}
    first = boot({"endpoints": ["files", "health"]}, **settings)
    with Server(tmp_path / "server", fresh=False, device="cpu", **settings) as second:
        yield first, second


def upload(
    server: Server, content: bytes, name: str = "a.bin", purpose: str = "user_data"
) -> dict[str, Any]:
    form = {"purpose": purpose}
    answer = httpx2.post(
        f"{server.url}/v1/files", data=form, files={"file": (name, content)}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def listed(server: Server, **params: Any) -> list[str]:
    page = httpx2.get(f"{server.url}/v1/files", params=params, timeout=60).json()
    return [file["id"] for file in page["data"]]


def begin_upload(server: Server, size: int, sent: int) -> socket.socket:
    """A connection on which a part of an upload has been sent."""
    host, port = server.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=60)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    client.sendall(head.encode() + HEAD)
    for _ in range(sent // MIB):
        client.sendall(bytes(MIB))
    return client


def uploads_under_way(bucket: Any) -> int:
    return len(list(bucket.multipart_uploads.all()))


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def memory(server: Server, field: str) -> int:
    """A figure of /proc/PID/status, in bytes."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def test_replicas_see_each_other_s_uploads(replicas: tuple[Server, Server], bucket: Any) -> None:
    first, second = replicas
    content = bytes(range(256)) * 50_000  # several parts
    file = upload(first, content)
    small = upload(second, b"small", "größe.txt")

    for server in replicas:
        assert listed(server) == [small["id"], file["id"]]
        assert listed(server, limit=1, after=small["id"]) == [file["id"]]
        url = f"{server.url}/v1/files/{file['id']}"
        assert httpx2.get(url).json() == file
        assert httpx2.get(f"{url}/content").content == content
    assert httpx2.delete(f"{second.url}/v1/files/{file['id']}").status_code == 200
    assert httpx2.get(f"{first.url}/v1/files/{file['id']}").status_code == 404
    assert listed(first) == [small["id"]]
    assert {each.key.split("/")[0] for each in bucket.objects.all()} == {"uploads"}
    assert len(list(bucket.objects.all())) == 2  # content and metadata of the small one


SAVE = """
import asyncio, sys
from tiny_server.serving.files.store import FileStore

async def chunks(ending):
    for _ in range(12):
        yield bytes(2**20)
    print("stored", flush=True)
    if ending == "fails":
        raise OSError("the disk")
    await asyncio.sleep(60)

async def main(url, ending):
    store = FileStore(url)
    saving = asyncio.create_task(store.save(chunks(ending), filename="a", purpose="user_data"))
    await asyncio.wait([saving], timeout=2)
    saving.cancel()
    await asyncio.wait([saving])
    print(type(saving.exception() if not saving.cancelled() else None).__name__)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("ending", ["fails", "is cancelled"])
def test_no_parts_stay_of_an_upload_that(
    ending: str, bucket: Any, tmp_path: Path, copy_rendering: CopyRendering
) -> None:
    answers = {"project_name": "tiny-server", "endpoints": ["files"]}
    copy_rendering(answers, tmp_path / "project")
    under_way: list[int] = []
    with subprocess.Popen(
        [sys.executable, "-c", SAVE, f"s3://{bucket.name}/x", ending],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "project" / "src")},
        stdout=subprocess.PIPE,
        text=True,
    ) as saving:
        assert saving.stdout is not None
        assert saving.stdout.readline() == "stored\n"
        under_way.append(uploads_under_way(bucket))
        said = saving.stdout.read().strip()
    assert said == ("OSError" if ending == "fails" else "NoneType")
    if ending == "is cancelled":
        assert under_way == [1]
    assert uploads_under_way(bucket) == 0
    assert list(bucket.objects.all()) == []


def test_an_upload_that_is_left_is_never_seen(replicas: tuple[Server, Server], bucket: Any) -> None:
    first, second = replicas
    with begin_upload(first, 40 * MIB, 30 * MIB):
        assert listed(second) == []
    wait_until(lambda: f"path={PATH}" in first.messages())  # its access line
    assert listed(first) == listed(second) == []
    assert uploads_under_way(bucket) == 0


def test_nothing_is_seen_of_an_upload_whose_replica_is_killed(
    replicas: tuple[Server, Server], bucket: Any
) -> None:
    killed, other = replicas
    with begin_upload(killed, 100 * MIB, 90 * MIB):
        killed.process.kill()
        killed.process.wait()
    assert listed(other) == []
    kept = upload(other, b"later")
    assert listed(other) == [kept["id"]]
    assert httpx2.get(f"{other.url}/v1/files/{kept['id']}/content").content == b"later"


def test_memory_stays_small(replicas: tuple[Server, Server]) -> None:
    server = replicas[0]
    upload(server, bytes(12 * MIB))  # what the first upload imports and keeps
    before = memory(server, "VmRSS")
    size = 192 * MIB
    with begin_upload(server, len(HEAD) + size + len(TAIL), size) as client:
        client.sendall(TAIL)
        answer = client.recv(65536)
    assert b" 200 OK" in answer.splitlines()[0], answer
    assert memory(server, "VmHWM") - before < 32 * MIB


def run_batch(server: Server, lines: int) -> dict[str, Any]:
    url = "/v1/embeddings"
    body = {"model": "tiny-embeddings", "input": "hello"}
    each = [
        json.dumps({"custom_id": f"{number}", "method": "POST", "url": url, "body": body})
        for number in range(lines)
    ]
    file = upload(server, "\n".join(each).encode(), purpose="batch")
    asked = {"input_file_id": file["id"], "endpoint": url, "completion_window": "24h"}
    answer = httpx2.post(f"{server.url}/v1/batches", json=asked, timeout=60)
    assert answer.status_code == 200, answer.text
    batch: dict[str, Any] = answer.json()
    return batch


def lines_answered(server: Server) -> int:
    metrics = httpx2.get(f"{server.url}/metrics").text
    found = re.findall(r'^infer_batches_lines_total\{result="completed"\} (\S+)', metrics, re.M)
    return int(float(found[0]))


def keys_of(bucket: Any) -> list[str]:
    return [each.key for each in bucket.objects.all()]


def test_replicas_share_batches(
    boot: Boot, bucket: Any, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    url = f"s3://{bucket.name}/batches"
    first = boot({"endpoints": ["embeddings", "files"]}, files_url=url)
    settings: Any = {"device": "cpu", "files_url": url, **tiny_models}
    with Server(tmp_path / "server", fresh=False, **settings) as second:
        batches = [run_batch(server, 10) for server in (first, second) * 3]
        for batch, other in zip(batches, (second, first) * 3, strict=True):
            look = f"{other.url}/v1/batches/{batch['id']}"
            wait_until(lambda: httpx2.get(look).json()["status"] == "completed", 60)  # noqa: B023
            output = httpx2.get(look).json()["output_file_id"]
            content = httpx2.get(f"{other.url}/v1/files/{output}/content").text
            ids = [json.loads(line)["custom_id"] for line in content.splitlines()]
            assert sorted(map(int, ids)) == list(range(10))
        assert lines_answered(first) + lines_answered(second) == 60
        wait_until(
            lambda: not [key for key in keys_of(bucket) if "/parts/" in key or "/open/" in key]
        )


def test_a_bucket_that_is_not_there_is_a_503(boot: Boot, bucket: Any) -> None:
    server = boot({"endpoints": ["files", "health"]}, files_url="s3://no-such-bucket/x")
    answer = httpx2.post(
        f"{server.url}/v1/files",
        data={"purpose": "user_data"},
        files={"file": ("a", b"a")},
        timeout=60,
    )
    assert answer.status_code in (500, 503), answer.text
    assert "no-such-bucket" not in answer.text
    assert set(answer.json()) == {"error"}
