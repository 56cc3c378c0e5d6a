"""The generated service on an engine that computes nothing, to weigh everything else.

`python -m bench.serving.stub_server` with the settings of the service, its package on the path, and
TICK: seconds between two tokens of a stream, 0 for all of them at once.
"""

import asyncio
import importlib
import os
import threading
from typing import Any

from bench.serving.environments import PACKAGE

PIECES = [506, 3823, 8864, 37423]
"""Tokens of Gemma's vocabulary; each becomes text of its own"""


class TickingEngine:
    """One token for every stream at each tick, handed over as transformers' batching does it:
    from another thread, with one call for the whole batch."""

    max_length = 32768
    max_sequences = 64
    vocabulary = 262144
    alive = True
    reason = None

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._stream_class: Any = importlib.import_module(
            f"{PACKAGE}.serving.engine.base_engine"
        ).TokenStream
        self._left: dict[Any, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, prompt: list[int], params: Any, *args: Any, **kwargs: Any) -> Any:
        self._loop = asyncio.get_running_loop()
        stream = self._stream_class()
        self._left[stream] = params[0].max_tokens
        if self._tick == 0:
            self._loop.call_soon(self._step, params[0].max_tokens)
        return stream

    def cancel(self, stream: Any, index: int | None = None) -> None:
        self._left.pop(stream, None)

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while self._tick and not self._stopped.wait(self._tick):
            if self._left and self._loop is not None:
                self._loop.call_soon_threadsafe(self._step, 1)

    def _step(self, count: int) -> None:
        for stream, left in list(self._left.items()):
            first = stream.counts[0]
            stream.put(0, [PIECES[index % len(PIECES)] for index in range(first, first + count)])
            self._left[stream] = left - count
            if left <= count:
                stream.finish(0)
                del self._left[stream]


def main() -> None:
    loading = importlib.import_module(f"{PACKAGE}.serving.chat.loading")
    tick = float(os.environ["TICK"])
    vars(loading)["make_engine"] = lambda *args, **kwargs: TickingEngine(tick)
    importlib.import_module(f"{PACKAGE}.__main__").main()


if __name__ == "__main__":
    main()
