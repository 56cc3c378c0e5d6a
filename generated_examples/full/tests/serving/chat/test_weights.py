"""Weights as people have them: what is read from their files, and what is refused."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from full_server.serving.chat.chat_model import ChatModel
from full_server.serving.chat.loading import ChatParts, load_chat_model
from full_server.serving.chat.options import ChatOptions
from full_server.serving.chat.prompt import ChatPrompt, PromptEncoder
from full_server.serving.models import progress, progress_bar
from full_server.serving.models.device import Device
from full_server.serving.models.hub import fetch_model
from full_server.serving.models.model_errors import SourceError
from full_server.settings import Settings

from ...conftest import Server, wait_until
from ...tiny_chat import TEMPLATE, build_chat_model, build_tokenizer, save

CPU = Device("cpu", "float32")
TINY: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def settings(**changed: Any) -> Settings:
    return Settings(_env_file=None, kv_cache_tokens=2048, **changed)


def load(folder: Path, **changed: Any) -> ChatParts:
    parts = load_chat_model(folder, CPU, settings(**changed))
    parts.engine.stop()
    return parts


def refusal(folder: Path, **changed: Any) -> SourceError:
    with pytest.raises(SourceError) as raised:
        load(fetch_model(str(folder), "INFER_CHAT_MODEL"), **changed)
    assert "\n" not in str(raised.value)
    assert str(folder) not in raised.value.reason
    return raised.value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_chat_model(tmp_path / "model")


def change(file: Path, **values: Any) -> None:
    """Sets members of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_recommended_sampling_is_the_default(folder: Path) -> None:
    recommended = {
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.05,
        "frequency_penalty": 0.5,
        "presence_penalty": 1.5,
    }
    change(folder / "generation_config.json", do_sample=True, min_new_tokens=3, **recommended)
    assert load(folder).default_sampling == recommended | {"min_tokens": 3}


@pytest.mark.anyio
async def test_a_recommended_minimum_gives_way_to_the_request(folder: Path) -> None:
    change(folder / "generation_config.json", min_new_tokens=50)
    model = ChatModel.load(str(folder), CPU, settings())
    try:
        async with AsyncExitStack() as resources:
            asked = ChatPrompt([{"role": "user", "content": "hello"}])
            answer = await model.answer(asked, ChatOptions(max_tokens=5), resources)
            chunks = [chunk async for chunk in answer]
    finally:
        model.unload()
    assert chunks[-1].completion_tokens == 5


def test_nothing_recommended(folder: Path) -> None:
    assert load(folder).default_sampling == {}


def test_a_recommendation_that_no_request_could_make_is_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(folder / "generation_config.json", top_k=-1, repetition_penalty=0.0, top_p=0.5)
    with caplog.at_level(logging.WARNING):
        assert load(folder).default_sampling == {"top_p": 0.5}
    assert "top_k=-1 of generation_config.json is left out" in caplog.text


def test_a_repetition_penalty_changes_the_answer_unless_the_request_sets_its_own(
    folder: Path, make_client: Callable[..., Any]
) -> None:
    def answer(**fields: Any) -> str:
        body = {"model": "model", "messages": [{"role": "user", "content": "hello"}], **fields}
        body |= {"temperature": 0, "max_tokens": 24}
        with make_client(chat_model=str(folder)) as client:
            response = client.post("/v1/chat/completions", json=body)
        return str(response.json()["choices"][0]["message"]["content"])

    plain, penalised = answer(), answer(repetition_penalty=5.0)
    assert plain != penalised
    change(folder / "generation_config.json", repetition_penalty=5.0)
    assert answer() == penalised
    assert answer(repetition_penalty=1.0) == plain


