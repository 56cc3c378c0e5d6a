"""Questions and answers of a probe, as data."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infer_scaffold.probe.target import Target


class Verdict(StrEnum):
    """The verdict on an answer."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    SKIP = "skip"


class Unmet(Exception):  # noqa: N818 - an answer, not an error
    """The reply of a service differs from the expectation."""

    def __init__(self, request: str, got: str, wanted: str) -> None:
        super().__init__(got)
        self.request, self.got, self.wanted = request, got, wanted


class Skip(Exception):  # noqa: N818
    """A question that this service cannot be asked; the text says why."""


@dataclass(frozen=True)
class Question:
    """One behaviour of a service that follows a pattern.

    `ask` returns if it does, and raises Unmet or Skip if not. A question is destructive where a
    service in production would suffer: it is asked on demand alone.
    """

    code: str
    name: str
    holds: str
    ask: Callable[["Target"], Awaitable[None]]
    destructive: bool = False


@dataclass(frozen=True)
class Answer:
    """The outcome of a question; on failure with the request, the reply, and the expectation."""

    question: Question
    verdict: Verdict
    seconds: float
    request: str = ""
    got: str = ""
    wanted: str = ""
    reason: str = ""
