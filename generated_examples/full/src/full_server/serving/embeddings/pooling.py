"""From token vectors to one vector a text, as the model's sentence-transformers files say."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def cls(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[:, 0]


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


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
}
"""Each takes hidden states [B, T, D] and a mask [B, T], padded on the right, and gives [B, D]."""

LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


@dataclass(frozen=True)
class Pooling:
    """The pooling of a model: from the vectors of tokens to one vector."""

    mode: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    """Longest text in tokens that the model was made for, where its files say"""
    lower_case: bool = False

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[B, T, D] hidden states and [B, T] mask, padded on the right → [B, D] float32."""
        pooled = POOLERS[self.mode](hidden.float(), mask)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def read_pooling(folder: Path) -> Pooling:
    """The pooling of a model folder; mean, as sentence-transformers assumes, where it says nothing.

    Raises ValueError for a module or mode that this service does not have: silently leaving it out
    would give vectors that are merely plausible.
    """
    modules = read_json(folder / "modules.json") or []
    mode, normalize = "mean", False
    for module in modules:
        match module["type"].rpartition(".")[2]:
            case "Transformer":
                pass
            case "Pooling":
                mode = pooling_mode(read_json(folder / module["path"] / "config.json"))
            case "Normalize":
                normalize = True
            case other:
                raise ValueError(f"The model needs the module {other}, which is not supported.")
    if mode not in POOLERS:
        raise ValueError(f"The model needs {mode} pooling; supported are {', '.join(POOLERS)}.")
    bert = read_json(folder / "sentence_bert_config.json")
    return Pooling(mode, normalize, bert.get("max_seq_length"), bool(bert.get("do_lower_case")))


def pooling_mode(config: dict[str, Any]) -> str:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in LEGACY_MODES.items() if config.get(key)] or ["mean"]
    return modes if isinstance(modes, str) else "+".join(modes)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
