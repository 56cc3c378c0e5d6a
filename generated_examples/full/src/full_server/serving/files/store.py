"""The store of uploaded files: a folder, a bucket or memory, through obstore.

A file is `content/{id}`, its rendered pages `pages/{id}/{number}.png`, and `meta/{id}.json`, which
makes it visible: written last and deleted first, so whatever is cut short leaves nothing that a
client could see. `sweep` clears away what it left. Any number of processes can share one store: what
is kept between the calls is metadata alone, which never changes. The store is asked each time whether
a file is there.
"""

import asyncio
import logging
import os
import re
import secrets
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
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
MAX_KNOWN = 20_000
"""Files whose metadata is in memory, a few hundred bytes each"""
MAX_PLACES = 20_000
"""Ids that are in memory as places where a part of a list may begin"""
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
        self._known: dict[str, bytes] = {}
        """Metadata by id, the one that was read first first"""
        self._places: list[str] = []
        """Ids that a bucket has listed, in their order"""

    async def save(
        self,
        chunks: AsyncIterator[bytes],
        *,
        filename: str,
        purpose: str,
        pages: AsyncIterator[bytes] | None = None,
        expires_after: int | None = None,
        file_id: str | None = None,
    ) -> StoredFile:
        """Keeps a file and the images of its pages, all of it or nothing.

        expires_after: seconds after which the file is gone; never by default.
        file_id: replaces the file with this id, if there is one already; a new id by default.
        """
        file_id = file_id or new_id()
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
        except BaseException as error:
            await self._delete_content(file_id)
            if isinstance(error, FileNotFoundError):  # the bucket has lost the upload
                raise BaseError(str(error)) from error
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
            put.exception()  # retrieved, or asyncio logs it: the error of the chunks is raised
            raise

    async def retrieve(self, file_id: str) -> StoredFile:
        # Only ids in the form of this store become a path.
        if not FILE_ID.fullmatch(file_id):
            raise no_file(file_id)
        try:
            result = await obstore.get_async(self.objects, meta_path(file_id))
        except FileNotFoundError as error:
            raise no_file(file_id) from error
        return read_metadata(file_id, bytes(await result.bytes_async()))

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
        found: list[StoredFile] = []
        portions = self._newest_ids(after, limit) if order == "desc" else self._oldest_ids(after)
        async with aclosing(portions):
            async for ids in portions:
                while ids and len(found) <= limit:
                    # With a purpose, none of those that are read may belong to the page.
                    count = CONCURRENT_READS if purpose else limit + 1 - len(found)
                    some, ids = ids[:count], ids[count:]
                    files = await self._files(some)
                    found += [file for file in files if purpose in (None, file.purpose)]
                if len(found) > limit:
                    break
        return found[:limit], len(found) > limit

    async def content(self, file: StoredFile) -> Download:
        return await self._download(f"content/{file.id}", file.id)

    async def part(self, file: StoredFile, start: int, length: int) -> bytes:
        """Bytes of a file, fewer at its end. For readers that take longer than a download may."""
        length = min(length, file.size - start)
        if length <= 0:
            return b""
        try:
            path = f"content/{file.id}"
            return bytes(
                await obstore.get_range_async(self.objects, path, start=start, length=length)
            )
        except FileNotFoundError as error:  # deleted since its metadata was read
            raise no_file(file.id) from error

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
        async for ids in self._oldest_ids(None):
            for start in range(0, len(ids), CONCURRENT_READS):
                some = ids[start : start + CONCURRENT_READS]
                read = await asyncio.gather(*map(self._metadata, some))
                for file_id, metadata in zip(some, read, strict=True):
                    with suppress(ValidationError, FileNotFound):
                        if StoredFile.model_validate_json(metadata or b"").expired:
                            await self.delete(file_id)

    async def _newest_ids(self, after: str | None, count: int) -> AsyncGenerator[list[str]]:
        """The files before `after`, newest first, in portions of about so many.

        A bucket lists the oldest first, and a thousand at a time. Ids that it has listed tell where
        a portion may begin; what is in it, the store says.
        """
        if self.folder is not None:
            yield sorted(await self._folder_ids(before=after), reverse=True)
            return
        while True:
            end = len(self._places) if after is None else bisect_left(self._places, after)
            begin = end - count - 1
            first = self._places[begin] if begin > 0 else None
            portion = [id_ async for ids in self._listed(first, after) for id_ in ids]
            yield portion[::-1]
            if first is None:
                return
            after = first

    async def _oldest_ids(self, after: str | None) -> AsyncGenerator[list[str]]:
        """The files behind `after`, oldest first, in portions."""
        if self.folder is not None:
            yield sorted(await self._folder_ids(behind=after))
            return
        async for ids in self._listed(after, None):
            yield [id_ for id_ in ids if id_ != after]

    async def _listed(self, first: str | None, end: str | None) -> AsyncIterator[list[str]]:
        """The files from `first` on and before `end`, in the order of their ids."""
        # The store begins behind a name, and this one comes right before that of the first.
        offset = first and meta_path(first).removesuffix(".json")
        async for objects in obstore.list(self.objects, "meta", offset=offset):
            names = [object_["path"].split("/")[1].removesuffix(".json") for object_ in objects]
            ids = [name for name in names if FILE_ID.fullmatch(name)]
            self._note(ids)
            yield [id_ for id_ in ids if end is None or id_ < end]
            if end is not None and ids and ids[-1] >= end:
                return

    def _note(self, ids: list[str]) -> None:
        """Keeps ids that follow each other in the bucket."""
        if ids:
            begin, end = bisect_left(self._places, ids[0]), bisect_right(self._places, ids[-1])
            self._places[begin:end] = ids
            if len(self._places) > MAX_PLACES:
                del self._places[::2]

    async def _folder_ids(self, before: str | None = None, behind: str | None = None) -> list[str]:
        # The names alone: obstore looks at each file, which takes ten times as long.
        assert self.folder is not None
        ids = await asyncio.to_thread(ids_in, self.folder / "meta")
        return [
            id_
            for id_ in ids
            if (before is None or id_ < before) and (behind is None or id_ > behind)
        ]

    async def _files(self, ids: Sequence[str]) -> list[StoredFile]:
        """Those of these files that are there and have not expired."""
        files = []
        for start in range(0, len(ids), CONCURRENT_READS):
            some = ids[start : start + CONCURRENT_READS]
            # Kept here, as what is read now may push it out of what is known.
            found = {id_: self._known.get(id_) for id_ in some}
            unknown = [id_ for id_, metadata in found.items() if metadata is None]
            read = await asyncio.gather(*(self._metadata(id_) for id_ in unknown))
            found.update(zip(unknown, read, strict=True))
            for id_, metadata in found.items():
                if metadata is not None:
                    with suppress(FileNotFound):
                        files.append(read_metadata(id_, metadata))
        return files

    async def _metadata(self, file_id: str) -> bytes | None:
        """The metadata of a file, which is known from now on. None if the file has been deleted."""
        if file_id not in self._known:
            try:
                result = await obstore.get_async(self.objects, meta_path(file_id))
            except FileNotFoundError:
                return None
            metadata = bytes(await result.bytes_async())
            self._known[file_id] = metadata
            while len(self._known) > MAX_KNOWN:
                del self._known[next(iter(self._known))]
            return metadata
        return self._known[file_id]

    async def _ids(self, kind: str) -> AsyncIterator[tuple[str, datetime]]:
        """The id and the age of every object of a kind. Objects with other names are skipped."""
        async for objects in obstore.list(self.objects, kind):
            for object_ in objects:
                name = object_["path"].split("/")[1]
                file_id = name.removesuffix(".json")
                if FILE_ID.fullmatch(file_id):
                    yield file_id, object_["last_modified"]

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


def read_metadata(file_id: str, content: bytes) -> StoredFile:
    """Raises FileNotFound for a file that has expired, and for metadata that is not its own."""
    try:
        file = StoredFile.model_validate_json(content)
    except ValidationError as error:
        logger.warning("the metadata of %s is damaged: it can only be deleted", file_id)
        raise no_file(file_id) from error
    if file.id != file_id:
        logger.warning("the metadata of %s is that of another file", file_id)
        raise no_file(file_id)
    if file.expired:  # `sweep` deletes it
        raise no_file(file_id)
    return file


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
    kinds = {"content": "file-*#*", "meta": "file-*#*", "pages": "file-*#*", "batches": "*#*"}
    for kind, pattern in kinds.items():
        for path in (folder / kind).rglob(pattern):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before.timestamp():
                    path.unlink()
