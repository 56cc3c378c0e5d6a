"""Uploads: their limit, their metadata, and the round trip of their content."""

import asyncio
import os
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

from infer_scaffold.probe import envelope
from infer_scaffold.probe.answers import Question
from infer_scaffold.probe.outcomes import Skip, Unmet
from infer_scaffold.probe.target import Reply, Target, broken, short

_CONTENT = bytes(range(256)) * 64 + "größe\n".encode()
_NAME = "probe größe.bin"
_ANNOUNCED = 1 << 40  # bytes, which no limit allows
_PATIENCE = 5.0  # seconds until a body that is announced has to be refused
_SENT = 1 << 30  # bytes, at most, where the limit is looked for by sending
_BODY = 1 << 16  # bytes of an answer that are read
_PIECE = bytes(1 << 20)
_HELD = 64 << 20  # bytes of memory that an upload may take


async def _upload(target: Target, **fields: str) -> Reply:
    target.require_files()
    reply = await target.send(
        "POST",
        f"{target.api}/files",
        files={"file": (_NAME, _CONTENT)},
        data={"purpose": "user_data"} | fields,
    )
    if reply.status == 200:
        target.uploaded.append(str(reply.json().get("id")))
    return Reply(
        f"POST {target.api}/files, a form with a file of {len(_CONTENT)} bytes and {fields or ''}",
        reply.status,
        reply.headers,
        reply.content,
        reply.seconds,
    )


async def _form(target: Target) -> None:
    from openai.types import FileObject
    from pydantic import ValidationError

    reply = (await _upload(target)).require(200)
    try:
        file = FileObject.model_validate_json(reply.content, strict=True)
    except ValidationError as error:
        raise reply.unmet(f"OpenAI's file object ({short(str(error))})") from None
    told = (file.filename, file.bytes, file.purpose)
    if told != (_NAME, len(_CONTENT), "user_data"):
        raise reply.unmet("the name, the size and the purpose that were sent")
    refused = await _upload(target, purpose="fun")
    envelope.require(refused, 400, 422)


async def _round_trip(target: Target) -> None:
    reply = (await _upload(target)).require(200)
    path = f"{target.api}/files/{reply.json()['id']}"
    content = (await target.send("GET", f"{path}/content")).require(200)
    if content.content != _CONTENT:
        raise content.unmet("the bytes that were sent")
    if (await target.send("GET", path)).require(200).json() != reply.json():
        raise reply.unmet("the same object at its own address")
    listed: Any = (await target.send("GET", f"{target.api}/files")).require(200).json()
    if reply.json()["id"] not in [file.get("id") for file in listed.get("data", [])]:
        raise reply.unmet("a list with the file")
    deleted = (await target.send("DELETE", path)).require(200)
    if deleted.json().get("deleted") is not True:
        raise deleted.unmet("deleted: true")
    target.uploaded.remove(reply.json()["id"])
    envelope.require(await target.send("GET", path), 404)


async def _announced(target: Target) -> None:
    target.require_files()
    request = f"POST {target.api}/files with content-length: {_ANNOUNCED}, and 64 KiB of it"
    reader, writer = await _connect(target)
    try:
        writer.write(_head(target, f"content-length: {_ANNOUNCED}") + bytes(1 << 16))
        async with asyncio.timeout(_PATIENCE):
            reply = await _read(reader, request)
    except TimeoutError:
        got = f"nothing within {_PATIENCE:g} s: it waits for the rest"
        raise Unmet(request, got, "status 413 before the body is read") from None
    except OSError as error:
        raise Unmet(request, f"a connection that broke: {error}", "status 413") from None
    finally:
        writer.close()
    envelope.require(reply, 413)


