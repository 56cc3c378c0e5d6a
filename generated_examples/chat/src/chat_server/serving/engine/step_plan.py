"""The choice of what a step computes: fair among clients, and short enough for running answers.

transformers' scheduler takes requests as they come, and as many tokens of prompts as fit. One client
with many requests then takes all slots, a long prompt holds up the short ones behind it, and every
answer that is being generated waits for a whole chunk of it.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

PATIENCE = 2.5
"""A step with tokens of prompts may take so many times one without"""

FEWEST_TOKENS = 16
"""Tokens of prompts in a step, however long they take: the prompts have to come to an end, too"""

FIRST_TOKENS = 64
"""Tokens of prompts in the first step that has answers, too"""


@dataclass(frozen=True)
class Candidate:
    """A request that could take part in the next step."""

    client: Hashable
    generates: bool
    """False while its prompt is read, or waits to be"""
    due: int = 0
    """Tokens of prompts that had been read when it came, and its own.

    The lowest goes first: short prompts overtake a long one, but only with as many tokens as it has
    itself.
    """


def choose(candidates: Sequence[Candidate], slots: int, *, rows_take_time: bool) -> list[int]:
    """The numbers of the candidates that take part in a step, in their order.

    candidates: answers in the order in which they began, then prompts.
    slots: most requests of a step.
    rows_take_time: a step of two requests takes longer than one of one, as on a processor.
    """
    wanted = Counter(each.client for each in candidates)
    room = fair_shares(wanted, slots, rows_take_time=rows_take_time)
    numbers = sorted(
        range(len(candidates)),
        key=lambda i: (not candidates[i].generates, candidates[i].due, i),
    )
    chosen = []
    for number in numbers:
        client = candidates[number].client
        if room[client] > 0:
            room[client] -= 1
            chosen.append(number)
    return chosen


def fair_shares(
    wanted: Mapping[Hashable, int], slots: int, *, rows_take_time: bool
) -> dict[Hashable, int]:
    """The slots of each client, given how many it can use.

    Max-min fair: who wants less than an equal part gets it, the others share the rest equally.
    Where rows take time, nobody gets more than the others together beyond an equal part, so that
    their requests take at most twice as long as without him.
    """
    shares: dict[Hashable, int] = {}
    left = slots
    everybody = sum(wanted.values())
    for number, (client, count) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        others = len(wanted) - number
        equal = -(-left // others)  # rounded up, so that every slot is used
        shares[client] = min(count, equal)
        if rows_take_time and len(wanted) > 1:
            most = max(slots // len(wanted), everybody - count, 1)
            shares[client] = min(shares[client], most)
        left -= shares[client]
    return shares


class PromptBudget:
    """The tokens of prompts in a step that has answers, too, by how long earlier steps took."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tokens = float(min(FIRST_TOKENS, most))
        self._usual = 0.0
        """Seconds of a step without prompts, lately"""

    @property
    def tokens(self) -> int:
        return int(self._tokens)

    def took(self, seconds: float, answers: int, prompt_tokens: int) -> None:
        """Takes in how long a step took."""
        if not answers:
            return
        if not prompt_tokens:
            self._usual += (seconds - self._usual) / (4 if self._usual else 1)
        elif self._usual and prompt_tokens >= self.tokens:
            change = min(1.25, max(0.5, PATIENCE * self._usual / seconds))
            self._tokens = min(self._most, max(FEWEST_TOKENS, self._tokens * change))
