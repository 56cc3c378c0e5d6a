"""The engine for models that cannot be batched: `generate()`, one request at a time."""

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_utils import PreTrainedModel

from ..models.model_errors import Unavailable
from ..models.request_metrics import Load
from .adapter_mix import AdapterMix
from .base_engine import TokenStream
from .engine_metrics import EngineMeter
from .sampling import SamplingState, sample_into_logits
from .sampling_params import SamplingParams
from .stall import StallWatch
from .transformers_private import attention_of

logger = logging.getLogger(__name__)

TOKENS_OF_A_PASS = 512
"""Tokens of a prompt for which its pass may take `stall_seconds` once more"""


@dataclass
class Job:
    """A sequence on its way through the thread."""

    prompt: list[int]
    state: SamplingState
    stream: TokenStream
    index: int
    loop: asyncio.AbstractEventLoop
    cancelled: threading.Event = field(default_factory=threading.Event)
    queued: float = field(default_factory=time.perf_counter)


@dataclass(order=True)
class Turn:
    """A job's place in the queue."""

    turn: int
    number: int
    """In the order of arrival"""
    job: Job | None = field(compare=False)
    """None ends the thread"""


class SequentialSampler(LogitsProcessor):
    """The same sampling as inside a batch, with a batch of one."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.job.state.advance(input_ids[0, len(self.job.prompt) :].tolist())
        return sample_into_logits(scores.float(), [self.job.state])


class CancelCriteria(StoppingCriteria):
    def __init__(self, cancelled: threading.Event) -> None:
        self.cancelled = cancelled

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return torch.full((input_ids.size(0),), self.cancelled.is_set(), device=input_ids.device)


class LoopStreamer(BaseStreamer):
    """Hands every token over to the event loop. `generate()` puts the prompt first."""

    def __init__(self, job: Job, watch: StallWatch) -> None:
        self.job = job
        self.watch = watch
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self.prompt_seen:
            self.watch.moves()
            tokens = value.flatten().tolist()
            self.job.loop.call_soon_threadsafe(self.job.stream.put, self.job.index, tokens)
        self.prompt_seen = True

    def end(self) -> None:
        pass


class SequentialEngine:
    """One model, one thread that owns it, a queue in front, in which clients take turns."""

    max_sequences = 1
    cuda_graphs = False

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_ids: Sequence[int],
        max_length: int,
        reason: str | None = None,
        stall_seconds: float = math.inf,
        adapters: AdapterMix | None = None,
    ) -> None:
        """
        Args:
            reason: why this model is not batched.
            stall_seconds: a step that takes longer never ends, see TOKENS_OF_A_PASS.
            adapters: those of the model, if it has any.
        """
        self.meter: EngineMeter | None = None
        self.max_length = max_length
        self.reason = reason
        self.attention = attention_of(model)
        self.attention_reason = "it is the model's own, as requests do not share a batch"
        self.vocabulary: int = model.get_input_embeddings().weight.size(0)
        self._model = model
        self._adapters = adapters
        self._eos_token_ids = list(eos_token_ids)
        self._watch = StallWatch(stall_seconds)
        self._stopping = False
        self._ended = False
        self._jobs: dict[tuple[str, int], Job] = {}
        self._queue: queue.PriorityQueue[Turn] = queue.PriorityQueue()
        self._turn = 0
        """The turn at hand: each client has one job in a turn"""
        self._last_turns: dict[str, int] = {}
        """By client, of the jobs that wait"""
        self._numbers = count()
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return not self._ended and self._thread.is_alive() and not self._watch.stalled()

    def load(self) -> Load:
        running = min(len(self._jobs), 1)
        return Load(running, len(self._jobs) - running)

    def cache_usage(self) -> float:
        return 0.0

    def submit(
        self, prompt: list[int], params: Sequence[SamplingParams], client: str = ""
    ) -> TokenStream:
        if not self.alive:
            raise Unavailable("The model stopped working and is being restarted.")
        stream = TokenStream(len(params), params[0].adapter)
        if not self._jobs:
            self._last_turns.clear()
        for index, each in enumerate(params):
            state = SamplingState(each, prompt, self._eos_token_ids, stream.logprobs[index])
            job = Job(prompt, state, stream, index, asyncio.get_running_loop())
            self._jobs[stream.id, index] = job
            turn = max(self._turn, self._last_turns.get(client, self._turn - 1) + 1)
            self._last_turns[client] = turn
            self._queue.put(Turn(turn, next(self._numbers), job))
        if self._ended:  # since the check above, so that the thread may have missed these jobs
            self.cancel(stream)
            raise Unavailable("The model stopped working and is being restarted.")
        return stream

    def cancel(self, stream: TokenStream, index: int | None = None) -> None:
        for each in range(len(stream.counts)) if index is None else [index]:
            if job := self._jobs.pop((stream.id, each), None):
                job.cancelled.set()
            stream.finish(each)

    def stop(self) -> None:
        self._stopping = True
        for job in list(self._jobs.values()):
            job.cancelled.set()
        self._queue.put(Turn(-1, 0, None))
        while self.alive:
            self._thread.join(1.0)
        self._fail_all()  # of a thread that hangs

    def _tell_start(self, job: Job, now: float) -> None:
        if job.stream.meter is not None:
            job.stream.meter.started(now - job.queued)

    def _finish(self, job: Job, error: Exception | None) -> None:
        self._jobs.pop((job.stream.id, job.index), None)
        if error:
            job.stream.fail(error)
            self.cancel(job.stream)
        else:
            job.stream.finish(job.index)

    def _run(self) -> None:
        try:
            while (next_ := self._queue.get()).job is not None:
                self._turn = next_.turn
                self._answer(next_.job)
        finally:
            # Also after an exception: the requests must not wait for a thread that has ended.
            self._ended = True
            self._fail_all()

    def _fail_all(self) -> None:
        unloaded = self._stopping and not self._watch.stalled()
        error = Unavailable(
            "The model is being unloaded."
            if unloaded
            else "The model stopped working and is being restarted."
        )
        for job in list(self._jobs.values()):
            with suppress(RuntimeError):  # the loop has been closed
                job.loop.call_soon_threadsafe(self._finish, job, error)

    def _answer(self, job: Job) -> None:
        error: Exception | None = None
        try:
            if not job.cancelled.is_set():
                job.loop.call_soon_threadsafe(self._tell_start, job, time.perf_counter())
                # The prompt is read in one pass, whatever its length.
                with self._watch.step(passes=1 + len(job.prompt) // TOKENS_OF_A_PASS):
                    self._generate(job)
        except Exception:
            logger.exception("request %s failed", job.stream.id)
            error = Unavailable("The model failed while it answered.")
        if self._stopping:
            error = Unavailable("The model is being unloaded.")
        job.loop.call_soon_threadsafe(self._finish, job, error)

    def _generate(self, job: Job) -> None:
        no_eos = [-1]  # None would mean the model's own
        if self._adapters is not None:
            self._adapters.use(job.stream.adapter)
        input_ids = torch.tensor([job.prompt], device=self._model.device)
        self._model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=job.state.params.max_tokens,
            eos_token_id=job.state.params.end_tokens(self._eos_token_ids) or no_eos,
            logits_processor=LogitsProcessorList([SequentialSampler(job)]),
            stopping_criteria=[CancelCriteria(job.cancelled)],
            streamer=LoopStreamer(job, self._watch),
        )
