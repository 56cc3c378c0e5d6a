"""Streams: headers, framing, and delivery token by token."""

import asyncio
import re
import statistics
import time
from contextlib import suppress
from typing import Any

from infer_scaffold.probe.answers import Question
from infer_scaffold.probe.outcomes import Skip, Unmet, preparing
from infer_scaffold.probe.sse import Event
from infer_scaffold.probe.target import Stream, Target, short

_CLOSE = 1.0  # seconds that a connection may stay open after [DONE]
_SPREAD = 0.3  # of the time of an answer, the part in which its tokens arrive
_TOKENS_PER_EVENT = 4
_LONG = 6.0  # seconds that an answer goes on that is left in the middle
_LONG_ENOUGH = 0.5
# Answers that are left: few, which is enough where one is made at a time, then more than any
# plausible number of slots.
_LEFT = (4, 32, 128)
# Parts of the time of an answer that is left, which must not end meanwhile.
_PATIENCE = 0.5  # for the first tokens of all others after that of the first one
_TOGETHER = 0.2  # for that of the next one: it may wait for a slot
_NOTICED = 0.03  # until a service may have noticed
_OVER = 1.5  # until the answers are over, which may be slower together
_HELD_UP = 0.3  # what a short answer may wait for one that was left
# The first chunk, which has the role alone, may come before there is a slot.
_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning)": ?"[^"]')
_SLOWER = 3.0  # times what is usual; on a busy machine twice is usual, too
_LATE = 0.2  # seconds
_FIRST = 15.0  # seconds for the first token of the first answer that is left


async def _media_type(target: Target) -> None:
    reply = (await target.sample()).reply
    kind = reply.headers.get("content-type", "nothing")
    if kind.partition(";")[0].strip() != "text/event-stream":
        raise reply.unmet("content-type: text/event-stream", f"content-type: {kind}")


async def _no_cache(target: Target) -> None:
    reply = (await target.sample()).reply
    found = reply.headers.get("cache-control", "nothing")
    if not {"no-cache", "no-store"} & {part.strip() for part in found.lower().split(",")}:
        raise reply.unmet("cache-control: no-cache", f"cache-control: {found}")


async def _no_buffering(target: Target) -> None:
    reply = (await target.sample()).reply
    found = reply.headers.get("x-accel-buffering", "nothing")
    if found.lower() != "no":
        wanted = "x-accel-buffering: no, so that nginx passes on each token"
        raise reply.unmet(wanted, f"x-accel-buffering: {found}")


async def _framing(target: Target) -> None:
    stream = await target.sample()
    wanted = "events of `data: ` and JSON, each ended by an empty line"
    if not stream.events:
        raise stream.unmet(stream.reply.shown, wanted)
    if stream.rest and stream.failure is None:
        raise stream.unmet(f"{stream.rest[:80]!r} without an empty line after it", wanted)
    for event in stream.events:
        if event.malformed:
            raise stream.unmet(f"the line {short(event.malformed[0])!r}", wanted)
        if not event.data:
            raise stream.unmet("an event without data, which stops clients", wanted)
        if event.data != "[DONE]" and not _is_object(event):
            raise stream.unmet(f"data: {short(event.data)}", wanted)


def _is_object(event: Event) -> bool:
    try:
        return isinstance(event.json(), dict)
    except ValueError:
        return False


async def _done(target: Target) -> None:
    stream = await target.sample()
    if stream.failure is not None:
        raise stream.failure
    wanted = "`data: [DONE]` as the last event"
    last = stream.events[-1].data if stream.events else None
    if last != "[DONE]":
        raise stream.unmet(f"as the last event {short(str(last))}", wanted)
    # What happens by chance does not happen twice.
    for again in (True, False):
        late = stream.closed - stream.events[-1].at
        if late <= _CLOSE:
            return
        if again:
            stream = await target.stream(target.chat(max_tokens=2))
    wanted = "the end of the answer right after [DONE]: openai-node waits for it"
    raise stream.unmet(f"an end {late:.1f} s after [DONE]", wanted)


async def _identity(target: Target) -> None:
    stream = await target.sample()
    for name in ("id", "created", "model", "object"):
        values = {str(chunk.get(name)) for chunk in stream.chunks}
        if len(values) != 1 or values == {"None"}:
            wanted = f"the same {name} in every chunk"
            raise stream.unmet(f"{name}: {', '.join(sorted(values)[:4])}", wanted)
    if stream.chunks[0]["object"] != "chat.completion.chunk":
        raise stream.unmet(f"object: {stream.chunks[0]['object']}", "object: chat.completion.chunk")


async def _finish(target: Target) -> None:
    stream = await target.whole_sample()
    choices = stream.choices
    reasons = [choice.get("finish_reason") for choice in choices]
    if not choices or sum(reason is not None for reason in reasons) != 1 or reasons[-1] is None:
        got = f"the finish reasons {reasons[-4:]}"
        raise stream.unmet(got, "one finish_reason, in the last choice")
    if choices[0].get("delta", {}).get("role") != "assistant":
        got = f"first {short(str(choices[0]))}"
        raise stream.unmet(got, "the role assistant in the first delta")


async def _usage(target: Target) -> None:
    stream = await target.whole_sample()
    wanted = "with include_usage a last chunk with usage, and without choices"
    if not stream.chunks:
        raise stream.unmet("no chunk", wanted)
    last = stream.chunks[-1]
    usage = last.get("usage")
    if not isinstance(usage, dict) or last.get("choices") != []:
        raise stream.unmet(f"last {short(str(last))}", wanted)
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    counts = [count for name in names if isinstance(count := usage.get(name), int) and count > 0]
    if len(counts) != len(names) or counts[0] + counts[1] != counts[2]:
        raise stream.unmet(f"usage: {usage}", "prompt, completion and total tokens that add up")
    answer = await target.send("POST", target.chat_path, target.chat(max_tokens=2))
    whole = answer.require(200).json().get("usage") or {}
    if whole.get("prompt_tokens") != counts[0]:
        got = f"{whole.get('prompt_tokens')} prompt_tokens in a whole answer"
        raise answer.unmet(f"{counts[0]}, as in a stream of the same prompt", got)
    plain = await target.stream(target.chat(max_tokens=2))
    if any(chunk.get("choices") == [] for chunk in plain.chunks):
        raise plain.unmet("a chunk without choices", "none where include_usage was not asked for")


async def _token_by_token(target: Target) -> None:
    streams = [await target.sample()]
    for _ in range(2 if streams[0].failure is None else 0):
        streams.append(await target.stream(target.chat(temperature=0)))
    spreads = []
    for stream in streams:
        texts = stream.texts
        if len(texts) < 8:
            usage = _completion_tokens(stream)
            if usage and usage >= 8 * max(len(texts), 1):
                got = f"{usage} tokens in {len(texts)} events"
                raise stream.unmet(got, "an event for each token")
            continue
        spreads.append((texts[-1].at - texts[0].at) / texts[-1].at)
        usage = _completion_tokens(stream)
        if usage and usage > _TOKENS_PER_EVENT * len(texts):
            got = f"{usage} tokens in {len(texts)} events"
            raise stream.unmet(got, "an event for each token")
    if not spreads:
        raise Skip("the answers are too short to see how they arrive")
    spread = statistics.median(spreads)
    if spread < _SPREAD:
        texts = streams[-1].texts
        got = (
            f"{len(texts)} tokens within {(texts[-1].at - texts[0].at) * 1000:.0f} ms, after "
            f"{texts[0].at * 1000:.0f} ms without any"
        )
        raise streams[-1].unmet(got, "tokens that arrive while the answer is made")


def _completion_tokens(stream: Stream) -> int:
    for chunk in reversed(stream.chunks):
        usage = chunk.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            return int(usage["completion_tokens"])
    return 0


async def _disconnect(target: Target) -> None:
    with preparing():
        await target.whole_sample()
        long, seconds = await long_answer(target)
        usual = await _usual(target)
    if seconds < _LONG_ENOUGH:
        raise Skip(f"the longest answer takes {seconds:.1f} s: too short to leave it")
    slow = max(_SLOWER * usual, usual + _LATE)
    over = time.monotonic()
    for left in _LEFT:
        # Slots that the ones before have taken would be free again too soon.
        await asyncio.sleep(over - time.monotonic())
        # What happens by chance does not happen twice.
        for _ in range(2):
            over = time.monotonic() + seconds * _OVER
            is_refused, (first, *others) = await _answers_after(target, long, seconds, left, slow)
            # A slot that is taken holds up the first one; a batch that goes on slows down all.
            if first < slow + seconds * _HELD_UP and min(first, *others) < slow:
                break
        else:
            request = f"{left} streams of {long['max_tokens']} tokens, left after the first token"
            got = f"then a short answer took {first:.2f} s, where {usual:.2f} s are usual"
            raise Unmet(request, got, "that a client who leaves frees its slot")
        if is_refused:
            break  # There are no more slots to be taken.


async def _answers_after(
    target: Target, long: dict[str, Any], seconds: float, left: int, slow: float
) -> tuple[bool, list[float]]:
    """The seconds of short answers when streams have been left, and whether one was refused.

    Returns when those are over. An answer that does not come has taken as long as was waited.
    """
    with preparing():
        is_refused = await _leave(target, long, seconds, left)
    await asyncio.sleep(seconds * _NOTICED)
    started = time.perf_counter()
    try:
        waited = await _short_answers(target)
    except Unmet:
        waited = [time.perf_counter() - started]
    with suppress(TimeoutError, Unmet):
        async with asyncio.timeout(target.timeout):
            least = min(waited)
            while least > slow:
                await asyncio.sleep(seconds * _NOTICED)
                least = min(await _short_answers(target))
    return is_refused, waited


async def long_answer(target: Target) -> tuple[dict[str, Any], float]:
    """Return the body of an answer that goes on for seconds where the model can, and its seconds.

    Raises Skip if the model ends too early.
    """
    if "long" in target.kept:
        kept: tuple[dict[str, Any], float] = target.kept["long"]
        return kept
    sample = await target.sample()
    if len(sample.texts) < 4:
        raise Skip("the answers are too short to leave one")
    pace = await _usual(target) / len(sample.texts)
    tokens = min(4096, max(64, int(_LONG / pace)))
    while tokens >= 64:
        body = target.chat(temperature=0, max_tokens=tokens)
        for more in ({}, {"ignore_eos": True}):
            reply = await target.send("POST", target.chat_path, body | more)
            if reply.status != 200:
                break  # longer than the context
            if reply.json()["choices"][0].get("finish_reason") == "length":
                target.kept["long"] = body | more, reply.seconds
                return body | more, reply.seconds
        tokens = tokens * 3 // 4
    raise Skip("the model ends its answers too early to leave one")


async def _usual(target: Target) -> float:
    """The seconds of a short answer while nothing else is asked. Other work only ever adds."""
    if "usual" not in target.kept:
        target.kept["usual"] = min(await _short_answers(target))
    seconds: float = target.kept["usual"]
    return seconds


async def _short_answers(target: Target) -> list[float]:
    """The seconds of short answers, one after the other."""
    body = target.chat(temperature=0, max_tokens=32)
    return [(await target.stream(body)).closed for _ in range(4)]


async def _leave(target: Target, body: dict[str, Any], seconds: float, left: int) -> bool:
    """Begin streams, and close their connections when no more of them begin.

    Those that wait for a slot are left, too: where one answer is made at a time, a wait for each
    one's first token would be over when most of them are made. Returns whether one was refused.
    """
    begun: asyncio.Queue[bool] = asyncio.Queue()
    tasks = [asyncio.create_task(_begin(target, body, begun)) for _ in range(left)]
    accepted: list[bool] = []
    try:
        with suppress(TimeoutError):
            # Many connections take their time to open; what counts begins with the first token.
            accepted.append(await asyncio.wait_for(begun.get(), _FIRST))
            async with asyncio.timeout(seconds * _PATIENCE):
                while len(accepted) < left:
                    accepted.append(await asyncio.wait_for(begun.get(), seconds * _TOGETHER))
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    broken = [result for result in results if isinstance(result, Unmet)]
    if broken and not any(accepted):
        raise broken[0]
    return not all(accepted)


async def _begin(target: Target, body: dict[str, Any], begun: asyncio.Queue[bool]) -> None:
    """Read a stream up to its first token, and hold it. Tells whether it was accepted."""
    async with target.open(body) as response:
        if response.status_code != 200:
            begun.put_nowait(False)
            return
        async for read in response.aiter_bytes():
            if _TEXT.search(read):
                begun.put_nowait(True)
                await asyncio.Event().wait()


QUESTIONS = (
    Question("IS301", "stream-media-type", "A stream is text/event-stream.", _media_type),
    Question("IS301", "stream-no-cache", "A stream forbids caching.", _no_cache),
    Question("IS301", "stream-no-buffering", "A stream tells nginx not to buffer.", _no_buffering),
    Question(
        "IS302", "stream-framing", "Events are `data: ` and JSON, and nothing else.", _framing
    ),
    Question("IS302", "stream-done", "The last event is [DONE], and then it ends.", _done),
    Question("IS302", "stream-identity", "id, created and model stay within a stream.", _identity),
    Question("IS302", "stream-finish", "The role comes first, one finish_reason last.", _finish),
    Question("IS302", "stream-usage", "Usage comes where it is asked for, and adds up.", _usage),
    Question("IS303", "stream-delivery", "Tokens arrive one by one.", _token_by_token),
    Question("IS303", "stream-disconnect", "A client that leaves frees its slot.", _disconnect),
)