@pytest.mark.parametrize(
    ("generation", "config", "wanted"),
    [
        (5, 6, [5, 0]),
        ([5, 7], 6, [5, 7, 0]),
        (0, 6, [0]),
        (None, 6, [6, 0]),
        (None, None, [0]),
        ([5, 300, -1], None, [5, 0]),
    ],
)
def test_answers_end_with_the_model_s_tokens_and_with_the_tokenizer_s(
    generation: int | list[int] | None, config: int | None, wanted: list[int], folder: Path
) -> None:
    change(folder / "generation_config.json", eos_token_id=generation)
    change(folder / "config.json", eos_token_id=config)
    assert load(folder).eos_token_ids == wanted


def move_template(folder: Path, file: str) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / file).write_text(json.dumps({"chat_template": TEMPLATE}))


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json"])
def test_the_chat_template_may_be_a_processor_s(file: str, folder: Path) -> None:
    move_template(folder, file)
    assert load(folder).tokenizer.chat_template == TEMPLATE


def test_templates_without_a_default(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [{"name": name, "template": TEMPLATE} for name in ("rag", "tool_use")]
    change(folder / "tokenizer_config.json", chat_template=named)
    error = refusal(folder)
    assert error.reason == "none of its chat templates is called default"
    assert "rag, tool_use" in str(error)
    named[0]["name"] = "default"
    change(folder / "tokenizer_config.json", chat_template=named)
    assert load(folder).tokenizer.chat_template


@pytest.mark.parametrize("spoilt", ["default", "tool_use"])
def test_a_template_that_is_not_jinja(spoilt: str, folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    broken = TEMPLATE + "\n{" + "% endfor %}"
    named = [
        {"name": name, "template": broken if name == spoilt else TEMPLATE}
        for name in ("default", "tool_use")
    ]
    change(folder / "tokenizer_config.json", chat_template=named)
    error = refusal(folder)
    assert error.reason == "its chat template is not valid Jinja"
    assert f"mend its line {broken.count(chr(10)) + 1}: " in str(error)


def test_no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert "no chat template" in refusal(folder).reason


def test_a_long_load_tells_how_far_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "SECONDS", 0)
    told: list[str] = []
    with progress.progress_told_to(told.append):
        ChatModel.load(str(folder), CPU, settings()).unload()
    assert len(told) > 3
    assert all(re.fullmatch(r"read \d+ % of the weights", text) for text in told)


def test_missing_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    error = refusal(folder)
    assert error.reason == "its files lack 1 of its weights"
    assert "model.norm.weight" in str(error)


def test_weights_that_are_cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert refusal(folder).reason == "a file of its weights is damaged or cut off"


def test_quantised_weights_that_nothing_says_how_to_read(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight_scale"] = torch.ones(1)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "quantised" in refusal(folder).reason
    change(folder / "config.json", quantization_config={"quant_method": "of-my-own"})
    assert "quantised with of-my-own" in refusal(folder).reason


def encoder() -> Any:
    tiny = {k: v for k, v in TINY.items() if k != "num_key_value_heads"}
    return BertForMaskedLM(BertConfig(**tiny))


def seq2seq() -> Any:
    config = T5Config(vocab_size=300, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    return T5ForConditionalGeneration(config)


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "masked language model": (encoder, "an encoder (BertForMaskedLM)"),
    "seq2seq": (seq2seq, "an encoder-decoder model (T5ForConditionalGeneration)"),
    "no head": (
        lambda: LlamaModel(LlamaConfig(**TINY, tie_word_embeddings=True)),
        "a model without the layer that writes text (LlamaModel)",
    ),
    "classifier": (
        lambda: LlamaForSequenceClassification(LlamaConfig(**TINY, tie_word_embeddings=True)),
        "a model for another task (LlamaForSequenceClassification)",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_other_kinds_are_refused(name: str, tmp_path: Path) -> None:
    build, kind = OTHERS[name]
    model = build()
    model.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    error = refusal(tmp_path)
    assert error.reason == f"it is {kind} and not a chat model"
    assert "INFER_CHAT_MODEL=<" in str(error)


def test_an_embeddings_model_is_refused(folder: Path) -> None:
    (folder / "modules.json").write_text("[]")
    assert "an embeddings model" in refusal(folder).reason


def test_a_type_that_transformers_does_not_know(folder: Path) -> None:
    change(folder / "config.json", model_type="of-tomorrow", architectures=["TomorrowForCausalLM"])
    error = refusal(folder)
    assert "transformers knows no model of the type" in error.reason
    assert "update transformers" in str(error)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model of a type that transformers does not know, with the code for it."""
    (folder / "own_code.py").write_text(CODE)
    change(
        folder / "config.json",
        model_type="own",
        architectures=["OwnForCausalLM"],
        auto_map={
            "AutoConfig": "own_code.OwnConfig",
            "AutoModelForCausalLM": "own_code.OwnForCausalLM",
        },
    )
    yield folder


def test_code_of_a_model_runs_only_if_it_is_trusted(own_code: Path) -> None:
    error = refusal(own_code)
    assert "code of its own" in error.reason
    assert "INFER_TRUST_REMOTE_CODE=true" in str(error)
    assert load(own_code, trust_remote_code=True).engine.reason is None


def test_trusted_code_is_a_warning_in_the_log(
    own_code: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trusting = settings(trust_remote_code=True)
    with caplog.at_level(logging.WARNING):
        ChatModel.load(str(own_code), CPU, trusting).unload()
    assert "INFER_TRUST_REMOTE_CODE is on" in caplog.text


def test_a_model_that_reads_images_too_answers_text(
    tmp_path: Path, make_client: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    vision = {k: v for k, v in TINY.items() if k not in ("vocab_size", "num_key_value_heads")}
    vision |= {"model_type": "clip_vision_model", "image_size": 8, "patch_size": 4}
    config = LlavaConfig(
        text_config={"model_type": "llama", **TINY},
        vision_config=vision,
        image_token_index=299,
    )
    save(LlavaForConditionalGeneration(config), tmp_path / "model")
    with make_client(chat_model=str(tmp_path / "model")) as client:
        text = {"type": "text", "text": "hello"}
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        body = {"model": "model", "messages": [{"role": "user", "content": [text]}]}
        answer = client.post("/v1/chat/completions", json=body | {"max_tokens": 4})
        assert answer.status_code == 200
        body["messages"] = [{"role": "user", "content": [text, image]}]
        refused = client.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "messages[0].content[1].type"
    assert "this service reads text only" in refused.json()["error"]["message"]
    assert "image_url" in refused.json()["error"]["message"]


OF_PARTS = """\
{% for message in messages %}<|{{ message['role'] }}|>
{%- for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}
{%- for part in message['content'] | selectattr('type', 'equalto', 'text') %}
{{- part['text'] }}
{%- endfor %}{% endfor %}"""


def test_a_template_that_reads_parts_alone_gets_parts() -> None:
    tokenizer = build_tokenizer()
    conversation = ChatPrompt([{"role": "user", "content": "hello world"}])
    for template, form in ((OF_PARTS, "<|user|>hello world"), (TEMPLATE, "<|user|>hello world<|")):
        tokenizer.chat_template = template
        prompt = PromptEncoder(tokenizer, 512).encode(conversation)
        assert tokenizer.decode(prompt).startswith(form)


def test_log_503_and_health_say_why(folder: Path, make_server: Callable[..., Server]) -> None:
    (folder / "adapter_config.json").write_text("{}")
    server = make_server(chat_model=str(folder), preload=True)
    lines = wait_until(
        lambda: [line for line in server.log.read_text().splitlines() if " ERROR " in line]
    )
    assert "loading the chat model model failed: its folder holds an adapter" in lines[0]
    body = {"model": "model", "messages": [{"role": "user", "content": "hello"}]}
    answer = httpx2.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.status_code == 503
    assert "its folder holds an adapter" in answer.json()["error"]["message"]
    health = httpx2.get(f"{server.url}/health").json()
    assert health["load_failures"]["model"].startswith("its folder holds an adapter")
    ready = httpx2.get(f"{server.url}/health/ready")
    assert ready.status_code == 503
    assert ready.json()["reason"].startswith("Not loaded yet: model (its folder holds an adapter")
