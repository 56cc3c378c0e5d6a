"""The store of uploaded files: a folder, a bucket or memory, through obstore.

A file is `content/{id}`, its rendered pages `pages/{id}/{number}.png`, and `meta/{id}.json`, which
makes it visible: written last and deleted first, so whatever is cut short leaves nothing that a
client could see. `sweep` clears away what it left. Nothing is kept between the calls, so any number
of processes can share one store.
"""

import asyncio
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url
from pydantic import BaseModel, ValidationError

from .file_errors import FileNotFound

logger = logging.getLogger(__name__)

FILE_ID = re.compile(r"file-[0-9a-f]{32}")

CHUNK_SIZE = 1024 * 1024
CONCURRENT_READS = 32
PARTS_IN_FLIGHT = 2
"""Of 5 MiB each: what an upload holds in memory."""


class StoredFile(BaseModel):
    """Metadata of a stored file."""

    id: str
    size: int
    created_at: int
    filename: str
    """As the client called it. It never becomes part of a path."""
    purpose: str
    page_count: int | None = None
    expires_at: int | None = None
    """Seconds since the epoch; from then on the file is gone"""

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= time.time()


@dataclass(frozen=True)
class Download:
    """The bytes of an object while they are read from the store."""

    size: int
    chunks: AsyncIterator[bytes]


def new_id() -> str:
    """An id that cannot be guessed. Ids sort by time, so that a list is sorted without metadata."""
    return f"file-{time.time_ns():016x}{secrets.token_hex(8)}"


