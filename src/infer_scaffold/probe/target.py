"""The probed service: its address, endpoints, models, and replies."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from infer_scaffold.probe import sse
from infer_scaffold.probe.outcomes import Skip, Unmet
from infer_scaffold.probe.patience import Patience, unanswered

_SHOWN = 300  # characters of a body
_MOST = 10_000_000  # bytes of an answer
_BEGINNING = 100_000  # bytes that are looked at of a stream without an end
_WHOLE_STREAM = "a stream that ends with [DONE]"
TELL_STORY: list[dict[str, str]] = [
    {"role": "user", "content": "Count from one to one hundred, in words, one after the other."}
]


@dataclass(frozen=True, eq=False)
class Reply:
    """A reply, with its request in a form that a reader can repeat."""

    request: str
    status: int
    headers: httpx2.Headers
    content: bytes
    seconds: float

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode("utf-8", errors="replace")

    @property
    def shown(self) -> str:
        """The status, the type and the beginning of the body."""
        kind = self.headers.get("content-type", "no content-type")
        return f"{self.status}, {kind}: {short(self.text)}"

    def json(self) -> Any:
        """Return the body as JSON. Raises Unmet if it is none."""
        try:
            return sse.from_json(self.content)
        except ValueError:
            raise self.unmet("a body that is JSON") from None

    def unmet(self, wanted: str, got: str | None = None) -> Unmet:
        """Return the finding that something else was wanted."""
        return Unmet(self.request, got or self.shown, wanted)

    def require(self, *statuses: int) -> "Reply":
        """Return itself. Raises Unmet if the status is another one."""
        if self.status not in statuses:
            raise self.unmet(f"status {' or '.join(map(str, statuses))}")
        return self


@dataclass(frozen=True)
class Stream:
    """A streamed answer: seconds count from the request. `rest` stands behind the last event.

    `failure` says why there is no end, where there is none.
    """

    reply: Reply
    events: list[sse.Event]
    rest: bytes
    closed: float
    failure: Unmet | None = None

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The events that are JSON objects."""
        found = []
        for event in self.events:
            try:
                value = event.json()
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append(value)
        return found

    @property
    def choices(self) -> list[dict[str, Any]]:
        """The choices of all chunks, one after the other."""
        return [choice for chunk in self.chunks for choice in chunk.get("choices") or []]

    @property
    def texts(self) -> list[sse.Event]:
        """The events that bring text."""
        return [event for event in self.events if _text(event)]

    def unmet(self, got: str, wanted: str) -> Unmet:
        """Return the finding that something else was wanted."""
        return Unmet(self.reply.request, got, wanted)


