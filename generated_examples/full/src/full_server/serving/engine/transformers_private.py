"""Everything that the engine borrows from inside transformers, one function for each.

transformers promises to keep none of these names, so nothing else imports from
`transformers.generation.continuous_batching` or reads what belongs to its manager. Checked with
transformers 5.23 and 5.24, to which `pyproject.toml` pins it;
`tests/serving/engine/test_transformers_private.py` asserts that each name exists and behaves as described here. A
new minor version breaks this file at most.
"""

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from threading import Thread
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import (
    AttentionInterface,
    Cache,
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedConfig,
)
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators import FULL_ATTENTION
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
)
from transformers.generation.continuous_batching.input_outputs import (
    ContinuousBatchingAsyncIOs,
    ContinuousBatchingIOs,
)
from transformers.generation.continuous_batching.model_runner import (
    ModelRunner,
    infer_max_single_request_tokens,
)
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    GenerationOutput,
    RequestState,
    RequestStatus,
)
from transformers.generation.continuous_batching.utils import (
    find_head_dim,
    find_num_key_value_heads,
)
from transformers.generation.continuous_batching.utils import logger as manager_logger
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from .batch_attention import NAME as BY_SEQUENCE
from .batch_attention import StepLayout, group_by_length, single_groups, step_cache_var

__all__ = [
    "VARLEN",
    "ContinuousBatchingManager",
    "GenerationOutput",
    "RequestState",
    "Row",
    "Step",
    "StepSampler",
    "allocate_cache",
    "attention_of",
    "cache_of",
    "cache_share",
    "caps_scores",
    "choose_requests",
    "discard_step",
    "fail_request",
    "generates",
    "has_failed",
    "head_size",
    "in_batch",
    "installed_flash_attention",
    "key_value_width",
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
    "settle",
    "step_limits",
    "step_requests",
    "supports_flash_attention",
    "thread_of",
    "wrap_step",
]

GROUP_SIZE = 2**21
"""More than the tokens of any vocabulary"""


class Row(NamedTuple):
    """A request that gets a token in the next step."""

    request_id: str
    tokens: list[int]
    """The tokens that the request has generated so far"""
    ahead: int
    """Tokens that are being computed after those: 1 where the steps are asynchronous, else 0"""


class Step(Protocol):
    """The engine's own sampling."""

    def begin(self, rows: Sequence[Row]) -> Tensor:
        """Is told the requests of the next step that get a token, in the order of rows of its logits.

        Returns [N, B] int32 numbers for them, in host memory.
        """

    def sample(self, logits: Tensor, numbers: Tensor) -> None:
        """Makes the sampled token of each row the largest of the [R, V] logits.

        The first B rows are those of `begin`. The others are of prompts that are not read to the end,
        or fill the step up.

        numbers: [N, R], those of `begin` first, on the device
        """

    @property
    def kind(self) -> tuple[int, ...] | None:
        """Steps of one kind run the same code. None for a step that needs the tokens before it, and
        whose own tokens the next one needs, on the host."""


class StepSampler(ContinuousBatchingLogitsProcessorList):
    """The logits processors of a manager, in whose place each step goes to the engine's own sampling.

    transformers' processors for single requests know temperature, top_k and top_p only, sort the
    whole vocabulary for each request, and divide by a temperature of 0, which ends the thread.
    """

    def __init__(self, step: Step, numbers: int) -> None:
        """numbers: N of `begin`"""
        super().__init__(LogitsProcessorList())
        self.step = step
        self.tensors_required = numbers
        self.do_processing = True
        self.asynchronous = False
        """A step is prepared while the one before it is computed."""
        self.in_flight: Sequence[RequestState] = ()
        """Requests whose token is being computed while the next step is prepared"""

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(
        self, requests_in_batch: Sequence[FutureRequestState], arg_storage: Tensor
    ) -> Tensor:
        requests = [each.state for each in requests_in_batch if each.has_new_token]
        # By identity, as a request that was preempted comes back as another object of the same id.
        flying = {id(each) for each in self.in_flight}
        rows = [
            Row(each.request_id, generated_tokens(each), int(id(each) in flying))
            for each in requests
        ]
        self.in_flight = requests if self.asynchronous else ()
        numbers = self.step.begin(rows)
        arg_storage[:, : numbers.size(1)].copy_(numbers)
        return arg_storage

    def __call__(self, input_ids: Tensor, scores: Tensor, logits_processor_args: Tensor) -> Tensor:
        self.step.sample(scores, logits_processor_args)
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
    attention: str | None = None,
) -> ContinuousBatchingManager:
    """A manager whose logits processors are `sampler`. Changes the attention of the model.

    attention: name of its implementation; None for the model's own
    """
    if attention_of(model) == BY_SEQUENCE:  # of a batch before
        model.set_attn_implementation("sdpa")
    if attention not in (None, VARLEN):
        model.set_attn_implementation(attention)
    manager = model.init_continuous_batching(generation, config)
    if attention == VARLEN:  # of which the manager knows nothing
        model.set_attn_implementation(attention)
    manager.logit_processor = sampler
    return manager


