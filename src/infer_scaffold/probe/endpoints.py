"""Questions about all endpoints: errors, validation, overload, and a free event loop."""

import asyncio
import gzip
import json
import re
import statistics
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from infer_scaffold.probe import envelope, health
from infer_scaffold.probe.answers import Question
from infer_scaffold.probe.outcomes import Skip, Unprepared, preparing
from infer_scaffold.probe.target import TELL_STORY, Reply, Target, describe, short

_BUSY = 4  # streams while health is asked
# Texts of a request for embeddings meanwhile: a queue may hold fewer, and a model shorter ones.
_SENTENCE = "The quick brown fox jumps over the lazy dog. "
_TEXTS = ([_SENTENCE * 8] * 32, [_SENTENCE * 8] * 8, [_SENTENCE] * 8, ["hello"] * 8, ["hello"])
_OFTEN = 0.05  # seconds between two of these questions
_FEW = 3  # of these at least, which more work is begun for
_IDLE = 10  # of these while there is no work
_LONGEST = 0.5  # seconds that one of them may take, and more where it takes long without work
_LONGER = 5.0  # times what it takes without work
_STALLED = 0.03  # of the time of the work, what may be waited for an answer beyond these seconds
_FLOOD = 256  # requests at once, when asked for
_ORIGIN = "https://app.example"
_ALLOWED = "access-control-allow-origin"

_DEEP: Any = None
for _ in range(60):
    _DEEP = {"a": _DEEP}

# Bodies that no schema allows, for each endpoint: the field that is wrong, and the change.
_WRONG_CHAT: tuple[tuple[str, dict[str, Any]], ...] = (
    ("messages", {"messages": "hello"}),
    ("messages", {"messages": []}),
    ("messages", {"messages": [{"role": "nobody", "content": "hello"}]}),
    ("messages", {"messages": [{"role": "user", "content": 7}]}),
    ("messages", {"messages": None}),
    ("max_tokens", {"max_tokens": "many"}),
    ("temperature", {"temperature": "hot"}),
    ("temperature", {"temperature": -1}),
    ("top_p", {"top_p": 2}),
    ("stream", {"stream": "perhaps"}),
    ("stop", {"stop": {"a": 1}}),
)
_WRONG_EMBEDDINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("input", {"input": None}),
    ("input", {"input": {"text": "hello"}}),
    ("input", {"input": [["a"]]}),
    ("encoding_format", {"encoding_format": "base65"}),
    ("dimensions", {"dimensions": "all"}),
)
# Bodies that a server may accept or refuse, but not with a status of 5xx. None asks for an answer
# without an end: some servers take a huge or a negative max_tokens for that.
_ODD_CHAT: tuple[dict[str, Any], ...] = (
    {"max_tokens": 0},
    {"temperature": 1e308},
    {"top_p": 0},
    {"seed": -(2**70)},
    {"n": 0},
    {"stop": [""]},
    {"logit_bias": {"x": "y"}},
    {"tools": [{}]},
    {"response_format": {"type": "json_schema"}},
    {"stream_options": {"include_usage": True}},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    {"messages": [{"role": "user", "content": "\x00\ud83d\u0000"}]},
    {"messages": [{"role": "user", "content": ""}]},
    {"metadata": _DEEP},
    {"user": "a" * 10_000},
)
_ODD_EMBEDDINGS: tuple[dict[str, Any], ...] = (
    {"input": ""},
    {"input": []},
    {"input": [""]},
    {"input": [[10**12]]},
    {"input": [[-1]]},
    {"input": [[]]},
    {"dimensions": 0},
    {"input": ["hello", ["a"]]},
    {"input": "\x00"},
    {"user": _DEEP},
)
# Types that a client sends JSON with by mistake; None is no Content-Type at all. curl's `-d` says
# that it is a form, and any web page may send a form or plain text here without being asked.
_OTHER_TYPES = ("text/plain", "application/x-www-form-urlencoded", None)
_NAMES_TYPE = re.compile(r"content[- ]type|media[- ]type|mimetype|application/json", re.IGNORECASE)
_NAMES_JSON = re.compile(r"json|pars(e|ing)|empty|no body", re.IGNORECASE)
_NAMES_ENCODING = re.compile(r"encoding|gzip|compress", re.IGNORECASE)
_NO_JSON = (b"", b"{", b"{" * 500)
_NO_OBJECT = (b"[]", b"null", b'"text"', b"\xff\xfe", b'{"model": NaN}')