async def _streamed(target: Target) -> None:
    target.require_files()
    request = f"POST {target.api}/files in chunks, without a length"
    reader, writer = await _connect(target)
    answer = asyncio.create_task(_read(reader, request))
    memory = asyncio.create_task(_most_memory(target.pid))
    sent = 0
    try:
        async with asyncio.timeout(target.timeout):
            with suppress(OSError):  # closed in the middle, after the answer or without one
                writer.write(_head(target, "transfer-encoding: chunked") + _chunk(_part()))
                while sent < _SENT and not answer.done():
                    writer.write(_chunk(_PIECE))
                    await writer.drain()
                    sent += len(_PIECE)
                writer.write(_chunk(b"\r\n--probe--\r\n") + _chunk(b""))
            reply = await answer
    except TimeoutError:
        got = f"nothing within {target.timeout:g} s after {sent >> 20} MiB"
        raise Unmet(request, got, "status 413") from None
    except OSError as error:
        got = f"after {sent >> 20} MiB {broken(error)}"
        raise Unmet(request, got, "status 413") from None
    finally:
        answer.cancel()
        memory.cancel()
        writer.close()
    if reply.status == 200:
        target.uploaded.append(str(reply.json().get("id")))
        raise Skip(f"the limit is above {_SENT >> 20} MiB")
    most = await memory
    envelope.require(reply, 413)
    if most > _HELD:
        got = f"{most >> 20} MiB more memory while {sent >> 20} MiB arrived"
        raise reply.unmet(f"less than {_HELD >> 20} MiB: bytes go on while they arrive", got)


async def _most_memory(pid: int | None) -> int:
    """The most memory that a process takes beyond what it has now, in bytes, until cancelled."""
    before, most = _resident(pid), 0
    with suppress(asyncio.CancelledError):
        while True:
            most = max(most, _resident(pid) - before)
            await asyncio.sleep(0.02)
    return most


def _resident(pid: int | None) -> int:
    """The memory of a process in bytes, where the system tells it as Linux does; else 0."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = httpx2.URL(target.url)
    secure = ssl.create_default_context() if url.scheme == "https" else None
    port = url.port or (443 if secure else 80)
    try:
        async with asyncio.timeout(target.timeout):
            return await asyncio.open_connection(url.host, port, ssl=secure)
    except (TimeoutError, OSError) as error:
        raise Unmet(f"POST {target.api}/files", broken(error), "a connection") from None


def _head(target: Target, length: str) -> bytes:
    url = httpx2.URL(target.url)
    lines = [
        f"POST {url.path.rstrip('/')}{target.api}/files HTTP/1.1",
        f"host: {url.netloc.decode()}",
        "content-type: multipart/form-data; boundary=probe",
        length,
    ]
    if target.key:
        lines.append(f"authorization: Bearer {target.key}")
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode() + (b"" if "chunked" in length else _part())


def _part() -> bytes:
    return (
        b'--probe\r\ncontent-disposition: form-data; name="file"; filename="probe.bin"\r\n'
        b"content-type: application/octet-stream\r\n\r\n"
    )


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


async def _read(reader: asyncio.StreamReader, request: str) -> Reply:
    """Read one answer with its body. Raises OSError if none comes."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        raise ConnectionError("closed without an answer") from None
    except asyncio.LimitOverrunError:
        raise ConnectionError("headers without an end") from None
    status, *lines = head.split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    headers = httpx2.Headers([(name, value.strip()) for name, _, value in pairs])
    length = int(headers.get("content-length", _BODY))
    body = await reader.read(min(max(length, 0), _BODY))
    return Reply(request, int(status.split()[1]), headers, body, 0.0)


async def clean(target: Target) -> None:
    """Delete the uploaded files that are left."""
    for name in target.uploaded:
        await target.send("DELETE", f"{target.api}/files/{name}")
    target.uploaded.clear()


QUESTIONS = (
    Question("IS401", "upload-announced", "A length above the limit is a 413.", _announced),
    Question(
        "IS401",
        "upload-streamed",
        "A body that grows above the limit is a 413, and takes no memory.",
        _streamed,
        destructive=True,
    ),
    Question("IS402", "upload-form", "What comes with a file comes as form fields.", _form),
    Question("IS402", "upload-round-trip", "A file comes back as it was.", _round_trip),
)
