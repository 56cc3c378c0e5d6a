"""Work that goes on beside the requests: again and again on the loop, or in a thread of its own."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


async def repeat(seconds: float, action: Callable[[], Awaitable[object]]) -> None:
    """Runs `action` now and again and again, `seconds` apart, until it is cancelled."""
    try:
        while True:
            try:
                await action()
            except Exception:
                logger.exception("background work failed, next try in %g s", seconds)
            await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        logger.debug("background work cancelled")
        raise


class WorkThread(threading.Thread):
    """Runs one function for the event loop. Unlike `asyncio.to_thread`, nothing waits for its end
    when the process is about to leave.
    """


async def run_in_thread(function: Callable[[], T]) -> T:
    """The result of `function`. Cancelling this gives up the result; the function runs on."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if result.cancelled():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value, error = None, None
        try:
            value = function()
        except Exception as problem:
            error = problem
        except BaseException as problem:  # a panic in Rust, or sys.exit(): no end for the service
            error = RuntimeError(f"{type(problem).__name__}: {problem}")
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(settle, value, error)

    WorkThread(target=run, daemon=True).start()
    return await result


def threads_left() -> list[threading.Thread]:
    """The threads whose work goes on, though nobody waits for it any more."""
    return [thread for thread in threading.enumerate() if isinstance(thread, WorkThread)]
