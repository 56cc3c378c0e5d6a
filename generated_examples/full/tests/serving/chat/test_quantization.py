"""Plain weights that are quantised while a model is loaded: INFER_QUANTIZATION."""

import asyncio
import os
import platform
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    TorchAoConfig,
)
from transformers.modeling_utils import PreTrainedModel

from full_server.serving.chat import quantization
from full_server.serving.chat.chat_model import ChatModel
from full_server.serving.chat.options import ChatOptions
from full_server.serving.chat.prompt import ChatPrompt
from full_server.serving.chat.quantization import Quantization, quantize_on_processor
from full_server.serving.chat.quantized_linear import Int4Linear, Int8Linear
from full_server.serving.chat.weights import read_chat_model
from full_server.serving.engine.sampling_params import SamplingOptions
from full_server.serving.models import checkpoint
from full_server.serving.models.device import Device
from full_server.serving.models.model_errors import SourceError
from full_server.settings import Settings

from ...tiny_chat import save

CPU = Device("cpu", "float32")
QUESTIONS = ["hello", "how are you today? " * 12, "0123456789 " * 5]
TOKENS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with wide layers and tied embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=304,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        attention_bias=True,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return save(model, tmp_path_factory.mktemp("wide"))


def read(folder: Path, method: Quantization) -> PreTrainedModel:
    return read_chat_model(folder, CPU, trust_remote_code=False, quantization=method).model


def refusal(folder: Path, method: Quantization, device: Device = CPU) -> str:
    with pytest.raises(SourceError) as raised:
        read_chat_model(folder, device, trust_remote_code=False, quantization=method)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def size_of_linear_layers(model: PreTrainedModel) -> int:
    """Bytes of weights; biases are left out."""
    return sum(
        tensor.nbytes
        for module in model.modules()
        if isinstance(module, nn.Linear | Int4Linear | Int8Linear)
        for name, tensor in module.state_dict().items()
        if name != "bias"
    )


