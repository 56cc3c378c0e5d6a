"""The engine on transformers' continuous batching: requests join and leave a running batch."""

import asyncio
import ctypes
import logging
import math
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.modeling_utils import PreTrainedModel

from ..models.model_errors import Unavailable
from ..models.request_metrics import Load
from ..threads import WorkThread
from .acceleration import Acceleration
from .adapter_mix import AdapterMix
from .adjustments import Adjustments
from .base_engine import TokenStream
from .batch_step import BatchStep
from .engine_metrics import EngineMeter
from .oom_retry import install_oom_retry
from .row_sampling import PARAMETERS
from .sampling import SamplingState
from .sampling_params import SamplingParams
from .stall import StallWatch
from .step_plan import Candidate, PromptBudget, choose
from .transformers_private import (
    CAPPED,
    GenerationOutput,
    RequestState,
    StepSampler,
    allocate_cache,
    attention_of,
    cache_share,
    choose_requests,
    generates,
    has_failed,
    in_batch,
    longest_sequence,
    make_manager,
    manager_log_muted,
    on_preemption,
    on_prefix_search,
    queue_seconds,
    remove_handler,
    separate_prefixes,
    set_step_limits,
    step_limits,
    step_requests,
    thread_of,
    wrap_step,
)

logger = logging.getLogger(__name__)

PAGE_SIZE = 64
"""Tokens in one block of the KV cache. Small blocks waste little on short conversations."""

STOP_SECONDS = 5.0
"""Time that the thread of an engine that failed gets to end, and again after it was interrupted"""


PLAIN = Acceleration("sdpa", "nothing else was asked for")


class CheckSequence(SamplingState):
    """A sequence whose every token is known: the batch's logits for each are kept."""

    def __init__(self, prompt: Sequence[int], answer: Sequence[int], adapter: int = 0) -> None:
        params = SamplingParams(max_tokens=len(answer), temperature=0.0, adapter=adapter)
        super().__init__(params, [], [], [])
        self.prompt = list(prompt)
        self.answer = list(answer)
        self._logits: dict[int, Tensor] = {}

    @property
    def adjusts(self) -> bool:
        return True

    def adjust(self, row: int, adjustments: Adjustments) -> None:
        adjustments.watch(row, self._keep)
        adjustments.force(row, self.answer[self.position])

    def _keep(self, logits: Tensor) -> None:
        self._logits[self.position] = logits.clone()

    def logits(self) -> Tensor:
        """[N, V] float32, one row for each token of the answer"""
        return torch.stack([self._logits[position] for position in range(len(self.answer))])


class RunningSequence(NamedTuple):
    """The sequence that a request of the manager generates."""

    stream: TokenStream
    sequence: int
    client: str
    due: int
    """See `Candidate`"""


