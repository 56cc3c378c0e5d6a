"""Chooses a token for each row of logits, by parameters that are tensors.

Nothing here reads a number on the host unless it is told that it may, so that a step may be captured
in a CUDA graph. What a row gives depends on that row alone, to the last bit: not on the other rows,
nor on how many candidates they need. So a step that is captured gives the tokens of one that is not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CANDIDATES = 1024
"""Number of the likeliest tokens in which top_p and min_p look before they look at all"""

DIGIT = 10
"""Bits of a digit: the floats from 0 to 1 have three"""

PARAMETERS = 5
"""Numbers of a row in `pack_rows`"""


class RowParams(NamedTuple):
    """The parameters of each row: [B] each, on the device of the logits."""

    temperature: Tensor
    """0 takes the likeliest token."""
    top_k: Tensor
    """int32; 0 considers the whole vocabulary"""
    top_p: Tensor
    min_p: Tensor
    uniforms: Tensor
    """Numbers in [0, 1) that decide"""

    def of(self, rows: Sequence[int]) -> "RowParams":
        """The parameters of some of the rows."""
        index = torch.tensor(rows, device=self.top_k.device)
        return RowParams(*(each[index] for each in self))


class StepKind(NamedTuple):
    """The parts of the sampling of a step. A CUDA graph holds one kind."""

    plain: bool = False
    """Some row samples from the whole vocabulary."""
    width: int = 0
    """Candidates of the rows that are filtered by top_k, top_p or min_p; 0 where none is"""
    open: bool = False
    """Some of these rows have no top_k, so that their nucleus may be wider than the candidates."""


class RowNumbers(NamedTuple):
    """The parameters of one row as plain numbers; see `RowParams`."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.0

    @property
    def sampled(self) -> bool:
        return self.temperature > 0

    @property
    def filtered(self) -> bool:
        return self.sampled and (self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0)


def pack_rows(rows: Sequence[RowNumbers]) -> Tensor:
    """[PARAMETERS, B] int32 in host memory, which holds the bits of the floats."""
    packed = torch.tensor(rows, dtype=torch.float32).view(len(rows), PARAMETERS).view(torch.int32)
    packed[:, 1] = torch.tensor([row.top_k for row in rows], dtype=torch.int32)
    return packed.T


def unpack_rows(packed: Tensor) -> RowParams:
    """The inverse of `pack_rows`: views of its memory."""
    top_k = packed[1]
    temperature, _, top_p, min_p, uniforms = packed.view(torch.float32)
    return RowParams(temperature, top_k, top_p, min_p, uniforms)


def kind_of(rows: Sequence[RowNumbers]) -> StepKind:
    """The candidates are a power of 2, so that few graphs are captured."""
    limits = [row.top_k for row in rows if row.filtered]
    width = max((each or CANDIDATES for each in limits), default=0)
    return StepKind(
        plain=any(row.sampled and not row.filtered for row in rows),
        width=1 << (width - 1).bit_length() if width else 0,
        open=0 in limits,
    )


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


def sample_plain(logits: Tensor, rows: RowParams) -> Tensor:
    """Sampling from all of the vocabulary: [B, V] logits, which are overwritten → [B] tokens."""
    logits.div_(divisor(rows))
    return sample(logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_(), rows.uniforms)


