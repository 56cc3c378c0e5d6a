"""Idle connections: how long a service keeps them open for the next request."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx2

from infer_scaffold.probe.answers import Question
from infer_scaffold.probe.outcomes import Skip, Unmet
from infer_scaffold.probe.target import Target

# Seconds of silence that a connection has to outlast: nginx and AWS's load balancers keep theirs
# so long, and answer 502 where the service has closed one before.
POOLED = 60.0
# Seconds of silence at least, where the other questions take less: uvicorn and llama.cpp close
# after 5 s by default, Node.js after 6 s.
LEAST = 7.0
_WANTED = f"a connection that stays open for {POOLED:g} s of silence, as proxies keep theirs"


@asynccontextmanager
async def left_idle(target: Target) -> AsyncIterator[None]:
    """Leave a connection idle while other questions are asked; `keep-alive` asks on it again."""
    turn = asyncio.Event()
    task = asyncio.create_task(_ask_twice(target, turn))
    target.kept["idle"] = turn, task
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _keep_alive(target: Target) -> None:
    turn, task = target.kept["idle"]
    turn.set()
    await task


async def _ask_twice(target: Target, turn: asyncio.Event) -> None:
    """Ask on one connection, with silence between until it is the question's turn."""
    path = f"{target.api}/models"
    responses: list[httpx2.Response] = []

    async def keep(response: httpx2.Response) -> None:
        responses.append(response)

    async with httpx2.AsyncClient(
        base_url=target.client.base_url,
        headers=target.client.headers,
        timeout=target.timeout,
        limits=httpx2.Limits(max_connections=1, keepalive_expiry=None),
        trust_env=False,
        event_hooks={"response": [keep]},
    ) as client:
        # One of its own: the last reply of the target is that of the question being asked.
        caller = replace(target, client=client)
        reply = await caller.send("GET", path)
        if _says_close(responses[0]):
            raise Skip("the service closes every connection after its answer, and says so")
        said = reply.headers.get("keep-alive", "")
        if (found := re.search(r"timeout=(\d+)", said)) and int(found[1]) < POOLED:
            raise reply.unmet(_WANTED, f"a connection with keep-alive: {said}")
        silence = await _silence(turn, target.silence)
        await caller.send("GET", path)
    # The client opens another connection where the service has closed the first one.
    streams = [response.extensions["network_stream"] for response in responses]
    if streams[0] is not streams[1]:
        request = f"GET {path} twice, with {silence:.0f} s between"
        raise Unmet(request, "a connection that the service had closed by then", _WANTED)


def _says_close(response: httpx2.Response) -> bool:
    """Return whether a response announces that its connection is closed after it."""
    said = response.headers.get("connection", "").lower()
    return "close" in said or (response.http_version == "HTTP/1.0" and "keep-alive" not in said)


async def _silence(turn: asyncio.Event, least: float) -> float:
    """Wait for the question's turn, within the bounds. Returns the seconds that it took."""
    clock = asyncio.get_running_loop().time
    started = clock()
    await asyncio.sleep(least)
    try:
        async with asyncio.timeout(POOLED - least):
            await turn.wait()
    except TimeoutError:
        pass
    return clock() - started


KEEP_ALIVE = Question(
    "IS101", "keep-alive", "An idle connection takes the next request.", _keep_alive
)
QUESTIONS = (KEEP_ALIVE,)
