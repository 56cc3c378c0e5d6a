"""Batches that form by themselves: what waits while one batch runs is the next one.

Nothing waits for company when the model is idle, and under load the batches are full. Texts of
like length go together, because padding costs as much as text.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import Unavailable

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One text on its way through the model."""

    tokens: Sequence[int]
    result: "asyncio.Future[Tensor]"
    """Becomes the [D] vector"""


def micro_batches(items: Sequence[Item], max_tokens: int, max_texts: int) -> Iterator[list[Item]]:
    """Items sorted by length and cut so that each batch, padded, keeps to the token budget.

    An item that is larger than the budget on its own makes a batch of one.
    """
    batch: list[Item] = []
    for item in sorted(items, key=lambda item: len(item.tokens)):
        padded = len(item.tokens) * (len(batch) + 1)  # sorted, so this one is the longest
        if batch and (padded > max_tokens or len(batch) == max_texts):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


class Batcher:
    """One thread that computes, in front of it all that waits."""

    def __init__(
        self,
        compute: Callable[[Sequence[Sequence[int]]], "Tensor"],
        *,
        max_tokens: int,
        max_texts: int,
    ) -> None:
        """`compute` turns B lists of tokens into [B, D] vectors; it runs in the thread."""
        self._compute = compute
        self._max_tokens = max_tokens
        self._max_texts = max_texts
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def submit(self, inputs: Sequence[Sequence[int]]) -> "list[Tensor]":
        """One [D] vector for each list of tokens. Raises Unavailable when the model fails."""
        if not self.alive:
            raise Unavailable("The model stopped working and is being restarted.")
        loop = asyncio.get_running_loop()
        items = [Item(tokens, loop.create_future()) for tokens in inputs]
        for item in items:
            self._queue.put(item)
        try:
            return await asyncio.gather(*(item.result for item in items))
        finally:
            for item in items:
                item.result.cancel()  # where nobody waits any more, the thread passes it by

    def stop(self) -> None:
        """Ends the thread after the batch at hand; what waits fails. Blocks."""
        self._queue.put(None)
        self._thread.join()
        while not self._queue.empty():  # what came too late, or after the thread had died
            if item := self._queue.get():
                self._deliver([item], Unavailable("The model is being unloaded."))

    def _run(self) -> None:
        while True:
            waiting = [self._queue.get()]
            while not self._queue.empty():
                waiting.append(self._queue.get())
            items = [item for item in waiting if item is not None]
            if len(items) < len(waiting):
                self._deliver(items, Unavailable("The model is being unloaded."))
                return
            for batch in micro_batches(items, self._max_tokens, self._max_texts):
                self._run_batch([item for item in batch if not item.result.cancelled()])

    def _run_batch(self, batch: list[Item]) -> None:
        if not batch:
            return
        try:
            vectors = self._compute([item.tokens for item in batch])
        except Exception as error:
            if len(batch) > 1:
                logger.warning("a batch of %d failed (%s), one by one now", len(batch), error)
                for item in batch:
                    self._run_batch([item])
            else:
                logger.exception("a text of %d tokens failed", len(batch[0].tokens))
                self._deliver(batch, Unavailable("The model failed on this input."))
        else:
            self._deliver(batch, vectors)

    def _deliver(self, batch: list[Item], outcome: "Tensor | Unavailable") -> None:
        """Hands the whole batch to the event loop in one call."""

        def settle() -> None:
            for row, item in enumerate(batch):
                if item.result.done():
                    continue
                if isinstance(outcome, Unavailable):
                    item.result.set_exception(outcome)
                else:
                    item.result.set_result(outcome[row])

        if batch:
            batch[0].result.get_loop().call_soon_threadsafe(settle)
