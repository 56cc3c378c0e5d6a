"""Memory of a large upload, and time of a long list: `python -m bench.uploads`.

A generated service keeps files in a folder, then in a bucket of moto's S3 server on the same
machine. Writes bench/results/uploads.md.
"""

import asyncio
import importlib
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
import httpx2
import obstore

from infer_scaffold.project import generate
from tests.server import Server

RESULTS = Path(__file__).parent / "results" / "uploads.md"
MIB = 2**20
SIZE = 1024 * MIB
GOAL_MIB, GOAL_MS = 32, 50
FILES, PAGE = 10_000, 100
AT_ONCE = 16
BOUNDARY = "----bench"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
    # moto puts the parts of a gigabyte together in more than obstore's 30 s on a busy machine.
    "AWS_TIMEOUT": "300s",
}


class Figures(NamedTuple):
    """The figures of one kind of store."""

    store: str
    upload_seconds: float
    growth_mib: float
    first: list[float]
    """Milliseconds of each page, when the list is read for the first time"""
    again: list[float]


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    log = folder / "s3.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield found[0]
    finally:
        process.kill()
        process.wait()


def memory(server: Server, field: str) -> float:
    """A figure of /proc/PID/status in MiB."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def upload(server: Server, size: int) -> None:
    """Sends zeros from a buffer of a mebibyte."""
    address = urlsplit(server.url)
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    ).encode()
    tail = f"\r\n--{BOUNDARY}--\r\n".encode()
    with socket.create_connection((address.hostname, address.port), timeout=600) as client:
        client.sendall(
            f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: {len(head) + size + len(tail)}"
            f"\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode()
        )
        client.sendall(head)
        for _ in range(size // MIB):
            client.sendall(bytes(MIB))
        client.sendall(tail)
        answer = client.recv(65536)
    assert b" 200 OK" in answer.splitlines()[0], server.messages()[-3000:]


def pages(server: Server) -> list[float]:
    """Milliseconds of each page of the list, which is read to its end."""
    times: list[float] = []
    found = 0
    params: dict[str, Any] = {"limit": PAGE}
    with httpx2.Client(base_url=server.url, timeout=600) as client:
        while True:
            started = time.perf_counter()
            page = client.get("/v1/files", params=params).json()
            times.append((time.perf_counter() - started) * 1000)
            found += len(page["data"])
            if not page["has_more"]:
                assert found >= FILES, found
                return times
            params["after"] = page["last_id"]


async def fill(module: Any, url: str) -> None:
    """Makes the metadata of the files: a list reads nothing else."""
    objects = module.FileStore(url).objects

    async def some(count: int) -> None:
        for _ in range(count):
            file = module.StoredFile(
                id=module.new_id(), size=1, created_at=0, filename="a.txt", purpose="user_data"
            )
            content = file.model_dump_json().encode()
            await obstore.put_async(objects, f"meta/{file.id}.json", content)

    await asyncio.gather(*(some(FILES // AT_ONCE) for _ in range(AT_ONCE)))


def measure(name: str, project: Path, url: str) -> Figures:
    settings: dict[str, Any] = {"files_url": url, "max_upload_size": 2 * SIZE, "device": "cpu"}
    with Server(project, **settings) as server:
        upload(server, 12 * MIB)  # what the first upload imports and keeps
        before = memory(server, "VmRSS")
        started = time.perf_counter()
        upload(server, SIZE)
        seconds = time.perf_counter() - started
        growth = memory(server, "VmHWM") - before
    asyncio.run(fill(importlib.import_module("measured.serving.files.store"), url))
    with Server(project, **settings) as server:
        time.sleep(SETTLE)
        first, again = pages(server), pages(server)
    return Figures(name, seconds, growth, first, again)


SETTLE = 5.0
"""Seconds between the start of a service and the first list: what it reads at its start"""


def row(figures: Figures) -> str:
    def ms(times: list[float]) -> str:
        return f"{statistics.median(times):.0f} / {max(times):.0f}"

    return (
        f"| {figures.store} | {figures.growth_mib:.1f} | {figures.upload_seconds:.1f} |"
        f" {ms(figures.first)} | {ms(figures.again)} |"
    )


def main() -> None:
    os.environ |= ENVIRONMENT
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        project = folder / "measured"
        generate.render({"project_name": "measured", "endpoints": ["files", "health"]}, project)
        sys.path.insert(0, str(project / "src"))
        rows = [row(measure("folder", project, (folder / "files").as_uri()))]
        with s3_server(folder) as endpoint:
            os.environ["AWS_ENDPOINT_URL"] = endpoint
            boto3.resource("s3").create_bucket(Bucket="bench")
            rows.append(row(measure("bucket", project, "s3://bench/files")))
    text = "\n".join(
        [
            "# Large uploads and long lists",
            "",
            f"An upload of {SIZE // MIB} MiB: growth of the resident memory of the server at its"
            f" highest, in MiB (the goal is {GOAL_MIB}). {FILES:,} files, listed {PAGE} at a time:"
            f" median and longest time of a page in milliseconds (the goal is {GOAL_MS}), when a"
            f" service that has just started lists them, and again. The bucket is that of moto's"
            f" server, which is written in Python. Python {platform.python_version()},"
            f" {os.cpu_count()} processors, load average {load:.1f} at the start.",
            "",
            "| store | memory | seconds | first list | second list |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )
    RESULTS.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
