"""Constrained decoding: the tokens that a request may sample next.

A grammar is compiled once and shared; a matcher is the state of one request in it. llguidance
computes the masks.
"""

import logging

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

    def mask(self, scores: Tensor) -> None:
        """Sets the scores of the tokens that cannot come next to -inf, in place.

        scores: [V] on any device. Some token is always left: the end of the answer, if no other.
        """
        # One bit a token, in words of 32. All EOS tokens and nothing else once it is finished.
        words = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.int32)
        self._report_failure()
        bits = words.to(scores.device).unsqueeze(-1) >> torch.arange(32, device=scores.device)
        scores.masked_fill_((bits & 1).flatten()[: scores.size(0)] == 0, -torch.inf)

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
