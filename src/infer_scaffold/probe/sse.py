"""Server-sent events as they arrive. https://html.spec.whatwg.org/multipage/server-sent-events.html"""

import json
import re
from dataclasses import dataclass
from typing import Any

_FIELDS = ("data", "event", "id", "retry")
_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")


@dataclass(frozen=True)
class Event:
    """One event: when its last byte arrived, in seconds, its data, and lines that are none."""

    at: float
    data: str | None
    malformed: tuple[str, ...] = ()

    def json(self) -> Any:
        """Return the data as JSON. Raises ValueError."""
        return from_json(self.data or "")


def from_json(text: str | bytes) -> Any:
    """Return JSON as a value. Raises ValueError, also for what is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def parse(reads: list[tuple[float, bytes]]) -> tuple[list[Event], bytes]:
    """Return the events of a body, which came in reads, and what is left behind the last one."""
    events: list[Event] = []
    pending = bytearray()
    for at, read in reads:
        # A boundary may begin in what came before; all else of that was looked through.
        looked = max(0, len(pending) - 3)
        pending += read
        start = 0
        for boundary in _BOUNDARY.finditer(pending, looked):
            event = _event(at, bytes(pending[start : boundary.start()]))
            start = boundary.end()
            events += [event] if event else []
        del pending[:start]
    return events, bytes(pending)


def _event(at: float, block: bytes) -> Event | None:
    """An event, or None for a comment alone, such as a ping."""
    data, malformed = [], []
    # Lines end as in bytes: str.splitlines knows more ends, which may stand in JSON.
    for line in (each.decode("utf-8", errors="replace") for each in block.splitlines()):
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        elif name and name not in _FIELDS:
            malformed.append(line)
    if not data and not malformed:
        return None
    return Event(at, "\n".join(data) if data else None, tuple(malformed))
