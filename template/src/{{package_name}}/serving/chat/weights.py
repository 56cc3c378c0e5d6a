"""Reads the tokenizer and the weights of a chat model, and refuses models of other kinds."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils.logging import disable_progress_bar

from ..engine.sampling_params import SamplingOptions
from ..models.checkpoint import (
    explained,
    is_embeddings_model,
    quantisation,
    read_object,
    refuse_missing_weights,
)
from ..models.device import Device
from ..models.model_errors import SourceError
from .quantization import Quantization, quantize_on_processor, torchao_options

logger = logging.getLogger(__name__)

SETTING = "INFER_CHAT_MODEL"

OTHER_HEADS = (
    "ForMaskedLM",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
)
"""Ends of the names of classes whose weights write no text"""

OF_QUANTISED = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".SCB")
"""Ends of the names of tensors that only quantised weights have"""

RECOMMENDED = {
    "temperature": (0.0, float("inf")),
    "top_p": (0.0, 1.0),
    "top_k": (0, float("inf")),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-6, float("inf")),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}
"""Sampling that a generation_config.json may recommend, with the smallest and the largest value"""


@dataclass(frozen=True)
class ChatWeights:
    tokenizer: PreTrainedTokenizerFast
    model: PreTrainedModel
    quantization: str | None
    """The method that its weights are quantised with: that of the files, or that of the setting"""


def read_chat_model(
    path: Path, device: Device, *, trust_remote_code: bool, quantization: Quantization = "none"
) -> ChatWeights:
    """The tokenizer and the weights of a chat model.

    path: its folder or its GGUF file. quantization: for plain weights.

    Raises SourceError for what is no chat model, OSError for missing files, and whatever
    transformers raises for corrupt ones.
    """
    disable_progress_bar()
    folder = path if path.is_dir() else path.parent
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if folder != path:
        options["gguf_file"] = path.name
    with explained(path, SETTING):
        config = AutoConfig.from_pretrained(folder, **options)
        if kind := other_kind(config, folder):
            raise SourceError(
                f"it is {kind} and not a chat model", f"set {SETTING}=<an instruction-tuned model>"
            )
        tokenizer = read_tokenizer(folder, options)
        if quantization == "none":
            method = "gguf" if folder != path else quantisation(config.to_dict())
            return ChatWeights(tokenizer, read_model(folder, config, device, options), method)
        if is_quantised(config, options):
            raise SourceError("it is already quantised", "set INFER_QUANTIZATION=none")
        options |= torchao_options(quantization, device.torch_device)
        model = read_model(folder, config, device, options)
        if device.torch_device.type == "cpu":
            quantize_on_processor(model, quantization)
        return ChatWeights(tokenizer, model, quantization)


def other_kind(config: PreTrainedConfig, folder: Path) -> str | None:
    """The kind of a model that writes no text to a conversation; None if it may write one."""
    name = str((config.architectures or [""])[0])
    writes = name.endswith("ForCausalLM")
    if is_embeddings_model(folder):
        return "an embeddings model (modules.json)"
    if config.is_encoder_decoder and not writes:
        return f"an encoder-decoder model ({name or config.model_type})"
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return f"an encoder ({name or config.model_type})"
    if name.endswith(OTHER_HEADS):
        return f"a model for another task ({name})"
    own_code = getattr(config, "auto_map", None)
    if name.endswith("Model") and not name.endswith("LMHeadModel") and not own_code:
        return f"a model without the layer that writes text ({name})"
    return None


def read_tokenizer(folder: Path, options: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a model, with a template for chat. Raises SourceError if one is missing."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise SourceError(
            "it has no fast tokenizer (tokenizer.json)",
            f"save one with transformers, or set {SETTING}=<another model>",
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = template_of_processor(folder)
    template = tokenizer.chat_template
    if not template:
        raise SourceError(
            "it has no chat template, as a base model that cannot chat",
            f"put a chat_template.jinja into its folder, or set {SETTING}=<an instruction-tuned "
            "model>",
        )
    if isinstance(template, dict) and "default" not in template:
        raise SourceError(
            "none of its chat templates is called default",
            f"save one of {', '.join(template)} as chat_template.jinja in its folder",
        )
    check_syntax(tokenizer)
    return tokenizer


def read_own_tokenizer(
    folder: Path, base: PreTrainedTokenizerFast
) -> PreTrainedTokenizerFast | None:
    """The tokenizer of an adapter, with a template for chat; None where the folder has no template.

    base: that of the base model, for an adapter that has a template alone. Raises SourceError.
    """
    if (folder / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if not isinstance(tokenizer, PreTrainedTokenizerFast) or not tokenizer.chat_template:
            return None
    elif (file := folder / "chat_template.jinja").is_file():
        tokenizer = copy.deepcopy(base)
        tokenizer.chat_template = file.read_text("utf-8")
    else:
        return None
    check_syntax(tokenizer)
    return tokenizer


def check_syntax(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises SourceError for a chat template that jinja2 cannot read."""
    probe = [{"role": "user", "content": "q"}]
    template = tokenizer.chat_template
    for each in template.values() if isinstance(template, dict) else [template]:
        try:
            tokenizer.apply_chat_template(probe, chat_template=each, tokenize=False)
        except TemplateSyntaxError as error:
            raise SourceError(
                "its chat template is not valid Jinja",
                f"mend its line {error.lineno}: {error.message}",
            ) from error
        except Exception:  # a template may refuse the question
            continue


