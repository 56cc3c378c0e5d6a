"""Outcome of a question: a verdict, and the exceptions that lead to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import ClassVar

from infer_scaffold.errors import UserError


class Verdict(StrEnum):
    """The verdict on an answer. An error is a question whose preparation failed."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    ERROR = "error"
    SKIP = "skip"


class Unmet(Exception):  # noqa: N818 - an answer, not an error
    """The reply of a service differs from the expectation."""

    def __init__(self, request: str, got: str, wanted: str) -> None:
        super().__init__(got)
        self.request, self.got, self.wanted = request, got, wanted


class Skip(Exception):  # noqa: N818
    """A question that this service cannot be asked; the text says why."""


class Unprepared(Exception):  # noqa: N818
    """A question whose preparation failed, so that nothing is known of its answer."""


class CannotBeAsked(UserError):  # noqa: N818
    """A service of which no question could be asked."""

    exit_code: ClassVar[int] = 3


@contextmanager
def preparing() -> Iterator[None]:
    """Turn what goes wrong before the question itself into Unprepared."""
    try:
        yield
    except Unmet as unmet:
        raise Unprepared(
            f"the service is too slow to be asked, or fails before: "
            f"{unmet.request} got {unmet.got}, wanted was {unmet.wanted}"
        ) from None
