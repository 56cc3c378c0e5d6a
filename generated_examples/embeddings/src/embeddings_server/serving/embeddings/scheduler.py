"""Dynamic batching: when a thread is free, the next batch is cut from the texts that wait.

No text waits for others when the model is idle, and under load the batches are full. Texts of
like length go together, because padding costs as much as text.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..models.model_errors import Unavailable
from ..models.request_metrics import Load
from .scheduler_metrics import SchedulerMeter

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

PATIENCE = 1.25
"""A text is passed over by others with this much of the work that was there before it, at most, …"""

SHARE = 2.0
"""… and with this much of what its request has up to it: half of the model is left to others"""

DEAD = "The model stopped working and is being restarted."


class EmbeddingRequest:
    """The texts that one client waits for. Only the event loop touches it."""

    def __init__(self, size: int) -> None:
        self.result: asyncio.Future[list[Tensor]] = asyncio.get_running_loop().create_future()
        self._rows: dict[int, Tensor] = {}
        self._size = size

    def put(self, index: int, row: "Tensor") -> None:
        self._rows[index] = row
        if len(self._rows) == self._size and not self.result.done():
            self.result.set_result([self._rows[index] for index in range(self._size)])

    def fail(self, reason: str) -> None:
        if not self.result.done():
            self.result.set_exception(Unavailable(reason))


@dataclass(eq=False)
class QueuedText:
    """One text on its way through the model."""

    request: EmbeddingRequest
    index: int
    """Its place in the request"""
    tokens: Sized
    length: int
    due: float
    """Time at which the text would be done if every request got an equal share of the model, on a
    clock that counts the tokens of one share"""
    latest: float
    """Number of computed tokens from which on no text goes before it that came later"""
    background: bool = False
    """It waits until no other text does"""


def cut_batch(
    lengths: Sequence[int], head: int, *, max_tokens: int, max_texts: int, max_padding: int
) -> slice:
    """The slice of the lengths, in ascending order, that makes a batch with the one at `head`.

    Those cut_batch to it, as many as keep to the budgets when all are padded to the longest: of
    tokens with their padding, and of padding alone. A head that is larger than the budget goes
    alone.
    """
    low, high = head, head + 1
    padding = 0
    while (count := high - low) < max_texts:
        longest = lengths[high - 1]
        wider = []
        if low > 0:
            wider.append((longest - lengths[low - 1], low - 1, high))
        if high < len(lengths):
            wider.append(((lengths[high] - longest) * count, low, high + 1))
        fitting = [
            (more, start, end)
            for more, start, end in wider
            if padding + more <= max_padding and lengths[end - 1] * (count + 1) <= max_tokens
        ]
        if not fitting:
            break
        more, low, high = min(fitting)
        padding += more
    return slice(low, high)


class EmbeddingScheduler:
    """Threads that compute, and the queue of texts in front of them.

    Batches are cut one at a time. Each has a head, and takes the texts that are nearest to it in
    length, of any request. The head is the text that is due first when all requests get equal
    shares (weighted fair queueing with equal weights, Demers, Keshav and Shenker 1989): a short
    request does not wait for the long one before it, and short ones do not starve the long one.
    Its share alone would make a long text wait for many times what was there before it, so from
    `QueuedText.latest` on it is the next.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Any]], "Tensor"],
        *,
        max_tokens: int,
        max_texts: int,
        max_padding: int,
        threads: int,
        stall_seconds: float,
        prepare: Callable[[], object],
    ) -> None:
        """`compute` turns B texts into [B, D] vectors; several threads call it at once. A text is a list
        of tokens, or what else `compute` takes and has as many tokens as its length says.

        max_tokens: in a batch, padding included.
        max_padding: tokens in a batch that are nothing but padding. Should be what a batch costs
            beyond its tokens: more padding than that is dearer than another batch.
        threads: while one computes, another pads its batch or hands out the vectors of the last.
        stall_seconds: a batch that takes longer never ends: its thread is given up.
        prepare: is called first in each thread.
        """
        self.meter: SchedulerMeter | None = None
        self._compute = compute
        self._stall_seconds = stall_seconds
        self._prepare = prepare
        self._cut = partial(
            cut_batch, max_tokens=max_tokens, max_texts=max_texts, max_padding=max_padding
        )
        self._changed = threading.Condition()
        """The lock of the attributes that follow"""
        self._waiting: list[QueuedText] = []
        """The shortest first"""
        self._requests = 0
        self._virtual_time = 0.0
        """Tokens that a request would have got if it had been in the queue from the beginning"""
        self._tokens = 0
        """Tokens of all batches so far"""
        self._end: str | None = None
        """The reason why there will be no more batches; None while there are"""
        self._computing: dict[threading.Thread, tuple[float, list[QueuedText]]] = {}
        """The batch of each thread, and when it began with it"""
        self._threads = [
            threading.Thread(target=self._run, name=f"scheduler-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        now = time.monotonic()
        started = [start for start, _ in list(self._computing.values())]
        return self._end is None and all(now - each <= self._stall_seconds for each in started)

    def load(self) -> Load:
        """The texts that are computed, and those that wait."""
        return Load(
            sum(len(batch) for _, batch in list(self._computing.values())), len(self._waiting)
        )

    async def submit(self, inputs: Sequence[Sized], *, background: bool = False) -> "list[Tensor]":
        """One [D] vector for each text. Raises Unavailable when the model fails.

        background: the texts wait until no others do.
        """
        request = EmbeddingRequest(len(inputs))
        with self._changed:
            if self._end is not None:
                raise Unavailable(self._end)
            before = sum(item.length for item in self._waiting if not item.background)
            own = 0
            for index, tokens in enumerate(inputs):
                own += len(tokens)
                due = self._virtual_time + own
                latest = self._tokens + PATIENCE * before + SHARE * own
                self._waiting.append(
                    QueuedText(request, index, tokens, len(tokens), due, latest, background)
                )
            self._waiting.sort(key=attrgetter("length"))
            self._requests += 1
            self._changed.notify(len(inputs))
        try:
            return await request.result
        except BaseException:  # given up or failed: its other texts need no vectors
            with self._changed:
                self._waiting = [item for item in self._waiting if item.request is not request]
            raise
        finally:
            self._requests -= 1

    def stop(self) -> None:
        """Ends the threads after the batches at hand; what waits fails. Blocks.

        A thread that hangs is left alone. What it computes fails.
        """
        stalled = not self.alive
        self._close(DEAD if stalled else "The model is being unloaded.")
        for thread in self._threads:
            thread.join(0.1 if stalled else self._stall_seconds)
        for _, batch in list(self._computing.values()):
            self._fail(batch, DEAD)

    def _close(self, reason: str) -> None:
        with self._changed:
            self._end = self._end or reason
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        self._fail(waiting, reason)

    def _run(self) -> None:
        batch: list[QueuedText] = []
        try:
            self._prepare()
            while batch := self._next_batch():
                self._run_batch(batch)
                del self._computing[threading.current_thread()]
        except BaseException:  # SystemExit too, which would end the thread silently
            logger.critical("the scheduler died", exc_info=True)
            self._close(DEAD)
            self._fail(batch, DEAD)
        finally:
            self._computing.pop(threading.current_thread(), None)

    def _next_batch(self) -> list[QueuedText]:
        """Waits for texts. Empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._end)
            if self._end:
                return []
            # A batch has texts of one kind: background ones would make it longer for the others.
            waiting = [item for item in self._waiting if not item.background] or self._waiting
            first = min(waiting, key=attrgetter("latest"))
            if first.latest > self._tokens:
                first = min(waiting, key=attrgetter("due"))
            head = waiting.index(first)
            lengths = [item.length for item in waiting]
            cut = self._cut(lengths, head)
            batch = waiting[cut]
            taken = set(batch)
            self._waiting = [item for item in self._waiting if item not in taken]
            self._tokens += sum(lengths[cut])
            self._virtual_time += sum(lengths[cut]) / self._requests
            return batch

    def _run_batch(self, batch: list[QueuedText]) -> None:
        """Computes a batch. One that fails is halved until only the text that causes it fails."""
        batch = [item for item in batch if not item.request.result.done()]
        self._computing[threading.current_thread()] = (time.monotonic(), batch)
        if not batch:
            return
        try:
            vectors = self._compute([item.tokens for item in batch])
        except Exception as error:
            if len(batch) > 1:
                logger.warning("a batch of %d failed (%s), in halves now", len(batch), error)
                middle = len(batch) // 2
                self._run_batch(batch[:middle])
                self._run_batch(batch[middle:])
            else:
                logger.exception("a text of %d tokens failed", batch[0].length)
                self._fail(batch, "The model failed on this input.")
        else:
            if self.meter:
                self.meter.computed([item.length for item in batch])
            self._deliver_finite(batch, vectors)

    def _deliver_finite(self, batch: list[QueuedText], vectors: "Tensor") -> None:
        """Fails the texts whose vectors are not finite, which happens in half precision."""
        finite: list[bool] = vectors.isfinite().all(dim=1).tolist()
        if all(finite):
            self._deliver(batch, vectors)
            return
        lost = [item for item, is_finite in zip(batch, finite, strict=True) if not is_finite]
        logger.error(
            "the vectors of %d texts in a batch of %d are not finite", len(lost), len(batch)
        )
        self._fail(lost, "The model's vector of this input is not finite.")
        kept = [item for item in batch if item not in lost]
        if kept:
            self._deliver(kept, vectors[finite])

    def _deliver(self, batch: list[QueuedText], vectors: "Tensor") -> None:
        """Hands the whole batch to the event loop in one call."""

        def put() -> None:
            for item, row in zip(batch, vectors, strict=True):
                item.request.put(item.index, row)

        batch[0].request.result.get_loop().call_soon_threadsafe(put)

    def _fail(self, items: list[QueuedText], reason: str) -> None:
        def fail() -> None:
            for item in items:
                item.request.fail(reason)

        if items:
            items[0].request.result.get_loop().call_soon_threadsafe(fail)
