"""The pages of a PDF as PNG images, rendered by `pdf_program` in a process of its own."""

import asyncio
import json
import logging
import math
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from .file_errors import InvalidPdf, PdfTimeout, TooManyPdfs
from .pdf_program import FRAME

logger = logging.getLogger(__name__)

PROGRAM = [sys.executable, "-P", str(Path(__file__).with_name("pdf_program.py"))]

PROCESSES = 2
"""PDFs that are rendered at the same time"""
MAX_WAITING = 8


def is_pdf(start: bytes) -> bool:
    """Readers accept up to 1,024 bytes of anything before the header."""
    return b"%PDF-" in start[:1024]


class PdfRenderer:
    """Renders a few PDFs at a time, each in a process with a time limit."""

    def __init__(self, max_pages: int, timeout_seconds: float) -> None:
        """timeout_seconds: for the pages of one PDF, and once more for its wait before them."""
        self._max_pages = max_pages
        self._timeout_seconds = timeout_seconds
        self._slots = asyncio.Semaphore(PROCESSES)
        self._pdfs = 0

    @asynccontextmanager
    async def render(self, file: BinaryIO, dpi: int) -> AsyncIterator[AsyncGenerator[bytes]]:
        """One PNG after the other; no more than one page is in memory.

        file: has a file descriptor, and stays where it is until the last page.

        Raises TooManyPdfs at once or after too long a wait. The pages raise InvalidPdf and
        PdfTimeout. Leaving the block ends the process.
        """
        if self._pdfs >= PROCESSES + MAX_WAITING:
            raise TooManyPdfs
        self._pdfs += 1
        try:
            async with aclosing(self._pages(file, dpi)) as pages:
                yield pages
        finally:
            self._pdfs -= 1

    async def _pages(self, file: BinaryIO, dpi: int) -> AsyncGenerator[bytes]:
        try:
            await asyncio.wait_for(self._slots.acquire(), self._timeout_seconds)
        except TimeoutError as error:
            raise TooManyPdfs from error
        try:
            async with aclosing(self._run(file, dpi)) as pages:
                async for page in pages:
                    yield page
        finally:
            self._slots.release()

    async def _run(self, file: BinaryIO, dpi: int) -> AsyncGenerator[bytes]:
        deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        file.seek(0)
        process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            str(dpi),
            str(self._max_pages),
            str(math.ceil(self._timeout_seconds) + 1),  # of processor, if this process dies
            stdin=file,
            stdout=PIPE,
            stderr=DEVNULL,
            start_new_session=True,  # Ctrl-C is for the service
        )
        try:
            while (page := await self._next_page(process, deadline)) is not None:
                yield page
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _next_page(self, process: Process, deadline: float) -> bytes | None:
        assert process.stdout is not None
        try:
            async with asyncio.timeout_at(deadline):
                kind, size = FRAME.unpack(await process.stdout.readexactly(FRAME.size))
                payload = await process.stdout.readexactly(size)
        except TimeoutError as error:
            raise PdfTimeout(
                f"The PDF takes longer than {self._timeout_seconds:g} s to render."
            ) from error
        except asyncio.IncompleteReadError as error:
            logger.warning("rendering a PDF ended with status %d", await process.wait())
            raise InvalidPdf("The PDF cannot be rendered.") from error
        if kind == b"R":
            raise InvalidPdf(**json.loads(payload))
        return payload if kind == b"P" else None
