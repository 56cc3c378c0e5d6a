"""Blocking work in threads, which delays neither the event loop nor the end of the process."""

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")


class WorkThread(threading.Thread):
    """Runs one function for the event loop. Unlike those of `asyncio.to_thread`, it does not keep
    the process from ending.
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
            value = contained(function)
        except Exception as problem:
            error = problem
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(settle, value, error)

    WorkThread(target=run, daemon=True).start()
    return await result


async def run_in_pool(pool: Executor, function: Callable[[], T]) -> T:
    """The result of `function`, which waits for a thread of the pool."""
    return await asyncio.get_running_loop().run_in_executor(pool, contained, function)


def contained(function: Callable[[], T]) -> T:
    """The result of `function`. It raises nothing but an Exception: a panic in Rust or sys.exit(),
    handed on to the event loop, would end the service.
    """
    try:
        return function()
    except Exception:
        raise
    except BaseException as problem:
        raise RuntimeError(f"{type(problem).__name__}: {problem}") from problem


def threads_left() -> list[threading.Thread]:
    """The threads that still run, for example loads that were given up."""
    return [thread for thread in threading.enumerate() if isinstance(thread, WorkThread)]


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pauses the garbage collector, and exempts from it the objects that are made meanwhile.

    Importing torch and transformers makes a million objects that stay. The collector would look
    through all of them again and again, which stops all threads for 0.3 s each time. They are
    exempt until `gc.unfreeze()`.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
