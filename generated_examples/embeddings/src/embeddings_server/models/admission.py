"""How much work may be in flight. What comes beyond it is better told so at once than left waiting."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import Overloaded


@dataclass(eq=False)
class Place:
    """One request's share of the work in flight."""

    tokens: int
    """An estimate at first, corrected when the request has been tokenised"""


class Admission:
    """Counts the requests in flight and their tokens, running and waiting ones together."""

    def __init__(self, max_requests: int, max_tokens: int) -> None:
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self._requests = 0
        self._places: list[Place] = []

    @contextmanager
    def enter(self, tokens: int, requests: int = 1) -> Iterator[Place]:
        """A place until the block ends. Raises Overloaded.

        Who comes to an idle model is let in, however many tokens it brings: refused, it could only
        come again and be refused again.
        """
        busy = sum(place.tokens for place in self._places)
        if self._places and (
            self._requests + requests > self.max_requests or busy + tokens > self.max_tokens
        ):
            raise Overloaded("Too much work waits for the model.")
        place = Place(tokens)
        self._requests += requests
        self._places.append(place)
        try:
            yield place
        finally:
            self._requests -= requests
            self._places.remove(place)
