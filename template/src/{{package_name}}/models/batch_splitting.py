"""Goes on with smaller batches when one did not fit into memory.

What a forward pass needs beyond the KV cache grows with its tokens and its rows. An engine that
runs out of memory would otherwise die with every request in it.
"""

import logging

import torch
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
)
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    RequestStatus,
)

logger = logging.getLogger(__name__)

FEWEST_TOKENS = 16
"""A prompt that does not fit in pieces of this size does not fit at all."""

STEPS_TO_GROW = 100
"""Batches that have to fit before a larger one is tried again. Each try that fails is dear: all
requests in it lose their KV cache."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """True for an error that means too little memory. The CPU's allocator says so in words only."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


class BatchSplitter:
    """Requeues a batch that does not fit, to come back in halves.

    A request that does not even fit alone fails, and it alone.
    """

    def __init__(self, manager: ContinuousBatchingManager) -> None:
        """Takes the place of the manager's own generation step."""
        assert manager.batch_processor is not None
        self._processor = manager.batch_processor
        self._scheduler = manager.batch_processor.scheduler
        self._most_requests: int = self._scheduler.max_requests_per_batch
        self._most_tokens: int = self._processor.max_batch_tokens
        self._steps = 0
        self._compute = manager._generation_step
        manager._generation_step = self._compute_or_requeue

    def _compute_or_requeue(self) -> None:
        try:
            self._compute()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._requeue(error)
            # The manager goes on to hand out the tokens of this batch, of which there are none.
            self._processor.inputs_and_outputs.requests_in_batch = []
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
        else:
            self._steps += 1
            if self._steps % STEPS_TO_GROW == 0:
                self._limit(
                    self._scheduler.max_requests_per_batch + 1,
                    self._processor.max_batch_tokens + FEWEST_TOKENS,
                )

    def _limit(self, requests: int, tokens: int) -> None:
        self._scheduler.max_requests_per_batch = min(max(requests, 1), self._most_requests)
        self._processor.max_batch_tokens = min(max(tokens, FEWEST_TOKENS), self._most_tokens)

    def _requeue(self, error: RuntimeError) -> None:
        batch: list[FutureRequestState] = self._processor.inputs_and_outputs.requests_in_batch
        tokens = sum(request.query_length for request in batch)
        logger.warning("out of memory: %d requests, %d tokens in a batch", len(batch), tokens)
        if len(batch) == 1 and tokens <= FEWEST_TOKENS:
            # It is this request that asks for too much, not the batch.
            self._limit(self._most_requests, self._most_tokens)
            state = batch[0].state
            self._processor._handle_request_error(error, state)
            self._scheduler.finish_request(state.request_id)
            return
        for request in batch:
            state = request.state
            # Its blocks hold nothing new that anybody might share.
            self._processor.cache.free_blocks(state.request_id, no_cache=True)
            again = state.create_equivalent_initial_request()
            state._status = RequestStatus.FINISHED
            self._scheduler.finish_request(state.request_id)
            self._scheduler.add_waiting_request(again)
        self._scheduler.waiting_requests_order.rotate(len(batch))  # they were first, and stay so
        self._limit(len(batch) // 2, tokens // 2)
        self._steps = 0
