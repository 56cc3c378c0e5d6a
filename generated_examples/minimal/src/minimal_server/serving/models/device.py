"""The device and the dtype: the ones that are set, checked against the hardware."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Device:
    """The device for models. torch is imported, and the hardware queried, at the first load."""

    requested: str = "auto"
    """auto, or a torch device such as cpu, cuda or cuda:1"""
    requested_dtype: str = "auto"
    supported: Collection[str] = ("cpu", "cuda", "mps")
    """Device types among which auto may choose"""

    @cached_property
    def torch_device(self) -> "torch.device":
        """The device itself. Raises RuntimeError when the machine does not have it."""
        import torch

        accelerator = torch.accelerator.current_accelerator(check_available=True)
        present = {"cpu"} | ({accelerator.type} if accelerator else set())
        if self.requested == "auto":
            best = accelerator.type if accelerator else "cpu"
            usable = best if best in self.supported else "cpu"
            if usable not in self.supported:
                wanted = " or ".join(self.supported)
                raise RuntimeError(f"This service runs on {wanted}; this machine has none of them.")
            return torch.device(usable)
        device = torch.device(self.requested)
        count = torch.accelerator.device_count() if device.type in present else 0
        if device.type not in present or (device.type != "cpu" and (device.index or 0) >= count):
            raise RuntimeError(
                f"INFER_DEVICE is {self.requested}, which this machine does not have; "
                "auto takes the best that it has."
            )
        return device

    @cached_property
    def dtype(self) -> "torch.dtype":
        """float32 unless the device computes a narrower type natively."""
        import torch

        if self.requested_dtype != "auto":
            dtype = getattr(torch, self.requested_dtype)
            assert isinstance(dtype, torch.dtype)
            return dtype
        match self.torch_device.type:
            case "cuda":
                return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
            case "mps":
                return torch.float16
            case _:
                # Emulated bfloat16 is several times slower than float32.
                native = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
                capabilities = torch.cpu.get_capabilities()
                has_bf16 = any(capabilities.get(name) for name in native)
                return torch.bfloat16 if has_bf16 else torch.float32

    def describe(self) -> dict[str, str | None]:
        """For `/health`. Reports what is known and never imports torch for it."""
        known = "torch_device" in self.__dict__
        return {
            "requested": self.requested,
            "type": self.torch_device.type if known else None,
            "name": str(self.torch_device) if known else None,
            "dtype": str(self.dtype).removeprefix("torch.") if known else None,
        }
