"""The program that renders one PDF: the file on its standard input, images on its standard output.

PDFium is C++ code that reads untrusted files, and a file decides how much time and memory it takes.
In a process of its own it can be limited and ended at any time, and a crash does no harm.
"""

import io
import json
import struct
import sys
from typing import BinaryIO

import pypdfium2

FRAME = struct.Struct(">cI")
"""Kind and size of what follows: a page (P), a refusal as JSON (R), or the end (E)"""

MEMORY = 2 * 1024**3
"""Bytes of address space"""

MAX_PIXELS = 50_000_000
"""Of one page. A page of 10 KB can ask for a canvas of any size."""

POINTS_PER_INCH = 72


class Refused(Exception):
    """The PDF cannot be rendered at all, or `at_this_dpi`."""

    def __init__(self, message: str, *, at_this_dpi: bool = False) -> None:
        super().__init__(message)
        self.at_this_dpi = at_this_dpi


def open_checked(file: BinaryIO, dpi: int, max_pages: int) -> pypdfium2.PdfDocument:
    """The document, once it is known that all its pages can be rendered."""
    try:
        document = pypdfium2.PdfDocument(file)
    except pypdfium2.PdfiumError as error:
        raise Refused("The PDF is broken or encrypted.") from error
    try:
        check_pages(document, dpi, max_pages)
    except BaseException:
        document.close()
        raise
    return document


def check_pages(document: pypdfium2.PdfDocument, dpi: int, max_pages: int) -> None:
    count = len(document)
    if not 1 <= count <= max_pages:
        raise Refused(f"The PDF has {count} pages. From 1 to {max_pages} can be rendered.")
    scale = dpi / POINTS_PER_INCH
    for index in range(count):
        try:
            width, height = document.get_page_size(index)
        except pypdfium2.PdfiumError as error:
            raise Refused(f"Page {index + 1} of the PDF is broken.") from error
        # A page has at least one pixel in each direction: one that is thin and long is large too.
        pixels = max(1.0, width * scale) * max(1.0, height * scale)
        if not pixels <= MAX_PIXELS:
            raise Refused(
                f"Page {index + 1} would have {pixels / 1e6:.0f} megapixels at {dpi} dpi. "
                f"The limit is {MAX_PIXELS / 1e6:.0f}.",
                at_this_dpi=True,
            )


def render_page(document: pypdfium2.PdfDocument, index: int, dpi: int) -> bytes:
    png = io.BytesIO()
    try:
        page = document[index]
        try:
            image = page.render(scale=dpi / POINTS_PER_INCH, rev_byteorder=True).to_pil()
        finally:
            page.close()
    except pypdfium2.PdfiumError as error:
        raise Refused(f"Page {index + 1} of the PDF is broken.") from error
    image.save(png, "PNG", compress_level=1)  # a third larger than the default, and much faster
    return png.getvalue()


def limit_rendering(cpu_seconds: int) -> None:
    """Bounds what this process may take, where the system can."""
    try:
        import os
        import resource
    except ImportError:  # Windows
        return
    os.nice(10)  # the models' threads come first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def send(kind: bytes, payload: bytes = b"") -> None:
    sys.stdout.buffer.write(FRAME.pack(kind, len(payload)) + payload)
    sys.stdout.buffer.flush()


def main() -> None:
    dpi, max_pages, cpu_seconds = map(int, sys.argv[1:])
    limit_rendering(cpu_seconds)
    try:
        document = open_checked(sys.stdin.buffer, dpi, max_pages)
        for index in range(len(document)):
            send(b"P", render_page(document, index, dpi))
        send(b"E")
    except Refused as refused:
        refusal = {"message": str(refused), "at_this_dpi": refused.at_this_dpi}
        send(b"R", json.dumps(refusal).encode())


if __name__ == "__main__":
    main()
