"""The engine for models that cannot be batched: `generate()`, one request at a time."""

import asyncio
import logging
import queue
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_utils import PreTrainedModel

from .errors import Overloaded, Unavailable
from .params import SamplingParams
from .sampling import Row, mark_choices
from .tokens import TokenStream

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """A request on its way through the thread."""

    prompt: list[int]
    params: SamplingParams
    stream: TokenStream
    loop: asyncio.AbstractEventLoop
    cancelled: threading.Event = field(default_factory=threading.Event)


class Sampler(LogitsProcessor):
    """The same sampling as inside a batch, with a batch of one."""

    def __init__(self, params: SamplingParams, prompt_length: int) -> None:
        self.params = params
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        position = input_ids.size(-1) - self.prompt_length
        return mark_choices(scores.float(), [Row(self.params, position)])


class CancelCriteria(StoppingCriteria):
    def __init__(self, cancelled: threading.Event) -> None:
        self.cancelled = cancelled

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return torch.full((input_ids.size(0),), self.cancelled.is_set(), device=input_ids.device)


class LoopStreamer(BaseStreamer):
    """Hands every token over to the event loop. `generate()` puts the prompt first."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self.prompt_seen:
            tokens = value.flatten().tolist()
            self.job.loop.call_soon_threadsafe(self.job.stream.put, tokens)
        self.prompt_seen = True

    def end(self) -> None:
        pass


class GenerateEngine:
    """One model, one thread that owns it, a queue in front."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_ids: Sequence[int],
        max_length: int,
        max_queue: int,
    ) -> None:
        self.max_length = max_length
        self._model = model
        self._eos_token_ids = list(eos_token_ids)
        self._max_in_flight = 1 + max_queue
        self._stopping = False
        self._jobs: dict[str, Job] = {}
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, prompt: list[int], params: SamplingParams) -> TokenStream:
        if not self.alive:
            raise Unavailable("The model stopped working and is being restarted.")
        if len(self._jobs) >= self._max_in_flight:
            raise Overloaded("Too many requests wait for the model.")
        stream = TokenStream(request_id=uuid.uuid4().hex)
        job = Job(prompt, params, stream, asyncio.get_running_loop())
        self._jobs[stream.request_id] = job
        self._queue.put(job)
        return stream

    def cancel(self, stream: TokenStream) -> None:
        if job := self._jobs.pop(stream.request_id, None):
            job.cancelled.set()
            stream.close()

    def stop(self) -> None:
        self._stopping = True
        for job in list(self._jobs.values()):
            job.cancelled.set()
        self._queue.put(None)
        self._thread.join()

    def _finish(self, job: Job, error: Exception | None) -> None:
        self._jobs.pop(job.stream.request_id, None)
        job.stream.close(error)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            error: Exception | None = None
            try:
                if not job.cancelled.is_set():
                    self._generate(job)
            except Exception:
                logger.exception("request %s failed", job.stream.request_id)
                error = Unavailable("The model failed while it answered.")
            if self._stopping:
                error = Unavailable("The model is being unloaded.")
            job.loop.call_soon_threadsafe(self._finish, job, error)

    def _generate(self, job: Job) -> None:
        input_ids = torch.tensor([job.prompt], device=self._model.device)
        self._model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=job.params.max_tokens,
            eos_token_id=self._eos_token_ids or None,
            logits_processor=LogitsProcessorList([Sampler(job.params, len(job.prompt))]),
            stopping_criteria=[CancelCriteria(job.cancelled)],
            streamer=LoopStreamer(job),
        )
