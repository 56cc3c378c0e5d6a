"""Quantises plain weights while a chat model is loaded: INFER_QUANTIZATION."""

import ctypes
import logging
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from ..models.checkpoint import PACKAGES, require_packages
from ..models.model_errors import SourceError
from .quantized_linear import GROUP_SIZE, INT4_ROWS, Int4Linear, Int8Linear

logger = logging.getLogger(__name__)

Quantization = Literal["none", "int8", "int4", "fp8"]

FEWEST_OUTPUTS = 64
"""Smaller layers stay as they are: they are routers and gates, which choose by small differences."""

OTHER = "set INFER_QUANTIZATION=none or another one"


def torchao_options(method: Quantization, device: torch.device) -> dict[str, Any]:
    """Options of `from_pretrained` with which torchao quantises each weight as it is read; none where
    the model is quantised after it was read, on a processor.

    Raises SourceError for a method that the device does not have.
    """
    if method == "fp8" and not has_fp8(device):
        raise SourceError("fp8 needs an NVIDIA GPU of compute capability 8.9 or later", OTHER)
    if device.type == "cpu":
        return {}
    if device.type != "cuda":
        raise SourceError(f"INFER_QUANTIZATION={method} does not work on {device.type}", OTHER)
    what = f"INFER_QUANTIZATION={method} is set"
    require_packages(what, [*PACKAGES["torchao"], "accelerate"])
    return {"quantization_config": torchao_config(method)}


def has_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def torchao_config(method: Quantization) -> Any:
    """The configuration of transformers for torchao."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int4WeightOnlyConfig,
        Int8WeightOnlyConfig,
        PerRow,
    )
    from transformers import TorchAoConfig

    match method:
        case "fp8":
            return TorchAoConfig(Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
        case "int4":
            packing: Any = "tile_packed_to_4d"  # the others need the package mslk
            return TorchAoConfig(Int4WeightOnlyConfig(GROUP_SIZE, int4_packing_format=packing))
        case _:
            return TorchAoConfig(Int8WeightOnlyConfig())


@torch.no_grad()
def quantize_on_processor(model: PreTrainedModel, method: Quantization) -> None:
    """Replaces the linear layers, one by one, and tries the model on a few tokens.

    In 4 bits, the output embeddings get 8, as their errors reach the answer straight, and so do
    layers whose dimensions 4 bits do not fit.

    Raises SourceError for a model that has no such layer, or does not run with them.
    """
    head = model.get_output_embeddings()
    name_of_head = next((name for name, each in model.named_modules() if each is head), None)
    before, replaced = model.num_parameters(), 0
    names = [name for name, each in model.named_modules() if type(each) is nn.Linear]
    for name in names:
        linear: Any = model.get_submodule(name)
        kind = layer_for(linear, "int8" if name == name_of_head else method)
        if kind is not None:
            replaced += linear.weight.numel()
            model.set_submodule(name, kind(linear))
    if not replaced:
        raise SourceError(f"none of its layers can be quantised to {method}", OTHER)
    try:
        model(torch.tensor([[0, 1, 2]], device=model.device), use_cache=False)
    except Exception as error:  # some read the weights of a layer past the layer
        said = f"{type(error).__name__}: {error}"[:200]
        raise SourceError(f"it does not run in {method}: {said}", OTHER) from error
    return_freed_memory()
    logger.info("%d of %d million weights are %s now", replaced // 10**6, before // 10**6, method)


def return_freed_memory() -> None:
    """Gives freed memory back to the system, as glibc keeps that of the plain weights for itself."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def layer_for(linear: nn.Linear, method: Quantization) -> type[Int4Linear | Int8Linear] | None:
    """The class that takes the place of a layer; None if it stays."""
    rows, columns = linear.weight.shape
    if rows < FEWEST_OUTPUTS:
        return None
    fits = rows % INT4_ROWS == 0 and columns % GROUP_SIZE == 0
    return Int4Linear if method == "int4" and fits else Int8Linear


def rounding_dtype(model: PreTrainedModel) -> torch.dtype:
    """The narrowest data type that a pass rounds to."""
    is_ours = any(isinstance(each, Int4Linear | Int8Linear) for each in model.modules())
    return torch.bfloat16 if is_ours or hasattr(model, "hf_quantizer") else model.dtype
