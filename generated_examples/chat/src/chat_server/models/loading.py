"""Reads a chat model from its folder and puts the engine under it that fits."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ..settings import Settings
from .batching import BatchingEngine
from .device import Device
from .generate import GenerateEngine
from .tokens import Engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChatParts:
    tokenizer: PreTrainedTokenizerFast
    engine: Engine
    eos_token_ids: list[int]
    sampling_defaults: dict[str, Any]


def load_chat_model(folder: Path, device: Device, settings: Settings) -> ChatParts:
    """Raises ValueError for a model without a chat template, OSError for missing files."""
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{folder} has no fast tokenizer (tokenizer.json)")
    if not tokenizer.chat_template:
        raise ValueError(f"{folder} has no chat template: a base model cannot chat")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=device.dtype)
    model = model.to(device.torch_device).eval()

    eos_token_ids = as_list(model.generation_config.eos_token_id) or as_list(tokenizer.eos_token_id)
    config = model.generation_config
    defaults = {name: getattr(config, name, None) for name in ("temperature", "top_p", "top_k")}
    return ChatParts(
        tokenizer=tokenizer,
        engine=make_engine(model, eos_token_ids, settings),
        eos_token_ids=eos_token_ids,
        sampling_defaults={name: value for name, value in defaults.items() if value is not None},
    )


def make_engine(model: PreTrainedModel, eos_token_ids: Sequence[int], settings: Settings) -> Engine:
    """Continuous batching where the model's layers allow it, else one request at a time."""
    try:
        return BatchingEngine(
            model,
            eos_token_ids=eos_token_ids,
            kv_cache_tokens=settings.kv_cache_tokens,
            max_batch_tokens=settings.max_batch_tokens,
            max_batch_requests=settings.max_batch_requests,
            max_queue=settings.max_queue,
        )
    except (ValueError, AttributeError, KeyError, NotImplementedError) as error:
        name = type(model).__name__
        logger.warning("%s cannot be batched (%s): one request at a time", name, error)
    context = getattr(model.config, "max_position_embeddings", settings.kv_cache_tokens)
    return GenerateEngine(
        model,
        eos_token_ids=eos_token_ids,
        max_length=min(context, settings.kv_cache_tokens),
        max_queue=settings.max_queue,
    )


def as_list(token_ids: int | list[int] | None) -> list[int]:
    if token_ids is None:
        return []
    return [token_ids] if isinstance(token_ids, int) else list(token_ids)
