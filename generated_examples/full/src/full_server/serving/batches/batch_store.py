"""The state of batches, kept beside the files, so that any process can go on with a batch.

A batch is `batches/{id}/` with

- `steps/{step}.json`: fields of its state. The state is that of all steps together, later ones
  first. Each step is written in one place, and once but for `started`, so that no process
  overwrites what another one has written.
- `parts/{number}`: results of lines that have been answered. A part is never overwritten: a process
  that finds the next number taken has lost the batch to another one.

`open/{id}` is there until the batch has ended. Where nothing else is said, writing is atomic.
"""

import asyncio
import json
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import obstore
from obstore.exceptions import AlreadyExistsError
from pydantic import BaseModel, ValidationError

from ..files.store import CONCURRENT_READS, FileStore
from .batch_errors import BatchNotFound

logger = logging.getLogger(__name__)

BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")

Step = Literal["created", "started", "cancelling", "finalizing", "ended"]
STEPS: Sequence[Step] = ("created", "started", "cancelling", "finalizing", "ended")

Ending = Literal["completed", "failed", "expired", "cancelled"]
Status = Literal["validating", "in_progress", "finalizing", "cancelling"] | Ending
ENDED = ("completed", "failed", "expired", "cancelled")


class BatchProblem(BaseModel):
    """A reason why the whole batch failed."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchState(BaseModel):
    """A batch. The fields that are not for clients come last."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: Status = "validating"
    metadata: dict[str, str] | None = None
    model: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    in_progress_at: int | None = None
    cancelling_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelled_at: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[BatchProblem] = []

    owner: str | None = None
    """Name of the key that made it"""
    output_expires_after: int | None = None
    """Seconds after which its files expire"""
    ending: Ending | None = None
    """The status that it will have when its files are written"""
    output_id: str | None = None
    error_id: str | None = None
    """Ids that these files will have, if there is something to write"""

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class LineResult(NamedTuple):
    """The result of one line of the input."""

    number: int
    succeeded: bool
    document: bytes
    """The line of the output, without a newline"""


def new_batch_id() -> str:
    """An id that cannot be guessed. Ids sort by time, as those of files do."""
    return f"batch_{time.time_ns():016x}{secrets.token_hex(8)}"


