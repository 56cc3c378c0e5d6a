"""LoRA adapters of one model, mixed in one forward pass: each token is computed with its own.

A batch packs the tokens of all sequences into one row. Linear layers know nothing of sequences, so
an adapter may change the outputs of some tokens and leave the others as the base model gives them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import PreTrainedModel

STACKED_RANKS = 256
"""Largest sum of the ranks of a layer's adapters with which all of them are computed for each token:
few large products take less time than many small ones, until reading the weights takes longer"""


@dataclass(frozen=True)
class LowRank:
    """The change that an adapter makes to the output of one linear layer: https://arxiv.org/abs/2106.09685"""

    down: Tensor
    """[rank, in]"""
    up: Tensor
    """[out, rank], multiplied by the adapter's scaling, as `up_bias` is"""
    up_bias: Tensor | None = None
    magnitude: Tensor | None = None
    """[out], of DoRA: the length of the rows of the trained weights, divided by that of the base
    weights with the adapter: https://arxiv.org/abs/2402.09353"""

    def change(self, x: Tensor, result: Tensor, bias: Tensor | None) -> Tensor:
        """The difference to `result` [N, out], which the base layer gives for `x` [N, in].

        bias: of the base layer
        """
        low = functional.linear(x.to(self.down.dtype), self.down)
        added = functional.linear(low, self.up, self.up_bias)
        if self.magnitude is not None:
            product = result if bias is None else result - bias
            added = (self.magnitude - 1) * product + self.magnitude * added
        return added.to(result.dtype)

    @property
    def is_plain(self) -> bool:
        return self.up_bias is None and self.magnitude is None


class Stack:
    """The plain adapters of one layer as one pair of matrices."""

    def __init__(self, parts: Mapping[int, LowRank]) -> None:
        self.down = torch.cat([part.down for part in parts.values()])
        """[ranks, in]: the sum of the adapters' ranks"""
        self.up = torch.cat([part.up for part in parts.values()], dim=1)
        """[out, ranks]"""
        self.ranks = tuple((adapter, len(part.down)) for adapter, part in parts.items())
        """Each adapter with its rank"""

    def views(self, parts: Mapping[int, LowRank]) -> dict[int, LowRank]:
        """The adapters, whose weights are those of the stack."""
        ranks = [rank for _, rank in self.ranks]
        pairs = zip(torch.split(self.down, ranks), torch.split(self.up, ranks, dim=1), strict=True)
        return {
            adapter: replace(part, down=down, up=up)
            for (adapter, part), (down, up) in zip(parts.items(), pairs, strict=True)
        }

    def change(self, x: Tensor, mix: "AdapterMix") -> Tensor:
        """The sum that each token's own adapter adds to the output [N, out] for `x` [N, in]."""
        low = functional.linear(x.to(self.down.dtype), self.down)
        return functional.linear(low.masked_fill(mix.others(self.ranks), 0), self.up)


class AdapterMix:
    """The adapter of each token in the forward pass that comes next. Adapters have numbers from 1."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.groups: list[tuple[int, Tensor | None]] = []
        """The adapters in use, and their tokens' places in the batch; None for all tokens"""
        self.tokens = 0
        """Number of tokens in the batch, where `groups` has places"""
        self._owners = torch.empty(0)
        """[tokens]: the adapter of each, where `groups` has places"""
        self._others: dict[tuple[tuple[int, int], ...], Tensor] = {}

    def use(self, adapter: int) -> None:
        """All tokens have this adapter; 0 for none."""
        self.groups = [(adapter, None)] if adapter else []

    def assign(self, runs: Sequence[tuple[int, int]], device: torch.device) -> None:
        """The batch consists of runs of tokens: adapter and number of tokens of each."""
        adapters = {adapter for adapter, _ in runs}
        if len(adapters) == 1:
            self.use(adapters.pop())
            return
        owners = [adapter for adapter, count in runs for _ in range(count)]
        self.tokens = len(owners)
        self._owners = torch.tensor(owners, device=device)
        self._others = {}
        self.groups = [
            (adapter, (self._owners == adapter).nonzero().flatten())
            for adapter in sorted(adapters - {0})
        ]

    def others(self, ranks: tuple[tuple[int, int], ...]) -> Tensor:
        """[tokens, sum of ranks]: true where a column of a stack is not of the token's adapter.

        ranks: adapters with their ranks, in the order of the columns
        """
        if ranks not in self._others:
            columns = [adapter for adapter, rank in ranks for _ in range(rank)]
            there = torch.tensor(columns, device=self._owners.device)
            self._others[ranks] = self._owners[:, None] != there
        return self._others[ranks]


class MixedLinear(nn.Module):
    """A linear layer of the base model with what adapters add to it."""

    def __init__(
        self, base_layer: nn.Module, mix: AdapterMix, parts: Mapping[int, LowRank]
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.mix = mix
        self.parts = dict(parts)
        self.stack: Stack | None = None
        plain = {number: part for number, part in parts.items() if part.is_plain}
        if len(plain) > 1 and sum(len(part.down) for part in plain.values()) <= STACKED_RANKS:
            self.stack = Stack(plain)
            self.parts |= self.stack.views(plain)

    @property
    def weight(self) -> Tensor:
        """The base layer's: some models ask a layer for its dtype."""
        return torch.as_tensor(self.base_layer.weight)

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = getattr(self.base_layer, "bias", None)
        return bias

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        groups = [(self.parts[each], at) for each, at in self.mix.groups if each in self.parts]
        if not groups:
            return result
        first, everywhere = groups[0]
        if everywhere is None:
            return result + first.change(x, result, self.bias)
        tokens, rows = x.flatten(0, -2), result.view(-1, result.shape[-1])
        if len(tokens) != self.mix.tokens:
            raise RuntimeError("a layer gets other tokens than those of the batch")
        if self.stack is not None:
            rows += self.stack.change(tokens, self.mix)
            groups = [(part, places) for part, places in groups if not part.is_plain]
        for part, places in groups:
            if places is not None:
                rows.index_add_(0, places, part.change(tokens[places], rows[places], self.bias))
        return result


def install(
    model: PreTrainedModel, adapters: Mapping[int, Mapping[str, LowRank]], mix: AdapterMix
) -> None:
    """Gives the layers of a model their adapters.

    adapters: by number, what each adds to the layers with these names
    """
    for name in sorted({name for parts in adapters.values() for name in parts}):
        parts = {number: parts[name] for number, parts in adapters.items() if name in parts}
        model.set_submodule(name, MixedLinear(model.get_submodule(name), mix, parts))
