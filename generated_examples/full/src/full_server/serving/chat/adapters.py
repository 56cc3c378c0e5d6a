"""LoRA adapters of a chat model: reads their files with peft, and refuses what cannot be served.

peft, which knows the formats, reads an adapter into a copy of the model's layers without weights.
The base model itself is out of its reach, and may be quantised in any way.
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel

from ..engine.adapter_mix import AdapterMix, LowRank, install
from ..models.checkpoint import read_object, require_packages
from ..models.model_errors import SourceError
from .weights import read_own_tokenizer

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

logger = logging.getLogger(__name__)

OF_LORA = (".lora_A.", ".lora_B.", ".lora_magnitude_vector")
"""Parts of the names of tensors that a LoRA or DoRA adapter has"""

PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base model's weights as they are"""

NAME = "adapter"
"""peft's name of an adapter while it is read"""

MERGE = (
    "merge it into its base model with peft's merge_and_unload(), and serve the result with "
    "INFER_CHAT_MODEL"
)


@dataclass(frozen=True)
class ChatAdapter:
    """An adapter that is ready."""

    number: int
    """Of the adapter in the engine"""
    tokenizer: PreTrainedTokenizerFast | None
    """Its own, if it has another chat template than the base model"""
    end_tokens: tuple[int, ...]
    """The tokens that end its answers beside the base model's"""


@dataclass(frozen=True)
class ChatAdapters:
    """The adapters of one model."""

    mix: AdapterMix | None = None
    """None if there is no adapter, and the model is as it would be without this module"""
    ready: dict[str, ChatAdapter] = field(default_factory=dict)
    """By name"""
    refused: dict[str, str] = field(default_factory=dict)
    """By name, the reason for clients"""


def load_adapters(
    folders: Mapping[str, Path | SourceError],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
) -> ChatAdapters:
    """Adds adapters to a model. One that cannot be served is logged, and hinders no other.

    folders: by name, or why an adapter has none
    """
    ready: dict[str, ChatAdapter] = {}
    refused: dict[str, str] = {}
    parts: dict[int, dict[str, LowRank]] = {}
    for name, folder in folders.items():
        try:
            if isinstance(folder, SourceError):
                raise folder
            layers = read_adapter(folder, model)
            own = own_tokenizer(folder, model, tokenizer)
        except SourceError as error:
            logger.error("loading the adapter %s failed: %s", name, error)
            refused[name] = error.reason
        except Exception:
            logger.exception("loading the adapter %s failed", name)
            refused[name] = "peft cannot read it"
        else:
            number = len(ready) + 1
            parts[number] = layers
            ends = () if own is None else end_tokens(own, tokenizer)
            ready[name] = ChatAdapter(number, own, ends)
    if not ready:
        return ChatAdapters(refused=refused)
    mix = AdapterMix(len(ready))
    install(model, parts, mix)
    return ChatAdapters(mix, ready, refused)


