"""Linear layers with weights of 8 or 4 bits, on the kernels that torch has for processors.

torchao has none for a processor in eager mode: it widens the weights in each pass. The kernels are
vectorised for bfloat16 alone, so inputs and outputs are rounded to it.
"""

import torch
from torch import Tensor, nn

GROUP_SIZE = 64
"""Neighbouring weights of a row that share a scale and a zero in 4 bits"""

INT4_ROWS = 16
"""The kernel for 4 bits takes weights whose rows are a multiple of it."""


class Int8Linear(nn.Module):
    """Weights of 8 bits, scaled by row."""

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scales = (weight.abs().amax(1).float() / 127).clamp(min=1e-12)
        codes = (weight / scales[:, None]).round_().to(torch.int8)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales.bfloat16())
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.flatten(0, -2).bfloat16()
        outputs = torch.ops.aten._weight_int8pack_mm(rows, self.codes, self.scales)
        return finished(outputs, inputs, self.bias)


class Int4Linear(nn.Module):
    """Weights of 4 bits, scaled by group."""

    packed: Tensor
    scales_and_zeros: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        groups = weight.view(len(weight), -1, GROUP_SIZE)
        least, most = groups.amin(-1), groups.amax(-1)
        scales = ((most - least) / 15).clamp(min=1e-6)
        codes = ((groups - least[..., None]) / scales[..., None]).round().flatten(1).int()
        middle = least + 8 * scales  # the kernel computes (code - 8) * scale + zero
        both = torch.stack((scales, middle), -1).transpose(0, 1).contiguous()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self.register_buffer("packed", packed)
        self.register_buffer("scales_and_zeros", both.bfloat16())
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.flatten(0, -2).bfloat16()
        outputs = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.packed, GROUP_SIZE, self.scales_and_zeros
        )
        return finished(outputs, inputs, self.bias)


def finished(outputs: Tensor, inputs: Tensor, bias: Tensor | None) -> Tensor:
    """The outputs in the shape and the dtype of the inputs, with the bias."""
    shaped = outputs.view(*inputs.shape[:-1], -1).to(inputs.dtype)
    return shaped if bias is None else shaped + bias