def template_of_processor(folder: Path) -> str | None:
    """The chat template of older models that read images too: these keep it beside the tokenizer."""
    for name in ("chat_template.json", "processor_config.json"):
        template = read_object(folder / name).get("chat_template")
        if isinstance(template, str):
            return template
    return None


def read_model(
    folder: Path, config: PreTrainedConfig, device: Device, options: dict[str, Any]
) -> PreTrainedModel:
    """The model with its weights, on its device.

    Raises SourceError for a model that writes no text, and for weights that are missing.
    """
    quantised = is_quantised(config, options) or "quantization_config" in options
    if quantised and device.torch_device.type != "cpu":
        # Quantised weights cannot be moved. On a CPU some methods want no device to be named.
        options = options | {"device_map": {"": str(device.torch_device)}}
    model, report = auto_class(config).from_pretrained(
        folder, dtype=device.dtype, output_loading_info=True, **options
    )
    refuse_missing_weights(report["missing_keys"], folder)
    unread = [key for key in sorted(report["unexpected_keys"]) if key.endswith(OF_QUANTISED)]
    if unread and not quantised:
        raise SourceError(
            "its weights are quantised, and its config.json does not say how",
            f"{unread[0]} is in {folder}, and quantization_config is not in config.json",
        )
    if not model.can_generate():
        raise SourceError(
            f"it is a {type(model).__name__}, which writes no text",
            f"set {SETTING}=<a chat model>",
        )
    on_device: PreTrainedModel = model if quantised else model.to(device.torch_device)
    return on_device.eval()


def is_quantised(config: PreTrainedConfig, options: dict[str, Any]) -> bool:
    """True for files with quantised weights. Raises ValueError for a method unknown to transformers."""
    for part in (config, config.get_text_config()):
        if given := getattr(part, "quantization_config", None):
            AutoQuantizationConfig.from_dict(dict(given))  # from_pretrained reads on without it
            return True
    return "gguf_file" in options


def auto_class(config: PreTrainedConfig) -> Any:
    """The class of transformers that reads the model for text: also of one that reads images, which
    then gets text alone. Raises SourceError.
    """
    own_code = getattr(config, "auto_map", None) or {}
    for auto, mapping in (
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
        (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    ):
        if type(config) in mapping or auto.__name__ in own_code:
            return auto
    raise SourceError(
        f"transformers has no class for its type ({config.model_type}) that writes text",
        f"set {SETTING}=<a chat model>",
    )


def end_tokens_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, written: Mapping[str, Any]
) -> list[int]:
    """The tokens that end an answer: those of the generation configuration, or else of config.json,
    and the tokenizer's.

    A fine-tuned model often ends as its template does, with the tokenizer's token, while its
    generation_config.json is still that of the base model.

    written: config.json itself, as configurations have a token by default
    """
    of_model = as_list(model.generation_config.eos_token_id)
    for config in (written, written.get("text_config") or {}):
        of_model = of_model or as_list(config.get("eos_token_id"))
    tokens = [*of_model, *as_list(tokenizer.eos_token_id)]
    # A tokenizer may have more tokens than the model.
    vocabulary = model.config.get_text_config().vocab_size
    return [token for token in dict.fromkeys(tokens) if 0 <= token < vocabulary]


def as_list(token_ids: int | list[int] | None) -> list[int]:
    if token_ids is None:
        return []
    return [token_ids] if isinstance(token_ids, int) else list(token_ids)


def recommended_sampling(config: GenerationConfig) -> SamplingOptions:
    """The sampling that a generation_config.json recommends, for requests that do not set it."""
    values: Any = {name: getattr(config, name, None) for name in RECOMMENDED}
    for name, value in values.items():
        least, most = RECOMMENDED[name]
        if value is not None and not least <= value <= most:
            logger.warning("%s=%r of generation_config.json is left out", name, value)
            values[name] = None
    values["min_tokens"] = config.min_new_tokens
    given: Any = {name: value for name, value in values.items() if value is not None}
    options: SamplingOptions = given
    return options