def local_folder(url: str) -> Path | None:
    """The folder that a `file:` URL means, `file:./relative` included; None for other URLs."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise ValueError(f"{url} is no folder. Write file:///absolute/path or file:./relative/path")
    return Path(unquote(parts.path)).absolute()


class FileStore:
    """Raises FileNotFound, and obstore's errors when the store itself does not work."""

    def __init__(self, url: str) -> None:
        """`url` is `file:///…`, `file:./…`, `s3://bucket/…`, `memory://`, … The folder is made."""
        self.folder = local_folder(url)
        self.objects: ObjectStore
        if self.folder:
            self.objects = LocalStore(self.folder, mkdir=True, automatic_cleanup=True)
        else:
            self.objects = from_url(url)

    async def save(
        self,
        chunks: AsyncIterator[bytes],
        *,
        filename: str,
        purpose: str,
        pages: AsyncIterator[bytes] | None = None,
        expires_after: int | None = None,
    ) -> StoredFile:
        """Keeps a file and the images of its pages, all of it or nothing.

        The file is gone `expires_after` seconds later, if that is given.
        """
        file_id = new_id()
        created = int(time.time())
        file = StoredFile(
            id=file_id,
            size=0,
            created_at=created,
            filename=filename,
            purpose=purpose,
            expires_at=created + expires_after if expires_after is not None else None,
        )

        async def counted() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                file.size += len(chunk)
                yield chunk

        try:
            await self._put_parts(f"content/{file_id}", counted())
            if pages is not None:
                file.page_count = 0
                async for png in pages:
                    file.page_count += 1
                    await obstore.put_async(self.objects, page_path(file_id, file.page_count), png)
        except BaseException:
            await self._delete_content(file_id)
            raise
        # From here on the file may be visible, even if this is cancelled or the answer gets lost.
        try:
            meta = file.model_dump_json().encode()
            await obstore.put_async(self.objects, meta_path(file_id), meta)
        except BaseError:
            await self._delete_meta(file_id)
            await self._delete_content(file_id)
            raise
        return file

    async def _put_parts(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Writes an object in parts. Where it is cancelled, the parts in a bucket are deleted.

        obstore deletes them when the chunks raise, and not when its own call is cancelled.
        """
        stopped = asyncio.get_running_loop().create_future()

        async def until_stopped() -> AsyncIterator[bytes]:
            while True:
                chunk = asyncio.ensure_future(anext(chunks, None))
                await asyncio.wait((chunk, stopped), return_when=asyncio.FIRST_COMPLETED)
                if stopped.done():
                    chunk.cancel()
                    raise ConnectionAbortedError
                if (content := chunk.result()) is None:
                    return
                yield content

        put = asyncio.ensure_future(
            obstore.put_async(self.objects, path, until_stopped(), max_concurrency=PARTS_IN_FLIGHT)
        )
        try:
            await asyncio.shield(put)
        except asyncio.CancelledError:
            stopped.set_result(None)
            await asyncio.wait([put])
            put.exception()  # that of the chunks, which nobody waits for
            raise

    async def retrieve(self, file_id: str) -> StoredFile:
        # Only ids in the form of this store become a path.
        if not FILE_ID.fullmatch(file_id):
            raise no_file(file_id)
        try:
            result = await obstore.get_async(self.objects, meta_path(file_id))
            file = StoredFile.model_validate_json(bytes(await result.bytes_async()))
        except FileNotFoundError as error:
            raise no_file(file_id) from error
        except ValidationError as error:
            logger.warning("the metadata of %s is damaged: it can only be deleted", file_id)
            raise no_file(file_id) from error
        if file.id != file_id:
            logger.warning("the metadata of %s is that of another file", file_id)
            raise no_file(file_id)
        if file.expired:  # `sweep` deletes it
            raise no_file(file_id)
        return file

    async def list_files(
        self,
        *,
        limit: int,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> tuple[list[StoredFile], bool]:
        """A page of files by time, and whether there are more.

        `after` is a place among the ids: the file itself may have been deleted since.
        """
        ids = sorted(await self._visible_ids(), reverse=order == "desc")
        if after is not None:
            ids = [id_ for id_ in ids if (id_ < after if order == "desc" else id_ > after)]
        found: list[StoredFile] = []
        while ids and len(found) <= limit:
            # With a purpose, none of those that are read may belong to the page.
            count = CONCURRENT_READS if purpose else min(CONCURRENT_READS, limit + 1 - len(found))
            batch, ids = ids[:count], ids[count:]
            files = await asyncio.gather(*(self._retrieve_if_there(id_) for id_ in batch))
            found += [file for file in files if file and purpose in (None, file.purpose)]
        return found[:limit], len(found) > limit

    async def content(self, file: StoredFile) -> Download:
        return await self._download(f"content/{file.id}", file.id)

    async def page(self, file: StoredFile, number: int) -> Download:
        """The PNG of a page, the first is number 1."""
        if not 1 <= number <= (file.page_count or 0):
            raise FileNotFound(f"The file {file.id!r} has no page {number}.")
        return await self._download(page_path(file.id, number), file.id)

    async def delete(self, file_id: str) -> None:
        """Deletes a file, also one whose metadata cannot be read."""
        if not FILE_ID.fullmatch(file_id):
            raise no_file(file_id)
        try:
            # A bucket would not say that there is nothing to delete.
            await obstore.head_async(self.objects, meta_path(file_id))
            await obstore.delete_async(self.objects, meta_path(file_id))
        except FileNotFoundError as error:
            raise no_file(file_id) from error
        await self._delete_content(file_id)

    async def sweep(self, older_than: timedelta = timedelta(days=1)) -> None:
        """Deletes files that have expired, and the remains of uploads that were cut short."""
        await self._delete_expired()
        before = datetime.now(UTC) - older_than
        # Metadata is listed last: an upload that finishes meanwhile is seen to be complete.
        orphans = {
            id_
            for kind in ("content", "pages")
            async for id_, modified in self._ids(kind)
            if modified < before
        }
        orphans -= {id_ async for id_, _ in self._ids("meta")}
        for file_id in orphans:
            await self._delete_content(file_id)
        if self.folder:
            await asyncio.to_thread(delete_staged, self.folder, before)

    async def _delete_expired(self) -> None:
        for file_id in await self._visible_ids():
            with suppress(FileNotFound, FileNotFoundError, ValidationError):
                result = await obstore.get_async(self.objects, meta_path(file_id))
                if StoredFile.model_validate_json(bytes(await result.bytes_async())).expired:
                    await self.delete(file_id)

    async def _visible_ids(self) -> list[str]:
        if self.folder is None:
            return [id_ async for id_, _ in self._ids("meta")]
        # The names alone: obstore looks at each file, which takes ten times as long.
        return await asyncio.to_thread(ids_in, self.folder / "meta")

    async def _ids(self, kind: str) -> AsyncIterator[tuple[str, datetime]]:
        """The id and the age of every object of a kind. Objects with other names are skipped."""
        async for objects in obstore.list(self.objects, kind):
            for object_ in objects:
                name = object_["path"].split("/")[1]
                file_id = name.removesuffix(".json")
                if FILE_ID.fullmatch(file_id):
                    yield file_id, object_["last_modified"]

    async def _retrieve_if_there(self, file_id: str) -> StoredFile | None:
        with suppress(FileNotFound):
            return await self.retrieve(file_id)
        return None

    async def _download(self, path: str, file_id: str) -> Download:
        try:
            result = await obstore.get_async(self.objects, path)
        except FileNotFoundError as error:  # deleted since its metadata was read
            raise no_file(file_id) from error
        return Download(result.meta["size"], result.stream(CHUNK_SIZE))

    async def _delete_meta(self, file_id: str) -> None:
        with suppress(FileNotFoundError):
            await obstore.delete_async(self.objects, meta_path(file_id))

    async def _delete_content(self, file_id: str) -> None:
        pages = await obstore.list(self.objects, f"pages/{file_id}").collect_async()
        for path in [f"content/{file_id}", *(page["path"] for page in pages)]:
            with suppress(FileNotFoundError):
                await obstore.delete_async(self.objects, path)


def os_error(error: BaseError) -> int | None:
    """The operating system's error number, which obstore gives in its message alone."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def ids_in(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):  # before the first upload
        names = (name.removesuffix(".json") for name in os.listdir(folder))
        return [name for name in names if FILE_ID.fullmatch(name)]
    return []


def meta_path(file_id: str) -> str:
    return f"meta/{file_id}.json"


def page_path(file_id: str, number: int) -> str:
    return f"pages/{file_id}/{number}.png"


def no_file(file_id: str) -> FileNotFound:
    return FileNotFound(f"The file {file_id!r} does not exist.")


def delete_staged(folder: Path, before: datetime) -> None:
    """Deletes what obstore was writing when the process was killed. It never lists these itself."""
    for kind in ("content", "meta", "pages"):
        for path in (folder / kind).rglob("file-*#*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before.timestamp():
                    path.unlink()