def allocate_cache(manager: ContinuousBatchingManager, width: int | None = None) -> None:
    """Creates the KV cache and writes to all of it, and captures what CUDA graphs it can.

    width: see `key_value_width`; None: the shape of keys and values is as the configuration says.

    The manager creates it at the first request otherwise, and the system takes the memory as it is
    used: a machine that has too little says so now, not under load.
    """
    model = manager.model
    by_sequence = (
        attention_of(model) == "sdpa"
        and model.device.type == "cpu"
        and model._supports_attention_backend  # else its code computes the attention by itself
        and not manager.continuous_batching_config.use_async_batching  # graphs replay one shape
    )
    if by_sequence:
        model.set_attn_implementation(BY_SEQUENCE)  # now, as the manager makes no masks for it
    with packed_shape(model.config, width) if width else nullcontext():
        manager.batch_processor = manager._create_batch_processor()
    processor = _processor(manager)
    cache = processor.cache
    cache.__class__ = BatchCache
    cache.width = width
    cache.step = weakref.ref(processor.inputs_and_outputs)
    cache.by_sequence = by_sequence
    cache.cache_tensor.zero_()
    wrap_step(manager, partial(run_with_cache, cache))
    prepare_graphs(processor, manager.logit_processor)
    manager.warmup()
    if attention_of(model) == "paged|eager" and caps_scores(model.config):
        model.set_attn_implementation(CAPPED)  # now, as the masks depend on the name


class StepProcessor(ContinuousBatchProcessor):
    """The processor of a manager whose steps are asynchronous, where they can be."""

    def _generation_step(self, model: nn.Module) -> None:
        """Starts a step. One that needs the host is read at once, so that nothing is in flight."""
        super()._generation_step(model)
        if self.logit_processor.step.kind is None:
            self.read_pair()  # the step before
            self.read_other_pair()

    def read_pair(self) -> None:
        """Takes the tokens of the current pair's step in, once and for all."""
        self.update_batch()
        forget_step(self.inputs_and_outputs)

    def read_other_pair(self) -> None:
        self.inputs_and_outputs.swap_io_pairs()
        self.read_pair()
        self.inputs_and_outputs.swap_io_pairs()
        self.logit_processor.in_flight = ()


class StepRunner(ModelRunner):
    """Runs steps that need the host without a graph."""

    def _get_forward_fn(self, use_block_table: bool) -> tuple[Callable[..., None], bool]:
        forward, graph = super()._get_forward_fn(use_block_table)
        return forward, graph and self.logit_processor.step.kind is not None


class StepIOs(ContinuousBatchingIOs):
    """Inputs of a step, and its graphs: one for each kind of sampling, beside the sizes."""

    step: Step

    def _get_graph_key(self) -> tuple[int, ...]:
        return (*super()._get_graph_key(), *(self.step.kind or ()))


def prepare_graphs(processor: ContinuousBatchProcessor, sampler: StepSampler) -> None:
    """Makes a processor that has graphs or asynchronous steps ask `sampler` which step may be one."""
    ios = processor.inputs_and_outputs
    if any(processor.cb_config.cuda_graph_booleans):
        processor.model_runner.__class__ = StepRunner
        for each in device_ios(ios):
            each.__class__ = StepIOs
            each.step = sampler.step
    if isinstance(ios, ContinuousBatchingAsyncIOs):
        processor.__class__ = StepProcessor
        sampler.asynchronous = True


