"""A small chat and embeddings server that follows every pattern, except for the faults it is given.

`python -m tests.probe.faulty FAULT...` prints its port and serves until it is killed. Tokens take
no computation, only time, so that a run of the probe costs little.
"""

import asyncio
import base64
import itertools
import json
import os
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

PACE = 0.01  # seconds a token
CONTEXT = 200  # tokens, so that the longest answer takes 2 s
LONG_CONTEXT = 650  # of one that leaks: opening many streams must not take as long as an answer
CREATED = 1_700_000_000
SLOTS = 64
THOUGHTS = 4  # tokens of an answer before its text
CALL = 8  # tokens of a tool call
LATE = 10.0  # seconds, longer than the tests wait

WRONG: dict[str, Callable[[Any], bool]] = {
    "messages": lambda v: (
        not isinstance(v, list)
        or not v
        or any(
            m.get("role") not in ("user", "assistant", "system", "tool")
            or not isinstance(m.get("content"), str | list | None)
            for m in v
        )
    ),
    "max_tokens": lambda v: v is not None and not isinstance(v, int),
    "temperature": lambda v: v is not None and not (isinstance(v, int | float) and 0 <= v <= 2),
    "top_p": lambda v: v is not None and not (isinstance(v, int | float) and 0 <= v <= 1),
    "stream": lambda v: v is not None and not isinstance(v, bool),
    "stop": lambda v: v is not None and not isinstance(v, str | list),
    "input": lambda v: (
        not isinstance(v, str | list)
        or any(isinstance(t, list) and not all(isinstance(i, int) for i in t) for t in v)
    ),
    "encoding_format": lambda v: v not in (None, "float", "base64"),
    "dimensions": lambda v: v is not None and not isinstance(v, int),
}
CHAT = ("messages", "max_tokens", "temperature", "top_p", "stream", "stop")
EMBEDDINGS = ("input", "encoding_format", "dimensions")


