"""Chooses the next token of every sequence in a batch, each by its own parameters."""

import random
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from .grammar import GrammarMatcher
from .sampling_params import SamplingParams, TokenLogprob
from .thought import ThoughtState

CANDIDATES = 1024
"""Number of the likeliest tokens in which top_p looks before it sorts the whole vocabulary"""


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
        self.logprobs = logprobs
        self._eos_token_ids = list(eos_token_ids)
        self._counts: Counter[int] = Counter()
        self._seen = dict.fromkeys(prompt if params.repetition_penalty != 1.0 else ())
        self._matcher: GrammarMatcher | None = None
        self._thought = ThoughtState(params.thought) if params.thought else None
        self._penalises = bool(params.frequency_penalty or params.presence_penalty)

    @property
    def sampled(self) -> bool:
        # Below this, float32 has no room for the logits divided by it; it is greedy anyhow.
        return self.params.temperature >= 1e-5

    @property
    def filtered(self) -> bool:
        return self.params.top_k > 0 or self.params.top_p < 1.0 or self.params.min_p > 0.0

    @property
    def adjusts(self) -> bool:
        """True if it changes the logits before a token is chosen."""
        params = self.params
        return bool(
            self._penalises
            or params.repetition_penalty != 1.0
            or params.logit_bias
            or self.position < params.min_tokens
            or params.grammar
            or (self._thought and self._thought.forced is not None)
        )

    def advance(self, generated: Sequence[int]) -> None:
        """Takes in what has been generated since the last call, given everything generated."""
        for token in generated[self.position :]:
            if self._penalises:
                self._counts[token] += 1
            if self.params.repetition_penalty != 1.0:
                self._seen[token] = None
            if self._thought and not self._thought.accept(token):
                self._matcher = None  # what it has seen may have been the beginning of the thought
            elif matcher := self._matcher_now():
                matcher.accept(token)
        self.position = len(generated)

    def uniform(self) -> float:
        """A number in [0, 1) that depends on nothing but the request's seed and the position.

        A generator per batch would give every request another text whenever its neighbours change.
        """
        return random.Random(f"{self.params.seed}:{self.position}").random()

    def adjust(self, logits: Tensor) -> None:
        """Applies penalties, bias, minimum length and grammar to the [V] logits, in place.

        Repetition penalty: https://arxiv.org/abs/1909.05858, formula in 4.1. Frequency and presence
        penalty: https://platform.openai.com/docs/guides/text-generation, on the answer's own counts.
        """
        params, device = self.params, logits.device
        if self._seen:
            tokens = torch.tensor(list(self._seen), device=device)
            seen, penalty = logits[tokens], params.repetition_penalty
            logits[tokens] = torch.where(seen > 0, seen / penalty, seen * penalty)
        if self._counts:
            tokens = torch.tensor(list(self._counts), device=device)
            counts = torch.tensor(list(self._counts.values()), device=device)
            logits[tokens] -= params.frequency_penalty * counts + params.presence_penalty
        if params.logit_bias:
            tokens = torch.tensor(list(params.logit_bias), device=device)
            logits[tokens] += torch.tensor(list(params.logit_bias.values()), device=device)
        if self.position < params.min_tokens:
            logits[self._eos_token_ids + list(params.stop_token_ids)] = -torch.inf
        if params.grammar:
            self._restrict(logits)
        if self._thought and (token := self._thought.forced) is not None:
            logits.fill_(-torch.inf)
            logits[token] = 0.0

    def _matcher_now(self) -> GrammarMatcher | None:
        if self._matcher is None and self.params.grammar:
            self._matcher = self.params.grammar.matcher()
        return self._matcher

    def _restrict(self, logits: Tensor) -> None:
        """Applies the grammar. A thought before the answer is free, but must not end the sequence."""
        thought = self._thought
        if thought and thought.is_free:
            logits[self._eos_token_ids + list(self.params.stop_token_ids)] = -torch.inf
            return
        begin = thought.begin_token if thought else None
        chance = logits[begin].clone() if begin is not None else None
        if matcher := self._matcher_now():
            matcher.mask(logits)
        if chance is not None:
            logits[begin] = chance
        if bool(logits.max() == -torch.inf):  # complete, though min_tokens wants more
            logits[self._eos_token_ids] = 0.0


