"""PDF pages: rendered one by one, and nothing kept of what cannot be rendered."""

import asyncio
import io
import signal
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile

import pypdfium2
import pytest
from PIL import Image
from starlette.testclient import TestClient

from full_server.serving.files import pdf
from full_server.serving.files.file_errors import InvalidPdf, TooManyPdfs
from full_server.serving.files.pdf import PROCESSES, PdfRenderer

from ...conftest import Server, wait_until
from ...uploads import ENCRYPTED_PDF, MULTIPART_HEADERS, kept_in, multipart, pdf_of, upload


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def client(make_client: Callable[..., TestClient], folder: Path) -> Iterator[TestClient]:
    with make_client(files_url=folder.as_uri(), max_pdf_pages=3) as client:
        yield client


async def count_pages(pdf: bytes, renderer: PdfRenderer) -> int:
    with TemporaryFile() as file:
        file.write(pdf)
        file.flush()
        async with renderer.render(file, 36) as pages:
            return len([page async for page in pages if page.startswith(b"\x89PNG")])


def test_pages(client: TestClient, folder: Path) -> None:
    pdf = pdf_of((72, 144), (144, 72))
    file = upload(client, pdf, "a.pdf", convert_pdf=True, pdf_dpi=100).json()
    assert file["page_count"] == 2
    assert client.get(f"/v1/files/{file['id']}").json() == file
    for number, size in ((1, (100, 200)), (2, (200, 100))):
        page = client.get(f"/v1/files/{file['id']}/pages/{number}")
        assert page.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(page.content)).size == size
    for number in (0, 3, -1):
        assert client.get(f"/v1/files/{file['id']}/pages/{number}").status_code == 404
    assert client.get(f"/v1/files/{file['id']}/content").content == pdf

    client.delete(f"/v1/files/{file['id']}")
    assert client.get(f"/v1/files/{file['id']}/pages/1").status_code == 404
    assert kept_in(folder) == []


def test_no_pages_unless_asked_for(client: TestClient) -> None:
    file = upload(client, pdf_of((72, 72)), "a.pdf").json()
    assert "page_count" not in file
    assert client.get(f"/v1/files/{file['id']}/pages/1").status_code == 404


@pytest.mark.parametrize(
    ("pdf", "param"),
    [
        (b"%PDF-1.7 and nothing of a PDF after it", "file"),
        (pdf_of((72, 72))[:100], "file"),
        (ENCRYPTED_PDF, "file"),
        (pdf_of(), "file"),
        (pdf_of(*[(72, 72)] * 4), "file"),
        (pdf_of((72, 72), (10_000, 10_000)), "pdf_dpi"),
        (pdf_of((1e9, 1e-9)), "pdf_dpi"),
    ],
    ids=["broken", "cut off", "encrypted", "no pages", "too many", "too large", "too long"],
)
def test_nothing_is_kept_of_what_cannot_be_rendered(
    client: TestClient, folder: Path, pdf: bytes, param: str
) -> None:
    answer = upload(client, pdf, "a.pdf", convert_pdf=True)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert kept_in(folder) == []


def test_encrypted_means_encrypted() -> None:
    with pytest.raises(pypdfium2.PdfiumError, match="password"):
        pypdfium2.PdfDocument(ENCRYPTED_PDF)


@pytest.mark.anyio
@pytest.mark.parametrize("width", [0, 1e-9, 0.4, 14_400, 1e9, 1e30])
@pytest.mark.parametrize("height", [-1, 1e-30, 1, 14_400])
async def test_odd_page_is_rendered_or_invalid(width: float, height: float) -> None:
    with suppress(InvalidPdf):
        assert await count_pages(pdf_of((width, height)), PdfRenderer(10, 60)) == 1


@pytest.mark.anyio
async def test_many_at_a_time() -> None:
    pdfs = [pdf_of(*[(72, 72)] * count) for count in range(1, 9)]
    renderer = PdfRenderer(10, 60)
    counts = await asyncio.gather(*(count_pages(pdf, renderer) for pdf in pdfs))
    assert counts == list(range(1, 9))


