"""/v1/files: upload, list, look up, download and delete; pages of PDFs as images."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Query, Request, UploadFile, status
from fastapi.responses import StreamingResponse
from obstore.exceptions import BaseError as StoreError
from openai.types import FileDeleted

from ..dependencies import DeadlineDep, FilesDep, SettingsDep
from ..schemas.files import File, FileList, UploadPurpose
from ..serving.files.file_errors import FileNotFound, InvalidPdf, PdfTimeout, TooManyPdfs
from ..serving.files.pdf import PdfRenderer, is_pdf
from ..serving.files.store import CHUNK_SIZE, FILE_ID, Download, StoredFile, os_error
from ..serving.http.disconnect import until_disconnect
from ..serving.http.errors import DISK_FULL, APIError, documented, insufficient_storage, no_room

logger = logging.getLogger(__name__)

FORM_OVERHEAD = 64 * 1024
"""Bytes that the body of an upload may have beyond the file: other fields, headers, boundaries"""

MAX_FILENAME = 255

ANY_BYTES = "application/octet-stream"

SPOOL_SIZE = 64 * 1024
"""Bytes of each upload that are in memory while it arrives; the rest is on the disk. With
Starlette's default of a megabyte, a few hundred stalled uploads would fill the memory."""


async def translate_errors() -> AsyncIterator[None]:
    """Gives the errors of files their status. The store and the renderer know nothing of HTTP."""
    try:
        yield
    except FileNotFound as error:
        raise APIError(
            status.HTTP_404_NOT_FOUND, str(error), param="file_id", code="file_not_found"
        ) from error
    except InvalidPdf as error:
        field = "pdf_dpi" if error.at_this_dpi else "file"
        raise APIError(
            status.HTTP_400_BAD_REQUEST, f"{field}: {error}", param=field, code="invalid_pdf"
        ) from error
    except PdfTimeout as error:
        raise timed_out(str(error)) from error
    except TooManyPdfs as error:
        raise APIError(
            status.HTTP_429_TOO_MANY_REQUESTS,
            "Too many PDFs wait to be rendered.",
            code="overloaded",
            headers={"Retry-After": "5"},
        ) from error
    except StoreError as error:
        raise store_failed(error) from error


def store_failed(error: StoreError) -> APIError:
    """507 for a full disk, else 503. The log has the store's own words, the answer has not."""
    logger.error("the file store failed", exc_info=error)
    if os_error(error) in DISK_FULL:
        return insufficient_storage()
    return APIError(
        status.HTTP_503_SERVICE_UNAVAILABLE,
        "The file store cannot be reached or does not work.",
        code="file_store_unavailable",
        headers={"Retry-After": "1"},
    )


router = APIRouter(prefix="/v1/files", tags=["files"], dependencies=[Depends(translate_errors)])


async def get_file(file_id: str, files: FilesDep) -> StoredFile:
    return await files.retrieve(file_id)


StoredFileDep = Annotated[StoredFile, Depends(get_file)]


def sent_as(media_type: str) -> dict[int | str, dict[str, Any]]:
    """The responses of a download, as the OpenAPI document describes them."""
    schema = {"type": "string", "format": "binary"}
    return {200: {"content": {media_type: {"schema": schema}}}, **documented(404)}


def as_file_object(file: StoredFile) -> File:
    return File(
        id=file.id,
        bytes=file.size,
        created_at=file.created_at,
        filename=file.filename,
        object="file",
        purpose=file.purpose,
        status="processed",
        page_count=file.page_count,
        expires_at=file.expires_at,
    )