class RefusedError(Exception):
    """An error as OpenAI's clients read it."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


@dataclass
class Faulty:
    """The state of the server: its faults, its slots, and what it counts."""

    faults: set[str]
    numbers: Any = field(default_factory=itertools.count)
    chats: int = 0
    requests: int = 0

    def __post_init__(self) -> None:
        leak = next((each for each in self.faults if each.startswith("leak-")), f"leak-{SLOTS}")
        self.slots = asyncio.Semaphore(int(leak.removeprefix("leak-")))
        self.leaks = leak in self.faults
        self.context = LONG_CONTEXT if self.leaks else CONTEXT
        self.tasks: set[asyncio.Task[None]] = set()

    def has(self, fault: str) -> bool:
        return fault in self.faults

    async def tokens(self, count: int) -> AsyncIterator[int]:
        """The numbers of the tokens, each when it is made, while a slot is held."""
        await self.slots.acquire()
        holder = asyncio.create_task(self._hold(count)) if self.leaks else None
        if holder is not None:
            self.tasks.add(holder)
        try:
            for number in range(count):
                await asyncio.sleep(PACE)
                yield number
        finally:
            if holder is None:
                self.slots.release()

    async def _hold(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(PACE)
        self.slots.release()

    async def body(self, request: Request, fields: tuple[str, ...], needed: str) -> dict[str, Any]:
        """The body of a request. Raises RefusedError for one that is wrong."""
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RefusedError(
                415, "The Content-Encoding gzip is not read: send the body as it is."
            )
        if request.headers.get("content-type") != "application/json":
            raise RefusedError(415, "The Content-Type has to be application/json.")
        try:
            body = json.loads(await request.body())
        except ClientDisconnect:
            raise RefusedError(400, "The client has left.") from None
        except (ValueError, RecursionError):
            raise RefusedError(400, "The body is not valid JSON.") from None
        if not isinstance(body, dict) or needed not in body:
            raise RefusedError(400, f"The body is not an object with {needed}.", needed)
        for name in fields:
            if name in body and WRONG[name](body[name]):
                raise RefusedError(400, f"{name} is wrong.", name, "invalid_value")
        model = {"messages": "m", "input": "e"}[needed]
        if body.get("model") != model:
            raise RefusedError(404, f"The model {body.get('model')} does not exist.", "model")
        return body

    async def chat(self, request: Request) -> Response:
        self.chats += 1
        body = await self.body(request, CHAT, "messages")
        if self.has("dead"):
            raise RefusedError(500, "The model is gone.")
        if self.has("slow-first") and self.chats == 1:
            await asyncio.sleep(LATE)
        words = sum(len(str(message.get("content")).split()) for message in body["messages"])
        count = min(body.get("max_tokens") or 16, 4096)
        if words + count > self.context:
            said = f"However, you asked for {words + count} tokens (context_length_exceeded)."
            sentence = f"This model's maximum context length is {self.context} tokens."
            if self.has("other-overflow"):
                sentence = f"The model holds {self.context} tokens."
            raise RefusedError(400, f"{sentence} {said}", "messages", "context_length_exceeded")
        if body.get("tool_choice") == "required":
            count = min(count, CALL)
        answer = Answer(self, body, count, words)
        if not body.get("stream"):
            return JSONResponse(await answer.whole())
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(answer.events(), media_type="text/event-stream", headers=headers)

    async def embeddings(self, request: Request) -> Response:
        body = await self.body(request, EMBEDDINGS, "input")
        if self.has("embeddings-dead"):
            raise RefusedError(500, "The model is gone.")
        if self.has("block"):
            time.sleep(1.5)
        given = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = []
        for index, text in enumerate(given):
            values = [((hash(text) >> shift) & 255) / 256 for shift in range(0, 32, 8)]
            packed = base64.b64encode(struct.pack("<4f", *values)).decode()
            vector = packed if body.get("encoding_format") == "base64" else values
            data.append({"object": "embedding", "index": index, "embedding": vector})
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return JSONResponse({"object": "list", "data": data, "model": "e", "usage": usage})

    async def models(self, request: Request) -> Response:
        found = [
            {"id": name, "object": "model", "created": CREATED, "owned_by": "tests"}
            for name in ("m", "e")
        ]
        if (name := request.path_params.get("name")) is None:
            return JSONResponse({"object": "list", "data": found})
        for each in found:
            if each["id"] == name:
                return JSONResponse(each)
        raise RefusedError(404, f"The model {name} does not exist.", "model")

    async def health(self, request: Request) -> Response:
        return JSONResponse({"device": "cpu", "models": 2, "time": time.time(), "pid": os.getpid()})

    async def files(self, request: Request) -> Response:
        if self.has("files-dead"):
            raise RefusedError(500, "The disk is gone.")
        raise RefusedError(404, "There are no files.")

    async def metrics(self, request: Request) -> Response:
        lines = ["# HELP requests_total Requests.", "# TYPE requests_total counter"]
        lines.append(f"requests_total {0 if self.has('metrics-stand') else self.requests}")
        return PlainTextResponse("\n".join(lines) + "\n")

    async def refuse(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = RefusedError(error.status_code, error.detail)
        assert isinstance(error, RefusedError)
        allow = {"allow": "GET, POST"} if error.status == 405 else None
        if self.has("detail"):
            return JSONResponse({"detail": error.message}, error.status, allow)
        body = {
            "message": error.message,
            "type": "invalid_request_error",
            "param": error.param,
            "code": error.code,
        }
        return JSONResponse({"error": body}, error.status, allow)


@dataclass(frozen=True)
class Answer:
    """One chat answer, whole or as events."""

    server: Faulty
    body: dict[str, Any]
    count: int
    words: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"chatcmpl-{next(self.server.numbers)}")

    @property
    def usage(self) -> dict[str, Any]:
        total = self.words + self.count + (7 if self.server.has("wrong-usage") else 0)
        return {
            "prompt_tokens": self.words,
            "completion_tokens": self.count,
            "total_tokens": total,
            "completion_tokens_details": {"reasoning_tokens": min(self.count, THOUGHTS)},
        }

    @property
    def calls(self) -> bool:
        return self.body.get("tool_choice") == "required"

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": CREATED, "model": "m"}  # type: ignore[attr-defined]

    async def whole(self) -> dict[str, Any]:
        thoughts, text = "", ""
        async for number in self.server.tokens(self.count):
            if number < THOUGHTS and self.count > THOUGHTS:
                thoughts += f"t{number} "
            else:
                text += f"w{number} "
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if thoughts:
            message["reasoning_content"] = thoughts
        reason = "length"
        if self.calls and not self.server.has("no-call"):
            function = {"name": "get_weather", "arguments": '{"place": "Ulm"}'}
            message["tool_calls"] = [{"id": "c1", "type": "function", "function": function}]
            message["content"] = None
            reason = "tool_calls"
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return self.head("chat.completion") | {"choices": [choice], "usage": self.usage}

    async def events(self) -> AsyncIterator[bytes]:
        yield self.event({"role": "assistant", "content": ""})
        if self.calls:
            async for event in self.call():
                yield event
        else:
            async for number in self.server.tokens(self.count):
                thinks = number < THOUGHTS < self.count
                if thinks and not self.server.has("thoughts-lost"):
                    yield self.event({"reasoning_content": f"t{number} "})
                elif not thinks:
                    yield self.event({"content": f"w{number} "})
            yield self.event({}, "length")
        if (self.body.get("stream_options") or {}).get("include_usage"):
            chunk = self.head("chat.completion.chunk") | {"choices": [], "usage": self.usage}
            yield _data(chunk)
        if self.server.has("never-ends"):
            await asyncio.Event().wait()
        if not self.server.has("no-done"):
            yield b"data: [DONE]\n\n"

    async def call(self) -> AsyncIterator[bytes]:
        pieces = ['{"place"', ': "Ulm"', "" if self.server.has("cut-arguments") else "}"]
        for number, piece in enumerate(pieces):
            await asyncio.sleep(PACE)
            function = {"arguments": piece} | ({} if number else {"name": "get_weather"})
            first = {} if number else {"id": "c1", "type": "function"}
            yield self.event({"tool_calls": [{"index": 0, **first, "function": function}]})
        yield self.event({}, "tool_calls")

    def event(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _data(self.head("chat.completion.chunk") | {"choices": [choice]})


def _data(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


class OneAtATime:
    """A middleware that lets one request in, until its answer has been sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.lock = app, asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.lock:
            await self.app(scope, receive, send)