@pytest.mark.parametrize(
    ("kind", "smaller", "error"), [(Int8Linear, 3.9, 0.02), (Int4Linear, 6.0, 0.12)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_nearly_the_same(
    kind: Any, smaller: float, error: float, bias: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(128, 192, bias=bias)
    quantised = kind(plain)
    inputs = torch.randn(2, 5, 128)
    with torch.no_grad():
        expected, actual = plain(inputs), quantised(inputs)
        alone = quantised(inputs[:1, :1])
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert 1e-4 < (actual - expected).norm() / expected.norm() < error
    assert torch.equal(alone, actual[:1, :1])  # whatever else is in the batch
    assert sum(buffer.nbytes for buffer in quantised.buffers()) < plain.weight.nbytes / smaller


@pytest.mark.parametrize(("method", "smaller"), [("int8", 3.9), ("int4", 4.9)])
def test_weights_are_quantised(folder: Path, method: Quantization, smaller: float) -> None:
    plain, model = read(folder, "none"), read(folder, method)
    assert not [name for name, each in model.named_modules() if type(each) is nn.Linear]
    kind = {"int8": Int8Linear, "int4": Int4Linear}[method]
    assert isinstance(model.get_submodule("model.layers.0.mlp.down_proj"), kind)
    assert isinstance(model.get_output_embeddings(), Int8Linear)  # in both
    assert size_of_linear_layers(model) < size_of_linear_layers(plain) / smaller
    # tied: the embeddings of the input stay as they were
    assert torch.equal(model.get_input_embeddings().weight, plain.get_input_embeddings().weight)


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_answers_equal_the_quantised_model_alone_and_together(
    folder: Path, method: Quantization
) -> None:
    settings = Settings(
        _env_file=None, quantization=method, kv_cache_tokens=2048, max_batch_tokens=64
    )
    model = ChatModel.load(str(folder), CPU, settings)

    weights = read_chat_model(folder, CPU, trust_remote_code=False, quantization=method)
    texts = [weights.tokenizer.decode([token]) for token in range(304)]
    # Parts of a character, which an answer that ends with them leaves out
    no_text = [token for token, text in enumerate(texts) if not text or not text.isascii()]

    async def ask(question: str) -> str:
        conversation = ChatPrompt([{"role": "user", "content": question}])
        bias = dict.fromkeys(no_text, -1000.0)
        sampling: SamplingOptions = {"temperature": 0.0, "logit_bias": bias}
        options = ChatOptions(sampling=sampling, max_tokens=TOKENS)
        async with AsyncExitStack() as resources:
            answer = await model.answer(conversation, options, resources)
            return "".join([chunk.text async for chunk in answer])

    async def ask_all() -> list[list[str]]:
        alone = [await ask(question) for question in QUESTIONS]
        return [alone, list(await asyncio.gather(*map(ask, QUESTIONS)))]

    try:
        answers = asyncio.run(ask_all())
        assert model.details["engine"] == "continuous", model.details
        assert model.details["quantization"] == method
    finally:
        model.unload()
    expected = []
    for question in QUESTIONS:
        prompt = weights.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        ).input_ids
        out = weights.model.generate(
            prompt, do_sample=False, max_new_tokens=TOKENS, suppress_tokens=no_text
        )
        text = weights.tokenizer.decode(out[0, prompt.size(1) :], skip_special_tokens=True)
        expected.append(text)
    assert answers == [expected, expected]


def test_layers_that_4_bits_do_not_fit_get_8_and_gates_stay() -> None:
    assert quantization.layer_for(nn.Linear(96, 64), "int4") is Int8Linear
    assert quantization.layer_for(nn.Linear(64, 72), "int4") is Int8Linear
    assert quantization.layer_for(nn.Linear(64, 64), "int4") is Int4Linear
    assert quantization.layer_for(nn.Linear(64, 8), "int8") is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is returned to Linux alone")
def test_the_memory_of_the_plain_weights_is_returned() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
    )
    plain = sum(each.nbytes for each in model.parameters())
    before = resident_bytes()
    quantization.quantize_on_processor(model, "int8")
    assert before - resident_bytes() > 0.6 * plain


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(config)
    model.lm_head = nn.Linear(32, 8)
    with pytest.raises(SourceError, match="none of its layers can be quantised to int8"):
        quantize_on_processor(model, "int8")


def test_a_model_that_reads_the_weights_past_the_layer_is_refused(folder: Path) -> None:
    model = read(folder, "none")
    layer = model.get_submodule("model.layers.0.mlp")
    layer.forward = lambda hidden: hidden @ layer.down_proj.weight  # type: ignore[method-assign]
    with pytest.raises(SourceError, match="does not run in int8"):
        quantize_on_processor(model, "int8")


def test_what_the_device_does_not_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fp8 needs an NVIDIA GPU of compute capability 8.9" in refusal(folder, "fp8")
    gpu, mps = torch.device("cuda:0"), torch.device("mps")
    with pytest.raises(SourceError, match="INFER_QUANTIZATION=int4 does not work on mps"):
        quantization.torchao_options("int4", mps)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(SourceError, match="fp8 needs"):
        quantization.torchao_options("fp8", gpu)
    monkeypatch.setattr(checkpoint, "is_installed", lambda name: False)
    with pytest.raises(SourceError, match="pip install torchao accelerate"):
        quantization.torchao_options("int8", gpu)


@pytest.mark.parametrize("method", ["int8", "int4", "fp8"])
def test_torchao_quantises_for_a_gpu(method: Quantization, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(checkpoint, "is_installed", lambda name: True)
    options = quantization.torchao_options(method, torch.device("cuda:0"))
    assert isinstance(options["quantization_config"], TorchAoConfig)


def test_torchao_reads_a_model(folder: Path) -> None:
    """The 8 bits for a GPU, on this processor."""
    pytest.importorskip("torchao")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=quantization.torchao_config("int8")
    )
    weight = model.get_submodule("model.layers.0.mlp.down_proj").weight
    assert type(weight).__name__ == "Int8Tensor"
    assert quantization.rounding_dtype(model) == torch.bfloat16


def test_quantised_weights_are_not_quantised_again(folder: Path, tmp_path: Path) -> None:
    model = read(folder, "none")
    model.config.quantization_config = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    save(model, tmp_path)
    assert "it is already quantised" in refusal(tmp_path, "int8")
