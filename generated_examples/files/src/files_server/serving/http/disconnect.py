"""Cancels the work for a client that has disconnected."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")


async def until_disconnect(request: Request[Any], work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client goes away.

    A route that streams does not need this: its response watches for the disconnect itself.
    Raises ClientDisconnect. The request's body must have been read.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(wait_for_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for pending in (task, gone):
            pending.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await pending


async def wait_for_disconnect(request: Request[Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
