"""The modules of sentence-transformers that follow the pooling: Dense, LayerNorm, Normalize."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..models.model_errors import SourceError, UnsupportedModel
from .layout import read_module_config


class Dense(nn.Module):
    """A linear layer and its activation."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        inputs, outputs = config["in_features"], config["out_features"]
        self.linear = nn.Linear(inputs, outputs, bias=config.get("bias", True))
        self.activation = make_activation(config.get("activation_function", "torch.nn.Tanh"))
        self.use_residual = config.get("use_residual", False)
        if self.use_residual and inputs != outputs:
            self.residual = nn.Linear(inputs, outputs, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        projected: Tensor = self.activation(self.linear(vectors))
        if not self.use_residual:
            return projected
        return projected + (self.residual(vectors) if hasattr(self, "residual") else vectors)


class VectorNorm(nn.Module):
    """LayerNorm over each vector."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config["dimension"])

    def forward(self, vectors: Tensor) -> Tensor:
        normed: Tensor = self.norm(vectors)
        return normed


class Normalize(nn.Module):
    """Scales each vector to length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1)


WITH_WEIGHTS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "Dense": Dense,
    "LayerNorm": VectorNorm,
}


def read_head(modules: Sequence[tuple[str, Path]]) -> nn.Sequential:
    """The modules with their weights. They compute in float32, which costs nothing beside the
    transformer. Raises UnsupportedModel for other modules, SourceError for missing files.
    """
    return nn.Sequential(*(read_module_of_head(kind, path) for kind, path in modules)).eval()


def read_module_of_head(kind: str, folder: Path) -> nn.Module:
    if kind == "Normalize":
        return Normalize()
    if kind == "Dropout":  # in training alone
        return nn.Identity()
    if kind not in WITH_WEIGHTS:
        raise UnsupportedModel(f"it needs the module {kind}, which is not supported")
    config = read_module_config(folder)
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            reason = f"its module {kind} has {key} {config[key]}, which is not supported"
            raise UnsupportedModel(reason)
    return with_weights(WITH_WEIGHTS[kind](config), folder)


def with_weights(module: nn.Module, folder: Path) -> nn.Module:
    """The module with the weights of its folder. Raises SourceError unless they are its own."""
    if (file := folder / "model.safetensors").is_file():
        weights = load_file(file)
    elif (file := folder / "pytorch_model.bin").is_file():
        weights = torch.load(file, map_location="cpu", weights_only=True)
    else:
        raise SourceError(
            f"its module {folder.name} has no weights",
            f"{folder} lacks model.safetensors: copy or download the model anew",
        )
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise SourceError(
            f"the weights of its module {folder.name} are not those that its config.json describes",
            f"{' '.join(str(error).split())}; copy or download the model anew",
        ) from error
    return module.float()


def make_activation(name: str | None) -> nn.Module:
    """One of torch's activations by its full name. Raises UnsupportedModel for others."""
    module, _, kind = (name or "torch.nn.Identity").rpartition(".")
    found = getattr(nn, kind, None) if module.startswith("torch.nn") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UnsupportedModel(f"it needs the activation {name}, which is not one of torch.nn")
    return found()
