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
        return json.loads(self.data or "")


def parse(reads: list[tuple[float, bytes]]) -> tuple[list[Event], bytes]:
    """Return the events of a body, which came in reads, and what is left behind the last one."""
    events: list[Event] = []
    pending = b""
    for at, read in reads:
        pending += read
        *blocks, pending = _BOUNDARY.split(pending)
        events += filter(None, (_event(at, block) for block in blocks))
    return events, pending


def _event(at: float, block: bytes) -> Event | None:
    """An event, or None for a comment alone, such as a ping."""
    data, malformed = [], []
    for line in block.decode("utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        elif name and name not in _FIELDS:
            malformed.append(line)
    if not data and not malformed:
        return None
    return Event(at, "\n".join(data) if data else None, tuple(malformed))