@router.post(
    "",
    response_model_exclude_none=True,
    form_limits={"max_files": 1, "max_fields": 16},
    responses=documented(429, 504, 507),
)
async def upload_file(
    request: Request,
    files: FilesDep,
    settings: SettingsDep,
    deadline: DeadlineDep,
    file: UploadFile,
    purpose: Annotated[UploadPurpose, Form(description="Purpose of the file")],
    convert_pdf: bool = Form(default=False, description="Render the pages of a PDF as images"),
    pdf_dpi: int = Form(
        default=150, ge=36, le=300, description="Resolution of the pages in dots per inch"
    ),
    expires_anchor: Literal["created_at"] | None = Form(
        default=None,
        alias="expires_after[anchor]",
        description="Event at which the expiry time begins",
    ),
    expires_after: int | None = Form(
        default=None,
        alias="expires_after[seconds]",
        ge=3600,
        le=2_592_000,
        description="Seconds until the file expires",
    ),
) -> File:
    """Stores a file.

    - **file**: the file; at most INFER_MAX_UPLOAD_SIZE bytes
    - **purpose**: purpose of the file, as in OpenAI's API
    - **convert_pdf**: also render the pages, see `GET /v1/files/{file_id}/pages/{number}`
    - **pdf_dpi**: resolution of the rendered pages
    - **expires_after**: anchor `created_at` and seconds, from an hour to 30 days
    """
    if not file.filename or len(file.filename) > MAX_FILENAME:
        raise bad_field("file", f"needs a file name of 1 to {MAX_FILENAME} characters")
    if (expires_anchor is None) != (expires_after is None):
        raise bad_field("expires_after", "needs both anchor and seconds")
    # The middleware has bounded the body as a whole; this is the limit of the file in it.
    if file.size is None or file.size > settings.max_upload_size:
        raise APIError(
            status.HTTP_413_CONTENT_TOO_LARGE,
            f"The file is too large. The limit is {settings.max_upload_size} bytes.",
            param="file",
            code="content_too_large",
        )
    if convert_pdf and not is_pdf(await file.read(1024)):
        raise bad_field("convert_pdf", "the file is not a PDF")

    async with AsyncExitStack() as resources:
        pages = None
        if convert_pdf:
            move_to_disk(file)
            renderer: PdfRenderer = request.app.state.pdf_renderer
            pages = await resources.enter_async_context(renderer.render(file.file, pdf_dpi))
        work = files.save(
            upload_chunks(file),
            filename=file.filename,
            purpose=purpose,
            pages=pages,
            expires_after=expires_after,
        )
        try:
            async with asyncio.timeout_at(deadline.time):
                stored = await until_disconnect(request, work)
        except TimeoutError:
            message = f"It took longer than {deadline.seconds:g} s to keep the file."
            raise timed_out(message) from None
    return as_file_object(stored)


@router.get("", response_model_exclude_none=True)
async def list_files(
    files: FilesDep,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: Annotated[str | None, Query(pattern=f"^{FILE_ID.pattern}$")] = None,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> FileList:
    """Files by the time of their upload, newest first. `after` is the last id of the previous page;
    that file may have been deleted.
    """
    page, has_more = await files.list_files(limit=limit, after=after, order=order, purpose=purpose)
    return FileList(
        data=[as_file_object(file) for file in page],
        has_more=has_more,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
    )


@router.get("/{file_id}", response_model_exclude_none=True, responses=documented(404))
async def retrieve_file(file: StoredFileDep) -> File:
    """Metadata of a file."""
    return as_file_object(file)


@router.delete("/{file_id}", responses=documented(404))
async def delete_file(file_id: str, files: FilesDep) -> FileDeleted:
    """Deletes a file and its rendered pages."""
    await files.delete(file_id)
    return FileDeleted(id=file_id, deleted=True, object="file")


@router.get("/{file_id}/content", response_class=StreamingResponse, responses=sent_as(ANY_BYTES))
async def download_file(file: StoredFileDep, files: FilesDep) -> StreamingResponse:
    """The bytes of a file."""
    # Never the type that the client gave: a browser must not run the file as a page of this host.
    headers = {"Content-Disposition": attachment(file.filename)}
    return as_response(await files.content(file), ANY_BYTES, headers)


@router.get(
    "/{file_id}/pages/{number}", response_class=StreamingResponse, responses=sent_as("image/png")
)
async def download_page(file: StoredFileDep, number: int, files: FilesDep) -> StreamingResponse:
    """A page of a PDF as a PNG, the first is number 1. Needs an upload with `convert_pdf`."""
    return as_response(await files.page(file, number), "image/png", {})


def bad_field(param: str, message: str) -> APIError:
    return APIError(
        status.HTTP_400_BAD_REQUEST, f"{param}: {message}", param=param, code="invalid_value"
    )


def timed_out(message: str) -> APIError:
    return APIError(
        status.HTTP_504_GATEWAY_TIMEOUT,
        f"file: {message}",
        param="file",
        code="timeout",
        headers={"x-should-retry": "false"},  # it would take as long again
    )


def move_to_disk(file: UploadFile) -> None:
    """A small upload is in memory alone, where another process cannot read it."""
    try:
        file.file.fileno()
    except OSError as error:
        raise no_room(error) from None


async def upload_chunks(file: UploadFile) -> AsyncIterator[bytes]:
    await file.seek(0)
    while chunk := await file.read(CHUNK_SIZE):
        yield chunk


def attachment(filename: str) -> str:
    """A Content-Disposition that keeps the name's Unicode and drops its folders (RFC 6266)."""
    name = re.split(r"[/\\]", filename)[-1] or "file"
    ascii_name = re.sub(r"[^A-Za-z0-9 ._-]", "_", name)
    return f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(name, safe='')}"


def as_response(download: Download, media_type: str, headers: dict[str, Any]) -> StreamingResponse:
    headers |= {"Content-Length": str(download.size), "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(download.chunks, media_type=media_type, headers=headers)