IOs: TypeAlias = ContinuousBatchingIOs | ContinuousBatchingAsyncIOs


def device_ios(ios: IOs) -> list[ContinuousBatchingIOs]:
    """The inputs of forward passes: one set, or two that take turns where steps are asynchronous."""
    if isinstance(ios, ContinuousBatchingAsyncIOs):
        return [pair.device_io for pair in ios.io_pairs]
    return [ios]


def host_io(ios: IOs) -> ContinuousBatchingIOs:
    """The inputs that know the requests of the present step."""
    if isinstance(ios, ContinuousBatchingAsyncIOs):
        return cast(ContinuousBatchingIOs, ios.io_pairs[ios.current_pair].host_io)
    return ios


def forget_step(ios: IOs) -> None:
    """Leaves no request in the present step, of which tokens would be read or carried over."""
    host_io(ios).requests_in_batch = []
    host_io(ios).req_id_to_new_token_position = {}


class BatchCache(PagedAttentionCache):
    """The pages of a batch, for models too whose code does more or less than the manager expects."""

    width: int | None
    step: Callable[[], Any]
    by_sequence: bool
    """True where `attend_by_sequence` computes the attention"""
    _laid_out: object = None
    """The requests of the step that the layouts are for"""
    _layouts: dict[str, StepLayout]
    _read_index: dict[str, Tensor]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The tokens before those of the step. Positions are given, so that nothing is added."""
        return 0

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Writes the keys and values of a step, and returns them with those before them."""
        if kwargs is None or "cu_seq_lens_k" not in kwargs:  # the model's code has not kept them
            ios = self.step()
            current = ios.current_pair if isinstance(ios, ContinuousBatchingAsyncIOs) else 0
            kwargs = dict(device_ios(ios)[current].get_model_kwargs())
        shapes = key_states.shape, value_states.shape
        if self.width is not None:
            key_states, value_states = pack(key_states, value_states, self.width)
        states: tuple[Tensor, Tensor]
        if self.by_sequence and self._is_arranged(layer_idx):
            states = self._update_arranged(key_states, value_states, layer_idx, kwargs)
        else:
            states = super().update(key_states, value_states, layer_idx, kwargs)
        return states if self.width is None else unpack(*states, *shapes)

    def layout(self, layer_idx: int) -> StepLayout:
        """The groups of the sequences in a layer, in the present step."""
        step = self.step()
        if self._laid_out is not step.requests_in_batch:
            self._laid_out = step.requests_in_batch
            self._layouts, self._read_index = {}, {}
        allocator = self.layer_to_allocator[layer_idx]
        kind = allocator.layer_type
        if kind not in self._layouts:
            queries, keys = (
                torch.diff(ends[: step.num_request_in_batch + 1]).tolist()
                for ends in (step.cumulative_seqlens_q, step.cumulative_seqlens_k[kind])
            )
            # Sliding attention writes over keys that the other queries of a chunk still see.
            arranged = step.max_kv_read > 0 and (kind == FULL_ATTENTION or max(queries) == 1)
            groups = (group_by_length if arranged else single_groups)(queries, keys)
            window = None if kind == FULL_ATTENTION else allocator.sliding_window
            self._layouts[kind] = layout = StepLayout(groups, queries, window)
            if arranged:
                # Nothing is ever written to this place, so that it holds no NaN.
                padding = allocator.read_trash_index
                self._read_index[kind] = layout.arrange(self._places(layer_idx), padding)
        return self._layouts[kind]

    def _places(self, layer_idx: int) -> Tensor:
        """The places of the keys of all sequences, once those of the step have been written."""
        allocator, step = self.layer_to_allocator[layer_idx], self.step()
        number = allocator.index
        places: Tensor = step.read_index_storage[number, : step.true_read_sizes[number]]
        if allocator.layer_type == FULL_ATTENTION:
            return places
        new = step.write_index_storage[number, : step.true_write_sizes[number]]
        return places.masked_scatter(places == allocator.sentinel_index, new)

    def _is_arranged(self, layer_idx: int) -> bool:
        self.layout(layer_idx)
        return self.layer_to_allocator[layer_idx].layer_type in self._read_index

    def _update_arranged(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """`update` that returns the keys and values by group."""
        allocator = self.layer_to_allocator[layer_idx]
        kind = allocator.layer_type
        write_index = kwargs["write_index"][allocator.index]
        read = []
        for pages, states in zip(
            allocator._kv_token_views[layer_idx], (key_states, value_states), strict=True
        ):
            pages.index_copy_(0, write_index, states[0].transpose(0, 1))
            read.append(pages.index_select(0, self._read_index[kind]).transpose(0, 1)[None])
        return read[0], read[1]


def run_with_cache(cache: "BatchCache", step: Callable[[], None]) -> None:
    """Runs a step whose attention finds the cache."""
    token = step_cache_var.set(cache)
    try:
        step()
    finally:
        step_cache_var.reset(token)


def pack(key: Tensor, value: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Two [1, 1, N, width] tensors with the numbers of [1, H, N, D] keys and values of any H and D."""
    rows = torch.cat([each[0].transpose(0, 1).flatten(1) for each in (key, value)], dim=-1)
    if rows.size(-1) > 2 * width:
        raise ValueError(f"keys and values take {rows.size(-1)} numbers instead of {2 * width}")
    rows = functional.pad(rows, (0, 2 * width - rows.size(-1)))
    return rows[None, None, :, :width], rows[None, None, :, width:]


def unpack(
    first: Tensor, second: Tensor, key_shape: torch.Size, value_shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """The keys and values that `pack` has put together. There may be more of them by now."""
    rows = torch.cat([first[0, 0], second[0, 0]], dim=-1)
    (_, key_heads, _, key_size), (_, value_heads, _, value_size) = key_shape, value_shape
    keys = key_heads * key_size
    key, value = rows[:, :keys], rows[:, keys : keys + value_heads * value_size]
    key, value = key.view(-1, key_heads, key_size), value.view(-1, value_heads, value_size)
    return key.transpose(0, 1)[None], value.transpose(0, 1)[None]


def key_value_width(config: PreTrainedConfig, cache: object) -> int | None:
    """Numbers that half of a token's keys and values take, in the layer where they are the most.

    None where all keys and values have the shape that the manager reads from the configuration. It
    knows one shape for all. Multi-head latent attention has other keys than values, and some models
    have layers of two kinds.

    config: of the text model; cache: what a plain pass has left.
    """
    if not isinstance(cache, Cache):
        return None
    layers = [each for each in cache.layers if isinstance(getattr(each, "keys", None), Tensor)]
    shapes = {(each.keys.shape[1], each.keys.shape[3]) for each in layers}
    shapes |= {(each.values.shape[1], each.values.shape[3]) for each in layers}
    with suppress(Exception):  # whatever a configuration raises that has several
        if shapes <= {(find_num_key_value_heads(config), find_head_dim(config))}:
            return None
    numbers = [each.keys[0, :, 0].numel() + each.values[0, :, 0].numel() for each in layers]
    return (int(max(numbers)) + 1) // 2


class PackedShape:
    """A configuration whose keys and values are one head of `width` numbers."""

    num_key_value_heads = 1

    def __init__(self, config: PreTrainedConfig, width: int) -> None:
        self.head_dim = width
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


@contextmanager
def packed_shape(config: PreTrainedConfig, width: int) -> Iterator[None]:
    """Shows `PackedShape` to the manager, which reads the configuration as it creates the cache."""
    shape = PackedShape(config.get_text_config(), width)
    config.get_text_config = lambda *args, **kwargs: shape
    try:
        yield
    finally:
        del config.get_text_config  # the instance's; the class's is back


CAPPED = "capped_paged"
"""Name of `capped_attention` among the implementations of transformers"""


def caps_scores(config: PreTrainedConfig) -> bool:
    """True for models that bound their attention scores, as Gemma 2 does."""
    return bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))


def capped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    softcap: float,
    cache: BatchCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in a batch with capped scores, which transformers' own would not cap.

    query: [1, H, Q, D]; key, value: [1, KV heads, K, D]; attention_mask: [1, 1, Q, K], added;
    cache: given by transformers 5.23, where the attention reads the past.

    Returns [1, Q, H, D].
    """
    if cache is not None:
        key, value = cache.update(key, value, cast(int, module.layer_idx), kwargs)
    _, heads, length, size = query.shape
    groups = query.reshape(1, key.size(1), -1, length, size)  # the heads that share keys
    scores = groups @ key.unsqueeze(2).transpose(-1, -2) * scaling
    scores = torch.tanh(scores / softcap) * softcap + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    output = (weights @ value.unsqueeze(2)).view(1, heads, length, -1)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(CAPPED, capped_attention)

VARLEN = "torch_varlen"
"""Name of `varlen_attention` among the implementations of transformers"""


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    cache: BatchCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Flash attention in a batch, which torch brings along: nothing to install or to compile.

    query: [1, H, Q, D]; key, value: [1, KV heads, K, D]; the others and the result: see
    `capped_attention`. In place of a mask there are the lengths of the sequences.
    """
    if softcap is not None or s_aux is not None:
        raise ValueError("torch's flash attention has neither caps of scores nor attention sinks")
    if cache is not None:
        key, value = cache.update(key, value, cast(int, module.layer_idx), kwargs)
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        kwargs["cu_seq_lens_q"],
        kwargs["cu_seq_lens_k"],
        kwargs["max_length_q"],
        kwargs["max_length_k"],
        scale=scaling,
        # The tokens before each one that it sees, and none after it
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=True,
    )
    assert isinstance(output, Tensor)  # without the sums of scores, which were not asked for
    return output.unsqueeze(0), None


AttentionInterface.register(VARLEN, varlen_attention)


def installed_flash_attention() -> str | None:
    """The name of the flash attention of an installed package. Nothing is fetched from the hub."""
    if is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else None


def head_size(config: PreTrainedConfig) -> int | None:
    """Numbers of an attention head; None where the configuration does not say."""
    with suppress(Exception):  # whatever a configuration raises that has several
        return int(find_head_dim(config.get_text_config()))
    return None


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


def choose_requests(
    manager: ContinuousBatchingManager,
    choose: Callable[[Sequence[RequestState]], tuple[Sequence[RequestState], int]],
) -> None:
    """Has `choose` decide what each step computes. Before the start only.

    choose: takes the requests that could be in the step, those that generate first, and returns
        some of them in their order, with the most tokens of the step. The others keep their place
        and their blocks of the KV cache.
    """
    scheduler = _processor(manager).scheduler
    process = scheduler._process_candidates

    def process_chosen(candidates: list[RequestState], budget: int, *args: Any) -> Any:
        chosen, most = choose(candidates)
        return process(list(chosen), min(budget, most), *args)

    scheduler._process_candidates = process_chosen


def generates(request: RequestState) -> bool:
    """False while the prompt of a request is read, or waits to be."""
    return bool(request.status == RequestStatus.DECODING)


def step_requests(manager: ContinuousBatchingManager) -> list[FutureRequestState]:
    """The requests of the present step."""
    io = host_io(_processor(manager).inputs_and_outputs)
    requests: list[FutureRequestState] = io.requests_in_batch
    return requests


def settle(manager: ContinuousBatchingManager) -> None:
    """Takes in the tokens of the step before the present one, if it has not been read.

    Requests that they end leave the present step.
    """
    processor = _processor(manager)
    if isinstance(processor, StepProcessor):
        processor.read_other_pair()
        io = host_io(processor.inputs_and_outputs)
        ended = RequestStatus.FINISHED
        io.requests_in_batch = [each for each in io.requests_in_batch if each.state.status != ended]


def discard_step(manager: ContinuousBatchingManager) -> None:
    """Leaves no request in the present step, of which the manager would read tokens."""
    forget_step(_processor(manager).inputs_and_outputs)


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


def cache_of(output: Any) -> object:
    """The cache that a forward pass returns. Its name has changed in transformers 5.24."""
    return output["cache"] if "cache" in output else output.get("past_key_values")


def supports_flash_attention(model: PreTrainedModel) -> bool:
    """True if the model's code can compute with flash attention."""
    return bool(model._supports_flash_attn)


def makes_wanted_logits(model: PreTrainedModel) -> bool:
    """True if `logits_to_keep` of a forward pass says for which positions logits are computed."""
    return bool(model._supports_logits_to_keep())


def _processor(manager: ContinuousBatchingManager) -> ContinuousBatchProcessor:
    """The part of the manager that runs the steps. It exists once the cache has been allocated."""
    processor = manager.batch_processor
    assert processor is not None
    return processor
