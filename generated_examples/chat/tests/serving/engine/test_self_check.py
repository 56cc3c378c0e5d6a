"""A model is batched when it has proved there what it computes alone, and not otherwise."""

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
)
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.modeling_utils import PreTrainedModel

from chat_server.serving.chat.loading import make_engine
from chat_server.serving.engine import continuous as batching
from chat_server.serving.engine import self_check as proof
from chat_server.serving.engine.base_engine import Engine
from chat_server.serving.engine.sampling_params import SamplingParams
from chat_server.serving.engine.self_check import first_of_each_kind, known_obstacle
from chat_server.settings import Settings

from ...tiny_chat import build_chat_model

Kwargs = dict[str, Any]
PROMPT = [5, 6, 7, 8]
SIZE: Kwargs = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_chat_model(tmp_path_factory.mktemp("models") / "tiny")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype)


def engine_for(model: PreTrainedModel, folder: Path, **settings: Any) -> Engine:
    settings = {"kv_cache_tokens": 4096, **settings}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return make_engine(model, tokenizer, [0], Settings(_env_file=None, **settings))


def in_batch(model: LlamaForCausalLM, change: Callable[[Kwargs], None]) -> None:
    """Has `change` do something to every forward pass of the batch, and of it alone."""
    forward = model.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        if "logits_indices" in kwargs:
            change(kwargs)
        return forward(*args, **kwargs)

    model.forward = changed


def stretch_positions(kwargs: Kwargs) -> None:
    kwargs["position_ids"] = kwargs["position_ids"] * 2


def write_to_the_neighbours(kwargs: Kwargs) -> None:
    kwargs["write_index"] = [places.roll(1) for places in kwargs["write_index"]]


def lose_a_decoded_token(kwargs: Kwargs) -> None:
    if kwargs["input_ids"].size(-1) == 2:  # both sequences generate
        kwargs["input_ids"] = kwargs["input_ids"].roll(1, -1)


def answer(engine: Engine, tokens: int = 8) -> list[int]:
    async def collect() -> list[int]:
        params = SamplingParams(max_tokens=tokens, temperature=0.0)
        stream = engine.submit(PROMPT, [params])
        return [token async for arrival in stream for token in arrival.tokens]

    return asyncio.run(collect())


def expected(folder: Path, tokens: int = 8) -> list[int]:
    ids = torch.tensor([PROMPT])
    output = load(folder).generate(ids, do_sample=False, max_new_tokens=tokens)
    answer: list[int] = output[0, len(PROMPT) :].tolist()
    return answer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_sound_model_is_batched(folder: Path, dtype: torch.dtype) -> None:
    engine = engine_for(load(folder, dtype), folder)
    try:
        assert engine.reason is None
        assert engine.max_sequences == 32
        assert len(answer(engine)) == 8
    finally:
        engine.stop()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch_requests": 1},
        {"max_batch_tokens": 16},
        {"kv_cache_tokens": 256},
    ],
)
def test_the_proof_fits_every_setting(folder: Path, settings: Kwargs) -> None:
    engine = engine_for(load(folder), folder, **settings)
    engine.stop()
    assert engine.reason is None


KINDS: dict[type[PreTrainedModel], PreTrainedConfig] = {
    # Its scores are capped.
    Gemma2ForCausalLM: Gemma2Config(
        **SIZE, head_dim=8, attn_logit_softcapping=0.5, query_pre_attn_scalar=8
    ),
    # Its layers have heads of two sizes.
    Gemma4ForCausalLM: Gemma4TextConfig(
        **SIZE,
        head_dim=8,
        global_head_dim=16,
        vocab_size_per_layer_input=300,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        pad_token_id=0,
        layer_types=["sliding_attention", "full_attention"],
    ),
    # Its code keeps what the cache is told to itself.
    GPTNeoXForCausalLM: GPTNeoXConfig(**SIZE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_other_kinds_are_batched(kind: type[PreTrainedModel], folder: Path) -> None:
    torch.manual_seed(0)
    model = kind(KINDS[kind]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # so that attention matters
    ids = torch.tensor([PROMPT])
    expected = model.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=-1)
    engine = engine_for(model, folder)
    try:
        assert engine.reason is None
        assert answer(engine) == expected[0, len(PROMPT) :].tolist()
    finally:
        engine.stop()


@pytest.mark.parametrize("positions", [16, 64, 70])
def test_the_proof_fits_a_short_context(folder: Path, positions: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
    )
    engine = engine_for(LlamaForCausalLM(config).eval(), folder)
    engine.stop()
    assert engine.reason is None


@pytest.mark.parametrize(
    "fault", [stretch_positions, write_to_the_neighbours, lose_a_decoded_token]
)
def test_a_batch_that_computes_something_else_is_not_used(
    folder: Path, fault: Callable[[Kwargs], None]
) -> None:
    model = load(folder)
    in_batch(model, fault)
    engine = engine_for(model, folder)
    try:
        assert "logits" in str(engine.reason)
        assert answer(engine) == expected(folder)
    finally:
        engine.stop()


def test_a_large_model_proves_one_layer_of_each_kind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "TOKENS_TIMES_PARAMETERS", 1)  # any model is large
    monkeypatch.setattr(proof, "COMPARED_LOGITS", 40)
    model = load(folder)
    layers, head = model.model.layers, model.lm_head
    known: list[Tensor] = []
    model.register_forward_hook(lambda *call: known.append(call[-1].logits.any(dim=(0, 1))))
    passed: list[int] = []
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: passed.append(number))
    engine = engine_for(model, folder)
    try:
        assert engine.reason is None
        assert set(passed) == {0}
        assert len(known) > 3
        assert not torch.stack(known)[:, 40:].any()
        assert model.model.layers is layers
        assert model.lm_head is head
        assert answer(engine) == expected(folder)
        assert set(passed) == {0, 1}
    finally:
        engine.stop()


