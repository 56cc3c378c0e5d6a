"""The bridge from the inference thread to the event loop."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from .params import SamplingParams


class TokenStream:
    """The tokens of one request. The engine fills it on the event loop, one reader empties it."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.count = 0
        """Tokens put so far"""
        self.closed = False
        self._waiting: list[int] = []
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def put(self, tokens: Sequence[int]) -> None:
        self.count += len(tokens)
        self._waiting.extend(tokens)
        self._changed.set()

    def close(self, error: Exception | None = None) -> None:
        """No more tokens come. The first close counts."""
        if not self.closed:
            self.closed = True
            self._error = error
            self._changed.set()

    async def __aiter__(self) -> AsyncIterator[list[int]]:
        """Yields what has arrived: one token for a reader that keeps up, more for a slow one.

        Raises the engine's error once the tokens before it have been read.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            tokens, self._waiting = self._waiting, []
            if tokens:
                yield tokens
            if self.closed and not self._waiting:
                break
        if self._error is not None:
            raise self._error


class Engine(Protocol):
    """Turns prompts into tokens. It knows nothing of text and nothing of HTTP.

    All methods but `stop` belong to the event loop.
    """

    @property
    def max_length(self) -> int:
        """The most tokens that one request can hold, prompt and answer together."""

    @property
    def alive(self) -> bool:
        """False when the thread that computes has died."""

    def submit(self, prompt: list[int], params: SamplingParams) -> TokenStream:
        """Queues a request that fits `max_length`. Raises Overloaded or Unavailable."""

    def cancel(self, stream: TokenStream) -> None:
        """Frees the request's place. Does nothing when it has finished."""

    def stop(self) -> None:
        """Ends the thread and what is still running. Blocks."""
