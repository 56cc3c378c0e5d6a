"""Linear layers of a float32 model on a processor whose weights are kept in 16 bits.

Most models are published in 16 bits, and processors without native bfloat16 compute them in
float32, which holds the same weights in twice the memory. A step that generates reads all weights
for a few rows, so that reading them is what takes the time. FBGEMM, which torch has on x86, widens
16 bits as it multiplies: up to 32 rows take a half to an eighth of the time of torch's own product
in float32, and the results differ by rounding alone.
"""

import logging

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from .quantization import return_freed_memory

logger = logging.getLogger(__name__)

LARGEST_ERROR = 2.0**-25
"""Half of the smallest number of float16: what rounding a smaller weight to it changes"""


class PackedLinear(nn.Module):
    """A linear layer with weights of 16 bits, and inputs and outputs of 32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self._packed = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach(), linear.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(torch.ops.quantized.linear_dynamic_fp16(inputs, self._packed))


class WithoutWeight(nn.Module):
    """A linear layer that lets no other code see its weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._hidden = (linear,)  # no submodule

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self._hidden[0](inputs))


@torch.no_grad()
def pack_linear_layers(model: PreTrainedModel) -> None:
    """Packs the linear layers whose weights fit into 16 bits, one by one, where that pays.

    A model whose code reads the weight of a layer past the layer stays as it is.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32 or not has_fbgemm():
        return
    layers = {
        name: each
        for name, each in model.named_modules()
        if type(each) is nn.Linear
        and each.weight.dtype == torch.float32
        and fits_into_half(each.weight)
    }
    if not layers or not works_without_weights(model, layers):
        return
    before = sum(each.weight.numel() for each in layers.values())
    for name in list(layers):
        model.set_submodule(name, PackedLinear(layers.pop(name)))
    return_freed_memory()
    logger.info("%d million weights are kept in 16 bits, without loss", before // 10**6)


def has_fbgemm() -> bool:
    operators = torch.ops.quantized
    return "fbgemm" in torch.backends.quantized.supported_engines and all(
        hasattr(operators, name) for name in ("linear_prepack_fp16", "linear_dynamic_fp16")
    )


def fits_into_half(weight: Tensor) -> bool:
    """True if float16 holds the weights: they come from 16 bits, and none is too large."""
    error = weight - weight.half().float()
    return bool(error.abs().max() <= LARGEST_ERROR)


def works_without_weights(model: PreTrainedModel, layers: dict[str, nn.Linear]) -> bool:
    """Runs a model on a few tokens while these layers show no weight."""
    try:
        for name, each in layers.items():
            model.set_submodule(name, WithoutWeight(each))
        model(torch.tensor([[0, 1, 2]]), use_cache=False)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"[:200]
        logger.info("its weights stay in 32 bits, as its own code reads them (%s)", said)
        return False
    else:
        return True
    finally:
        for name, each in layers.items():
            model.set_submodule(name, each)
