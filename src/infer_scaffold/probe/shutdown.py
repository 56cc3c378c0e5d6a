"""Shutdown: the drain after SIGTERM."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from infer_scaffold.probe import envelope, health
from infer_scaffold.probe.answers import Question
from infer_scaffold.probe.outcomes import Skip, Unmet, preparing
from infer_scaffold.probe.streams import long_answer
from infer_scaffold.probe.target import Target

_BEFORE = 0.1  # seconds that an answer goes on before the signal
_SAID = 0.2  # seconds from the signal until readiness is looked at
_SAID_AT_LAST = 2.0  # and until it has to be 503; a busy machine passes signals on late
_GONE = 60.0  # seconds until the process has to end


async def _drain(target: Target) -> None:
    if target.pid is None:
        raise Skip("give the process id of the service with --pid")
    answer = None
    if target.chat_model is not None:
        with preparing():
            body = await _long_body(target)
        answer = asyncio.create_task(_answer(target, body))
        await asyncio.sleep(_BEFORE)
    os.kill(target.pid, signal.SIGTERM)
    if answer is not None:
        await asyncio.sleep(_SAID)
        if not answer.done():
            await _leaving(target)
        await answer
    for _ in range(int(_GONE / 0.1)):
        if not _runs(target.pid):
            return
        await asyncio.sleep(0.1)
    raise Unmet("SIGTERM", f"a process that still runs after {_GONE:g} s", "its end")


async def _long_body(target: Target) -> dict[str, Any]:
    try:
        body, _ = await long_answer(target)
    except Skip:
        body = target.chat(max_tokens=256)
    return body


async def _answer(target: Target, body: dict[str, Any]) -> None:
    """Get an answer in full, as a stream where there are streams."""
    wanted = "the answer in full: it had begun before SIGTERM"
    if not await target.streams():
        reply = await target.send("POST", target.chat_path, body)
        if reply.status != 200:
            raise reply.unmet(wanted)
        return
    stream = await target.stream(body)
    if not stream.events or stream.events[-1].data != "[DONE]":
        raise stream.unmet(f"an end after {len(stream.texts)} tokens", wanted)


async def _leaving(target: Target) -> None:
    """Require 503 for readiness and new requests while an answer goes on."""
    ready = await health.first(target, health.READY)
    clock = asyncio.get_running_loop().time
    last = clock() + _SAID_AT_LAST
    while ready is not None and ready.status != 503:
        if clock() > last:
            ready.require(503)
        await asyncio.sleep(_SAID)
        ready = await health.first(target, health.READY)
    refused = await target.send("POST", target.chat_path, target.chat(max_tokens=1))
    envelope.require(refused, 503)
    if "retry-after" not in refused.headers:
        raise refused.unmet("the header Retry-After", "none")


def _runs(pid: int) -> bool:
    """Return whether a process runs. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc/self").exists()


QUESTIONS = (
    Question(
        "IS101",
        "drain",
        "At SIGTERM it finishes what it began, takes nothing new, and leaves.",
        _drain,
        destructive=True,
    ),
)
