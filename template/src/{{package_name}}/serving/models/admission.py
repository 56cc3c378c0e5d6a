"""Limits of the work in flight. A request beyond them is refused at once instead of queued."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .model_errors import Overloaded


@dataclass(eq=False)
class Admitted:
    """One request's share of the work in flight."""

    tokens: int
    """An estimate at first, corrected when the request has been tokenised"""


class Admission:
    """Counts the requests in flight and their tokens, running and waiting ones together."""

    def __init__(self, max_requests: int, max_tokens: int) -> None:
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self._requests = 0
        self._admitted: list[Admitted] = []

    @contextmanager
    def enter(self, tokens: int, requests: int = 1) -> Iterator[Admitted]:
        """A admitted until the block ends. Raises Overloaded.

        An idle model accepts a request of any size: if it were refused, so would be each retry.
        """
        busy = sum(admitted.tokens for admitted in self._admitted)
        if self._admitted and (
            self._requests + requests > self.max_requests or busy + tokens > self.max_tokens
        ):
            raise Overloaded("Too much work waits for the model.")
        admitted = Admitted(tokens)
        self._requests += requests
        self._admitted.append(admitted)
        try:
            yield admitted
        finally:
            self._requests -= requests
            self._admitted.remove(admitted)