def sample_filtered(
    logits: Tensor, rows: RowParams, kind: StepKind, *, captured: bool = False
) -> Tensor:
    """Sampling after top_k, then top_p, then min_p: [B, V] logits → [B] tokens.

    captured: looks at all of the vocabulary for each row, as it may not ask which rows need it
    """
    vocabulary = logits.size(-1)
    width = min(kind.width, vocabulary)
    top_k, top_p, min_p = (each.unsqueeze(-1) for each in (rows.top_k, rows.top_p, rows.min_p))
    limited = top_k > 0

    values, tokens = logits.topk(width, dim=-1)
    weights = values.div_(divisor(rows))
    weights = weights.sub_(weights[:, :1].clone()).exp_()
    beyond = torch.arange(width, device=logits.device) >= torch.where(limited, top_k, CANDIDATES)
    cumulative = weights.masked_fill_(beyond, 0.0).cumsum(dim=-1)
    # Sums from left to right do not depend on the width. A sum over all of it would, in its last bit.
    total = cumulative[:, -1:]
    shares = None
    if kind.open:
        shares = (logits / divisor(rows)).softmax(dim=-1)
        total = torch.where(limited, total, 1 / shares.gather(-1, tokens[:, :1]))
    outside = (cumulative - weights >= top_p * total) | (weights < min_p)
    outside[:, 0] = False
    last = weights[:, min(width, CANDIDATES) - 1 :][:, :1]
    more = ~limited & (cumulative[:, -1:] < (top_p - 1e-6) * total) & (last >= min_p)
    chosen = sample(weights.masked_fill_(outside, 0.0), rows.uniforms)
    result = tokens.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    if shares is not None and vocabulary > CANDIDATES and (captured or bool(more.any())):
        result = torch.where(more.squeeze(-1), sample_nucleus(shares, rows), result)
    return result


def sample_nucleus(shares: Tensor, rows: RowParams) -> Tensor:
    """Sampling from a nucleus of any width: [B, V] probabilities, which are overwritten → [B] tokens.

    Tokens that are as likely as the least likely one of the nucleus are all in it.
    """
    least = least_share(shares, rows.top_p.unsqueeze(-1))
    least = torch.maximum(least, rows.min_p.unsqueeze(-1) * shares.amax(dim=-1, keepdim=True))
    return sample(shares.masked_fill_(shares < least, 0.0), rows.uniforms)


def least_share(shares: Tensor, mass: Tensor) -> Tensor:
    """The largest share such that those from it on add up to `mass`: [B, V], [B, 1] → [B, 1].

    Found digit by digit, as the floats from 0 to 1 have the order of their bits: three sums over the
    vocabulary take a tenth of the time that sorting it takes.
    """
    # The order of a sum depends on the batch, which double precision, where there is one, forgives.
    precise = torch.float32 if shares.device.type == "mps" else torch.float64
    bits = shares.view(torch.int32)
    found = torch.zeros_like(mass, dtype=torch.int32)
    missing = mass.to(precise)
    for shift in (2 * DIGIT, DIGIT, 0):
        prefix = bits >> shift
        of_prefix = shares.masked_fill(prefix >> DIGIT != found, 0.0).to(precise)
        sums = missing.new_zeros(len(shares), 1 << DIGIT)
        sums.scatter_add_(-1, (prefix & ((1 << DIGIT) - 1)).long(), of_prefix)
        from_here = sums.flip(-1).cumsum(dim=-1).flip(-1)
        digit = ((from_here >= missing).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
        # What the larger digits add up to is there already.
        missing = missing - (from_here - sums).gather(-1, digit)
        found = (found << DIGIT) + digit.int()
    return found.view(torch.float32)


def sample_captured(scores: Tensor, rows: RowParams, kind: StepKind) -> None:
    """Makes every row's choice its highest score, with nothing but tensors: for CUDA graphs.

    scores: [B, V] float32 logits. Rows are computed in each way that some row needs.
    """
    if not (kind.plain or kind.width):
        return
    tokens = None
    if kind.width:
        tokens = sample_filtered(scores, rows, kind, captured=True)
    if kind.plain:
        plain = sample_plain(scores.clone(), rows)
        filtered = (rows.top_k > 0) | (rows.top_p < 1.0) | (rows.min_p > 0.0)
        tokens = plain if tokens is None else torch.where(filtered, tokens, plain)
    assert tokens is not None
    places = tokens.unsqueeze(-1)
    greedy = (rows.temperature == 0).unsqueeze(-1)
    scores.scatter_(-1, places, torch.where(greedy, scores.gather(-1, places), torch.inf))


def divisor(rows: RowParams) -> Tensor:
    """[B, 1]: the temperature, or 1 for rows that are greedy."""
    return torch.where(rows.temperature > 0, rows.temperature, 1.0).unsqueeze(-1)
