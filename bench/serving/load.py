"""The load generator, a process of its own: `python -m bench.serving.load < load.json`.

It shares the machine with the server that it measures. So while the clock runs it only writes
requests and keeps what arrives with the time of arrival; it reads the answers when all is over.
"""

import asyncio
import base64
import bisect
import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

END_OF_CHUNKS = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Request:
    path: str
    body: dict[str, Any]
    units: int
    """Tokens or vectors that the answer must have"""


@dataclass(frozen=True)
class Load:
    port: int
    clients: int
    """Each sends its next request when its last one is answered."""
    requests: list[Request]
    timeout: float
    """Seconds that one request may take"""


@dataclass(frozen=True)
class Sample:
    """What one request brought. Times are in seconds from when the client began to send it."""

    first: float
    """Until the first text of a streamed answer, or until the end"""
    total: float
    units: int
    """Tokens or vectors that came"""
    events: int
    """Events with text in a streamed answer"""
    error: str | None


@dataclass(frozen=True)
class Outcome:
    seconds: float
    """From the first byte sent to the last received"""
    cpu_seconds: float
    """What the generator itself took"""
    samples: list[Sample]

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        data = json.loads(text)
        return cls(
            data["seconds"], data["cpu_seconds"], [Sample(**item) for item in data["samples"]]
        )


@dataclass
class Exchange:
    """One request as it went over the wire."""

    request: Request
    started: float
    reads: list[tuple[float, bytes]]
    failure: str | None = None


class Client:
    """One keep-alive connection, opened again where the server closes it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def send(self, message: bytes, reads: list[tuple[float, bytes]]) -> None:
        """Puts what is received into `reads`. Raises OSError when the connection fails."""
        used = self._reader is not None
        try:
            await self._send(message, reads)
        except OSError:
            self.close()
            if not used or reads:
                raise
            await self._send(message, reads)  # the server had closed the idle connection

    async def _send(self, message: bytes, reads: list[tuple[float, bytes]]) -> None:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(message)
        head, length = b"", 0
        body_start: int | None = None
        while True:
            data = await self._reader.read(65536)
            if not data:
                if not reads:
                    raise ConnectionError("the server closed the connection")
                self.close()
                return
            reads.append((time.monotonic(), data))
            length += len(data)
            if body_start is None:
                head += data
                if (end := head.find(b"\r\n\r\n")) < 0:
                    continue
                body_start = end + 4
                headers = head[:body_start].lower()
                content_length = header(headers, b"content-length")
                chunked = b"chunked" in (header(headers, b"transfer-encoding") or b"")
                closes = b"close" in (header(headers, b"connection") or b"")
            if content_length is not None:
                complete = length - body_start >= int(content_length)
            else:
                complete = chunked and ends_chunks(reads)
            if complete:
                if closes:
                    self.close()
                return


def ends_chunks(reads: list[tuple[float, bytes]]) -> bool:
    """Whether the last chunk has come; its few bytes may have come in two reads."""
    tail = reads[-1][1]
    if len(tail) < len(END_OF_CHUNKS) and len(reads) > 1:
        tail = reads[-2][1][-len(END_OF_CHUNKS) :] + tail
    return tail.endswith(END_OF_CHUNKS)


def header(headers: bytes, name: bytes) -> bytes | None:
    """The value of a header in a lower-cased head."""
    start = headers.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    return headers[start : headers.index(b"\r\n", start)].strip()


async def run(load: Load) -> tuple[float, list[Exchange]]:
    """Seconds taken, and every exchange."""
    messages = [encode(request) for request in load.requests]
    waiting = iter(zip(load.requests, messages, strict=True))
    exchanges: list[Exchange] = []

    async def work() -> None:
        client = Client(load.port)
        for request, message in waiting:
            exchange = Exchange(request, time.monotonic(), [])
            exchanges.append(exchange)
            try:
                async with asyncio.timeout(load.timeout):
                    await client.send(message, exchange.reads)
            except TimeoutError:
                exchange.failure = f"no answer within {load.timeout:.0f} s"
                client.close()
            except OSError as error:
                exchange.failure = f"{type(error).__name__}: {error}"
                client.close()
        client.close()

    started = time.monotonic()
    await asyncio.gather(*(work() for _ in range(load.clients)))
    return time.monotonic() - started, exchanges


def encode(request: Request) -> bytes:
    body = json.dumps(request.body).encode()
    head = (
        f"POST {request.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


# From here on: after the clock.


def read_answer(exchange: Exchange) -> Sample:
    ended = exchange.reads[-1][0] if exchange.reads else time.monotonic()
    total = ended - exchange.started
    if exchange.failure:
        return Sample(total, total, 0, 0, exchange.failure)
    try:
        status, body = parse(exchange.reads)
        text = b"".join(part for _, part in body)
        if status != 200:
            message = text.decode(errors="replace")[:300]
            return Sample(total, total, 0, 0, f"{status}: {message}")
        if exchange.request.body.get("stream"):
            first, units, events = read_stream(body)
        else:
            first, units, events = ended, count_units(json.loads(text)), 0
    except (ValueError, LookupError, TypeError) as error:
        return Sample(total, total, 0, 0, f"unreadable: {error!r}")
    wrong = units != exchange.request.units
    problem = f"{units} instead of {exchange.request.units}" if wrong else None
    return Sample(first - exchange.started, total, units, events, problem)


def parse(reads: list[tuple[float, bytes]]) -> tuple[int, list[tuple[float, bytes]]]:
    """The status, and the body in pieces with the time when the last byte of each had come."""
    raw = b"".join(data for _, data in reads)
    head, _, body = raw.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if b"chunked" not in (header(head.lower() + b"\r\n", b"transfer-encoding") or b""):
        return status, [(reads[-1][0], body)]
    ends: list[int] = []
    length = 0
    for _, data in reads:
        length += len(data)
        ends.append(length)
    pieces = []
    position = len(head) + 4
    for size_line_end, size in chunks(raw, position):
        end = size_line_end + size
        pieces.append((reads[bisect.bisect_left(ends, end)][0], raw[size_line_end:end]))
    return status, pieces


def chunks(raw: bytes, position: int) -> Iterator[tuple[int, int]]:
    """Where each chunk's data starts, and its size."""
    while True:
        line_end = raw.index(b"\r\n", position)
        size = int(raw[position:line_end].partition(b";")[0], 16)
        if size == 0:
            return
        yield line_end + 2, size
        position = line_end + 2 + size + 2