def _bodies(target: Target) -> list[tuple[str, dict[str, Any]]]:
    """The path of each endpoint that takes JSON, with a body that it answers."""
    found = []
    if target.chat_model is not None:
        found.append((target.chat_path, target.chat(max_tokens=1)))
    if target.embeddings_model is not None:
        found.append((f"{target.api}/embeddings", target.embed("hello")))
    if not found:
        raise Skip("no endpoint takes JSON")
    return found


async def _free_loop(target: Target) -> None:
    streams = await target.streams()
    if target.chat_model is None and target.embeddings_model is None:
        raise Skip("no endpoint runs a model")
    with preparing():
        path, idle = await _quickest(target)
    longest = max(_LONGEST, _LONGER * idle)
    # What happens by chance does not happen twice.
    for _ in range(2):
        took, ended = await _answers_during_work(target, path, streams=streams)
        seconds = list(took.values())
        if _stalled(seconds, longest) <= _STALLED:
            break
    else:
        worst = max(took, key=lambda reply: took[reply])
        got = (
            f"answers after {statistics.median(seconds):.2f} s, and one after {max(seconds):.2f} "
            f"s; without work after {idle:.2f} s at most"
        )
        raise worst.unmet(f"answers within {longest:.2g} s while requests are served", got)
    if None not in ended:
        got = "; ".join(short(f"{type(each).__name__}: {each}") for each in ended[:1])
        raise Unprepared(
            f"none of the requests that were to be served meanwhile was answered: {got}"
        )


def _stalled(seconds: list[float], longest: float) -> float:
    """The part of the time in which one who asks waits for longer than that.

    Weighed by time, as a long wait is one answer among many quick ones.
    """
    whole = sum(seconds) + _OFTEN * len(seconds)
    return sum(max(0.0, each - longest) for each in seconds) / whole


async def _quickest(target: Target) -> tuple[str, float]:
    """The path that is answered the soonest while there is no work, and its longest seconds.

    A health endpoint may ask every model for an answer, so that it says nothing of the loop.
    """
    found = [
        reply
        for paths in (health.LIVE, health.HEALTH)
        if (reply := await health.first(target, paths))
    ]
    paths = [reply.request.split()[1] for reply in found if reply.status == 200]
    took: dict[str, float] = {}
    for path in paths or [f"{target.api}/models"]:
        took[path] = max([(await target.send("GET", path)).seconds for _ in range(_IDLE)])
    path = min(took, key=lambda each: took[each])
    return path, took[path]


async def _answers_during_work(
    target: Target, path: str, *, streams: bool
) -> tuple[dict[Reply, float], list[BaseException | None]]:
    """Ask for a path while there is work.

    Returns the answers with their seconds, and what each piece of work ended with.
    """
    took: dict[Reply, float] = {}
    ended: list[BaseException | None] = []
    for _ in range(_FEW):
        tasks = [asyncio.create_task(each) for each in _work(target, streams=streams)]
        try:
            while not all(task.done() for task in tasks):
                async with _own_lateness() as late:
                    reply = await target.send("GET", path)
                # Twice: when it is sent and when it is read.
                took[reply] = max(0.0, reply.seconds - 2 * max(late, default=0.0))
                await asyncio.sleep(_OFTEN)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        ended += results
        if len(took) >= _FEW:
            break
    return took, ended


@asynccontextmanager
async def _own_lateness() -> AsyncIterator[list[float]]:
    """Collect the seconds by which this process itself is late, as on a machine that is busy."""
    late: list[float] = []
    clock = asyncio.get_running_loop().time

    async def watch() -> None:
        while True:
            due = clock() + _OFTEN
            await asyncio.sleep(_OFTEN)
            late.append(max(0.0, clock() - due))

    task = asyncio.create_task(watch())
    try:
        yield late
    finally:
        task.cancel()


def _work(target: Target, *, streams: bool) -> list[Coroutine[Any, Any, None]]:
    chat = target.chat_model is not None
    return [
        *(_stream(target) for _ in range(_BUSY if chat and streams else 0)),
        *(_answer(target) for _ in range((1 if streams else _BUSY) if chat else 0)),
        *([_embed(target)] if target.embeddings_model else []),
    ]


