"""Progress of the download and the load of a model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str], None]

LISTENER: ContextVar[Listener] = ContextVar("listener", default=lambda text: None)
"""Is told each tenth of the work that the thread does or waits for"""


@contextmanager
def progress_told_to(listener: Listener) -> Iterator[None]:
    token = LISTENER.set(listener)
    try:
        yield
    finally:
        LISTENER.reset(token)
