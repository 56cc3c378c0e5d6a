"""Patience with a service: a bound for what all its missing answers cost."""

from dataclasses import dataclass, field

from infer_scaffold.probe.outcomes import Unmet

_WHOLE = 2  # timeouts that are waited out
_LATER = 0.1  # part of a timeout that is waited out from then on
_TWICE = 2  # such waits for one kind of request; a first answer may only have been late


@dataclass
class Patience:
    """The seconds that an answer is waited for.

    Two timeouts are waited out, whatever is asked. After these a kind of request that was waited
    for in vain gets a tenth of a timeout, once, and none later: a service that hangs costs about
    two timeouts in all.
    """

    timeout: float
    spent: int = 0
    over: float = 0.0
    """When the last timeout was over: those at the same time are one."""
    waits: dict[str, int] = field(default_factory=dict)
    """The waits in vain for each kind of request since it was answered last."""

    def seconds(self, kind: str) -> float:
        """Return the seconds to wait for an answer, 0 where there have been enough waits."""
        if self.spent < _WHOLE:
            return self.timeout
        return 0.0 if self.waits.get(kind, 0) >= _TWICE else self.timeout * _LATER

    def answered(self, kind: str) -> None:
        """Note that a request was answered in time."""
        self.waits.pop(kind, None)

    def waited(self, kind: str, started: float, now: float) -> None:
        """Note that a request was waited for in vain."""
        self.waits[kind] = self.waits.get(kind, 0) + 1
        if started >= self.over:
            self.spent += 1
        self.over = max(self.over, now)


def unanswered(request: str, seconds: float, wanted: str) -> Unmet:
    """Return the finding that no answer came in time."""
    if not seconds:
        return Unmet(request, "no whole answer so often that it was not waited for again", wanted)
    return Unmet(request, f"no whole answer within {seconds:g} s", wanted)