def read_stream(body: list[tuple[float, bytes]]) -> tuple[float, int, int]:
    """Time of the first text, tokens by the server's own count, events with text."""
    first: float | None = None
    units, events, rest = 0, 0, b""
    for arrived, piece in [*body, (body[-1][0], b"\n\n")]:  # an error may come unterminated
        *complete, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for item in complete:
            if not item.startswith(b"data:") or (data := item[5:].strip()) == b"[DONE]":
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                raise ValueError(str(chunk["error"]))
            for choice in chunk.get("choices", ()):
                if (choice.get("delta") or {}).get("content"):
                    events += 1
                    first = arrived if first is None else first
            if chunk.get("usage"):
                units = chunk["usage"]["completion_tokens"]
    if first is None:
        raise ValueError("a stream without text")
    return first, units, events


def count_units(answer: dict[str, Any]) -> int:
    """Tokens of a chat answer; vectors of an embeddings answer, each of which must be one."""
    if "data" not in answer:
        return int(answer["usage"]["completion_tokens"])
    for item in answer["data"]:
        vector = item["embedding"]
        size = len(base64.b64decode(vector)) // 4 if isinstance(vector, str) else len(vector)
        if size < 2:
            raise ValueError("an empty vector")
    return len(answer["data"])


def main() -> None:
    data = json.load(sys.stdin)
    requests = [Request(**item) for item in data.pop("requests")]
    load = Load(requests=requests, **data)
    before = resource.getrusage(resource.RUSAGE_SELF)
    seconds, exchanges = asyncio.run(run(load))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    outcome = Outcome(seconds, cpu, [read_answer(exchange) for exchange in exchanges])
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
