"""Constrained decoding: the tokens that a request may sample next.

A grammar is compiled once and shared; a matcher is the state of one request in it. llguidance
computes the masks.
"""

import logging
from collections.abc import Sequence

import torch
from llguidance import LLMatcher
from torch import Tensor

logger = logging.getLogger(__name__)


class GrammarMatcher:
    """One request's place in its grammar. It belongs to the inference thread."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self.failed = False
        """An error of llguidance ended the grammar, and so the answer, too early"""

    @property
    def finished(self) -> bool:
        """Nothing but the end of the answer can follow."""
        return self._matcher.is_stopped()

    def accept(self, token: int) -> None:
        """Takes note of the next token of the answer. One outside the grammar ends it."""
        if not self.finished:
            self._matcher.consume_token(token)
            self._report_failure()

    def bits(self) -> bytes:
        """One bit for each token that can come next, see `mask_tokens`.

        Some token is always left: the end of the answer, if no other.
        """
        bits: bytes = self._matcher.compute_bitmask()  # all EOS tokens and no other at the end
        self._report_failure()
        return bits

    def _report_failure(self) -> None:
        # Not raised, as that would fail the other requests of the batch.
        if not self.failed and self._matcher.is_error():
            self.failed = True
            logger.warning("an answer ends before its grammar: %s", self._matcher.get_error())


class Grammar:
    """A compiled grammar. Immutable: many requests share it."""

    def __init__(self, start: LLMatcher) -> None:
        self._start = start

    def matcher(self) -> GrammarMatcher:
        return GrammarMatcher(self._start.deep_copy())


def mask_tokens(rows: Sequence[Tensor], bits: Sequence[bytes]) -> None:
    """Sets the scores of the tokens that cannot come next to -inf, in place.

    rows: the [V] scores of some sequences, on any device; bits: of each, the lowest of a byte first
    """
    device, vocabulary = rows[0].device, rows[0].size(0)
    packed = torch.frombuffer(bytearray(b"".join(bits)), dtype=torch.uint8).view(len(rows), -1)
    powers = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=device)
    banned = (packed.to(device).unsqueeze(-1) & powers).flatten(1)[:, :vocabulary] == 0
    for scores, each in zip(rows, banned, strict=True):
        scores.masked_fill_(each, -torch.inf)