async def _stream(target: Target) -> None:
    (await target.stream(target.chat(max_tokens=64))).reply.require(200)


async def _answer(target: Target) -> None:
    body = target.chat(max_tokens=64)
    (await target.send("POST", target.chat_path, body)).require(200)


async def _embed(target: Target) -> None:
    for texts in _TEXTS:
        body = target.embed(texts)
        reply = await target.send("POST", f"{target.api}/embeddings", body)
        if reply.status == 200:
            break
    reply.require(200)


async def _validation(target: Target) -> None:
    for path, body in _bodies(target):
        chat = path == target.chat_path
        for field, change in _WRONG_CHAT if chat else _WRONG_EMBEDDINGS:
            reply = await target.send("POST", path, body | change)
            error = envelope.require(reply, 400, 422)
            if field not in str(error["param"] or "") and field not in error["message"]:
                raise reply.unmet(f"an error that names the field {field}")
        without = {"model": body["model"]}
        envelope.require(await target.send("POST", path, without), 400, 422)


async def _no_json(target: Target) -> None:
    kind = {"content-type": "application/json"}
    for path, _ in _bodies(target):
        for content in _NO_OBJECT:
            envelope.require(await target.send("POST", path, content, headers=kind), 400, 422)
        for content in _NO_JSON:
            reply = await target.send("POST", path, content, headers=kind)
            _require_named(reply, _NAMES_JSON, "JSON, which the body is not")


async def _content_type(target: Target) -> None:
    for path, body in _bodies(target):
        content = json.dumps(body).encode()
        for kind in _OTHER_TYPES:
            headers = {"content-type": kind} if kind else {}
            reply = await target.send("POST", path, content, headers=headers)
            sent = f"with {f'content-type: {kind}' if kind else 'no content-type'}"
            reply = replace(reply, request=f"{describe('POST', path, body)} {sent}")
            _require_named(reply, _NAMES_TYPE, "the Content-Type that is wanted")


async def _content_encoding(target: Target) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    for path, body in _bodies(target):
        content = json.dumps(body).encode()
        for packed in (True, False):
            given = gzip.compress(content) if packed else content
            reply = await target.send("POST", path, given, headers=headers)
            if packed and reply.status == 200:
                continue  # unpacked, as the header says
            sent = f"{'packed' if packed else 'as it is'}, with content-encoding: gzip"
            reply = replace(reply, request=f"{describe('POST', path, body)} {sent}")
            _require_named(reply, _NAMES_ENCODING, "the Content-Encoding that is not read")


def _require_named(reply: Reply, pattern: re.Pattern[str], wanted: str) -> None:
    """Raise Unmet if a reply is not a client error whose message has the pattern."""
    error = envelope.require(reply, 400, 415, 422)
    if not pattern.search(error["message"]):
        raise reply.unmet(f"a message that names {wanted}")


async def _no_500(target: Target) -> None:
    for path, body in _bodies(target):
        for change in _ODD_CHAT if path == target.chat_path else _ODD_EMBEDDINGS:
            reply = await target.send("POST", path, body | {"max_tokens": 2} | change)
            if reply.status >= 500 and reply.status not in (501, 503):
                raise reply.unmet("an answer, or a status of 4xx that says what is wrong")
            if reply.status >= 400:
                envelope.require(reply, reply.status)


async def _unknown_model(target: Target) -> None:
    for path, body in _bodies(target):
        reply = await target.send("POST", path, body | {"model": "no/such-model"})
        error = envelope.require(reply, 404)
        if "no/such-model" not in error["message"]:
            raise reply.unmet("a message that names the model")


async def _unknown_route(target: Target) -> None:
    envelope.require(await target.send("GET", f"{target.api}/no-such-route"), 404)


async def _wrong_method(target: Target) -> None:
    path = target.chat_path if target.chat_model else f"{target.api}/models"
    reply = await target.send("DELETE", path)
    envelope.require(reply, 405)
    if "allow" not in reply.headers:
        raise reply.unmet("the header Allow, with the methods that there are", "none")


async def _wrong_key(target: Target) -> None:
    if target.key is None:
        raise Skip("no key was given")
    wrong = {"authorization": "Bearer sk-wrong"}
    reply = await target.send("GET", f"{target.api}/models", headers=wrong)
    envelope.require(reply, 401)
    reply = await target.send("GET", f"{target.api}/models", headers={"authorization": ""})
    envelope.require(reply, 401)