def read_adapter(folder: Path, model: PreTrainedModel) -> dict[str, LowRank]:
    """The changes that an adapter makes to layers of the model, by their names. Raises SourceError."""
    require_packages("it is an adapter", ["peft"])
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights

    given = read_object(folder / "adapter_config.json")
    refuse_kind(given)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        tensors = load_peft_weights(str(folder), device="cpu")
    except Exception as error:
        raise SourceError(
            "its files are not those of an adapter that peft can read",
            f"look into {folder}: {type(error).__name__}: {error}",
        ) from error
    refuse_weights(list(tensors))
    mapping = getattr(model, "_checkpoint_conversion_mapping", None)
    layers = without_weights(model)
    head = layers.get_output_embeddings()
    try:
        with_adapter = PeftModel(layers, config, NAME, autocast_adapter_dtype=False)
        report = with_adapter.load_adapter(
            str(folder), NAME, torch_device="cpu", key_mapping=mapping
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise misfit(given, str(error)) from error
    if strange := [*report.missing_keys, *report.unexpected_keys]:
        raise misfit(given, f"{strange[0]} is not in both")
    return {
        name: low_rank(name, layer, model) for name, layer in adapted_layers(layers, head).items()
    }


def refuse_kind(config: Mapping[str, Any]) -> None:
    """Raises SourceError for an adapter that is no LoRA, or changes more than linear layers.

    config: the content of adapter_config.json
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise SourceError(
            f"it is an adapter of another kind than LoRA ({kind})",
            "set INFER_CHAT_ADAPTERS=<name>=<a LoRA adapter>",
        )
    for option in ("modules_to_save", "trainable_token_indices"):
        if value := config.get(option):
            names = ", ".join(map(str, value))
            reason = f"it replaces weights of the base model ({option}: {names[:100]})"
            raise SourceError(reason, MERGE)
    if config.get("bias", "none") != "none":
        raise SourceError("it replaces biases of the base model", MERGE)
    if config.get("layer_replication"):
        raise SourceError("it repeats layers of the base model", MERGE)
    if config.get("target_parameters"):
        raise SourceError("it adapts parameters that are no linear layers", MERGE)
    init = config.get("init_lora_weights", True)
    if init not in PLAIN_INITS:
        raise SourceError(
            f"it was trained on other weights than the base model's (init_lora_weights: {init})",
            "save it with save_pretrained(path_initial_model_for_weight_conversion=…), which makes "
            "a plain LoRA of it",
        )


def refuse_weights(names: list[str]) -> None:
    """Raises SourceError for tensors of another kind: peft would read them into the base model."""
    other = [name for name in names if not any(part in name for part in OF_LORA)]
    if other:
        name = other[0].removeprefix("base_model.model.")
        raise SourceError(f"it has weights beside those of LoRA ({name})", MERGE)
    if not names:
        raise SourceError("its file of weights is empty", "save or download the adapter anew")


def misfit(config: Mapping[str, Any], detail: str) -> SourceError:
    base = config.get("base_model_name_or_path") or "another model"
    return SourceError(
        "it does not fit the base model: it was trained for another one",
        f"set INFER_CHAT_MODEL to its base model ({base}): {detail}"[:400],
    )


def without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A model with the same layers. The memory for its weights is reserved and never used."""
    with torch.device("meta"):
        layers = type(model)(copy.deepcopy(model.config))
    empty: PreTrainedModel = layers.to_empty(device="cpu")
    return empty


def adapted_layers(model: PreTrainedModel, head: nn.Module | None) -> "dict[str, LoraLayer]":
    """The layers with the adapter that peft has read into a model. Raises SourceError.

    head: the output embeddings, which compute the tokens that get a next one alone
    """
    from peft.tuners.lora import LoraLayer

    layers: dict[str, LoraLayer] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        base = layer.get_base_layer()
        if base is head:
            raise SourceError(f"it adapts the output embeddings ({name})", MERGE)
        if NAME not in layer.lora_A or not isinstance(layer.lora_A[NAME], nn.Linear):
            raise SourceError(f"it adapts a {type(base).__name__} ({name})", MERGE)
        variant = layer.lora_variant.get(NAME)
        if variant is not None and not layer.use_dora.get(NAME):
            raise SourceError(f"it is a LoRA of an unusual kind ({type(variant).__name__})", MERGE)
        layers[name] = layer
    return layers


def low_rank(name: str, layer: "LoraLayer", model: PreTrainedModel) -> LowRank:
    """The change that an adapter makes to the layer with this name. layer: as peft has read it."""
    down, up, scaling = layer.lora_A[NAME], layer.lora_B[NAME], layer.scaling[NAME]
    magnitude = None
    if layer.use_dora.get(NAME):
        magnitude = relative_magnitude(layer, model.get_submodule(name))

    def placed(tensor: Tensor) -> Tensor:
        return tensor.detach().to(model.device, model.dtype)

    return LowRank(
        placed(down.weight),
        placed(up.weight * scaling),
        None if up.bias is None else placed(up.bias * scaling),
        None if magnitude is None else placed(magnitude),
    )


def relative_magnitude(layer: "LoraLayer", base: nn.Module) -> Tensor:
    """`LowRank.magnitude` of a layer with DoRA. base: the layer of the model itself."""
    from peft.utils.integrations import dequantize_module_weight

    if not hasattr(base, "weight"):
        raise SourceError(
            "it is a DoRA, which needs weights that are not quantised",
            "set INFER_QUANTIZATION=none, or take a plain LoRA",
        )
    dora = layer.lora_magnitude_vector[NAME]
    change = dora.get_lora_weight(lora_A=layer.lora_A[NAME], lora_B=layer.lora_B[NAME]).detach()
    weight = dequantize_module_weight(base).to(change.device, change.dtype)
    norm: Tensor = dora.get_weight_norm(weight, change, layer.scaling[NAME])
    return torch.as_tensor(dora.weight) / norm


def own_tokenizer(
    folder: Path, model: PreTrainedModel, base: PreTrainedTokenizerFast
) -> PreTrainedTokenizerFast | None:
    """The tokenizer in an adapter's folder, if it has another chat template than the base model.

    Raises SourceError if it reads texts as other tokens.
    """
    own = read_own_tokenizer(folder, base)
    if own is None or own.chat_template == base.chat_template:
        return None
    tokens, of_base = own.get_vocab(), base.get_vocab()
    if any(tokens.get(text) != token for text, token in of_base.items()):
        raise SourceError("its tokenizer is another one than the base model's", MERGE)
    vocabulary = model.get_input_embeddings().weight.size(0)
    template = str(own.chat_template)
    missing = [text for text, token in tokens.items() if token >= vocabulary and text in template]
    if missing:
        raise SourceError(
            f"its chat template has tokens that the base model lacks ({missing[0]})", MERGE
        )
    return own


def end_tokens(own: PreTrainedTokenizerFast, base: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The token that ends answers by an adapter's own tokenizer, if the base model's is another."""
    token = own.eos_token_id
    return () if token is None or token == base.eos_token_id else (token,)
