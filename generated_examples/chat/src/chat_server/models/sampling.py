"""Chooses the next token of every request in a batch, each by its own parameters."""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .params import SamplingParams

CANDIDATES = 1024
"""How many of the likeliest tokens top_p looks at before it sorts the whole vocabulary"""


class Row(NamedTuple):
    """One row of a batch of logits."""

    params: SamplingParams
    position: int
    """Tokens that the request has generated already"""

    @property
    def sampled(self) -> bool:
        # Below this, float32 has no room for the logits divided by it; it is greedy anyhow.
        return self.params.temperature >= 1e-5

    @property
    def filtered(self) -> bool:
        return self.params.top_k > 0 or self.params.top_p < 1.0 or self.params.min_p > 0.0


def draw(row: Row) -> float:
    """A number in [0, 1) that depends on nothing but the request's seed and the position.

    A generator per batch would give every request another text whenever its neighbours change.
    """
    return random.Random(f"{row.params.seed}:{row.position}").random()


def choose(weights: Tensor, draws: Tensor) -> Tensor:
    """Inverse transform sampling: [B, N] weights, not normalised, and [B] draws → [B] indices.

    The weights are overwritten: another [B, V] tensor costs more than everything computed here.
    """
    cumulative = weights.cumsum_(dim=-1)
    # Below the total even after rounding, so that the choice never has weight 0.
    targets = (draws.clamp(max=1 - 1e-6) * cumulative[:, -1]).unsqueeze(-1)
    indices = torch.searchsorted(cumulative, targets, right=True).squeeze(-1)
    # NaN logits find no place at all: one broken request must not end the batch for everybody.
    return indices.clamp(max=weights.size(-1) - 1)


def choose_plain(logits: Tensor, rows: Sequence[Row], draws: Tensor) -> Tensor:
    """Sampling from all of the vocabulary: [B, V] logits, which are overwritten → [B] tokens."""
    logits.div_(column([row.params.temperature for row in rows], logits))
    return choose(logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_(), draws)


def choose_filtered(
    logits: Tensor, rows: Sequence[Row], draws: Tensor, candidates: int = CANDIDATES
) -> Tensor:
    """Sampling after top_k, then top_p, then min_p: [B, V] logits → [B] tokens."""
    vocabulary = logits.size(-1)
    width = min(max(row.params.top_k or candidates for row in rows), vocabulary)
    temperature = column([row.params.temperature for row in rows], logits)
    top_k = column([min(row.params.top_k or vocabulary, vocabulary) for row in rows], logits)
    top_p = column([row.params.top_p for row in rows], logits)
    min_p = column([row.params.min_p for row in rows], logits)

    values, tokens = logits.topk(width, dim=-1)
    values = (values / temperature).masked_fill(
        torch.arange(width, device=logits.device) >= top_k, -torch.inf
    )
    total = values.logsumexp(-1, keepdim=True)
    if any(row.params.top_k == 0 for row in rows):
        everything = (logits / temperature).logsumexp(-1, keepdim=True)
        total = torch.where(top_k < vocabulary, total, everything)
    probabilities = (values - total).exp()
    cumulative = probabilities.cumsum(dim=-1)
    if width < vocabulary and bool((cumulative[:, -1:] < top_p - 1e-6).any()):
        # A flat distribution: some nucleus is wider than the candidates, so sort everything.
        return choose_filtered(logits, rows, draws, candidates=vocabulary)
    outside = (cumulative - probabilities >= top_p) | (probabilities < min_p * probabilities[:, :1])
    outside[:, 0] = False
    chosen = choose(probabilities.masked_fill_(outside, 0.0), draws)
    return tokens.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def mark_choices(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """Raises the score of every row's choice to infinity: an argmax then takes it.

    scores: [B, V] float32 logits, overwritten. A batch of greedy requests stays as it is and costs
    nothing.
    """
    filtered = [i for i, row in enumerate(rows) if row.sampled and row.filtered]
    plain = [i for i, row in enumerate(rows) if row.sampled and not row.filtered]
    if not filtered and not plain:
        return scores
    draws = torch.tensor([draw(row) for row in rows], device=scores.device)
    tokens = scores.argmax(dim=-1)
    if filtered:
        group = [rows[i] for i in filtered]
        tokens[filtered] = choose_filtered(scores[filtered], group, draws[filtered])
    if plain:
        group = [rows[i] for i in plain]
        logits = scores if len(plain) == len(rows) else scores[plain]
        tokens[plain] = choose_plain(logits, group, draws[plain])
    return scores.scatter_(-1, tokens.unsqueeze(-1), torch.inf)


def column(numbers: Sequence[float], like: Tensor) -> Tensor:
    """[B, 1], on the device of `like`."""
    return torch.tensor(numbers, device=like.device).unsqueeze(-1)
