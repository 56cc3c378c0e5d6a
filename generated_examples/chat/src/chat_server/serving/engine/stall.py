"""Detects an inference thread that hangs: it is alive, but its step never ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StallWatch:
    """The time since a thread last began or ended a step."""

    def __init__(self, seconds: float) -> None:
        """seconds: that one forward pass of usual size may take."""
        self._seconds = seconds
        self._until = 0.0
        self.computing = False

    @contextmanager
    def step(self, passes: int = 1) -> Iterator[None]:
        """The thread computes until the block ends."""
        self.computing = True
        self.moves(passes)
        try:
            yield
        finally:
            self.moves()
            self.computing = False

    def moves(self, passes: int = 1) -> None:
        """Progress: the next is due within the time of so many passes."""
        self._until = time.monotonic() + passes * self._seconds

    def stalled(self, *, work_waits: bool = False) -> bool:
        return (self.computing or work_waits) and time.monotonic() > self._until
