"""Claims: the right to run a batch, which one process has at a time.

A claim is the object `batches/{id}/claims/{number}`, which only one process can create. Its owner
writes it again and again. Where it has not changed for a while, another process creates the next
number. That time is measured on the clock of the one that waits: clocks need not agree.

A process that stalls may still run a batch that another one has claimed. That costs work, and no
result: see the parts in `batch_store`.
"""

import logging
import secrets
import time
from contextlib import suppress
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import ObjectStore

from .batch_errors import ClaimLost

logger = logging.getLogger(__name__)

CLAIM_SECONDS = 60.0
"""A claim that has not changed for so long is that of a process that has died"""

RENEW_SECONDS = 10.0


class Claim:
    """The right of this process to run a batch."""

    def __init__(self, objects: ObjectStore, folder: str, number: int) -> None:
        self._objects = objects
        self._folder = folder
        self._number = number

    async def renew(self) -> None:
        """Raises ClaimLost when another process has the batch."""
        claims = await listed_claims(self._objects, self._folder)
        if not claims or max(claims) != self._number:
            raise ClaimLost
        path = f"{self._folder}/{self._number:08}"
        await obstore.put_async(self._objects, path, secrets.token_bytes(8))

    async def release(self) -> None:
        """Gives the batch back, to be claimed at once."""
        for number in sorted(await listed_claims(self._objects, self._folder)):
            if number <= self._number:
                with suppress(FileNotFoundError):
                    await obstore.delete_async(self._objects, f"{self._folder}/{number:08}")


class BatchClaims:
    """Claims batches for this process, and watches those of others."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._seen: dict[str, tuple[Any, float]] = {}
        """The last claim of each batch as it was seen last, and the time when it had changed"""

    async def claim(self, batch_id: str) -> Claim | None:
        """The right to run a batch; None while another process has it."""
        folder = f"batches/{batch_id}/claims"
        claims = await listed_claims(self._objects, folder)
        last = max(claims, default=0)
        if last and not self._is_stale(batch_id, (last, claims[last])):
            return None
        claim = Claim(self._objects, folder, last + 1)
        try:
            path = f"{folder}/{last + 1:08}"
            await obstore.put_async(
                self._objects, path, secrets.token_bytes(8), mode="create", use_multipart=False
            )
        except AlreadyExistsError:
            return None
        self._seen.pop(batch_id, None)
        if last:
            logger.warning("the process that ran %s has gone: it is continued here", batch_id)
        return claim

    def _is_stale(self, batch_id: str, claim: Any) -> bool:
        seen, since = self._seen.get(batch_id, (None, 0.0))
        if seen != claim:
            self._seen[batch_id] = (claim, time.monotonic())
            return False
        return time.monotonic() - since >= CLAIM_SECONDS


async def listed_claims(objects: ObjectStore, folder: str) -> dict[int, Any]:
    """A value that changes with each renewal, by the number of the claim."""
    listed = await obstore.list(objects, folder).collect_async()
    named = {each["path"].split("/")[-1]: each for each in listed}
    return {
        int(name): (each["e_tag"], each["last_modified"])
        for name, each in named.items()
        if name.isdecimal()
    }