@pytest.mark.parametrize(
    "fault", [stretch_positions, write_to_the_neighbours, lose_a_decoded_token]
)
def test_a_large_model_that_computes_something_else_is_not_batched(
    folder: Path, fault: Callable[[Kwargs], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "TOKENS_TIMES_PARAMETERS", 1)
    monkeypatch.setattr(proof, "COMPARED_LOGITS", 40)
    model = load(folder)
    in_batch(model, fault)
    engine = engine_for(model, folder)
    try:
        assert "logits" in str(engine.reason)
        assert answer(engine) == expected(folder)
    finally:
        engine.stop()


def test_layers_of_one_kind_count_once() -> None:
    def build(layer_types: list[str], odd: int | None = None, **attributes: object) -> int:
        plain = [torch.nn.Sequential(torch.nn.Linear(2, 2)) for _ in layer_types]
        for number, layer in enumerate(plain):
            layer[0].layer_idx = number
        if odd is not None and not attributes:
            plain[odd].append(torch.nn.ReLU())
        for name, value in attributes.items():
            setattr(plain[odd or 0][0], name, value)
        config = LlamaConfig(num_hidden_layers=len(plain))
        config.layer_types = layer_types
        return first_of_each_kind(torch.nn.ModuleList(plain), config)

    assert build(["full"] * 5) == 1
    assert build(["sliding", "sliding", "full", "sliding", "full"]) == 3
    assert build(["full"] * 5, odd=3) == 4  # a layer of experts among dense ones
    assert build(["full"] * 5, odd=2, use_rope=False) == 3  # as in SmolLM3


def test_a_cache_that_forgets_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = PagedAttentionCache.update

    def forgetful(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = update(*args, **kwargs)
        return keys, values * 0

    monkeypatch.setattr(PagedAttentionCache, "update", forgetful)
    engine = engine_for(load(folder), folder)
    engine.stop()
    assert "logits" in str(engine.reason)


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, SystemExit, KeyError, MemoryError])
@pytest.mark.parametrize("place", ["construction", "forward"])
def test_whatever_is_raised_means_one_at_a_time(
    folder: Path,
    error: type[BaseException],
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error("out of order")

    model = load(folder)
    if place == "construction":
        monkeypatch.setattr(LlamaForCausalLM, "init_continuous_batching", fail)
    else:
        in_batch(model, fail)
    before = set(threading.enumerate())
    with caplog.at_level(logging.WARNING):
        engine = engine_for(model, folder)
    try:
        assert engine.reason
        lines = [each.getMessage() for each in caplog.records if "cannot be batched" in each.msg]
        assert len(lines) == 1
        assert engine.reason in lines[0]
        assert not [each for each in caplog.records if each.exc_info]
        assert len(set(threading.enumerate()) - before) == 1  # of the engine that serves
        assert answer(engine) == expected(folder)
    finally:
        engine.stop()


@pytest.mark.parametrize("interruptible", [True, False])
def test_a_hang_means_one_at_a_time(
    folder: Path, interruptible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "PATIENCE", 0.3)
    monkeypatch.setattr(batching, "STOP_SECONDS", 0.3)
    released = threading.Event()

    def hang(kwargs: Kwargs) -> None:
        while interruptible:
            time.sleep(0.01)
        released.wait()

    model = load(folder)
    in_batch(model, hang)
    before = set(threading.enumerate())
    engine = engine_for(model, folder)
    try:
        assert "TimeoutError" in str(engine.reason)
        assert answer(engine) == expected(folder)
        released.set()
        deadline = time.monotonic() + 10
        while len(set(threading.enumerate()) - before) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(set(threading.enumerate()) - before) == 1
    finally:
        engine.stop()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_nothing_is_left_of_an_engine_that_failed(
    folder: Path, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[weakref.ref[PagedAttentionCache]] = []
    construct = PagedAttentionCache.__init__

    def watched(self: PagedAttentionCache, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        caches.append(weakref.ref(self))

    monkeypatch.setattr(PagedAttentionCache, "__init__", watched)
    model = load(folder)
    model.set_attn_implementation(attention)
    in_batch(model, stretch_positions)
    gc.disable()  # as while a model is loaded
    try:
        engine = engine_for(model, folder)
    finally:
        gc.enable()
    try:
        assert engine.reason
        assert [cache() for cache in caches] == [None]
        assert model.config._attn_implementation == attention
        assert "_get_logits_processor" not in vars(model)
        assert answer(engine) == expected(folder)
    finally:
        engine.stop()


DYNAMIC: Kwargs = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
LEGACY: Kwargs = {"type": "dynamic", "factor": 2.0}
YARN: Kwargs = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, None),
        ({"rope_parameters": YARN}, None),
        ({"rope_parameters": DYNAMIC}, "dynamic"),
        ({"rope_scaling": LEGACY}, "dynamic"),
        ({"rope_parameters": {"full_attention": DYNAMIC}}, "dynamic"),
        ({"attn_logit_softcap": 50.0}, "capped"),
        ({"attn_logit_softcap": None, "final_logit_softcapping": 30.0}, None),
        ({"keep_window_size": 2048}, "whole batch"),
        ({"alibi": True}, "ALiBi"),
        ({"alibi": False}, None),
        ({"attn_config": {"alibi": True}}, "ALiBi"),
        ({"quantization_config": {"type": "dynamic"}}, None),
    ],
)
def test_what_the_configuration_tells(options: Kwargs, word: str | None) -> None:
    config = LlamaConfig()
    for name, value in options.items():
        setattr(config, name, value)
    reason = known_obstacle(config)
    assert reason is None if word is None else word in str(reason)
