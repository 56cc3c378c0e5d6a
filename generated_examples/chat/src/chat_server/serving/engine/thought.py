"""The thought before an answer: the grammar does not hold in it, and its length has a limit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ThoughtParams:
    """The format of the thought of one sequence, in tokens."""

    begins: Callable[[Sequence[int]], bool | None]
    """True if these first tokens begin a thought, None if the next ones may"""
    ends: Callable[[Sequence[int]], bool]
    """True if the last of these tokens ends the thought"""
    begin_token: int | None = None
    """Token that may begin a thought, whatever the grammar says"""
    begun: bool = False
    """The prompt ends inside the thought"""
    free: bool = True
    """The grammar holds after the thought only; else it describes the thought, too"""
    closing: Sequence[int] = ()
    """Tokens that end a thought that is too long"""
    closes: Callable[[Sequence[int]], bool] = lambda _: True
    """True if `closing` may come after these tokens"""
    max_tokens: int = 0
    """0 for a thought of any length"""


class ThoughtState:
    """Place of one sequence before, in or after its thought. It belongs to the inference thread."""

    def __init__(self, params: ThoughtParams) -> None:
        self._params = params
        self._place: Literal["before", "in", "after"] = "in" if params.begun else "before"
        self._tokens: list[int] = []
        self._closed = 0
        """Tokens of `closing` that have been forced"""

    @property
    def is_free(self) -> bool:
        """The grammar does not hold at this place."""
        return self._place == "in" and self._params.free

    @property
    def begin_token(self) -> int | None:
        """The token that may come beside those that the grammar allows"""
        return self._params.begin_token if self._place == "before" else None

    @property
    def forced(self) -> int | None:
        """The only token that may come next; None for any"""
        limit = self._params.max_tokens
        if self._place != "in" or not limit or len(self._tokens) < limit:
            return None
        if not self._closed and not self._params.closes(self._tokens):
            return None
        return self._params.closing[self._closed]

    def accept(self, token: int) -> bool:
        """Takes note of the next token. True if the grammar has to know it."""
        if self._place == "after":
            return True
        was_forced = self.forced is not None
        self._tokens.append(token)
        if self._place == "before":
            begun = self._params.begins(self._tokens)
            self._place = "before" if begun is None else "in" if begun else "after"
            return not self.is_free
        self._closed += was_forced
        known = not self.is_free
        closed = self._closed == len(self._params.closing)
        if closed if self._closed else self._params.ends(self._tokens):
            self._place = "after"
        return known
