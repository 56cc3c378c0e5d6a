"""Runs the batches of the store, a few at a time, next to the other processes that do so."""

import asyncio
import logging
import time
from contextlib import suppress

from obstore.exceptions import BaseError as StoreError

from .batch_claims import RENEW_SECONDS, BatchClaims, Claim
from .batch_errors import BatchNotFound, ClaimLost
from .batch_run import BatchRun, RunContext
from .batch_store import BatchState

logger = logging.getLogger(__name__)

BATCHES = 4
"""Batches that a process runs at the same time, line by line in turn; more wait"""

SCAN_SECONDS = 5.0
"""Time between two looks at the batches that wait"""

FAILURE_SECONDS = 10.0
"""Pause after a batch that could not go on"""

WINDOW_SECONDS = 24 * 3600
"""The one completion window: 24h"""


class BatchRunner:
    """Runs batches, those of other processes that have gone included."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._claims = BatchClaims(context.store.objects)
        self._runs: dict[str, BatchRun] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._urgent: set[str] = set()
        """Batches to look at, even if there is no place for another one"""
        self._poked = asyncio.Event()
        context.metrics.watch(lambda: len(self._runs))

    def look_at(self, batch: BatchState) -> None:
        """The batch has been made, or cancelled, in this process."""
        if batch.id in self._runs:
            self._runs[batch.id].poke.set()
            return
        if batch.cancelling_at is not None:
            self._urgent.add(batch.id)
        self._poked.set()

    async def run(self) -> None:
        """Runs batches until it is cancelled. What is under way then goes on later."""
        try:
            while True:
                try:
                    await self._start_batches()
                except StoreError:
                    logger.warning("batches cannot be looked up", exc_info=True)
                with suppress(TimeoutError):
                    async with asyncio.timeout(SCAN_SECONDS):
                        await self._poked.wait()
                self._poked.clear()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _start_batches(self) -> None:
        for batch_id in await self._context.store.open_ids():
            if self._context.is_leaving():
                return
            is_urgent = batch_id in self._urgent or is_late(batch_id)
            if batch_id in self._tasks or (len(self._tasks) >= BATCHES and not is_urgent):
                continue
            if claim := await self._claims.claim(batch_id):
                self._urgent.discard(batch_id)
                self._tasks[batch_id] = asyncio.create_task(self._run_claimed(batch_id, claim))
                self._tasks[batch_id].add_done_callback(lambda _: self._poked.set())

    async def _run_claimed(self, batch_id: str, claim: Claim) -> None:
        run = self._runs[batch_id] = BatchRun(batch_id, self._context)
        running = asyncio.create_task(run.run())
        renewing = asyncio.create_task(renew(claim, running))
        try:
            await asyncio.wait([running])
        finally:
            for task in (running, renewing):
                task.cancel()
            await asyncio.wait([running, renewing])
            del self._runs[batch_id]
            try:
                with suppress(StoreError):  # another process will find it stale
                    await claim.release()
                if not running.cancelled() and (error := running.exception()):
                    await self._failed(batch_id, error)
            finally:
                del self._tasks[batch_id]

    async def _failed(self, batch_id: str, error: BaseException) -> None:
        match error:
            case ClaimLost():
                logger.warning("another process runs %s", batch_id)
            case BatchNotFound() if is_late(batch_id):  # it was never made completely
                await self._context.store.clean(batch_id)
            case BatchNotFound():
                pass
            case _:
                logger.error("%s could not go on", batch_id, exc_info=error)
        await asyncio.sleep(FAILURE_SECONDS)


async def renew(claim: Claim, running: asyncio.Task[None]) -> None:
    """Renews a claim as long as it can be, and cancels the work when it is lost."""
    while True:
        await asyncio.sleep(RENEW_SECONDS)
        try:
            await claim.renew()
        except ClaimLost:
            logger.warning("a batch is run by another process, and is left to it")
            running.cancel()
            return
        except StoreError:
            logger.warning("the claim of a batch cannot be renewed", exc_info=True)


def is_late(batch_id: str) -> bool:
    """True if its completion window is over. The id has the time when the batch was made."""
    made = int(batch_id.removeprefix("batch_")[:16], 16) / 1e9
    return time.time() >= made + WINDOW_SECONDS