def sample(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse transform sampling: [B, N] weights, not normalised, and [B] uniforms → [B] indices.

    The weights are overwritten: another [B, V] tensor costs more than everything computed here.
    """
    cumulative = weights.cumsum_(dim=-1)
    # Below the total even after rounding, so that the choice never has weight 0.
    targets = (uniforms.clamp(max=1 - 1e-6) * cumulative[:, -1]).unsqueeze(-1)
    indices = torch.searchsorted(cumulative, targets, right=True).squeeze(-1)
    # NaN logits find no place at all: one broken request must not fail the whole batch.
    return indices.clamp(max=weights.size(-1) - 1)


def sample_plain(logits: Tensor, params: Sequence[SamplingParams], uniforms: Tensor) -> Tensor:
    """Sampling from all of the vocabulary: [B, V] logits, which are overwritten → [B] tokens."""
    logits.div_(column([each.temperature for each in params], logits))
    return sample(logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_(), uniforms)


def sample_filtered(
    logits: Tensor, params: Sequence[SamplingParams], uniforms: Tensor, candidates: int = CANDIDATES
) -> Tensor:
    """Sampling after top_k, then top_p, then min_p: [B, V] logits → [B] tokens."""
    vocabulary = logits.size(-1)
    width = min(max(each.top_k or candidates for each in params), vocabulary)
    temperature = column([each.temperature for each in params], logits)
    top_k = column([min(each.top_k or vocabulary, vocabulary) for each in params], logits)
    top_p = column([each.top_p for each in params], logits)
    min_p = column([each.min_p for each in params], logits)

    values, tokens = logits.topk(width, dim=-1)
    values = (values / temperature).masked_fill(
        torch.arange(width, device=logits.device) >= top_k, -torch.inf
    )
    total = values.logsumexp(-1, keepdim=True)
    if any(each.top_k == 0 for each in params):
        everything = (logits / temperature).logsumexp(-1, keepdim=True)
        total = torch.where(top_k < vocabulary, total, everything)
    probabilities = (values - total).exp()
    cumulative = probabilities.cumsum(dim=-1)
    if width < vocabulary and bool((cumulative[:, -1:] < top_p - 1e-6).any()):
        # A flat distribution: some nucleus is wider than the candidates, so sort everything.
        return sample_filtered(logits, params, uniforms, candidates=vocabulary)
    outside = (cumulative - probabilities >= top_p) | (probabilities < min_p * probabilities[:, :1])
    outside[:, 0] = False
    chosen = sample(probabilities.masked_fill_(outside, 0.0), uniforms)
    return tokens.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def sample_into_logits(scores: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Makes every row's choice its highest score: an argmax then takes it.

    scores: [B, V] float32 logits, overwritten. A batch of plain greedy requests stays as it is and
    costs nothing.
    """
    watched = [i for i, state in enumerate(states) if state.params.top_logprobs is not None]
    logprobs = scores[watched].log_softmax(dim=-1) if watched else None
    for i, state in enumerate(states):
        if state.adjusts:
            state.adjust(scores[i])

    filtered = [i for i, state in enumerate(states) if state.sampled and state.filtered]
    plain = [i for i, state in enumerate(states) if state.sampled and not state.filtered]
    if filtered or plain:
        uniforms = torch.tensor([state.uniform() for state in states], device=scores.device)
        tokens = scores.argmax(dim=-1)
        if filtered:
            params = [states[i].params for i in filtered]
            tokens[filtered] = sample_filtered(scores[filtered], params, uniforms[filtered])
        if plain:
            params = [states[i].params for i in plain]
            logits = scores if len(plain) == len(states) else scores[plain]
            tokens[plain] = sample_plain(logits, params, uniforms[plain])
        scores.scatter_(-1, tokens.unsqueeze(-1), torch.inf)
    if logprobs is not None:
        report([states[i] for i in watched], logprobs, scores[watched].argmax(dim=-1))
    return scores


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


def column(numbers: Sequence[float], like: Tensor) -> Tensor:
    """[B, 1], on the device of `like`."""
    return torch.tensor(numbers, device=like.device).unsqueeze(-1)
