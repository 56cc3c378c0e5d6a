"""Makes a chat model ready: its weights, and the engine that suits them."""

import gc
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast
from transformers.modeling_utils import PreTrainedModel

from ...settings import Settings
from ..engine.acceleration import (
    Acceleration,
    ModelFacts,
    facts_of_device,
    facts_of_model,
    resolve,
)
from ..engine.adapter_mix import AdapterMix
from ..engine.base_engine import Engine
from ..engine.continuous import ContinuousBatchingEngine
from ..engine.sampling_params import SamplingOptions
from ..engine.self_check import (
    CHECKED_ADAPTERS,
    abridged,
    check_batch,
    check_graphs,
    fit_tokens,
    known_obstacle,
    make_check_sequences,
    plain_pass,
)
from ..engine.sequential import SequentialEngine
from ..engine.transformers_private import attention_of
from ..models.checkpoint import read_object
from ..models.device import Device
from ..models.model_errors import SourceError
from .adapters import ChatAdapters, load_adapters
from .grammar_compiler import GrammarCompiler
from .packed_linear import pack_linear_layers
from .quantization import rounding_dtype
from .weights import end_tokens_of, read_chat_model, recommended_sampling

logger = logging.getLogger(__name__)

CHECK_TEXT = (
    "The harbour opens at six in the morning. Two boats come in before the tide turns, and the "
    "third waits outside until 7:45. Who unloads them writes down the hour, the weight in "
    "kilograms and the name of the captain; a copy of the list goes to the office on the hill."
)
"""An ordinary text for the self-check of the engine"""


@dataclass(frozen=True)
class ChatParts:
    tokenizer: PreTrainedTokenizerFast
    engine: Engine
    grammars: GrammarCompiler
    eos_token_ids: list[int]
    quantization: str | None
    default_sampling: SamplingOptions
    """The sampling that the model's generation_config.json recommends"""
    adapters: ChatAdapters


def load_chat_model(
    path: Path,
    device: Device,
    settings: Settings,
    adapter_folders: Mapping[str, Path | SourceError] | None = None,
) -> ChatParts:
    """The parts of a chat model, ready to answer.

    path: its folder or its GGUF file. adapter_folders: of its adapters, by name.

    Raises what `read_chat_model` raises.
    """
    refuse_settings(settings, device)
    weights = read_chat_model(
        path,
        device,
        trust_remote_code=settings.trust_remote_code,
        quantization=settings.quantization,
    )
    tokenizer, model = weights.tokenizer, weights.model
    eos_token_ids = end_tokens_of(model, tokenizer, read_object(path / "config.json"))
    vocabulary = model.config.get_text_config().vocab_size
    adapters = load_adapters(adapter_folders or {}, model, tokenizer)
    pack_linear_layers(model)
    return ChatParts(
        tokenizer=tokenizer,
        grammars=GrammarCompiler(tokenizer, vocabulary, eos_token_ids),
        # last, as it starts a thread
        engine=make_engine(model, tokenizer, eos_token_ids, settings, adapters.mix),
        eos_token_ids=eos_token_ids,
        quantization=weights.quantization,
        default_sampling=recommended_sampling(model.generation_config),
        adapters=adapters,
    )


def refuse_settings(settings: Settings, device: Device) -> None:
    """Raises SourceError for what can work with no model on this device, before one is read."""
    model = ModelFacts(dtype=torch.bfloat16)
    facts = facts_of_device(device.torch_device)
    resolve(settings.attention, settings.cuda_graphs, facts, model)