class ContinuousBatchingEngine:
    """One model, one thread that steps through the batch, one `TokenStream` a request."""

    reason = None

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_ids: Sequence[int],
        kv_cache_tokens: int,
        max_batch_tokens: int,
        max_batch_requests: int,
        prefix_caching: bool = True,
        stall_seconds: float = math.inf,
        adapters: AdapterMix | None = None,
        kv_width: int | None = None,
        acceleration: Acceleration = PLAIN,
    ) -> None:
        """Takes the memory of the KV cache and starts the thread.

        prefix_caching: prompts that begin alike are computed once, where the model allows it.
        stall_seconds: a step that takes longer never ends.
        adapters: those of the model, if it has any.
        kv_width: see `key_value_width`.
        acceleration: the attention, and how the steps run.

        Raises ValueError (or what transformers raises) for a model that cannot be batched.
        """
        self.meter: EngineMeter | None = None
        self._model = model
        self._eos_token_ids = list(eos_token_ids)
        self.max_sequences = max_batch_requests
        self.cuda_graphs = acceleration.cuda_graphs
        self._running: dict[str, RunningSequence] = {}
        self._states: dict[str, SamplingState] = {}
        self._watch = StallWatch(stall_seconds)
        self._prompt_tokens_read = 0
        self._budget = PromptBudget(max_batch_tokens)
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop of the streams, since the first one"""

        step = BatchStep(self._states.get, self._observe_rows, captured=acceleration.cuda_graphs)
        config = batching_config(
            acceleration,
            kv_cache_tokens=kv_cache_tokens,
            max_batch_tokens=max_batch_tokens,
            max_batch_requests=max_batch_requests,
            prefix_caching=prefix_caching,
            packed=kv_width is not None,
        )
        self._manager = make_manager(
            model,
            GenerationConfig(do_sample=False, eos_token_id=self._eos_token_ids),
            config,
            StepSampler(step, PARAMETERS),
            acceleration.implementation,
        )
        allocate_cache(self._manager, kv_width)  # here, so that a failure is raised here
        self.attention: str = acceleration.attention
        self.attention_reason = acceleration.reason
        if attention_of(model) in ("paged|eager", CAPPED):
            self.attention, self.attention_reason = "eager", "the model's code has no other"
        capacity = longest_sequence(self._manager)
        text_config = model.config.get_text_config()
        context = getattr(text_config, "max_position_embeddings", capacity)
        self.max_length: int = min(capacity, context)
        self.vocabulary: int = model.get_input_embeddings().weight.size(0)
        install_oom_retry(self._manager, self._count_split)
        on_prefix_search(self._manager, self._count_prefix)
        on_preemption(self._manager, self._count_preemptions)
        if adapters is not None:
            separate_prefixes(self._manager, adapter_of)
            wrap_step(self._manager, partial(self._run_mixed_step, adapters))
        wrap_step(self._manager, self._run_step)
        choose_requests(self._manager, self._choose)
        self._manager.start()

    def _run_step(self, step: Callable[[], None]) -> None:
        started = time.perf_counter()
        with self._watch.step():
            step()
        seconds = time.perf_counter() - started
        lengths = [each.query_length for each in step_requests(self._manager)]
        prompt_tokens = sum(length for length in lengths if length > 1)
        self._prompt_tokens_read += prompt_tokens
        self._budget.took(seconds, lengths.count(1), prompt_tokens)

    def _choose(self, requests: Sequence[RequestState]) -> tuple[Sequence[RequestState], int]:
        """The requests of the next step, and the most tokens of it."""
        slots, most_tokens = step_limits(self._manager)
        running = [self._running.get(each.request_id) for each in requests]
        if not any(running):  # those of the check, before it serves
            return requests, most_tokens
        candidates = [
            Candidate(known.client if known else "", generates(each), known.due if known else 0)
            for each, known in zip(requests, running, strict=True)
        ]
        chosen = choose(candidates, slots, rows_take_time=self._model.device.type == "cpu")
        answers = sum(candidates[number].generates for number in chosen)
        if answers:
            most_tokens = min(most_tokens, answers + self._budget.tokens)
        return [requests[number] for number in chosen], most_tokens

    def _count_split(self) -> None:
        if self.meter:
            self.meter.oom_splits.inc()

    def _count_prefix(self, prompt_tokens: int, found: int) -> None:
        if self.meter:
            self.meter.prefix_queries.inc(prompt_tokens)
            self.meter.prefix_hits.inc(found)

    def _count_preemptions(self, count: int) -> None:
        if self.meter:
            self.meter.preemptions.inc(count)

    def load(self) -> Load:
        running = min(in_batch(self._manager), len(self._running))
        return Load(running, len(self._running) - running)

    def cache_usage(self) -> float:
        return cache_share(self._manager)

    def _run_mixed_step(self, adapters: AdapterMix, step: Callable[[], None]) -> None:
        requests = step_requests(self._manager)
        # By the id alone, as the request may have been cancelled by now.
        runs = [(adapter_of(each.state.request_id), each.query_length) for each in requests]
        adapters.assign(runs, self._model.device)
        step()

    def _observe_rows(self, count: int) -> None:
        if self.meter:
            self.meter.batch.observe(count)

    @property
    def alive(self) -> bool:
        stalled = self._watch.stalled(work_waits=bool(self._running))
        return not stalled and not has_failed(self._manager)

    def submit(
        self, prompt: list[int], params: Sequence[SamplingParams], client: str = ""
    ) -> TokenStream:
        stream = TokenStream(len(params), params[0].adapter)
        self._loop = asyncio.get_running_loop()
        if not self._running and not self._watch.computing:
            self._watch.moves()
        try:
            for index, each in enumerate(params):
                self._add(prompt, each, stream, index, client)
        except BaseException:
            self.cancel(stream)
            raise
        return stream

    def _add(
        self,
        prompt: list[int],
        params: SamplingParams,
        stream: TokenStream,
        index: int,
        client: str,
    ) -> None:
        request_id = request_id_of(stream, index)
        due = self._prompt_tokens_read + len(prompt)
        self._running[request_id] = RunningSequence(stream, index, client, due)
        self._states[request_id] = SamplingState(
            params, prompt, self._eos_token_ids, stream.logprobs[index]
        )
        # Before the request is added, or its first tokens could be missed.
        self._manager.register_result_handler(request_id, self._deliver)
        accepted = self.alive and self._manager.add_request(
            prompt,
            request_id=request_id,
            max_new_tokens=params.max_tokens,
            streaming=True,
            eos_token_id=params.end_tokens(self._eos_token_ids) or -1,
        )
        if not accepted:
            raise Unavailable("The model stopped working and is being restarted.")

    def cancel(self, stream: TokenStream, index: int | None = None) -> None:
        for each in range(len(stream.counts)) if index is None else [index]:
            request_id = request_id_of(stream, each)
            if request_id in self._running:
                self._manager.cancel_request(request_id)
                self._forget(request_id)
            stream.finish(each)

    def run_check(
        self, sequences: Sequence[tuple[list[int], SamplingState]], chunk: int, *, seconds: float
    ) -> list[list[int]]:
        """Runs sequences through one batch, `chunk` tokens a pass. Blocks; for before it serves.

        Returns the tokens of each. Raises RuntimeError when the batch fails, TimeoutError after so
        many seconds.
        """
        _, most_tokens = step_limits(self._manager)
        set_step_limits(self._manager, tokens=min(chunk, most_tokens))
        deadline = time.monotonic() + seconds
        # An id that comes again may have a step in flight, whose token would be carried over.
        ids = [f"{each.params.adapter}:{uuid.uuid4().hex}" for _, each in sequences]
        with self._manager.pause():  # or the first could finish before the last is added
            for request_id, (prompt, state) in zip(ids, sequences, strict=True):
                self._states[request_id] = state
                self._manager.add_request(
                    prompt,
                    request_id=request_id,
                    max_new_tokens=state.params.max_tokens,
                    eos_token_id=-1,
                )
        with manager_log_muted(thread_of(self._manager)):  # errors are raised here
            outputs = [self._await_result(deadline) for _ in sequences]
        self._states.clear()
        set_step_limits(self._manager, tokens=most_tokens)
        tokens = {output.request_id: list(output.generated_tokens) for output in outputs}
        return [tokens[request_id] for request_id in ids]

    def _await_result(self, deadline: float) -> GenerationOutput:
        while (output := self._manager.get_result(timeout=0.1)) is None:
            if not self.alive:
                raise RuntimeError("the batch's thread ended")
            if time.monotonic() > deadline:
                raise TimeoutError("the batch came to no end")
        if output.error is not None:
            raise RuntimeError(output.error)
        return output

    def discard(self) -> None:
        """Stops an engine that failed or hangs. Its memory is free once nothing refers to it.

        A thread in code that cannot be interrupted goes on until it is through, and ends then.
        """
        thread = thread_of(self._manager)
        self._manager.stop(block=True, timeout=STOP_SECONDS, hard_stop=True)
        if thread is not None and thread.is_alive():
            interrupt(thread)
            thread.join(STOP_SECONDS)
            # Counted in `threads_left`, so that the end of the process does not wait for it.
            WorkThread(target=thread.join, daemon=True).start()

    def stop(self) -> None:
        if not self.alive:
            self._fail_all()  # first, as ending a thread that hangs takes seconds
            self.discard()
            return
        # A hard stop fails the running requests, which `_deliver` passes on to their streams.
        self._manager.stop(block=True, hard_stop=True)
        self._manager.destroy()

    def _fail_all(self) -> None:
        def fail() -> None:
            for running in list(self._running.values()):
                stopped = Unavailable("The model stopped working and is being restarted.")
                running.stream.fail(stopped)
                self.cancel(running.stream)

        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(fail)

    def _deliver(self, output: GenerationOutput) -> None:
        running = self._running.get(output.request_id)
        if running is None:
            return
        stream, index = running.stream, running.sequence
        if not stream.counts[index] and stream.meter is not None:
            stream.meter.started(queue_seconds(output))
        # The output repeats every token so far.
        stream.put(index, output.generated_tokens[stream.counts[index] :])
        if output.error is not None:
            logger.error("request %s failed: %s", output.request_id, output.error)
            stream.fail(Unavailable("The model failed while it answered."))
            self.cancel(stream)
        elif output.is_finished():
            self._forget(output.request_id)
            stream.finish(index)

    def _forget(self, request_id: str) -> None:
        del self._running[request_id], self._states[request_id]
        remove_handler(self._manager, request_id)


def batching_config(
    acceleration: Acceleration,
    *,
    kv_cache_tokens: int,
    max_batch_tokens: int,
    max_batch_requests: int,
    prefix_caching: bool = True,
    packed: bool = False,
) -> ContinuousBatchingConfig:
    """packed: keys and values are, see `key_value_width`."""
    return ContinuousBatchingConfig(
        page_size=PAGE_SIZE,
        num_blocks=math.ceil(kv_cache_tokens / PAGE_SIZE),
        max_batch_tokens=max_batch_tokens,
        max_requests_per_batch=max_batch_requests,
        allow_block_sharing=prefix_caching,
        # The flash attention of a package may read pages itself, unless they are packed.
        max_blocks_per_request=0 if packed else None,
        use_cuda_graph=acceleration.cuda_graphs,
        use_async_batching=acceleration.cuda_graphs,
        auto_switch_to_flash=False,
    )


def request_id_of(stream: TokenStream, index: int) -> str:
    """The manager's id of a sequence, from which `adapter_of` reads the adapter."""
    return f"{stream.adapter}:{stream.id}-{index}"


def adapter_of(request_id: str) -> int:
    return int(request_id.partition(":")[0])


def interrupt(thread: Thread) -> None:
    """Raises SystemExit in a thread, as soon as it executes Python again."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
    )
