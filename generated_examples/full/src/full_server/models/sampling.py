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


def draw(row: Row) -> float:
    """A number in [0, 1) that depends on nothing but the request's seed and the position.

    A generator per batch would give every request another text whenever its neighbours change.
    """
    return random.Random(f"{row.params.seed}:{row.position}").random()


def choose(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Inverse transform sampling: [B, N] weights, not normalised, and [B] draws → [B] indices."""
    cumulative = probabilities.cumsum(dim=-1)
    # Below the total even after rounding, so that the choice never has weight 0.
    targets = (draws.clamp(max=1 - 1e-6) * cumulative[:, -1]).unsqueeze(-1)
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1)


def choose_filtered(
    logits: Tensor, rows: Sequence[Row], draws: Tensor, candidates: int = CANDIDATES
) -> Tensor:
    """Sampling after top_k, then top_p, then min_p: [B, V] scaled logits → [B] tokens."""
    vocabulary, device = logits.size(-1), logits.device
    width = min(max(row.params.top_k or candidates for row in rows), vocabulary)
    values, tokens = logits.topk(width, dim=-1)
    top_k = torch.tensor([[row.params.top_k or vocabulary] for row in rows], device=device)
    top_p = torch.tensor([[row.params.top_p] for row in rows], device=device)
    min_p = torch.tensor([[row.params.min_p] for row in rows], device=device)

    values = values.masked_fill(torch.arange(width, device=device) >= top_k, -torch.inf)
    total = torch.where(
        top_k < vocabulary, values.logsumexp(-1, keepdim=True), logits.logsumexp(-1, keepdim=True)
    )
    probabilities = (values - total).exp()
    cumulative = probabilities.cumsum(dim=-1)
    if width < vocabulary and bool((cumulative[:, -1:] < top_p - 1e-6).any()):
        # A flat distribution: some nucleus is wider than the candidates, so sort everything.
        return choose_filtered(logits, rows, draws, candidates=vocabulary)
    outside = (cumulative - probabilities >= top_p) | (probabilities < min_p * probabilities[:, :1])
    outside[:, 0] = False
    chosen = choose(probabilities.masked_fill(outside, 0.0), draws)
    return tokens.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def mark_choices(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """Raises the score of every sampled row's choice to infinity: an argmax then takes it.

    scores: [B, V] float32 logits, changed in place; the rows of greedy requests stay as they are,
    so a batch of nothing else costs nothing.
    """
    sampled = [i for i, row in enumerate(rows) if row.params.temperature > 0]
    if not sampled:
        return scores
    filtered = [i for i in sampled if needs_filter(rows[i].params)]
    for indices in (filtered, [i for i in sampled if i not in filtered]):
        if not indices:
            continue
        group = [rows[i] for i in indices]
        index = torch.tensor(indices, device=scores.device)
        temperatures = torch.tensor([[r.params.temperature] for r in group], device=scores.device)
        draws = torch.tensor([draw(row) for row in group], device=scores.device)
        logits = scores[index] / temperatures
        if indices is filtered:
            tokens = choose_filtered(logits, group, draws)
        else:
            tokens = choose(logits.softmax(dim=-1), draws)
        scores[index, tokens] = torch.inf
    return scores


def needs_filter(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0
