"""Limits of the work in flight. A request beyond them is refused at once instead of queued.

Background work has other limits: it takes room that requests leave, and gives it back to them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from .model_errors import Overloaded

BACKGROUND_SHARE = 0.75
"""Of the slots, and of their tokens. A few requests then find a slot at once; more of them take
those of background work."""


class BackgroundWork:
    """Work that no client waits for, such as a line of a batch."""

    def __init__(self, cancel: Callable[[], object], on_enter: Callable[[], object]) -> None:
        """
        Args:
            cancel: ends the work, which is to be done again later.
            on_enter: is called when a model has admitted it.
        """
        self.entered = self.gave_way = False
        self._cancel, self._on_enter = cancel, on_enter

    def enter(self) -> None:
        self.entered = True
        self._on_enter()

    def give_way(self) -> None:
        self.gave_way = True
        self._cancel()


background_var: ContextVar[BackgroundWork | None] = ContextVar("background", default=None)
"""The background work at hand; None for the request of a client"""


@dataclass(eq=False)
class Admitted:
    """One request's share of the work in flight."""

    tokens: int
    """An estimate at first, corrected when the request has been tokenised"""
    requests: int = 1
    work: BackgroundWork | None = None


class Amount(NamedTuple):
    """An amount of work."""

    requests: int
    tokens: int


class Admission:
    """Counts the requests in flight and their tokens, running and waiting ones together."""

    def __init__(
        self,
        max_requests: int,
        max_tokens: int,
        *,
        slots: int | None = None,
        slot_tokens: int | None = None,
    ) -> None:
        """
        Args:
            slots: requests that are computed at the same time; all of them by default.
            slot_tokens: tokens for which there is room then; for all by default.
        """
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self._slots = Amount(
            max_requests if slots is None else slots,
            max_tokens if slot_tokens is None else slot_tokens,
        )
        self._admitted: list[Admitted] = []

    @contextmanager
    def enter(self, tokens: int, requests: int = 1) -> Iterator[Admitted]:
        """A admitted until the block ends. Raises Overloaded.

        An idle model accepts a request of any size: if it were refused, so would be each retry.
        """
        admitted = Admitted(tokens, requests, background_var.get())
        if admitted.work is None:
            self._check_limits(admitted)
        elif not admitted.work.entered:
            self._check_room(admitted)
        self._admitted.append(admitted)
        if admitted.work is None:
            self._make_way()
        else:
            admitted.work.enter()
        try:
            yield admitted
        finally:
            self._admitted.remove(admitted)

    def _check_limits(self, asked: Admitted) -> None:
        clients = [each for each in self._admitted if each.work is None]
        limits = Amount(self.max_requests, self.max_tokens)
        if clients and not fits([*clients, asked], limits):
            raise Overloaded("Too much work waits for the model.")

    def _check_room(self, asked: Admitted) -> None:
        requests, tokens = self._slots
        share = Amount(int(requests * BACKGROUND_SHARE), int(tokens * BACKGROUND_SHARE))
        if self._admitted and not fits([*self._admitted, asked], share):
            raise Overloaded("Requests of clients go first.")

    def _make_way(self) -> None:
        """Ends background work, the latest first, until the requests of clients have their slots."""
        kept = [each for each in self._admitted if each.work is None or not each.work.gave_way]
        works = list(dict.fromkeys(each.work for each in kept if each.work is not None))
        while works and not fits(kept, self._slots):
            last = works.pop()
            last.give_way()
            kept = [each for each in kept if each.work is not last]


def fits(work: Iterable[Admitted], limits: Amount) -> bool:
    requests = tokens = 0
    for each in work:
        requests += each.requests
        tokens += each.tokens
    return requests <= limits.requests and tokens <= limits.tokens