class Buffer:
    """A middleware that sends an answer when it is whole, as a proxy does that buffers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept: list[Any] = []

        async def keep(message: Any) -> None:
            kept.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                for each in kept:
                    await send(each)

        await self.app(scope, receive, keep)


class Origins:
    """A middleware that lets every web page read the answers, and counts requests."""

    def __init__(self, app: ASGIApp, server: Faulty) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_origin(message: Any) -> None:
            if message["type"] == "http.response.start":
                good = message["status"] < 400 or not self.server.has("cors-errors")
                if good:
                    message["headers"].append((b"access-control-allow-origin", b"*"))
            await send(message)

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        self.server.requests += 1
        if scope["method"] == "OPTIONS":
            allowed = {"access-control-allow-headers": "authorization, content-type"}
            response = Response(headers=allowed | {"access-control-allow-methods": "GET, POST"})
            return await response(scope, receive, with_origin)
        return await self.app(scope, receive, with_origin)


def make_app(faults: set[str]) -> ASGIApp:
    server = Faulty(faults)
    routes = [
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/embeddings", server.embeddings, methods=["POST"]),
        Route("/v1/models", server.models),
        Route("/v1/models/{name:path}", server.models),
        Route("/v1/files", server.files),
        Route("/health", server.health),
        Route("/health/live", server.health),
        Route("/health/ready", server.health),
        Route("/metrics", server.metrics),
    ]
    handlers: Any = {RefusedError: server.refuse, HTTPException: server.refuse}
    app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
    app = Origins(app, server)
    app = Buffer(app) if "buffer" in faults else app
    return OneAtATime(app) if "one-at-a-time" in faults else app


def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        print(listening.getsockname()[1], flush=True)
        faults = set(sys.argv[1:])
        config = uvicorn.Config(
            make_app(faults),
            log_level="error",
            lifespan="off",
            timeout_keep_alive=1 if "short-keep-alive" in faults else 75,
        )
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
