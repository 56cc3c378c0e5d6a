"""The lines of a batch's input: read in pieces, and checked before the first of them is answered."""

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ..http.body import MAX_STRUCTURE, parse_cost
from .batch_errors import InvalidLine

PIECE = 1024 * 1024
"""Bytes that are read at a time"""

MAX_LINES = 50_000
"""As many as OpenAI takes"""

MAX_CUSTOM_ID = 512
MAX_PROBLEMS = 20
"""Problems of an input that are told"""


@dataclass(frozen=True)
class InputLine:
    """A request of a batch."""

    number: int
    """The first line is number 1"""
    custom_id: str
    body: dict[str, Any]


async def split_lines(
    read: Callable[[int, int], Awaitable[bytes]], limit: int
) -> AsyncIterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers. No more than a line is in memory.

    Args:
        read: the bytes from a position on, at most so many; none at the end.
        limit: of the bytes of a line. Of a longer line one byte more is given, and all others of it
            are left out.
    """
    number, position, rest = 1, 0, b""
    while piece := await read(position, PIECE):
        position += len(piece)
        first, *others = piece.split(b"\n")
        rest += first[: max(0, limit + 1 - len(rest))]
        for other in others:
            if rest.strip():
                yield number, rest
            number, rest = number + 1, other[: limit + 1]
    if rest.strip():
        yield number, rest


def parse_line(number: int, raw: bytes, endpoint: str, limit: int) -> InputLine:
    """Raises InvalidLine. limit: of the bytes of the line."""
    if len(raw) > limit or parse_cost(raw) > MAX_STRUCTURE:
        message = (
            f"This line is larger than a request may be: {limit} bytes, and not too many values."
        )
        raise InvalidLine("invalid_request", message)
    try:
        document = json.loads(raw.decode())
    except (ValueError, RecursionError):
        message = "This line is not parseable as valid JSON."
        raise InvalidLine("invalid_json_line", message) from None
    if not isinstance(document, dict):
        raise InvalidLine("invalid_request", "This line is not a JSON object.")
    custom_id, body = document.get("custom_id"), document.get("body")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID:
        message = f"custom_id: must be a text of 1 to {MAX_CUSTOM_ID} characters."
        raise InvalidLine("missing_required_parameter", message, "custom_id")
    if document.get("method") != "POST":
        raise InvalidLine("invalid_method", "method: must be POST.", "method")
    if document.get("url") != endpoint:
        message = f"url: must be that of the batch, {endpoint}."
        raise InvalidLine("url_mismatch", message, "url")
    if not isinstance(body, dict):
        raise InvalidLine("missing_required_parameter", "body: must be a JSON object.", "body")
    if body.get("stream"):
        message = "stream: the answers of a batch are not streamed."
        raise InvalidLine("invalid_request", message, "body.stream")
    return InputLine(number, custom_id, body)


class InputCheck:
    """Checks what concerns all lines of an input together."""

    def __init__(self, is_model: Callable[[str], bool]) -> None:
        self.model: str | None = None
        """That of the first line"""
        self.lines = 0
        self._is_model = is_model
        self._ids: set[bytes] = set()
        """Digests, as ids may be long"""

    def add(self, line: InputLine) -> None:
        """Raises InvalidLine."""
        self.lines += 1
        digest = hashlib.blake2b(line.custom_id.encode(errors="replace"), digest_size=16).digest()
        if digest in self._ids:
            message = "custom_id: must be different in each line, and is that of a line before."
            raise InvalidLine("duplicate_custom_id", message, "custom_id")
        self._ids.add(digest)
        model = line.body.get("model")
        if not isinstance(model, str) or not self._is_model(model):
            message = "model: there is no such model, see GET /v1/models."
            raise InvalidLine("model_not_found", message, "body.model")
        self.model = self.model or model
        if model != self.model:
            message = "model: must be the same in all lines."
            raise InvalidLine("model_mismatch", message, "body.model")
