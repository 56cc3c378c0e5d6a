"""Questions and answers of a probe, as data."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from infer_scaffold.probe.outcomes import Verdict
from infer_scaffold.probe.target import Target


@dataclass(frozen=True)
class Question:
    """One behaviour of a service that follows a pattern.

    `ask` returns if it does, and raises Unmet, Unprepared or Skip if not. A question is
    destructive where a service in production would suffer: it is asked on demand alone.
    """

    code: str
    name: str
    holds: str
    ask: Callable[[Target], Awaitable[None]]
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

    @property
    def is_unwanted(self) -> bool:
        """Whether the question failed, or could not be asked although it applies."""
        return self.verdict in (Verdict.FAIL, Verdict.ERROR)
