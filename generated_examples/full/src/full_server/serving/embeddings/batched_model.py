"""The common part of embeddings and reranking: admission, tokens, batches."""

import asyncio
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from ...settings import Settings
from ..deadline import Deadline
from ..metrics import Metrics
from ..models.admission import Admission
from ..models.model import Model
from ..models.model_errors import DeadlineExceeded, InvalidInput
from ..models.request_metrics import RequestMeter, RequestMetrics, unregistered
from ..threads import run_in_pool
from .scheduler import EmbeddingScheduler
from .scheduler_metrics import SchedulerMetrics

if TYPE_CHECKING:
    from torch import Tensor

    from .token_model import TokenModel

THREADS = 2
"""Batches that are computed at the same time"""

SLICE = 64
"""Texts that are tokenised at a time: the tokenizer's results take a hundred times the memory of the
text"""


class BatchedModel(Model):
    """A transformer behind a scheduler."""

    def __init__(self, network: "TokenModel[Any]", settings: Settings, pass_cost: int) -> None:
        """Starts the threads. pass_cost: of the network, in tokens."""
        self._vocabulary = network.vocabulary
        max_tokens, max_texts = settings.embeddings_batch_tokens, settings.embeddings_batch_texts
        self._scheduler = EmbeddingScheduler(
            network.compute,
            max_tokens=max_tokens,
            max_texts=max_texts,
            max_padding=pass_cost,
            threads=THREADS,
            stall_seconds=settings.stall_seconds,
            prepare=partial(network.share_cores, THREADS),
        )
        self._admission = Admission(
            max_texts + settings.max_queue, max_tokens + settings.max_queue_tokens
        )
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="tokenize")
        self._meter = unregistered()

    @property
    def alive(self) -> bool:
        return self._scheduler.alive

    def measure(self, metrics: Metrics, name: str) -> None:
        requests = metrics.group(RequestMetrics)
        requests.watch(name, self._scheduler.load)
        self._meter = requests.of(name)
        self._scheduler.meter = metrics.group(SchedulerMetrics).of(name)

    def unload(self) -> None:
        self._scheduler.stop()
        self._executor.shutdown(cancel_futures=True)

    async def _compute(
        self, estimate: int, tokenize: Callable[[], Sequence[Sized]], deadline: Deadline
    ) -> "tuple[list[Tensor], int]":
        """A row for each item that `tokenize` gives, and the tokens of all.

        estimate: of the tokens, before they are known. Raises Overloaded, Unavailable,
        DeadlineExceeded, and what `tokenize` raises.
        """
        meter = RequestMeter(self._meter, self.type)
        try:
            with self._admission.enter(estimate) as admitted:
                async with asyncio.timeout_at(deadline.time):
                    items = await run_in_pool(self._executor, tokenize)
                    admitted.tokens = sum(map(len, items))
                    with meter.submitted(admitted.tokens):
                        background = admitted.work is not None
                        rows = await self._scheduler.submit(items, background=background)
                        meter.ended(0, "stop")
                    return rows, admitted.tokens
        except TimeoutError as error:
            raise DeadlineExceeded(deadline.seconds) from error

    def _check_vocabulary(self, tokens: Sequence[int], name: str, param: str) -> None:
        """Raises InvalidInput for tokens that the model does not have. A tokenizer may have more."""
        if unknown := [token for token in tokens if not 0 <= token < self._vocabulary]:
            raise InvalidInput(
                f"{name} has the token {unknown[0]}, which is not in the vocabulary of "
                f"{self._vocabulary}.",
                param,
            )


def slices(size: int) -> Iterator[slice]:
    """Parts of a request that are tokenised one after the other."""
    return (slice(start, start + SLICE) for start in range(0, size, SLICE))
