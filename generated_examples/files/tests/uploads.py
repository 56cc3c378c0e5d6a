"""Bodies of uploads, PDFs to put in them, and what is found on the disk afterwards."""

import io
from pathlib import Path
from typing import Any

import pypdfium2
from starlette.testclient import TestClient

MULTIPART_HEADERS = {"content-type": "multipart/form-data; boundary=x"}


def multipart(content: bytes, filename: str = "a.txt") -> bytes:
    """The body of an upload, for what no client library would send."""
    return (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s\r\n--x--\r\n'
    ) % (filename.encode(), content)


def upload(
    client: TestClient, content: bytes = b"hello", name: str = "a.txt", **fields: object
) -> Any:
    data = {"purpose": "user_data"} | {key: str(value) for key, value in fields.items()}
    return client.post("/v1/files", files={"file": (name, content)}, data=data)


def kept_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def pdf_of(*sizes: tuple[float, float]) -> bytes:
    """A PDF with empty pages of these sizes in points."""
    document = pypdfium2.PdfDocument.new()
    for width, height in sizes:
        document.new_page(width, height)
    file = io.BytesIO()
    document.save(file)
    document.close()
    return file.getvalue()


ENCRYPTED_PDF = f"""%PDF-1.4
1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj
2 0 obj <</Type /Pages /Kids [3 0 R] /Count 1>> endobj
3 0 obj <</Type /Page /Parent 2 0 R /MediaBox [0 0 72 72]>> endobj
4 0 obj <</Filter /Standard /V 1 /R 2 /P -4 /O <{"ab" * 32}> /U <{"cd" * 32}>>> endobj
trailer <</Root 1 0 R /Encrypt 4 0 R /ID [<00> <00>] /Size 5>>
%%EOF
""".encode()
