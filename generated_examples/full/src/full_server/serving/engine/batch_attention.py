"""Attention of a batch on a processor: each sequence reads its own keys, and no others.

transformers computes the attention of a step in one piece: all queries times the keys of all
sequences, behind a mask in which each query sees its own sequence. That work grows with the square
of the batch. Here sequences that get one token are rows of a padded batch, with others of like
length, and the chunk of a prompt is computed by itself.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "by_sequence"
"""Name of `attend_by_sequence` among the implementations of transformers"""

PADDING_SHARE = 0.25
"""Share of the keys in a group that may be padding"""

FREE_PADDING = 512
"""Keys that cost less than one call more"""


@dataclass(frozen=True)
class Group:
    """Sequences whose attention is computed in one call: their keys are padded to the longest."""

    sequences: Sequence[int]
    """Their numbers in the step"""
    queries: int
    """Of each: 1, or the length of a prompt's chunk"""
    keys: Sequence[int]
    """Of each, those of the step included"""

    @property
    def longest(self) -> int:
        return max(self.keys)

    @property
    def padded(self) -> int:
        """The keys of all of them, with padding"""
        return len(self.keys) * self.longest

    def is_causal(self, window: int | None) -> bool:
        """True for the beginning of a prompt, which needs no mask."""
        fits = window is None or self.queries <= window
        return self.queries > 1 and self.queries == self.longest and fits

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """[B, 1, Q, K], added to the scores; None if each query sees all keys, or causally.

        window: the keys that a query of a layer with sliding attention sees
        """
        if self.is_causal(window) or (self.queries == 1 and min(self.keys) == self.longest):
            return None
        positions = torch.arange(self.longest)
        if self.queries == 1:  # no more keys than the window has are kept
            hidden = positions >= torch.tensor(self.keys)[:, None, None, None]
        else:
            last = torch.arange(self.longest - self.queries, self.longest)[:, None]
            hidden = positions > last
            if window is not None:
                hidden |= positions <= last - window
            hidden = hidden[None, None]
        return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)


def single_groups(queries: Sequence[int], keys: Sequence[int]) -> list[Group]:
    """A group for each sequence."""
    both = zip(queries, keys, strict=True)
    return [Group([number], count, [length]) for number, (count, length) in enumerate(both)]


def group_by_length(queries: Sequence[int], keys: Sequence[int]) -> list[Group]:
    """Few groups of like length for the sequences with one query, one for each of the others."""
    alone = [group for group in single_groups(queries, keys) if group.queries > 1]
    waiting = [number for number, count in enumerate(queries) if count == 1]
    if not is_dense([keys[number] for number in waiting]):
        waiting.sort(key=keys.__getitem__)
    groups: list[list[int]] = []
    for number in waiting:
        if groups and is_dense([keys[each] for each in [*groups[-1], number]]):
            groups[-1].append(number)
        else:
            groups.append([number])
    return [Group(each, 1, [keys[number] for number in each]) for each in groups] + alone


def is_dense(lengths: Sequence[int]) -> bool:
    """True if padding to the longest costs little."""
    padded = len(lengths) * max(lengths, default=0)
    return padded - sum(lengths) <= max(FREE_PADDING, PADDING_SHARE * padded)


class StepLayout:
    """The groups of one step in the layers of one kind, which share it."""

    def __init__(
        self, groups: Sequence[Group], queries: Sequence[int], window: int | None = None
    ) -> None:
        """
        Args:
            queries: of each sequence.
            window: the keys that a query sees, where the attention is sliding.
        """
        self.groups = groups
        self.window = window
        ends = list(accumulate(queries))
        order = [
            position
            for group in groups
            for number in group.sequences
            for position in range(ends[number] - queries[number], ends[number])
        ]
        self.order = None if order == list(range(len(order))) else torch.tensor(order)
        """The queries by group; None if they are in this order"""
        self._masks: dict[int, Tensor | None] = {}

    def arrange(self, index: Tensor, padding: int) -> Tensor:
        """The places of the keys by group, given those by sequence.

        padding: a place whose content does no harm
        """
        lengths = dict(
            pair for each in self.groups for pair in zip(each.sequences, each.keys, strict=True)
        )
        numbers = sorted(lengths)
        parts = dict(zip(numbers, torch.split(index, [lengths[i] for i in numbers]), strict=True))
        arranged = index.new_full((sum(group.padded for group in self.groups),), padding)
        start = 0
        for group in self.groups:
            for number in group.sequences:
                arranged[start : start + lengths[number]] = parts[number]
                start += group.longest
        return arranged

    def mask(self, number: int, dtype: torch.dtype) -> Tensor | None:
        """The mask of one group."""
        if number not in self._masks:
            self._masks[number] = self.groups[number].mask(self.window, dtype)
        return self._masks[number]


class StepCache(Protocol):
    def layout(self, layer_idx: int) -> StepLayout:
        """The layout of a layer, whose `update` has been called in this step."""

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Writes the keys and values of a step; returns those of all sequences by the layout."""


step_cache_var: ContextVar[StepCache | None] = ContextVar("step_cache", default=None)
"""The cache of the step that is being computed; None outside of a batch"""


def attend_by_sequence(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cache: StepCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over the keys and values that `StepCache.update` returns; outside of a batch, `sdpa`.

    query: [1, H, Q, D]; key, value: [1, KV heads, K, D]; cache: given by transformers 5.23, where
    the attention reads the past.

    Returns [1, Q, H, D].
    """
    step_cache, layer = step_cache_var.get(), cast(int, module.layer_idx)
    if step_cache is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return plain
    if cache is not None:
        key, value = cache.update(key, value, layer, kwargs)
    layout = step_cache.layout(layer)
    queries = query[0] if layout.order is None else query[0, :, layout.order]
    outputs = []
    first_query = first_key = 0
    for number, group in enumerate(layout.groups):
        count, rows = len(group.keys), len(group.keys) * group.queries
        mask = layout.mask(number, query.dtype)
        output = attend(
            split(queries[:, first_query : first_query + rows], count),
            split(key[0, :, first_key : first_key + group.padded], count),
            split(value[0, :, first_key : first_key + group.padded], count),
            mask,
            is_causal=group.is_causal(layout.window),
            scaling=scaling,
        )
        outputs.append(output.flatten(0, 1))
        first_query += rows
        first_key += group.padded
    together = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    if layout.order is not None:
        together = torch.empty_like(together).index_copy_(0, layout.order, together)
    return together[None], None


def split(rows: Tensor, count: int) -> Tensor:
    """[H, B · N, D] → [H, B, N, D]."""
    return rows.view(len(rows), count, -1, rows.size(-1))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    is_causal: bool,
    scaling: float | None,
) -> Tensor:
    """[H, B, Q, D], [KV heads, B, K, D] twice, [B, 1, Q, K] → [B, Q, H, D]."""
    query, key, value = (each.transpose(0, 1) for each in (query, key, value))
    heads, length = query.shape[1:3]
    if length == 1:  # the heads that share keys become the queries of one head
        query = query.reshape(len(query), key.size(1), -1, query.size(-1))
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=query.size(1) != key.size(1),
    )
    return output.reshape(len(output), heads, length, -1).transpose(1, 2)


AttentionInterface.register(NAME, attend_by_sequence)
AttentionMaskInterface.register(NAME, sdpa_mask)  # a batch comes without
