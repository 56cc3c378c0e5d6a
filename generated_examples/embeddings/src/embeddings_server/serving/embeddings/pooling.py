"""From token vectors to one vector a text: the poolings of sentence-transformers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.model_errors import UnsupportedModel


def cls(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[:, 0]


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def mean_sqrt_len(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).sqrt()


def weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The later a token, the more it counts."""
    places = torch.arange(1, mask.size(1) + 1, device=mask.device)
    return mean(hidden, mask * places)


def max_(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(dim=1)


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    last = mask.sum(dim=1) - 1
    return hidden[torch.arange(hidden.size(0), device=hidden.device), last]


POOLERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": cls,
    "mean": mean,
    "max": max_,
    "lasttoken": last_token,
    "mean_sqrt_len_tokens": mean_sqrt_len,
    "weightedmean": weighted_mean,
}
"""Each takes hidden states [B, T, D] and a mask [B, T], padded on the right, and gives [B, D]."""

LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""In the order in which sentence-transformers concatenates them"""


def pool(hidden: Tensor, mask: Tensor, modes: Sequence[str]) -> Tensor:
    """[B, T, D] hidden states and [B, T] mask, padded on the right → [B, modes * D] float32."""
    pooled = [POOLERS[mode](hidden.float(), mask) for mode in modes]
    return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1)


def read_modes(config: Mapping[str, Any], *, has_prompts: bool) -> tuple[str, ...]:
    """The modes in the configuration of a pooling. Raises UnsupportedModel for others."""
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in LEGACY_MODES.items() if config.get(key)] or ["mean"]
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    for mode in modes:
        if mode not in POOLERS:
            supported = ", ".join(POOLERS)
            raise UnsupportedModel(f"it needs {mode} pooling, and supported are {supported}")
    if has_prompts and not config.get("include_prompt", True):
        raise UnsupportedModel("its pooling leaves prompts out, which is not supported")
    return modes
