"""How a service leaves."""

import asyncio
import os
import signal
from pathlib import Path

from infer_scaffold.probe import envelope, health
from infer_scaffold.probe.model import Question, Skip, Unmet
from infer_scaffold.probe.target import Target

_BEGUN = 0.5  # seconds from the signal until the service has to say that it leaves
_GONE = 60.0  # seconds until it has to be gone


async def _drain(target: Target) -> None:
    if target.pid is None:
        raise Skip("give the process id of the service with --pid")
    stream = None
    if target.chat_model is not None:
        stream = asyncio.create_task(target.stream(target.chat(max_tokens=256, temperature=0)))
        await asyncio.sleep(_BEGUN / 2)
    os.kill(target.pid, signal.SIGTERM)
    if stream is not None and not stream.done():
        await asyncio.sleep(_BEGUN)
        if not stream.done():
            await _leaving(target)
    if stream is not None:
        answered = await stream
        if answered.reply.status != 200 or answered.events[-1].data != "[DONE]":
            got = f"an end after {len(answered.texts)} tokens"
            raise answered.unmet(got, "the answer in full: it had begun before SIGTERM")
    for _ in range(int(_GONE / 0.1)):
        if not _runs(target.pid):
            return
        await asyncio.sleep(0.1)
    raise Unmet("SIGTERM", f"a process that still runs after {_GONE:g} s", "its end")


async def _leaving(target: Target) -> None:
    """What others are told while an answer goes on."""
    ready = await health.first(target, health.READY)
    if ready is not None:
        ready.require(503)
    refused = await target.send("POST", target.chat_path, target.chat(max_tokens=1))
    envelope.require(refused, 503)
    if "retry-after" not in refused.headers:
        raise refused.unmet("the header Retry-After", "none")


def _runs(pid: int) -> bool:
    """Whether a process runs; one that only its parent has to look after does not."""
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
