"""Chooses the next token of every sequence in a batch, each by its own parameters."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from .adjustments import Adjustments, TokenCounts
from .grammar import GrammarMatcher
from .row_sampling import (
    RowNumbers,
    RowParams,
    kind_of,
    pack_rows,
    sample_filtered,
    sample_plain,
    unpack_rows,
)
from .sampling_params import SamplingParams, TokenLogprob
from .thought import ThoughtState


class SamplingState:
    """The state of one sequence between two tokens. It belongs to the inference thread."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        eos_token_ids: Sequence[int],
        logprobs: list[TokenLogprob],
    ) -> None:
        self.params = params
        self.position = 0
        """Tokens generated so far"""
        self.ahead = 0
        """Tokens that are being computed, after those"""
        self.logprobs = logprobs
        self._eos_tokens = torch.tensor(eos_token_ids, dtype=torch.int64)
        self._ends = torch.tensor([*eos_token_ids, *params.stop_token_ids], dtype=torch.int64)
        self._bias_tokens = torch.tensor(list(params.logit_bias), dtype=torch.int64)
        self._biases = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
        self._counts = TokenCounts()
        self._repeats = params.repetition_penalty != 1.0
        self._seen = TokenCounts(prompt if self._repeats else ())
        self._matcher: GrammarMatcher | None = None
        self._thought = ThoughtState(params.thought) if params.thought else None
        self._penalises = bool(params.frequency_penalty or params.presence_penalty)

    @property
    def adjusts(self) -> bool:
        """True if it changes the logits before a token is chosen."""
        params = self.params
        return bool(
            self._penalises
            or self._repeats
            or params.logit_bias
            or self.position < params.min_tokens
            or params.grammar
            or (self._thought and self._thought.forced is not None)
        )

    @property
    def needs_host(self) -> bool:
        """True if its next token depends on the last one in more than the logits, or is reported."""
        return self.adjusts or bool(self._thought) or self.params.top_logprobs is not None

    @property
    def row(self) -> RowNumbers:
        """The parameters of its next token."""
        params = self.params
        # Below this, float32 has no room for the logits divided by it; it is greedy anyhow.
        if params.temperature < 1e-5:
            return GREEDY
        top_k = min(params.top_k, MOST_CANDIDATES)
        return RowNumbers(params.temperature, top_k, params.top_p, params.min_p, self.uniform())

    def advance(self, generated: Sequence[int], ahead: int = 0) -> None:
        """Takes in what has been generated since the last call, given everything generated.

        ahead: tokens that are being computed after those
        """
        for token in generated[self.position :]:
            if self._penalises:
                self._counts.add(token)
            if self._repeats:
                self._seen.add(token)
            if self._thought and not self._thought.accept(token):
                self._matcher = None  # what it has seen may have been the beginning of the thought
            elif matcher := self._matcher_now():
                matcher.accept(token)
        self.position = len(generated)
        self.ahead = ahead

    def uniform(self) -> float:
        """A number in [0, 1) that depends on nothing but the request's seed and the position.

        A generator per batch would give every request another text whenever its neighbours change.
        """
        return random.Random(f"{self.params.seed}:{self.position + self.ahead}").random()

    def adjust(self, row: int, adjustments: Adjustments) -> None:
        """Adds its penalties, bias, minimum length and grammar.

        Frequency and presence penalty, on the answer's own counts:
        https://platform.openai.com/docs/guides/text-generation
        """
        params = self.params
        if self._repeats:
            adjustments.repeated.add(row, self._seen.tokens, params.repetition_penalty)
        if self._penalises:
            penalties = params.frequency_penalty * self._counts.counts + params.presence_penalty
            adjustments.reduced.add(row, self._counts.tokens, penalties)
        adjustments.biased.add(row, self._bias_tokens, self._biases)
        if self.position < params.min_tokens:
            adjustments.banned.add(row, self._ends)
        if params.grammar:
            self._restrict(row, adjustments)
        if self._thought and (token := self._thought.forced) is not None:
            adjustments.force(row, token)

    def _matcher_now(self) -> GrammarMatcher | None:
        if self._matcher is None and self.params.grammar:
            self._matcher = self.params.grammar.matcher()
        return self._matcher

    def _restrict(self, row: int, adjustments: Adjustments) -> None:
        """Adds the grammar. A thought before the answer is free, but must not end the sequence."""
        thought = self._thought
        if thought and thought.is_free:
            adjustments.banned.add(row, self._ends)
        elif matcher := self._matcher_now():
            bits = bytearray(matcher.bits())
            if thought and (begin := thought.begin_token) is not None:
                bits[begin >> 3] |= 1 << (begin & 7)
            adjustments.mask(row, bytes(bits), self._eos_tokens)