def _text(event: sse.Event) -> str:
    try:
        (choice,) = event.json()["choices"]
        delta = choice["delta"]
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        return str(delta.get("content") or thought or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


@dataclass
class Target:
    """A running service. `api` is the path that its endpoints are below, such as /v1."""

    client: httpx2.AsyncClient
    url: str
    api: str
    key: str | None
    patience: Patience
    pid: int | None = None
    origin: str | None = None
    """The origin of a web page that may read the answers."""
    silence: float = 0.0
    """The seconds that a connection is left idle at least."""
    models: list[str] = field(default_factory=list)
    chat_model: str | None = None
    embeddings_model: str | None = None
    has_files: bool = False
    failed: dict[str, Unmet] = field(default_factory=dict)
    """What came where the first request to an endpoint failed, by the endpoint's name."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why nothing is asked of an endpoint, by its name."""
    uploaded: list[str] = field(default_factory=list)
    last: Reply | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    """Results that several questions share."""

    def chat(self, **fields: Any) -> dict[str, Any]:
        """Return the body of a chat request. Raises Skip if there is no chat."""
        if self.chat_model is None:
            raise Skip(self.reasons.get("chat", "no model answers chat requests"))
        return {"model": self.chat_model, "messages": TELL_STORY, "max_tokens": 32} | fields

    def embed(self, given: Any, **fields: Any) -> dict[str, Any]:
        """Return the body of an embeddings request. Raises Skip if there are none."""
        if self.embeddings_model is None:
            raise Skip(self.reasons.get("embeddings", "no model answers embeddings requests"))
        return {"model": self.embeddings_model, "input": given} | fields

    def require_files(self) -> None:
        """Raise Skip if there is no endpoint for files."""
        if not self.has_files:
            raise Skip(self.reasons.get("files", "no endpoint takes files"))

    @property
    def timeout(self) -> float:
        """The seconds that an answer may take."""
        return self.patience.timeout

    @property
    def chat_path(self) -> str:
        """The path of chat completions."""
        return f"{self.api}/chat/completions"

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> Reply:
        """Send a request; a body of bytes goes as it is, another one as JSON.

        Raises Unmet if no answer comes in time, or the connection breaks.
        """
        if isinstance(body, bytes):
            more["content"] = body
        elif body is not None:
            # In ASCII: odd text has to reach the service, even text that UTF-8 cannot write.
            more["content"] = json.dumps(body).encode()
            headers = {"content-type": "application/json"} | (headers or {})
        request = describe(method, path, body)
        started = time.perf_counter()
        async with (
            self.waiting(f"{method} {path}", request, "an answer"),
            self.client.stream(method, path, headers=headers, **more) as response,
        ):
            content = b"".join([read async for read in _reads(response, request)])
        seconds = time.perf_counter() - started
        self.last = Reply(request, response.status_code, response.headers, content, seconds)
        return self.last

    @asynccontextmanager
    async def waiting(self, kind: str, request: str, wanted: str) -> AsyncIterator[None]:
        """Wait for an answer within bounds. Raises Unmet if none comes."""
        seconds = self.patience.seconds(kind)
        if not seconds:
            raise unanswered(request, seconds, wanted)
        started = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                yield
        except (httpx2.TimeoutException, TimeoutError):
            self.patience.waited(kind, started, time.monotonic())
            raise unanswered(request, seconds, wanted) from None
        except (httpx2.HTTPError, UnicodeError) as error:
            raise Unmet(request, broken(error), wanted) from None
        self.patience.answered(kind)

    @asynccontextmanager
    async def open(self, body: dict[str, Any]) -> AsyncIterator[httpx2.Response]:
        """Open a streamed chat answer. Raises Unmet like `send`."""
        body = body | {"stream": True}
        request = describe("POST", self.chat_path, body)
        kind = f"POST {self.chat_path} streamed"
        async with (
            self.waiting(kind, request, _WHOLE_STREAM),
            self.client.stream("POST", self.chat_path, json=body) as response,
        ):
            yield response

    async def stream(self, body: dict[str, Any]) -> Stream:
        """Read a streamed chat answer to its end. Raises Unmet like `send`."""
        stream = await self.stream_so_far(body)
        if stream.failure is not None:
            raise stream.failure
        return stream

    async def stream_so_far(self, body: dict[str, Any]) -> Stream:
        """Read a streamed chat answer as far as it comes. Raises Unmet if nothing does."""
        started = time.perf_counter()
        reads: list[tuple[float, bytes]] = []
        failure, response = None, None
        request = describe("POST", self.chat_path, body | {"stream": True})
        try:
            async with self.open(body) as response:
                async for read in _reads(response, request):
                    reads.append((time.perf_counter() - started, read))
        except Unmet as unmet:
            failure = unmet
            reads = _beginning(reads)
            if response is None or not reads:
                raise
        closed = time.perf_counter() - started
        content = b"".join(read for _, read in reads)
        reply = Reply(request, response.status_code, response.headers, content, closed)
        self.last = reply
        events, rest = sse.parse(reads)
        return Stream(reply, events, rest, closed, failure)

    async def streams(self) -> bool:
        """Return whether chat answers can be streamed, and such streams end."""
        try:
            return (await self.sample()).failure is None
        except (Skip, Unmet):
            return False

    async def whole_sample(self) -> Stream:
        """Return the shared answer like `sample`. Raises Skip if it has no end."""
        stream = await self.sample()
        if stream.failure is not None:
            raise Skip("the stream has no end, which `stream-done` tells")
        return stream

    async def sample(self) -> Stream:
        """Return a streamed answer that all questions about streams share, as far as it came.

        Raises Skip if there is no chat, or it cannot stream.
        """
        if "stream" not in self.kept:
            body = self.chat(temperature=0, stream_options={"include_usage": True})
            try:
                self.kept["stream"] = await self.stream_so_far(body)
            except Unmet as unmet:
                self.kept["stream"] = unmet
        found: Stream | Unmet = self.kept["stream"]
        if isinstance(found, Unmet):
            raise found
        if found.reply.status in (400, 404, 422, 501):
            raise Skip(f"the service does not stream: {found.reply.shown}")
        found.reply.require(200)
        return found


async def _reads(response: httpx2.Response, request: str) -> AsyncIterator[bytes]:
    """The body as it comes, without unpacking. Raises Unmet for one that is packed or endless."""
    packed = response.headers.get("content-encoding", "identity")
    if packed != "identity":
        raise Unmet(request, f"content-encoding: {packed}", "a body as it is, as was asked for")
    size = 0
    async for read in response.aiter_raw():
        size += len(read)
        if size > _MOST:
            got = f"a body of more than {_MOST // 1_000_000} MB"
            raise Unmet(request, got, "an answer that ends")
        yield read


def _beginning(reads: list[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    """The first reads, up to a bound: what never ends has all its kinds of events there."""
    sizes = itertools.accumulate(len(read) for _, read in reads)
    return [read for read, size in zip(reads, sizes, strict=True) if size <= _BEGINNING]


def describe(method: str, path: str, body: Any) -> str:
    """Return a request in one line, without its key."""
    if body is None:
        return f"{method} {path}"
    text = repr(body) if isinstance(body, bytes) else json.dumps(body)
    return f"{method} {path} {short(text)}"


def short(text: str) -> str:
    """Return the beginning of a text, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}... ({len(text)} characters)"


def broken(error: Exception) -> str:
    """Return a description of a failed connection."""
    return f"a connection that broke: {error or type(error).__name__}"