class BatchStore:
    """Raises BatchNotFound, and obstore's errors when the store itself does not work."""

    def __init__(self, files: FileStore) -> None:
        self.objects = files.objects
        self._folder = files.folder

    async def create(self, batch: BatchState) -> None:
        # In the other order, a crash in between leaves a batch that no process finds.
        await obstore.put_async(self.objects, f"open/{batch.id}", b"")
        await self.write(batch.id, "created", batch.model_dump(exclude_defaults=True))

    async def write(self, batch_id: str, step: Step, fields: Mapping[str, Any]) -> bool:
        """Adds a step to the state; False if it is there already, unless it is `started`."""
        mode: Any = "overwrite" if step == "started" else "create"
        document = json.dumps(fields).encode()
        try:
            await obstore.put_async(self.objects, step_path(batch_id, step), document, mode=mode)
        except AlreadyExistsError:
            return False
        return True

    async def has(self, batch_id: str, step: Step) -> bool:
        return await self._fields(batch_id, step) is not None

    async def retrieve(self, batch_id: str) -> BatchState:
        # Only ids in the form of this store become a path.
        if not BATCH_ID.fullmatch(batch_id):
            raise no_batch(batch_id)
        # The last step has all fields.
        found = [await self._fields(batch_id, "ended")]
        if found[0] is None:
            found = await asyncio.gather(*(self._fields(batch_id, step) for step in STEPS))
        fields: dict[str, Any] = {}
        for each in found:
            fields |= each or {}
        try:
            return BatchState(**fields)
        except ValidationError as error:  # none of the steps is there, or they are damaged
            raise no_batch(batch_id) from error

    async def list_batches(
        self, *, limit: int, after: str | None, owner: str | None
    ) -> tuple[list[BatchState], bool]:
        """A page of the batches of one key, newest first, and whether there are more.

        owner: name of the key; None for all batches.
        """
        ids = sorted(await self._all_ids(), reverse=True)
        if after is not None:
            ids = [id_ for id_ in ids if id_ < after]
        found: list[BatchState] = []
        while ids and len(found) <= limit:
            some, ids = ids[:CONCURRENT_READS], ids[CONCURRENT_READS:]
            batches = await asyncio.gather(*(self._retrieve_if_there(id_) for id_ in some))
            found += [batch for batch in batches if batch and owner in (None, batch.owner)]
        return found[:limit], len(found) > limit

    async def open_ids(self) -> list[str]:
        """The batches that have not ended, oldest first. One that is just being made may not be
        there yet."""
        listed = await obstore.list(self.objects, "open").collect_async()
        names = [each["path"].split("/")[-1] for each in listed]
        return sorted(name for name in names if BATCH_ID.fullmatch(name))

    async def open_batches(self, owner: str | None) -> int:
        """The number of batches of this key that have not ended."""
        some = await asyncio.gather(*map(self._retrieve_if_there, await self.open_ids()))
        return sum(each is not None and each.owner == owner for each in some)

    async def end(self, batch: BatchState) -> bool:
        """Writes the last step; False if another process has done so."""
        return await self.write(batch.id, "ended", batch.model_dump(exclude_defaults=True))

    async def clean(self, batch_id: str) -> None:
        """Deletes what a batch that has ended does not need."""
        listed = await obstore.list(self.objects, part_folder(batch_id)).collect_async()
        for each in listed:
            with suppress(FileNotFoundError):
                await obstore.delete_async(self.objects, each["path"])
        with suppress(FileNotFoundError):  # last, so that it is done again where it is cut short
            await obstore.delete_async(self.objects, f"open/{batch_id}")

    async def add_part(self, batch_id: str, number: int, results: Sequence[LineResult]) -> bool:
        """Keeps results; False if another process has written this part."""
        content = b"".join(
            b"%d %d %s\n" % (each.number, each.succeeded, each.document) for each in results
        )
        path = f"{part_folder(batch_id)}/{number:08}"
        try:
            await obstore.put_async(self.objects, path, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    async def parts(self, batch_id: str) -> AsyncIterator[list[LineResult]]:
        """The results that have been kept, a part at a time."""
        listed = await obstore.list(self.objects, part_folder(batch_id)).collect_async()
        for path in sorted(each["path"] for each in listed):
            result = await obstore.get_async(self.objects, path)
            yield results_in(bytes(await result.bytes_async()))

    async def _fields(self, batch_id: str, step: Step) -> dict[str, Any] | None:
        try:
            result = await obstore.get_async(self.objects, step_path(batch_id, step))
            fields = json.loads(bytes(await result.bytes_async()))
        except FileNotFoundError:
            return None
        except ValueError:
            logger.warning("the step %s of %s is damaged", step, batch_id)
            return None
        return fields if isinstance(fields, dict) else None

    async def _retrieve_if_there(self, batch_id: str) -> BatchState | None:
        with suppress(BatchNotFound):
            return await self.retrieve(batch_id)
        return None

    async def _all_ids(self) -> list[str]:
        if self._folder is not None:
            names = await asyncio.to_thread(names_in, str(self._folder / "batches"))
        else:
            listed = await obstore.list_with_delimiter_async(self.objects, "batches")
            names = [path.rstrip("/").split("/")[-1] for path in listed["common_prefixes"]]
        return [name for name in names if BATCH_ID.fullmatch(name)]


def names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:  # before the first batch
        return []


def results_in(part: bytes) -> list[LineResult]:
    results = []
    for line in part.removesuffix(b"\n").split(b"\n"):
        number, succeeded, document = line.split(b" ", 2)
        results.append(LineResult(int(number), succeeded == b"1", document))
    return results


def step_path(batch_id: str, step: Step) -> str:
    return f"batches/{batch_id}/steps/{step}.json"


def part_folder(batch_id: str) -> str:
    return f"batches/{batch_id}/parts"


def no_batch(batch_id: str) -> BatchNotFound:
    return BatchNotFound(f"The batch {batch_id!r} does not exist.")
