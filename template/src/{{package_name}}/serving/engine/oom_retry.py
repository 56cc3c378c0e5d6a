"""Smaller steps after one that did not fit into memory.

What a forward pass needs beyond the KV cache grows with its tokens and its rows. An engine that
runs out of memory would otherwise end with every request in it.
"""

import logging
from collections.abc import Callable

import torch

from .transformers_private import (
    ContinuousBatchingManager,
    discard_step,
    fail_request,
    requeue,
    set_step_limits,
    settle,
    step_limits,
    step_requests,
    wrap_step,
)

logger = logging.getLogger(__name__)

FEWEST_TOKENS = 16
"""Tokens of the smallest step: a prompt that does not fit in chunks of this size does not fit"""

STEPS_TO_GROW = 100
"""Steps that have to fit before a larger one is tried. A try that fails costs all requests in it
their KV cache."""


def install_oom_retry(
    manager: ContinuousBatchingManager, on_split: Callable[[], None] = lambda: None
) -> None:
    """Makes the manager repeat a step that does not fit in two halves.

    A request that does not fit alone fails, and the others go on.

    on_split: is called for each step that does not fit
    """
    wrap_step(manager, OomRetry(manager, on_split).run)


def is_out_of_memory(error: RuntimeError) -> bool:
    """True for an accelerator's own error and for the words of the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


class OomRetry:
    """Runs the steps of one manager and adapts their limits."""

    def __init__(self, manager: ContinuousBatchingManager, on_split: Callable[[], None]) -> None:
        self._manager = manager
        self._on_split = on_split
        self._most_requests, self._most_tokens = step_limits(manager)
        self._steps = 0

    def run(self, step: Callable[[], None]) -> None:
        """Runs a step, or puts its requests back where it does not fit."""
        try:
            step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._on_split()
            self._halve(error)
            discard_step(self._manager)
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
        else:
            self._steps += 1
            if self._steps % STEPS_TO_GROW == 0:
                requests, tokens = step_limits(self._manager)
                self._limit(requests + 1, tokens + FEWEST_TOKENS)

    def _limit(self, requests: int, tokens: int) -> None:
        set_step_limits(
            self._manager,
            min(max(requests, 1), self._most_requests),
            min(max(tokens, FEWEST_TOKENS), self._most_tokens),
        )

    def _halve(self, error: RuntimeError) -> None:
        settle(self._manager)
        requests = step_requests(self._manager)
        tokens = sum(request.query_length for request in requests)
        logger.warning("out of memory: %d requests, %d tokens in a step", len(requests), tokens)
        if len(requests) == 1 and tokens <= FEWEST_TOKENS:
            # This request is too large, not the step.
            self._limit(self._most_requests, self._most_tokens)
            fail_request(self._manager, requests[0], error)
            return
        requeue(self._manager, requests)
        self._limit(len(requests) // 2, tokens // 2)
        self._steps = 0
