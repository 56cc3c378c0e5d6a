"""The engine on transformers' continuous batching: requests join and leave a running batch.

It leans on names that transformers does not promise to keep (`_get_logits_processor`,
`ContinuousBatchingLogitsProcessor`, `infer_max_single_request_tokens`), so `pyproject.toml` pins
its minor version and `tests/test_batching.py` notices when one of them moves.
"""

import logging
import math
import uuid
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)
from transformers.generation.continuous_batching.model_runner import (
    infer_max_single_request_tokens,
)
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    GenerationOutput,
    RequestState,
)
from transformers.modeling_utils import PreTrainedModel

from .errors import Overloaded, Unavailable
from .params import SamplingParams
from .sampling import Row, mark_choices
from .tokens import TokenStream

logger = logging.getLogger(__name__)

PAGE_SIZE = 64
"""Tokens in one block of the KV cache. Small blocks waste little on short conversations."""


def position(state: RequestState) -> int:
    """Tokens that the request has generated, those before a preemption included."""
    prompt_length = state._true_initial_tokens or len(state.initial_tokens)
    return len(state.initial_tokens) - prompt_length + len(state.generated_tokens)


class Sampler(ContinuousBatchingLogitsProcessor):
    """Every request's own sampling inside the shared batch.

    transformers' own per-request processors know temperature, top_k and top_p only, sort the whole
    vocabulary for each, and divide by a temperature of 0, which kills the thread for everybody.
    """

    supported_kwargs: ClassVar[dict[str, type]] = {"params": SamplingParams}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: Sequence[FutureRequestState]) -> Tensor:
        # The tensor that goes to the device carries nothing: batching is synchronous, so the rows
        # kept here are those of the very next call.
        greedy = SamplingParams(max_tokens=0, temperature=0.0)
        self._rows = [
            Row(request.state.logit_processor_kwargs.get("params", greedy), position(request.state))
            for request in requests_with_new_token
        ]
        return torch.zeros(len(self._rows), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        return mark_choices(scores, self._rows)


class BatchingEngine:
    """One model, one thread that steps through the batch, one `TokenStream` a request."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_ids: Sequence[int],
        kv_cache_tokens: int,
        max_batch_tokens: int,
        max_batch_requests: int,
        max_queue: int,
    ) -> None:
        """Takes the memory of the KV cache and starts the thread.

        Raises ValueError (or what transformers raises) for a model that cannot be batched.
        """
        self._model = model
        self._eos_token_ids = list(eos_token_ids)
        self._max_in_flight = max_batch_requests + max_queue
        self._streams: dict[str, TokenStream] = {}

        config = ContinuousBatchingConfig(
            page_size=PAGE_SIZE,
            num_blocks=math.ceil(kv_cache_tokens / PAGE_SIZE),
            max_batch_tokens=max_batch_tokens,
            max_requests_per_batch=max_batch_requests,
            per_request_processors=True,
            # The sampler keeps its rows between two calls, see there.
            use_cuda_graph=False,
            use_async_batching=False,
        )
        processors = LogitsProcessorList([Sampler()])
        model._get_logits_processor = lambda *args, **kwargs: processors
        try:
            self._manager = model.init_continuous_batching(
                GenerationConfig(do_sample=False, eos_token_id=self._eos_token_ids), config
            )
        finally:
            del model._get_logits_processor  # the instance's; the class's is back
        self._manager.logit_processor.tensors_required = 1
        self._manager.warmup()  # creates the cache here, where a failure is the caller's
        assert self._manager.batch_processor is not None
        capacity = infer_max_single_request_tokens(self._manager.batch_processor.cache)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", capacity)
        self.max_length: int = min(capacity, context)
        self._manager.start()

    @property
    def alive(self) -> bool:
        status = self._manager.background_thread_status
        return self._manager.is_running() and status.fatal_error is None

    def submit(self, prompt: list[int], params: SamplingParams) -> TokenStream:
        if not self.alive:
            raise Unavailable("The model stopped working and is being restarted.")
        if len(self._streams) >= self._max_in_flight:
            raise Overloaded("Too many requests wait for the model.")
        stream = TokenStream(request_id=uuid.uuid4().hex)
        self._streams[stream.request_id] = stream
        # Before the request, or its first tokens could arrive unheard.
        self._manager.register_result_handler(stream.request_id, self._deliver)
        try:
            accepted = self._manager.add_request(
                prompt,
                request_id=stream.request_id,
                max_new_tokens=params.max_tokens,
                streaming=True,
                eos_token_id=self._eos_token_ids,
                params=params,
            )
        except BaseException:
            self._forget(stream)
            raise
        if accepted is None:
            self._forget(stream)
            raise Unavailable("The model stopped working and is being restarted.")
        return stream

    def cancel(self, stream: TokenStream) -> None:
        if stream.request_id in self._streams:
            self._manager.cancel_request(stream.request_id)
            self._forget(stream)
            stream.close()

    def stop(self) -> None:
        # A hard stop fails what is still running; its streams hear of it through `_deliver`.
        self._manager.stop(block=True, hard_stop=True)
        self._manager.destroy()

    def _deliver(self, output: GenerationOutput) -> None:
        stream = self._streams.get(output.request_id)
        if stream is None:
            return
        # The output repeats every token so far.
        stream.put(output.generated_tokens[stream.count :])
        if output.error is not None:
            logger.error("request %s failed: %s", output.request_id, output.error)
            stream.close(Unavailable("The model failed while it answered."))
        elif output.is_finished():
            stream.close()
        if stream.closed:
            self._forget(stream)

    def _forget(self, stream: TokenStream) -> None:
        self._streams.pop(stream.request_id, None)
        # A cancelled request never delivers again, so its handler would stay for ever.
        with self._manager.output_router._lock:
            self._manager.output_router.result_handlers.pop(stream.request_id, None)