def make_engine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    eos_token_ids: Sequence[int],
    settings: Settings,
    adapters: AdapterMix | None = None,
) -> Engine:
    """Continuous batching where the model has proved to be right in it, else one at a time.

    Raises SourceError where the settings ask for an attention or for graphs that cannot work.
    """
    facts = facts_of_model(model, adapters=bool(adapters and adapters.count))
    device = facts_of_device(model.device)
    chosen = resolve(settings.attention, settings.cuda_graphs, device, facts)
    asked = settings.cuda_graphs or settings.attention == "flash"
    reason = known_obstacle(model.config)
    attention = attention_of(model)
    ways = [] if reason else [chosen]
    while ways:
        way = ways.pop()
        try:
            engine = checked_engine(model, tokenizer, eos_token_ids, settings, adapters, way)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # any error: one request at a time may still work
            reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        else:
            log_engine(model, engine)
            return engine
        gc.collect()  # the engine that failed is in cycles, and so is its KV cache
        if attention_of(model) != attention:
            model.set_attn_implementation(attention)
        if way.attention == "flash" and not asked:
            ways.append(Acceleration("sdpa", f"flash attention failed its check: {reason}"))
    if asked:
        setting = "INFER_CUDA_GRAPHS=true" if settings.cuda_graphs else "INFER_ATTENTION=flash"
        raise SourceError(f"{setting} does not work with this model: {reason}", "unset it")
    name = type(model).__name__
    logger.warning("%s cannot be batched (%s): one request at a time", name, reason)
    text_config = model.config.get_text_config()
    context = getattr(text_config, "max_position_embeddings", settings.kv_cache_tokens)
    return SequentialEngine(
        model,
        eos_token_ids=eos_token_ids,
        max_length=min(context, settings.kv_cache_tokens),
        reason=reason,
        stall_seconds=settings.stall_seconds,
        adapters=adapters,
    )


def log_engine(model: PreTrainedModel, engine: ContinuousBatchingEngine) -> None:
    name, attention, reason = type(model).__name__, engine.attention, engine.attention_reason
    steps = "in CUDA graphs, asynchronous" if engine.cuda_graphs else "without CUDA graphs"
    logger.info("%s: attention %s (%s), steps %s", name, attention, reason, steps)


def checked_engine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    eos_token_ids: Sequence[int],
    settings: Settings,
    adapters: AdapterMix | None,
    acceleration: Acceleration,
) -> ContinuousBatchingEngine:
    """Raises whatever transformers raises for a model that cannot be batched, and what `check_batch`
    raises for one that answers otherwise in a batch.
    """
    ordinary = tokenizer.encode(CHECK_TEXT, add_special_tokens=False)
    tokens = fit_tokens(model, ordinary, settings.kv_cache_tokens)
    checked = min(adapters.count, CHECKED_ADAPTERS) if adapters else 0
    texts = [make_check_sequences(tokens, adapter) for adapter in range(checked + 1)]
    with abridged(model, len(tokens)):
        started = time.monotonic()
        # before the engine changes the attention
        passes = [plain_pass(model, each, adapters) for each in texts]
        plain_seconds = time.monotonic() - started
    if passes[0].kv_width is not None and acceleration.attention == "flash":
        raise RuntimeError("its keys and values have several shapes, which flash attention lacks")
    engine = ContinuousBatchingEngine(
        model,
        eos_token_ids=eos_token_ids,
        kv_cache_tokens=settings.kv_cache_tokens,
        max_batch_tokens=settings.max_batch_tokens,
        max_batch_requests=settings.max_batch_requests,
        stall_seconds=settings.stall_seconds,
        adapters=adapters,
        kv_width=passes[0].kv_width,
        acceleration=acceleration,
    )
    sequences = [each for text in texts for each in text]
    started = time.monotonic()
    try:
        with abridged(model, len(tokens)):
            expected = torch.cat([each.logits for each in passes])
            dtype = rounding_dtype(model)
            check_batch(engine, sequences, expected, dtype=dtype, plain_seconds=plain_seconds)
        if engine.cuda_graphs:
            check_graphs(engine, tokens)
    except BaseException:
        engine.discard()
        raise
    logger.info("batch proved right in %.2f s", plain_seconds + time.monotonic() - started)
    return engine