@pytest.mark.anyio
async def test_too_many_at_a_time() -> None:
    renderer = PdfRenderer(10, 60)
    pdfs = [pdf_of((72, 72))] * 15
    counts = await asyncio.gather(
        *(count_pages(pdf, renderer) for pdf in pdfs), return_exceptions=True
    )
    assert counts[:10] == [1] * 10
    assert all(isinstance(refusal, TooManyPdfs) for refusal in counts[10:])
    assert await count_pages(pdfs[0], renderer) == 1


def slow_pdf(operations: int) -> bytes:
    """A page of a few kilobytes that takes a minute and more to render."""
    content = zlib.compress(b"0 0 m 600 700 l 3 9 l S\n" * operations)
    return b"""%%PDF-1.4
1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj
2 0 obj <</Type /Pages /Kids [3 0 R] /Count 1>> endobj
3 0 obj <</Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R>> endobj
4 0 obj <</Filter /FlateDecode /Length %d>> stream
%s
endstream endobj
trailer <</Root 1 0 R /Size 5>>
%%%%EOF
""" % (len(content), content)


@pytest.mark.parametrize("limit", ["pdf_timeout_seconds", "request_timeout_seconds"])
def test_pdfs_that_take_too_long_are_a_504(
    make_client: Callable[..., TestClient], folder: Path, limit: str
) -> None:
    with (
        make_client(files_url=folder.as_uri(), **{limit: 1}) as client,
        ThreadPoolExecutor() as clients,
    ):
        started = time.monotonic()
        slow = [
            clients.submit(upload, client, slow_pdf(400_000), "a.pdf", convert_pdf=True)
            for _ in range(PROCESSES if limit == "pdf_timeout_seconds" else 2 * PROCESSES)
        ]
        for late in slow:
            assert late.result().status_code == 504
            assert late.result().json()["error"]["code"] == "timeout"
        assert time.monotonic() - started < 20
        assert kept_in(folder) == []
        assert upload(client, pdf_of((72, 72)), "a.pdf", convert_pdf=True).status_code == 200


@pytest.mark.parametrize("end", ["import os; os.abort()", "x = ' ' * 10**10", "1 / 0"])
def test_a_crash_is_the_file_s_fault(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    limit = "import sys, resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30));"
    monkeypatch.setattr(pdf, "PROGRAM", [sys.executable, "-c", limit + end])
    answer = upload(client, pdf_of((72, 72)), "a.pdf", convert_pdf=True)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_pdf"
    assert kept_in(folder) == []


def children(server: Server) -> list[Path]:
    """The processes that render for this service."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(server.process.pid):
                found.append(stat)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_leaving_waits_for_no_page(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server(drain_seconds=1, files_url=(tmp_path / "files").as_uri())
    body = output_format_of(slow_pdf(400_000))
    with socket.create_connection(server.address) as gone:
        gone.sendall(head_of(body) + body)
        wait_until(lambda: children(server))
    wait_until(lambda: not children(server), 10)  # the client has left

    with ExitStack() as connections:
        waiting = [
            connections.enter_context(socket.create_connection(server.address))
            for _ in range(PROCESSES + 1)
        ]
        for client in waiting:
            client.sendall(head_of(body) + body)
        renderers = wait_until(
            lambda: found if len(found := children(server)) == PROCESSES else None
        )
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert server.process.wait(20) == 0
        assert time.monotonic() - started < 4  # of which it drains for one
        for client in waiting:
            assert client.recv(100).startswith(b"HTTP/1.1 503")
    wait_until(lambda: not any(renderer.exists() for renderer in renderers), 10)


def output_format_of(pdf: bytes) -> bytes:
    field = b'--x\r\nContent-Disposition: form-data; name="convert_pdf"\r\n\r\ntrue\r\n'
    return field + multipart(pdf, "a.pdf")


def head_of(body: bytes) -> bytes:
    lines = ["POST /v1/files HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in MULTIPART_HEADERS.items()]
    return "\r\n".join([*lines, "", ""]).encode()
