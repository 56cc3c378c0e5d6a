"""The bridge from the inference thread to the event loop."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..models.request_metrics import Load
from .sampling_params import SamplingParams, TokenLogprob

if TYPE_CHECKING:
    from .engine_metrics import EngineMeter


class TokenMeter(Protocol):
    """Is told of the tokens of a stream, on the event loop."""

    def started(self, queue_seconds: float) -> None:
        """A sequence got its slot after so many seconds."""

    def tokens(self, sequence: int, count: int) -> None:
        """A sequence has got so many tokens more."""


class TokenBatch(NamedTuple):
    """Tokens of one sequence: one for a reader that keeps up, more for a slow one."""

    sequence: int
    tokens: list[int]
    finished: bool
    """No more of this sequence comes."""


class TokenStream:
    """The sequences that answer one prompt. The engine fills it on the event loop, one reader
    empties it."""

    def __init__(self, sequences: int = 1, adapter: int = 0) -> None:
        """adapter: number of the adapter that computes the sequences; 0 for none"""
        self.id = uuid.uuid4().hex
        self.adapter = adapter
        self.counts = [0] * sequences
        """Tokens put so far, by sequence"""
        self.logprobs: list[list[TokenLogprob]] = [[] for _ in range(sequences)]
        """By sequence and token, if the request asks for them. The inference thread appends to it,
        and a token is put only after its entry."""
        self.meter: TokenMeter | None = None
        self._open = set(range(sequences))
        self._waiting: dict[int, list[int]] = {}
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    @property
    def closed(self) -> bool:
        return not self._open

    @property
    def failed(self) -> bool:
        return self._error is not None

    def put(self, index: int, tokens: Sequence[int]) -> None:
        self.counts[index] += len(tokens)
        if tokens and self.meter is not None:
            self.meter.tokens(index, len(tokens))
        self._waiting.setdefault(index, []).extend(tokens)
        self._changed.set()

    def finish(self, index: int) -> None:
        """No more tokens of this sequence come."""
        if index in self._open:
            self._open.discard(index)
            self.put(index, [])

    def fail(self, error: Exception) -> None:
        """Ends what is still open. The first error counts."""
        if self._open:
            self._open.clear()
            self._error = error
            self._changed.set()

    async def __aiter__(self) -> AsyncIterator[TokenBatch]:
        """Yields what has arrived. Raises the engine's error after the tokens before it."""
        while not (self.closed and not self._waiting):
            await self._changed.wait()
            self._changed.clear()
            waiting, self._waiting = self._waiting, {}
            open_ = set(waiting) if self._error else self._open & set(waiting)
            for index, tokens in waiting.items():
                yield TokenBatch(index, tokens, finished=index not in open_)
        if self._error is not None:
            raise self._error


class Engine(Protocol):
    """Turns prompts into tokens. It knows nothing of text and nothing of HTTP.

    All methods but `stop` belong to the event loop.
    """

    meter: "EngineMeter | None"
    """Counts what the engine does; None before the service measures it"""

    @property
    def max_length(self) -> int:
        """The most tokens that one sequence can hold, prompt and answer together."""

    @property
    def max_sequences(self) -> int:
        """Number of sequences that it generates at the same time; more wait."""

    @property
    def vocabulary(self) -> int:
        """Ids of the tokens that the model can read are below this."""

    @property
    def reason(self) -> str | None:
        """The reason why it generates one sequence at a time; None for an engine that batches"""

    @property
    def attention(self) -> str:
        """The attention that the model is computed with: flash, sdpa or eager"""

    @property
    def attention_reason(self) -> str:
        """Why this attention"""

    @property
    def cuda_graphs(self) -> bool:
        """Steps run in CUDA graphs, where their requests allow it."""

    @property
    def alive(self) -> bool:
        """False when the thread that computes has died."""

    def load(self) -> Load:
        """The sequences in the batch, and those that wait for a slot."""

    def cache_usage(self) -> float:
        """The share of the KV cache in use, 0 to 1; 0 for an engine without one of its own."""

    def submit(
        self, prompt: list[int], params: Sequence[SamplingParams], client: str = ""
    ) -> TokenStream:
        """Queues one sequence for each of `params`, each of which fits `max_length`.

        client: clients get equal shares of the engine.

        Raises Unavailable when the thread has died.
        """

    def cancel(self, stream: TokenStream, index: int | None = None) -> None:
        """Frees the place of one sequence, or of all that have not finished."""

    def stop(self) -> None:
        """Ends the thread and what is still running. Blocks."""
