"""Everything that the engine borrows from inside transformers, one function for each.

transformers promises to keep none of these names, so nothing else imports from
`transformers.generation.continuous_batching` or reads what belongs to its manager. Checked with
transformers 5.23 and 5.24, to which `pyproject.toml` pins it;
`tests/serving/engine/test_transformers_private.py` asserts that each name exists and behaves as described here. A
new minor version breaks this file at most.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Thread
from typing import ClassVar

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
)
from transformers.generation.continuous_batching.model_runner import (
    infer_max_single_request_tokens,
)
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    GenerationOutput,
    RequestState,
    RequestStatus,
)
from transformers.generation.continuous_batching.utils import logger as manager_logger
from transformers.modeling_utils import PreTrainedModel

__all__ = [
    "ContinuousBatchingManager",
    "GenerationOutput",
    "Row",
    "StepSampler",
    "allocate_cache",
    "attention_of",
    "cache_share",
    "discard_step",
    "fail_request",
    "has_failed",
    "in_batch",
    "longest_sequence",
    "make_manager",
    "makes_wanted_logits",
    "manager_log_muted",
    "on_preemption",
    "on_prefix_search",
    "queue_seconds",
    "remove_handler",
    "requeue",
    "separate_prefixes",
    "set_step_limits",
    "step_limits",
    "step_requests",
    "thread_of",
    "wrap_step",
]

GROUP_SIZE = 2**21
"""More than the tokens of any vocabulary"""

Row = tuple[str, list[int]]
"""Request id and the tokens that the request has generated so far"""


class StepSampler(ContinuousBatchingLogitsProcessor):
    """The only logits processor of a manager: it hands each step to the engine's own sampling.

    transformers' processors for single requests know temperature, top_k and top_p only, sort the
    whole vocabulary for each request, and divide by a temperature of 0, which ends the thread.
    """

    supported_kwargs: ClassVar[dict[str, type]] = {}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(
        self, begin_step: Callable[[Sequence[Row]], None], sample: Callable[[Tensor], None]
    ) -> None:
        """begin_step: is told the requests that get a token in the next step, in the order of rows.
        sample: makes the sampled token of each of these rows the largest of the [B, V] logits.
        Rows beyond them are of prompts whose prefill is not complete.
        """
        self._begin_step = begin_step
        self._sample = sample

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: Sequence[FutureRequestState]) -> Tensor:
        # The tensor that goes to the device carries nothing: steps are synchronous, so what
        # `begin_step` keeps belongs to the very next call.
        rows = [
            (each.state.request_id, generated_tokens(each.state))
            for each in requests_with_new_token
        ]
        self._begin_step(rows)
        return torch.zeros(len(rows), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        self._sample(scores)
        return scores


def generated_tokens(request: RequestState) -> list[int]:
    """Every token that the request has generated, those before a preemption included.

    `generated_tokens` of the request alone starts anew when the request was preempted.
    """
    prompt_length = request._true_initial_tokens or len(request.initial_tokens)
    tokens: list[int] = request.initial_tokens[prompt_length:] + request.generated_tokens
    return tokens


def make_manager(
    model: PreTrainedModel,
    generation: GenerationConfig,
    config: ContinuousBatchingConfig,
    sampler: StepSampler,
) -> ContinuousBatchingManager:
    """A manager whose only logits processor is `sampler`. Changes the attention of the model.

    `_get_logits_processor` is the one place that decides on the processors; it is replaced on the
    instance for the time of this call. `tensors_required` asks for the tensor of
    `prepare_tensor_args`.
    """
    processors = LogitsProcessorList([sampler])
    model._get_logits_processor = lambda *args, **kwargs: processors
    try:
        manager = model.init_continuous_batching(generation, config)
    finally:
        del model._get_logits_processor  # the instance's; the class's is back
    manager.logit_processor.tensors_required = 1
    return manager


def allocate_cache(manager: ContinuousBatchingManager) -> None:
    """Creates the KV cache and writes to all of it.

    The manager creates it at the first request otherwise, and the system takes the memory as it is
    used: a machine that has too little says so now, not under load.
    """
    manager.warmup()
    _processor(manager).cache.cache_tensor.zero_()


def longest_sequence(manager: ContinuousBatchingManager) -> int:
    """The number of tokens, prompt and completion, that the KV cache holds for one request."""
    return int(infer_max_single_request_tokens(_processor(manager).cache))


def step_limits(manager: ContinuousBatchingManager) -> tuple[int, int]:
    """The largest number of requests and of tokens in one step."""
    processor = _processor(manager)
    return processor.scheduler.max_requests_per_batch, processor.max_batch_tokens


def set_step_limits(
    manager: ContinuousBatchingManager, requests: int | None = None, tokens: int | None = None
) -> None:
    """Sets what `step_limits` returns; may be called between two steps."""
    processor = _processor(manager)
    if requests is not None:
        processor.scheduler.max_requests_per_batch = requests
    if tokens is not None:
        processor.max_batch_tokens = tokens


def in_batch(manager: ContinuousBatchingManager) -> int:
    """The number of requests that have a slot in the batch; 0 for a manager that has ended."""
    processor = manager.batch_processor
    return len(processor.scheduler.active_requests) if processor else 0


def cache_share(manager: ContinuousBatchingManager) -> float:
    """The share of the KV cache that requests hold, 0 to 1; 0 for a manager that has ended."""
    processor = manager.batch_processor
    return 1.0 - float(processor.cache.compute_free_capacity()) if processor else 0.0


def queue_seconds(output: GenerationOutput) -> float:
    """The time that a request waited for its slot in the batch."""
    seconds: float = output.lifespan[0] - output.created_time
    return max(0.0, seconds)


def on_prefix_search(
    manager: ContinuousBatchingManager, callback: Callable[[int, int], None]
) -> None:
    """Calls `callback(tokens of the prompt, tokens found)` at each look into the prefix cache."""
    cache = _processor(manager).cache
    search = cache.search_prefix_match

    def search_and_tell(request_id: str, prompt_ids: list[int]) -> int:
        found: int = search(request_id, prompt_ids)
        callback(len(prompt_ids), found)
        return found

    cache.search_prefix_match = search_and_tell


def on_preemption(manager: ContinuousBatchingManager, callback: Callable[[int], None]) -> None:
    """Calls `callback(number of requests)` when requests lose their slots as the cache is full."""
    processor = _processor(manager)
    offload, scheduler = processor.offloading_manager.offload_requests, processor.scheduler

    def offload_and_tell() -> bool:
        before = len(scheduler.active_requests)
        done: bool = offload()
        callback(before - len(scheduler.active_requests))
        return done

    processor.offloading_manager.offload_requests = offload_and_tell


def wrap_step(
    manager: ContinuousBatchingManager, wrapper: Callable[[Callable[[], None]], None]
) -> None:
    """Runs `wrapper(step)` in place of each forward pass with its sampling. Before the start only."""
    step = manager._generation_step
    manager._generation_step = lambda: wrapper(step)


def has_failed(manager: ContinuousBatchingManager) -> bool:
    """True when the thread of the manager has ended, or has met an error that ends it."""
    fatal = manager.background_thread_status.fatal_error
    return fatal is not None or not manager.is_running()


def thread_of(manager: ContinuousBatchingManager) -> Thread | None:
    """The thread that computes. None before the start."""
    thread: Thread | None = manager._generation_thread
    return thread


def remove_handler(manager: ContinuousBatchingManager, request_id: str) -> None:
    """Forgets the result handler of a request; unknown ids are ignored.

    The manager itself does so after the last result only, which a cancelled request never has.
    """
    with manager.output_router._lock:
        manager.output_router.result_handlers.pop(request_id, None)


def separate_prefixes(manager: ContinuousBatchingManager, group_of: Callable[[str], int]) -> None:
    """Shares blocks of the KV cache among requests of one group alone. Before the start only.

    Blocks are found by a hash of their tokens and of the block before them, so that a mark on the
    first token makes all blocks of a sequence different from those of other groups.

    group_of: a number from 0 for the id of each request
    """
    cache = _processor(manager).cache
    search = cache.search_prefix_match

    def search_in_group(request_id: str, prompt: list[int]) -> int:
        return int(search(request_id, marked(prompt, group_of(request_id))))

    cache.search_prefix_match = search_in_group
    for allocator in cache.cache_allocators.values():
        allocator.mark_complete_blocks = partial(
            mark_in_group, allocator.mark_complete_blocks, group_of
        )


def mark_in_group(
    mark: Callable[[str, list[int], int], None],
    group_of: Callable[[str], int],
    request_id: str,
    tokens: list[int],
    new_blocks: int,
) -> None:
    mark(request_id, marked(tokens, group_of(request_id)), new_blocks)


def marked(tokens: list[int], group: int) -> list[int]:
    """The tokens with the number of a group in the first of them, within 32 bits as it is hashed."""
    return [tokens[0] - group * GROUP_SIZE, *tokens[1:]] if group else tokens


def step_requests(manager: ContinuousBatchingManager) -> list[FutureRequestState]:
    """The requests of the present step."""
    requests: list[FutureRequestState] = _processor(manager).inputs_and_outputs.requests_in_batch
    return requests


def discard_step(manager: ContinuousBatchingManager) -> None:
    """Leaves no request in the present step, of which the manager would read tokens."""
    _processor(manager).inputs_and_outputs.requests_in_batch = []


def fail_request(
    manager: ContinuousBatchingManager, request: FutureRequestState, error: Exception
) -> None:
    """Ends one request with an error, and frees what it holds."""
    processor = _processor(manager)
    processor._handle_request_error(error, request.state)
    processor.scheduler.finish_request(request.state.request_id)


def requeue(manager: ContinuousBatchingManager, requests: Sequence[FutureRequestState]) -> None:
    """Puts requests back to the head of the queue, with the tokens that they have generated.

    Their blocks of the KV cache are freed: a step that failed has left nothing in them that other
    requests could share.
    """
    processor = _processor(manager)
    scheduler = processor.scheduler
    for request in requests:
        state = request.state
        processor.cache.free_blocks(state.request_id, no_cache=True)
        again = state.create_equivalent_initial_request()
        state._status = RequestStatus.FINISHED
        scheduler.finish_request(state.request_id)
        scheduler.add_waiting_request(again)
    scheduler.waiting_requests_order.rotate(len(requests))


@contextmanager
def manager_log_muted(thread: Thread | None) -> Iterator[None]:
    """Drops what transformers logs in this thread until the block ends."""

    def is_of_another_thread(record: logging.LogRecord) -> bool:
        return thread is None or record.thread != thread.ident

    manager_logger.addFilter(is_of_another_thread)
    try:
        yield
    finally:
        manager_logger.removeFilter(is_of_another_thread)


def attention_of(model: PreTrainedModel) -> str:
    """The implementation of attention that the model uses. A manager replaces it by a paged one."""
    name: str = model.config._attn_implementation
    return name


def makes_wanted_logits(model: PreTrainedModel) -> bool:
    """True if `logits_to_keep` of a forward pass says for which positions logits are computed."""
    return bool(model._supports_logits_to_keep())


def _processor(manager: ContinuousBatchingManager) -> ContinuousBatchProcessor:
    """The part of the manager that runs the steps. It exists once the cache has been allocated."""
    processor = manager.batch_processor
    assert processor is not None
    return processor