async def _cors(target: Target) -> None:
    origin = target.origin or _ORIGIN
    sent = {"origin": origin}
    path = f"{target.api}/models"
    reply = await target.send("GET", path, headers=sent)
    if target.origin is None and _ALLOWED not in reply.headers:
        raise Skip("it allows no web page to read answers, or not any one: name it with --origin")
    _require_origin(reply, origin)
    _require_origin(await target.send("GET", f"{target.api}/no-such-route", headers=sent), origin)
    path = target.chat_path if target.chat_model else path
    asked = {
        "access-control-request-method": "POST" if target.chat_model else "GET",
        "access-control-request-headers": "authorization, content-type",
    }
    preflight = await target.send("OPTIONS", path, headers=sent | asked)
    _require_origin(preflight.require(200, 204), origin)
    said = preflight.headers.get("access-control-allow-headers", "").lower()
    allowed = {name.strip() for name in said.split(",")}
    # A star means every header but Authorization.
    if "authorization" not in allowed or not allowed & {"content-type", "*"}:
        got = f"access-control-allow-headers: {said or 'nothing'}"
        raise preflight.unmet("authorization and content-type among the headers", got)
    if target.chat_model:
        refused = await target.send("POST", path, {}, headers=sent)
        _require_origin(refused, origin)


def _require_origin(reply: Reply, origin: str) -> None:
    """Raise Unmet if a browser does not show an answer to a page of the origin."""
    reply = replace(reply, request=f"{reply.request} with origin: {origin}")
    found = reply.headers.get(_ALLOWED, "nothing")
    if found not in ("*", origin):
        wanted = f"{_ALLOWED}: {origin}, also where the answer is an error"
        raise reply.unmet(wanted, f"status {reply.status} with {_ALLOWED}: {found}")
    credentials = reply.headers.get("access-control-allow-credentials", "").lower()
    if found == "*" and credentials == "true":
        raise reply.unmet("no credentials with a star: browsers refuse both", "both")
    if found == origin and "origin" not in reply.headers.get("vary", "").lower():
        wanted = "vary: Origin, so that no cache gives it to pages of another origin"
        raise reply.unmet(wanted, f"vary: {reply.headers.get('vary', 'nothing')}")


async def _overload(target: Target) -> None:
    body = target.chat(max_tokens=64, messages=TELL_STORY)
    started = time.perf_counter()
    replies = await asyncio.gather(
        *(target.send("POST", target.chat_path, body) for _ in range(_FLOOD)),
        return_exceptions=True,
    )
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
    refused = [reply for reply in replies if isinstance(reply, Reply) and reply.status != 200]
    if not refused:
        taken = time.perf_counter() - started
        raise Skip(f"{_FLOOD} requests at once were all answered, within {taken:.0f} s")
    for reply in refused:
        envelope.require(reply, 429, 503)
        if not reply.headers.get("retry-after", "").isdigit():
            raise reply.unmet("the header Retry-After, in seconds", "none")


QUESTIONS = (
    Question("IS201", "free-loop", "Health answers while models work.", _free_loop),
    Question("IS202", "validation", "A field that is wrong is refused by name.", _validation),
    Question("IS203", "no-json", "A body that is no JSON object is refused.", _no_json),
    Question("IS203", "content-type", "JSON under another Content-Type is refused.", _content_type),
    Question(
        "IS203", "content-encoding", "A packed body is unpacked, or refused.", _content_encoding
    ),
    Question("IS203", "unknown-model", "A model that there is not is a 404.", _unknown_model),
    Question("IS203", "unknown-route", "A route that there is not is a 404.", _unknown_route),
    Question("IS203", "wrong-method", "A wrong method is a 405.", _wrong_method),
    Question("IS203", "wrong-key", "A wrong key, or none, is a 401.", _wrong_key),
    Question("IS203", "cors", "Web pages that may read answers may read errors.", _cors),
    Question(
        "IS203",
        "overload",
        "What is refused when too many come says when to retry.",
        _overload,
        destructive=True,
    ),
    # One request of this kind ends the worker of some servers, for all clients.
    Question("IS203", "no-500", "No odd value brings a status of 5xx.", _no_500, destructive=True),
)
