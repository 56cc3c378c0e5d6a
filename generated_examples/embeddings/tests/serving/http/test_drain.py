"""Leaving without cutting answers off."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from embeddings_server.serving.http.drain import Drain

pytestmark = pytest.mark.anyio


def serve(drain: Drain, work: Callable[[], Awaitable[object]]) -> asyncio.Task[None]:
    async def request() -> None:
        drain.enter()
        try:
            await work()
        finally:
            drain.leave()

    return asyncio.create_task(request())


async def test_nothing_in_flight_leaves_at_once() -> None:
    await asyncio.wait_for(Drain().finish(60), 1)


async def test_waits_for_what_is_in_flight() -> None:
    drain, answer = Drain(), asyncio.Event()
    request = serve(drain, answer.wait)
    await asyncio.sleep(0)
    finishing = asyncio.create_task(drain.finish(60))
    await asyncio.sleep(0.01)
    assert drain.draining
    assert not finishing.done()
    answer.set()
    await finishing
    assert request.done()
    assert not request.cancelled()


async def test_cancels_what_overstays_and_waits_for_it() -> None:
    drain, cleaned_up = Drain(), False

    async def overstay() -> None:
        nonlocal cleaned_up
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned_up = True

    request = serve(drain, overstay)
    await asyncio.sleep(0)
    await drain.finish(0.01)
    assert cleaned_up
    assert request.cancelled()
