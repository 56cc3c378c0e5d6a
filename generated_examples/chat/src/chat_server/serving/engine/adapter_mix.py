"""LoRA adapters of one model, mixed in one forward pass: each token is computed with its own.

A batch packs the tokens of all sequences into one row. Linear layers know nothing of sequences, so
an adapter may change the outputs of some tokens and leave the others as the base model gives them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import PreTrainedModel


@dataclass(frozen=True)
class LowRank:
    """The change that an adapter makes to the output of one linear layer: https://arxiv.org/abs/2106.09685"""

    down: Tensor
    """[rank, in]"""
    up: Tensor
    """[out, rank]"""
    up_bias: Tensor | None
    scaling: float
    magnitude: Tensor | None = None
    """[out], of DoRA: the length of the rows of the trained weights, divided by that of the base
    weights with the adapter: https://arxiv.org/abs/2402.09353"""

    def change(self, x: Tensor, result: Tensor, bias: Tensor | None) -> Tensor:
        """The difference to `result` [N, out], which the base layer gives for `x` [N, in].

        bias: of the base layer
        """
        low = functional.linear(x.to(self.down.dtype), self.down)
        added = functional.linear(low, self.up, self.up_bias) * self.scaling
        if self.magnitude is not None:
            product = result if bias is None else result - bias
            added = (self.magnitude - 1) * product + self.magnitude * added
        return added.to(result.dtype)


class AdapterMix:
    """The adapter of each token in the forward pass that comes next. Adapters have numbers from 1."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.groups: list[tuple[int, Tensor | None]] = []
        """The adapters in use, and their tokens' places in the batch; None for all tokens"""
        self.tokens = 0
        """Number of tokens in the batch, where `groups` has places"""

    def use(self, adapter: int) -> None:
        """All tokens have this adapter; 0 for none."""
        self.groups = [(adapter, None)] if adapter else []

    def assign(self, runs: Sequence[tuple[int, int]], device: torch.device) -> None:
        """The batch consists of runs of tokens: adapter and number of tokens of each."""
        adapters = {adapter for adapter, _ in runs}
        if len(adapters) == 1:
            self.use(adapters.pop())
            return
        places: dict[int, list[int]] = {}
        start = 0
        for adapter, count in runs:
            places.setdefault(adapter, []).extend(range(start, start + count))
            start += count
        self.tokens = start
        self.groups = [
            (adapter, torch.tensor(places[adapter], device=device))
            for adapter in sorted(adapters - {0})
        ]


class MixedLinear(nn.Module):
    """A linear layer of the base model with what adapters add to it."""

    def __init__(
        self, base_layer: nn.Module, mix: AdapterMix, parts: Mapping[int, LowRank]
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.mix = mix
        self.parts = parts

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
        for adapter, places in self.mix.groups:
            part = self.parts.get(adapter)
            if part is None:
                continue
            bias = self.bias if part.magnitude is not None else None
            if places is None:
                result = result + part.change(x, result, bias)
                continue
            tokens, rows = x.flatten(0, -2), result.view(-1, result.shape[-1])
            if len(tokens) != self.mix.tokens:
                raise RuntimeError("a layer gets other tokens than those of the batch")
            change = part.change(tokens[places], rows[places], bias)
            rows.index_add_(0, places, change)
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
