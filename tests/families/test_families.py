"""Model families: each answers as `generate()`, alone and beside others, whole and streamed."""

import asyncio
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import httpx2
import pytest
import torch
from transformers import AutoConfig, LogitsProcessorList, SequenceBiasLogitsProcessor

from tests.families.models import BATCHED, FAMILIES, ONE_AT_A_TIME, SIZE, auto_class, build

LENGTHS = [3, 40, 90, 350]
"""Of the prompts in characters: within a page of the KV cache, beyond it, and beyond what longrope
calls long"""
TOKENS = 10
BIAS = -100.0


class Answer(NamedTuple):
    text: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: list[float]


def messages(length: int) -> list[dict[str, str]]:
    text = ("how are you today? hello world, 0123456789 " * 20)[-length:]
    return [{"role": "user", "content": text}]


@cache
def no_text(tokenizer: Any) -> list[int]:
    """Special tokens, parts of a character, and what the model has beyond its tokenizer."""
    texts = [
        tokenizer.decode([token], skip_special_tokens=True) for token in range(SIZE["vocab_size"])
    ]
    return [token for token, text in enumerate(texts) if not text or not text.isascii()]


def expected_answers(
    folder: Path, tokenizer: Any, change: Callable[[Any], object] = id
) -> list[Answer]:
    """The answers of `generate()`.

    change: changes the model in place, first
    """
    config = AutoConfig.from_pretrained(folder)
    model = auto_class(config).from_pretrained(folder, dtype=torch.float32)
    change(model)
    bias = SequenceBiasLogitsProcessor([[[token], BIAS] for token in no_text(tokenizer)])
    answers = []
    for length in LENGTHS:
        prompt = tokenizer.apply_chat_template(
            messages(length), add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).input_ids
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=TOKENS,
            logits_processor=LogitsProcessorList([bias]),
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = out.sequences[0, prompt.size(1) :]
        logprobs = [
            logits[0].float().log_softmax(-1)[token].item()
            for logits, token in zip(out.logits, tokens, strict=True)
        ]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        answers.append(Answer(text, prompt.size(1), len(tokens), logprobs))
    return answers


async def ask(client: httpx2.AsyncClient, length: int, tokenizer: Any, *, stream: bool) -> Answer:
    body = {
        "model": "model",
        "messages": messages(length),
        "max_tokens": TOKENS,
        "temperature": 0,
        "logprobs": True,
        "logit_bias": dict.fromkeys(map(str, no_text(tokenizer)), BIAS),
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    if not stream:
        whole = response.json()
        return to_answer([whole], whole["usage"])
    events = [each for each in response.text.split("\n\n") if each.startswith("data: ")]
    data = [each.removeprefix("data: ") for each in events]
    assert data[-1] == "[DONE]"
    *chunks, last = map(json.loads, data[:-1])
    return to_answer(chunks, last["usage"])


def to_answer(parts: list[Any], usage: dict[str, int]) -> Answer:
    choices = [part["choices"][0] for part in parts]
    texts = [(each.get("message") or each["delta"]).get("content") or "" for each in choices]
    entries = [
        entry for each in choices for entry in (each.get("logprobs") or {}).get("content") or []
    ]
    return Answer(
        "".join(texts),
        usage["prompt_tokens"],
        usage["completion_tokens"],
        [entry["logprob"] for entry in entries],
    )


async def ask_all(app: Any, tokenizer: Any) -> tuple[list[list[Answer]], dict[str, Any]]:
    """The answers to all prompts, alone and together, and what /health says about the model."""
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        alone = [await ask(client, length, tokenizer, stream=False) for length in LENGTHS]
        asked = [
            ask(client, length, tokenizer, stream=stream)
            for stream in (False, True)
            for length in LENGTHS
        ]
        together = await asyncio.gather(*asked)
        (model,) = (await client.get("/health")).json()["models"]
    return [alone, together[: len(LENGTHS)], together[len(LENGTHS) :]], model


def settings_for(package: SimpleNamespace, folder: Path, **options: Any) -> Any:
    return package.Settings(
        _env_file=None,
        chat_model=str(folder),
        device="cpu",
        dtype="float32",
        kv_cache_tokens=4096,
        max_batch_tokens=64,
        **options,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_equal_generate(
    family: str,
    package: SimpleNamespace,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    folder = tmp_path / "model"
    model = build(family)
    package.save(model, folder)
    settings = settings_for(package, folder)
    rounds, health = asyncio.run(ask_all(package.create_app(settings), package.tokenizer))

    expected = expected_answers(folder, package.tokenizer)
    for answers in rounds:
        for answer, wanted in zip(answers, expected, strict=True):
            assert answer[:-1] == wanted[:-1]
            assert answer.logprobs == pytest.approx(wanted.logprobs, abs=2e-3)
    engine, reason = health["engine"], health.get("engine_reason")
    assert engine == ("continuous" if family in BATCHED else "sequential"), reason
    assert bool(reason) == (family in ONE_AT_A_TIME)
    facts = {"class": type(model).__name__, "engine": engine, "reason": reason}
    record_property("family", {"family": family, **facts})


ROUNDED = ["llama", "qwen3_moe", "gemma3_text", "gemma4_text", "gpt_oss", "cohere", "deepseek_v3"]


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "qwen3_moe", "gpt_oss"])
def test_answers_of_quantised_weights_equal_generate(
    family: str, quantization: str, package: SimpleNamespace, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    package.save(build(family, num_attention_heads=8, num_key_value_heads=4), folder)
    settings = settings_for(package, folder, quantization=quantization)
    rounds, health = asyncio.run(ask_all(package.create_app(settings), package.tokenizer))

    assert (health["engine"], health["quantization"]) == ("continuous", quantization), health
    quantise = partial(package.quantize_on_processor, method=quantization)
    expected = expected_answers(folder, package.tokenizer, quantise)
    pairs = [pair for answers in rounds for pair in zip(answers, expected, strict=True)]
    for answer, wanted in pairs:
        assert answer.prompt_tokens == wanted.prompt_tokens
        # Layers round their inputs to bfloat16, so that one of two near equal tokens may win.
        same = len(wanted.logprobs) if answer.text == wanted.text else 1
        assert answer.logprobs[:same] == pytest.approx(wanted.logprobs[:same], abs=0.1)
    assert sum(answer.text == wanted.text for answer, wanted in pairs) >= len(pairs) / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [each for each in ROUNDED if each in BATCHED])
def test_rounding_is_no_reason(family: str, dtype: torch.dtype, package: SimpleNamespace) -> None:
    settings = package.Settings(_env_file=None, kv_cache_tokens=4096)
    for seed in range(3):
        model = build(family, seed).to(dtype)
        engine = package.make_engine(model, package.tokenizer, [0], settings)
        engine.stop()
        assert engine.reason is None


# A sample: the verdict on each family is that of the test above, by another comparison.
@pytest.mark.parametrize("family", list(FAMILIES)[::4])
def test_a_large_model_of_the_family_comes_to_the_same_verdict(
    family: str, package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package.self_check, "TOKENS_TIMES_PARAMETERS", 1)  # any model is large
    monkeypatch.setattr(package.self_check, "COMPARED_LOGITS", 64)
    settings = package.Settings(_env_file=None, kv_cache_tokens=4096)
    engine = package.make_engine(build(family), package.tokenizer, [0], settings)
    engine.stop()
    assert bool(engine.reason) == (family in ONE_AT_A_TIME), engine.reason
