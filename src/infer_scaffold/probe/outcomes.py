"""Outcome of a question: a verdict, and the exceptions that lead to it."""

from enum import StrEnum


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
