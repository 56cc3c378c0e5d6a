"""The attention of a batch, and whether its steps run in CUDA graphs.

`resolve` decides both from the settings and from the properties of device and model, and touches
neither.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers.modeling_utils import PreTrainedModel

from ..models.model_errors import SourceError
from .transformers_private import (
    VARLEN,
    caps_scores,
    head_size,
    installed_flash_attention,
    supports_flash_attention,
)

AttentionChoice = Literal["auto", "sdpa", "flash"]

OTHER_ATTENTION = "set INFER_ATTENTION=auto"
NO_GRAPHS = "set INFER_CUDA_GRAPHS=false"

LARGEST_HEAD = 256
"""Numbers of an attention head that flash attention computes with"""


@dataclass(frozen=True)
class DeviceFacts:
    """The properties of a device that decide."""

    type: str
    """cpu, cuda or mps"""
    capability: tuple[int, int] = (0, 0)
    """The compute capability of a CUDA GPU"""
    torch_flash: bool = False
    """torch has been built with flash attention."""
    package: str | None = None
    """transformers' name of the flash attention of an installed package"""


@dataclass(frozen=True)
class ModelFacts:
    """The properties of a model that decide."""

    dtype: torch.dtype
    supports_flash: bool = True
    """transformers' code of the model has been made for flash attention."""
    caps_scores: bool = False
    head_size: int | None = None
    """Numbers of an attention head, if known"""
    adapters: bool = False


@dataclass(frozen=True)
class Acceleration:
    """The decision."""

    attention: Literal["sdpa", "flash"]
    reason: str
    """Why this attention"""
    implementation: str | None = None
    """transformers' name of it; None leaves the model's own"""
    cuda_graphs: bool = False
    """Steps run in CUDA graphs, each prepared while the one before it is computed."""


def resolve(
    attention: AttentionChoice, cuda_graphs: bool, device: DeviceFacts, model: ModelFacts
) -> Acceleration:
    """attention, cuda_graphs: the settings. Raises SourceError for one that cannot work."""
    obstacle = device_obstacle(device) or model_obstacle(model)
    if attention == "sdpa":
        chosen = Acceleration("sdpa", "INFER_ATTENTION is sdpa")
    elif obstacle is None:
        package = "an installed package has it" if device.package else "torch has it"
        chosen = Acceleration("flash", package, device.package or VARLEN)
    elif attention == "flash":
        raise SourceError(f"INFER_ATTENTION=flash does not work: {obstacle}", OTHER_ATTENTION)
    else:
        chosen = Acceleration("sdpa", obstacle)
    return with_graphs(chosen, device, model) if cuda_graphs else chosen


def with_graphs(chosen: Acceleration, device: DeviceFacts, model: ModelFacts) -> Acceleration:
    refused = "INFER_CUDA_GRAPHS=true does not work"
    if device.type != "cuda":
        raise SourceError(f"{refused}: {device.type} has no CUDA graphs", NO_GRAPHS)
    if chosen.attention != "flash":
        raise SourceError(f"{refused} without flash attention: {chosen.reason}", NO_GRAPHS)
    if model.adapters:
        raise SourceError(f"{refused} with adapters, which each step mixes anew", NO_GRAPHS)
    return Acceleration(chosen.attention, chosen.reason, chosen.implementation, cuda_graphs=True)


def device_obstacle(device: DeviceFacts) -> str | None:
    """Why a device has no flash attention; None if it has."""
    if device.type != "cuda":
        return f"{device.type} has no flash attention"
    if device.capability < (8, 0):
        capability = ".".join(map(str, device.capability))
        return (
            f"flash attention needs compute capability 8.0 or later, and the GPU has {capability}"
        )
    if not device.torch_flash and device.package is None:
        return "torch has been built without flash attention"
    return None


def model_obstacle(model: ModelFacts) -> str | None:
    """Why a model cannot be computed with flash attention; None where nothing is known."""
    if model.dtype not in (torch.float16, torch.bfloat16):
        name = str(model.dtype).removeprefix("torch.")
        return f"flash attention computes in 16 bits, and the model is in {name}"
    if not model.supports_flash:
        return "the model's code has not been made for flash attention"
    if model.caps_scores:
        return "the model caps its attention scores"
    size = model.head_size
    if size is not None and (size > LARGEST_HEAD or size % 8):
        return f"flash attention has no heads of {size} numbers, as the model has"
    return None


def facts_of_device(device: torch.device) -> DeviceFacts:
    if device.type != "cuda":
        return DeviceFacts(device.type)
    return DeviceFacts(
        "cuda",
        torch.cuda.get_device_capability(device),
        torch.backends.cuda.is_flash_attention_available(),
        installed_flash_attention(),
    )


def facts_of_model(model: PreTrainedModel, *, adapters: bool = False) -> ModelFacts:
    return ModelFacts(
        dtype=model.dtype,
        supports_flash=supports_flash_attention(model),
        caps_scores=caps_scores(model.config),
        head_size=head_size(model.config),
        adapters=adapters,
    )
