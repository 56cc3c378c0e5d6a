"""Weights that fit into 16 bits are kept in them, and nothing else changes."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from chat_server.serving.chat.chat_model import ChatModel
from chat_server.serving.chat.options import ChatOptions
from chat_server.serving.chat.packed_linear import (
    PackedLinear,
    has_fbgemm,
    pack_linear_layers,
)
from chat_server.serving.chat.prompt import ChatPrompt
from chat_server.serving.models.device import Device
from chat_server.settings import Settings

from ...tiny_chat import save

pytestmark = pytest.mark.skipif(not has_fbgemm(), reason="no FBGEMM on this processor")
IDS = torch.arange(1, 121).view(2, 60)


def build(dtype: torch.dtype = torch.bfloat16, **options: Any) -> LlamaForCausalLM:
    """A model in float32 whose weights come from a data type."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=304,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        attention_bias=True,
        **options,
    )
    model = LlamaForCausalLM(config).to(dtype).float()
    return model.eval()


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(module) is kind for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
@torch.inference_mode()
def test_packed_weights_give_the_same_logits(dtype: torch.dtype, tied: bool) -> None:
    model = build(dtype, tie_word_embeddings=tied)
    expected = model(IDS).logits
    linear = count(model, nn.Linear)
    pack_linear_layers(model)
    assert (count(model, nn.Linear), count(model, PackedLinear)) == (0, linear)
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_weights_of_32_bits_stay() -> None:
    model = build(torch.float32)
    pack_linear_layers(model)
    assert count(model, PackedLinear) == 0


@torch.inference_mode()
def test_a_layer_with_a_weight_beyond_float16_stays() -> None:
    model = build()
    layer = model.model.layers[0].mlp.up_proj
    layer.weight[0, 0] = 70_000.0
    expected = model(IDS).logits
    pack_linear_layers(model)
    assert count(model, nn.Linear) == 1
    assert model.model.layers[0].mlp.up_proj is layer
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_another_dtype_stays() -> None:
    model = build().bfloat16()
    pack_linear_layers(model)
    assert count(model, PackedLinear) == 0


@torch.inference_mode()
def test_a_model_whose_code_reads_a_weight_stays(caplog: pytest.LogCaptureFixture) -> None:
    model = build()
    forward = model.forward

    def reads_a_weight(*args: Any, **kwargs: Any) -> Any:
        assert model.lm_head.weight.dtype == torch.float32
        return forward(*args, **kwargs)

    model.forward = reads_a_weight
    linear = count(model, nn.Linear)
    with caplog.at_level("INFO"):
        pack_linear_layers(model)
    assert count(model, nn.Linear) == linear
    assert "its own code reads them" in caplog.text
    model(IDS)


def test_a_service_answers_as_with_plain_weights(tmp_path: Path) -> None:
    folder = save(build().bfloat16(), tmp_path / "half")
    texts = []
    for dtype in ("float32", "bfloat16"):
        settings = Settings(_env_file=None, kv_cache_tokens=1024)
        model = ChatModel.load(str(folder), Device("cpu", dtype), settings)
        assert model.details["engine"] == "continuous"
        network = model._engine._model
        assert (count(network, PackedLinear) > 0) is (dtype == "float32")

        async def answer(model: ChatModel) -> str:
            conversation = ChatPrompt([{"role": "user", "content": "hello"}])
            options = ChatOptions(sampling={"temperature": 0.0}, max_tokens=1)
            async with AsyncExitStack() as resources:
                generation = await model.answer(conversation, options, resources)
                return "".join([chunk.text async for chunk in generation])

        texts.append(asyncio.run(answer(model)))
        model.unload()
    assert texts[0] == texts[1]