GREEDY = RowNumbers()

MOST_CANDIDATES = 2**30
"""More than the tokens of any vocabulary, in 32 bits"""


def sample_into_logits(scores: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """`sample_step` for rows whose parameters are not on the device yet. Returns the scores."""
    rows = [state.row for state in states]
    sample_step(scores, states, rows, unpack_rows(pack_rows(rows).to(scores.device)))
    return scores


def sample_step(
    scores: Tensor,
    states: Sequence[SamplingState],
    rows: Sequence[RowNumbers],
    params: RowParams,
) -> None:
    """Makes every row's choice its highest score: an argmax then takes it.

    scores: [B, V] float32 logits, overwritten. A batch of plain greedy requests stays as it is and
    costs nothing.
    rows, params: those of the states, in host memory and on the device
    """
    watched = [i for i, state in enumerate(states) if state.params.top_logprobs is not None]
    logprobs = scores[watched].log_softmax(dim=-1) if watched else None
    adjustments = Adjustments()
    for i, state in enumerate(states):
        if state.adjusts:
            state.adjust(i, adjustments)
    adjustments.apply(scores)
    if any(row.sampled for row in rows):
        sample_rows(scores, rows, params)
    if logprobs is not None:
        report([states[i] for i in watched], logprobs, scores[watched].argmax(dim=-1))


def sample_rows(scores: Tensor, rows: Sequence[RowNumbers], params: RowParams) -> None:
    """Computes each row as it needs, which `sample_captured` may not. Greedy rows stay as they are."""
    filtered = [i for i, row in enumerate(rows) if row.filtered]
    plain = [i for i, row in enumerate(rows) if row.sampled and not row.filtered]
    chosen = []
    if filtered:
        logits, params_of = pick(filtered, scores, params)
        chosen.append(sample_filtered(logits, params_of, kind_of(rows)))
    if plain:
        logits, params_of = pick(plain, scores, params)
        chosen.append(sample_plain(logits, params_of))
    places = torch.tensor(filtered + plain, device=scores.device)
    scores[places, torch.cat(chosen)] = torch.inf


def pick(rows: Sequence[int], scores: Tensor, params: RowParams) -> tuple[Tensor, RowParams]:
    """The logits and parameters of some rows; those of all rows are not copied."""
    if len(rows) == len(scores):
        return scores, params
    return scores[rows], params.of(rows)


def report(states: Sequence[SamplingState], logprobs: Tensor, chosen: Tensor) -> None:
    """Notes for each state the logprob of its chosen token: [B, V] logprobs, [B] tokens."""
    own = logprobs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).tolist()
    width = max(state.params.top_logprobs or 0 for state in states)
    values, tokens = logprobs.topk(width, dim=-1)
    rows = zip(states, chosen.tolist(), own, tokens.tolist(), values.tolist(), strict=True)
    for state, token, logprob, top_tokens, top_values in rows:
        top = list(zip(top_tokens, top_values, strict=True))[: state.params.top_logprobs]
        # A preempted sequence comes by its position a second time only if it never got its token.
        del state.logprobs[state.position :]
        state.logprobs.append(TokenLogprob(token, logprob, top))
