"""Shutdown that lets requests in flight finish.

At SIGTERM a service first says that it is not ready, so that the load balancer takes it out,
then finishes what it has begun, and only then takes its models down. uvicorn alone closes the
port at once and runs the lifespan's exit before streams that overstay have seen their
cancellation; the models would be gone under them.
"""

import asyncio
import logging

logger = logging.getLogger(__name__)


class Drain:
    """Counts the requests in flight, and holds whether new ones are still accepted."""

    def __init__(self) -> None:
        self.draining = False
        self._tasks: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    def enter(self) -> None:
        """The current task begins to answer a request."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._idle.clear()

    def leave(self) -> None:
        """The current task has answered its request, one way or another."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()

    async def finish(self, seconds: float) -> None:
        """Turns new requests away and waits for those in flight, then cancels what is left."""
        self.draining = True
        logger.info("draining: %d requests in flight", self.in_flight)
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("drain time is over: cancelling %d requests", self.in_flight)
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=5)
