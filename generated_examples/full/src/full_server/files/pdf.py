"""The pages of a PDF as PNG images."""

import asyncio
import io
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import pypdfium2

from .errors import InvalidPdf

PDFIUM_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pdfium")
"""Where every call of PDFium runs: it is not thread-safe, and there is one in a process."""

MAX_PIXELS = 50_000_000
"""Of one page. A page of 10 KB can ask for a canvas of any size."""

POINTS_PER_INCH = 72


def is_pdf(start: bytes) -> bool:
    """Readers accept up to 1,024 bytes of anything before the header."""
    return b"%PDF-" in start[:1024]


async def render_pages(file: BinaryIO, dpi: int, max_pages: int) -> AsyncGenerator[bytes]:
    """One PNG after the other; no more than one page is in memory. Raises InvalidPdf.

    PDFs take their turns page by page, so a thick one does not hold up the others.
    """
    loop = asyncio.get_running_loop()
    document = await loop.run_in_executor(PDFIUM_THREAD, open_checked, file, dpi, max_pages)
    try:
        for index in range(len(document)):
            yield await loop.run_in_executor(PDFIUM_THREAD, render_page, document, index, dpi)
    finally:
        # Queued behind a page that is still rendered for a client that has gone.
        await loop.run_in_executor(PDFIUM_THREAD, document.close)


def open_checked(file: BinaryIO, dpi: int, max_pages: int) -> pypdfium2.PdfDocument:
    """The document, once it is known that all its pages can be rendered."""
    try:
        document = pypdfium2.PdfDocument(file)
    except pypdfium2.PdfiumError as error:
        raise InvalidPdf("file: The PDF is broken or encrypted.") from error
    try:
        check_pages(document, dpi, max_pages)
    except BaseException:
        document.close()
        raise
    return document


def check_pages(document: pypdfium2.PdfDocument, dpi: int, max_pages: int) -> None:
    count = len(document)
    if not 1 <= count <= max_pages:
        raise InvalidPdf(f"file: The PDF has {count} pages. From 1 to {max_pages} can be rendered.")
    scale = dpi / POINTS_PER_INCH
    for index in range(count):
        try:
            width, height = document.get_page_size(index)
        except pypdfium2.PdfiumError as error:
            raise InvalidPdf(f"file: Page {index + 1} of the PDF is broken.") from error
        # However thin a page is, it gets a pixel: a line of a kilometre is a large image too.
        pixels = max(1.0, width * scale) * max(1.0, height * scale)
        if not pixels <= MAX_PIXELS:
            raise InvalidPdf(
                f"pdf_dpi: Page {index + 1} would have {pixels / 1e6:.0f} megapixels at {dpi} dpi. "
                f"The limit is {MAX_PIXELS / 1e6:.0f}.",
                param="pdf_dpi",
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
        raise InvalidPdf(f"file: Page {index + 1} of the PDF is broken.") from error
    image.save(png, "PNG", compress_level=1)  # a third larger than the default, and much faster
    return png.getvalue()
