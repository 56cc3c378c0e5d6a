"""Model families: each answers as `generate()` does, alone and beside others, batched or not."""

import asyncio
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.families.models import BATCHED, ONE_AT_A_TIME, SIZE, auto_class, build

LENGTHS = [3, 40, 90, 350]
"""Of the prompts in characters: within a page of the KV cache, beyond it, and beyond what longrope
calls long"""
TOKENS = 10

Generation = tuple[str, list[float]]


def question(length: int) -> str:
    return ("how are you today? hello world, 0123456789 " * 20)[-length:]


@cache
def no_text(tokenizer: Any) -> list[int]:
    """Special tokens, parts of a character, and what the model has beyond its tokenizer."""
    texts = [
        tokenizer.decode([token], skip_special_tokens=True) for token in range(SIZE["vocab_size"])
    ]
    return [token for token, text in enumerate(texts) if not text or not text.isascii()]


def reference(
    family: str, folder: Path, package: SimpleNamespace, quantization: str = "none"
) -> list[Generation]:
    tokenizer = package.tokenizer
    model = auto_class(family).from_pretrained(folder, dtype=torch.float32)
    if quantization != "none":
        package.quantize_on_processor(model, quantization)
    answers = []
    for length in LENGTHS:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question(length)}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        ).input_ids
        out = model.generate(
            prompt,
            do_sample=False,
            max_new_tokens=TOKENS,
            suppress_tokens=no_text(tokenizer),
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = out.sequences[0, prompt.size(1) :]
        logprobs = [
            logits[0].float().log_softmax(-1)[token].item()
            for logits, token in zip(out.logits, tokens, strict=True)
        ]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        answers.append((text, logprobs))
    return answers


async def ask(model: Any, package: SimpleNamespace, length: int) -> Generation:
    conversation = package.ChatPrompt([{"role": "user", "content": question(length)}])
    bias = dict.fromkeys(no_text(package.tokenizer), -1000.0)
    sampling = {"temperature": 0.0, "top_logprobs": 0, "logit_bias": bias}
    options = package.ChatOptions(sampling=sampling, max_tokens=TOKENS)
    async with AsyncExitStack() as resources:
        answer = await model.answer(conversation, options, resources)
        chunks = [chunk async for chunk in answer]
    text = "".join(chunk.text for chunk in chunks)
    return text, [entry.chosen.logprob for chunk in chunks for entry in chunk.logprobs]


async def ask_all(
    model: Any, package: SimpleNamespace
) -> tuple[list[Generation], list[Generation]]:
    alone = [await ask(model, package, length) for length in LENGTHS]
    together = await asyncio.gather(*(ask(model, package, length) for length in LENGTHS))
    return alone, list(together)


@pytest.mark.parametrize("family", [*BATCHED, *ONE_AT_A_TIME])
def test_answers_equal_generate_alone_and_together(
    family: str, package: SimpleNamespace, tmp_path: Path
) -> None:
    options = (BATCHED | ONE_AT_A_TIME)[family]
    package.save(build(family, options), tmp_path)
    settings = package.Settings(_env_file=None, kv_cache_tokens=4096, max_batch_tokens=64)
    model = package.ChatModel.load(str(tmp_path), package.Device("cpu", "float32"), settings)
    try:
        alone, together = asyncio.run(ask_all(model, package))
    finally:
        model.unload()

    expected = reference(family, tmp_path, package)
    for answers in (alone, together):
        assert [text for text, _ in answers] == [text for text, _ in expected]
        for (_, actual), (_, logprobs) in zip(answers, expected, strict=True):
            assert actual == pytest.approx(logprobs, abs=2e-3)
    engine, reason = model.details["engine"], model.details["engine_reason"]
    assert engine == ("continuous" if family in BATCHED else "sequential"), reason
    assert bool(reason) == (family in ONE_AT_A_TIME)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "qwen3_moe", "gpt_oss"])
def test_answers_of_quantised_weights_equal_generate(
    family: str, quantization: str, package: SimpleNamespace, tmp_path: Path
) -> None:
    options = BATCHED[family] | {"num_attention_heads": 8, "num_key_value_heads": 4}
    package.save(build(family, options), tmp_path)
    settings = package.Settings(
        _env_file=None, kv_cache_tokens=4096, max_batch_tokens=64, quantization=quantization
    )
    model = package.ChatModel.load(str(tmp_path), package.Device("cpu", "float32"), settings)
    try:
        alone, together = asyncio.run(ask_all(model, package))
    finally:
        model.unload()

    assert model.details["engine"] == "continuous", model.details
    expected = reference(family, tmp_path, package, quantization)
    for answers in (alone, together):
        for (text, actual), (expected_text, logprobs) in zip(answers, expected, strict=True):
            # Layers round their inputs to bfloat16, so that one of two near equal tokens may win.
            assert actual[0] == pytest.approx(logprobs[0], abs=0.1)
            if text == expected_text:
                assert actual == pytest.approx(logprobs, abs=0.1)
    pairs = [
        (a[0], b[0]) for both in (alone, together) for a, b in zip(both, expected, strict=True)
    ]
    assert sum(a == b for a, b in pairs) >= len(pairs) / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3_text", "gpt_oss", "cohere"])
def test_rounding_is_no_reason(family: str, dtype: torch.dtype, package: SimpleNamespace) -> None:
    settings = package.Settings(_env_file=None, kv_cache_tokens=4096)
    for seed in range(3):
        model = build(family, BATCHED[family], seed).to(dtype)
        engine = package.make_engine(model, package.tokenizer, [0], settings)
        engine.stop()
        assert engine.reason is None


@pytest.mark.parametrize("family", [*BATCHED, *ONE_AT_A_TIME])
def test_a_large_model_of_the_family_comes_to_the_same_verdict(
    family: str, package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package.self_check, "TOKENS_TIMES_PARAMETERS", 1)  # any model is large
    monkeypatch.setattr(package.self_check, "COMPARED_LOGITS", 64)
    model = build(family, (BATCHED | ONE_AT_A_TIME)[family])
    settings = package.Settings(_env_file=None, kv_cache_tokens=4096)
    engine = package.make_engine(model, package.tokenizer, [0], settings)
    engine.stop()
    assert bool(engine.reason) == (family in ONE_AT_A_TIME), engine.reason
