"""PDF pages: rendered one by one, and nothing kept of what cannot be rendered."""

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pypdfium2
import pytest
from PIL import Image
from starlette.testclient import TestClient

from files_server.files.errors import InvalidPdf
from files_server.files.pdf import render_pages

from .uploads import ENCRYPTED_PDF, kept_in, pdf_of, upload


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def client(make_client: Callable[..., TestClient], folder: Path) -> Iterator[TestClient]:
    with make_client(files_url=folder.as_uri(), max_pdf_pages=3) as client:
        yield client


async def count_pages(pdf: bytes) -> int:
    async with aclosing(render_pages(io.BytesIO(pdf), 36, 10)) as pages:
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
        assert await count_pages(pdf_of((width, height))) == 1


@pytest.mark.anyio
async def test_many_at_a_time_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """PDFium is not thread-safe: the process may die of what two threads do at once."""
    pdfs = [pdf_of(*[(72, 72)] * count) for count in range(1, 9)]
    threads = set()
    open_document = pypdfium2.PdfDocument

    def open_and_note(file: io.BytesIO) -> Any:
        threads.add(threading.get_ident())
        return open_document(file)

    monkeypatch.setattr(pypdfium2, "PdfDocument", open_and_note)
    assert await asyncio.gather(*map(count_pages, pdfs)) == list(range(1, 9))
    assert len(threads) == 1
