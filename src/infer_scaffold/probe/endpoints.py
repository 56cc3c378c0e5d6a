"""Questions about all endpoints: errors, validation, overload, and a free event loop."""

import asyncio
import gzip
import json
import re
import statistics
import time
from dataclasses import replace
from typing import Any

from infer_scaffold.probe import envelope
from infer_scaffold.probe.answers import Question
from infer_scaffold.probe.outcomes import Skip
from infer_scaffold.probe.target import TELL_STORY, Reply, Target, describe

_BUSY = 4  # streams while health is asked
_OFTEN = 0.05  # seconds between two of these questions
_LONGEST = 0.5  # seconds that nineteen of twenty of them may take
_FLOOD = 256  # requests at once, when asked for

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
    path = target.kept.get("health") or f"{target.api}/models"
    work = [
        *(_stream(target) for _ in range(_BUSY if target.chat_model else 0)),
        *([_answer(target)] if target.chat_model else []),
        *([_embed(target)] if target.embeddings_model else []),
    ]
    if not work:
        raise Skip("no endpoint runs a model")
    tasks = [asyncio.create_task(each) for each in work]
    took: list[Reply] = []
    try:
        # As long as there is work, within the timeout.
        async with asyncio.timeout(target.timeout):
            while not took or any(not task.done() for task in tasks):
                took.append(await target.send("GET", path))
                await asyncio.sleep(_OFTEN)
    except TimeoutError:
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    seconds = [reply.seconds for reply in took]
    slow = statistics.quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]
    if slow > _LONGEST:
        worst = max(took, key=lambda reply: reply.seconds)
        got = (
            f"answers after {statistics.median(seconds):.2f} s, and one after {max(seconds):.2f} s"
        )
        wanted = f"answers within {_LONGEST:g} s while {len(work)} requests are served"
        raise worst.unmet(wanted, got)


async def _stream(target: Target) -> None:
    await target.stream(target.chat(max_tokens=64))


async def _answer(target: Target) -> None:
    await target.send("POST", target.chat_path, target.chat(max_tokens=64))


async def _embed(target: Target) -> None:
    texts = ["The quick brown fox jumps over the lazy dog. " * 8] * 32
    await target.send("POST", f"{target.api}/embeddings", target.embed(texts))


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
