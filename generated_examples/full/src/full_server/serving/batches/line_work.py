"""The answer to one line of a batch, which waits for room and gives way to requests."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ..models.admission import BackgroundWork, background_var
from .batch_store import LineResult
from .inner_app import InnerAnswer
from .input_lines import InputLine
from .output_lines import answered_line

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 1.0
"""Seconds between two attempts to find room: 0.05, 0.1, 0.2 … 1"""

MAX_FAILURES = 10
"""Attempts at a model that cannot answer now, before the line fails"""
LONGEST_FAILURE_PAUSE = 60.0


class LineWork:
    """Answers a line, again and again until there is an answer to keep."""

    def __init__(self, line: InputLine, post: Callable[[bytes], Awaitable[InnerAnswer]]) -> None:
        """post: gives the answer to the body of a request."""
        self.entered = asyncio.Event()
        """Set when the line has found room, or needs none"""
        self.interruptions = 0
        """Times that it gave way to a request"""
        self._line = line
        self._post = post

    async def run(self) -> tuple[LineResult, InnerAnswer]:
        try:
            answer = await self._answer()
        finally:
            self.entered.set()
        document = answered_line(self._line.custom_id, answer)
        return LineResult(self._line.number, answer.status < 400, document), answer

    async def _answer(self) -> InnerAnswer:
        body = json.dumps(self._line.body).encode()
        pause, failures = FIRST_PAUSE, 0
        while True:
            answer = await self._attempt(body)
            if answer is None:
                self.interruptions += 1
                pause = FIRST_PAUSE
            elif answer.status == 429:
                pause = min(pause * 2, LONGEST_PAUSE)
            elif is_temporary(answer) and failures < MAX_FAILURES:
                failures += 1
                pause = retry_after(answer)
            else:
                return answer
            await asyncio.sleep(pause)

    async def _attempt(self, body: bytes) -> InnerAnswer | None:
        """The answer; None if the work gave way to a request."""

        async def post() -> InnerAnswer:
            background_var.set(work)
            return await self._post(body)

        task = asyncio.create_task(post())
        work = BackgroundWork(task.cancel, self.entered.set)
        try:
            await asyncio.wait([task])
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        return None if task.cancelled() else task.result()


def is_temporary(answer: InnerAnswer) -> bool:
    return answer.status == 503 and answer.headers.get("x-should-retry") != "false"


def retry_after(answer: InnerAnswer) -> float:
    with suppress(ValueError):
        return min(float(answer.headers.get("retry-after", "1")), LONGEST_FAILURE_PAUSE)
    return 1.0
