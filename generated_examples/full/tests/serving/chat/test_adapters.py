"""LoRA adapters over one base model, compared with peft's own PeftModel."""

import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from starlette.testclient import TestClient
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from full_server.catalog import configured_models
from full_server.serving.chat import loading, weights
from full_server.serving.chat.chat_model import ChatModel
from full_server.serving.chat.options import ChatOptions
from full_server.serving.chat.prompt import ChatPrompt
from full_server.serving.engine.adapter_mix import AdapterMix, MixedLinear
from full_server.serving.models import checkpoint
from full_server.serving.models.model_errors import ConfigurationError
from full_server.settings import Settings

from ...conftest import wait_until
from ...tiny_chat import TEMPLATE, build_chat_model, build_tokenizer, save

CHAT = "/v1/chat/completions"
LONG = "are you hello " * 40
"""More than a page of the KV cache"""

ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"r": 4, "target_modules": "all-linear"},
    "some": {"r": 8, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "dora": {"r": 4, "target_modules": ["k_proj", "down_proj"], "use_dora": True},
    "biased": {"r": 2, "target_modules": ["o_proj", "up_proj"], "lora_bias": True},
    "uneven": {"r": 4, "target_modules": "all-linear", "rank_pattern": {"q_proj": 2}},
}


class Answer(NamedTuple):
    text: str
    tokens: int
    prompt_tokens: int
    logprobs: list[float]


def build_adapter(folder: Path, base: Path, *, embeddings: bool = True, **config: Any) -> Path:
    """An adapter with random weights that change every answer.

    embeddings: their weights are saved, too, if they are adapted. `config` may be one of peft.
    """
    torch.manual_seed(len(folder.name))
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.config._name_or_path = str(base)
    given = config.pop("config", None)
    lora = given or LoraConfig(**{"init_lora_weights": False, "lora_alpha": 32} | config)
    with_adapter = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in with_adapter.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    with_adapter.save_pretrained(folder, save_embedding_layers="auto" if embeddings else False)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes letters alone: the client sees each of its tokens."""
    folder = build_chat_model(tmp_path_factory.mktemp("base") / "tiny-chat")
    model = LlamaForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for token in range(300):
        if not tokenizer.decode([token]).isalpha():
            model.lm_head.weight.data[token] = 0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: build_adapter(root / name, base, **each) for name, each in ADAPTERS.items()}


def setting(folders: dict[str, Path]) -> str:
    return ",".join(f"{name}={folder}" for name, folder in folders.items())


@pytest.fixture(scope="module")
def service(
    make_client: Callable[..., TestClient], base: Path, folders: dict[str, Path]
) -> Iterator[TestClient]:
    with make_client(chat_model=str(base), chat_adapters=setting(folders)) as client:
        yield client


def ask(client: TestClient, model: str, text: str = "hello", **params: Any) -> Answer:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 12,
        "temperature": 0,
        "logprobs": True,
        **params,
    }
    response = client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    if params.get("stream"):
        return streamed(response.text, model)
    answer = response.json()
    assert answer["model"] == model
    choice, usage = answer["choices"][0], answer["usage"]
    logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    text = choice["message"]["content"]
    return Answer(text, usage["completion_tokens"], usage["prompt_tokens"], logprobs)


def streamed(events: str, model: str) -> Answer:
    lines = [line.removeprefix("data: ") for line in events.splitlines() if "data: {" in line]
    chunks = [json.loads(line) for line in lines]
    assert {chunk["model"] for chunk in chunks} == {model}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    logprobs = [choice["logprobs"]["content"] for choice in choices if choice.get("logprobs")]
    usage = chunks[-1]["usage"]
    return Answer(
        "".join(choice["delta"].get("content") or "" for choice in choices),
        usage["completion_tokens"],
        usage["prompt_tokens"],
        [entry["logprob"] for entries in logprobs for entry in entries],
    )


WHOLE_AND_STREAMED: tuple[dict[str, Any], ...] = (
    {},
    {"stream": True, "stream_options": {"include_usage": True}},
)


@pytest.fixture(scope="module")
def expected(base: Path, folders: dict[str, Path]) -> Callable[..., Answer]:
    """The greedy answers of `generate()` with the adapter that peft applies."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    models: dict[str, Any] = {"tiny-chat": LlamaForCausalLM.from_pretrained(base)}
    for name, folder in folders.items():
        model = LlamaForCausalLM.from_pretrained(base)
        models[name] = PeftModel.from_pretrained(model, str(folder))

    def answer(name: str, text: str = "hello", tokens: int = 12) -> Answer:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = models[name].generate(
            **prompt,
            do_sample=False,
            max_new_tokens=tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )
        start = prompt["input_ids"].shape[1]
        new = output.sequences[0, start:]
        logits = torch.stack(output.logits)[:, 0].log_softmax(-1)
        logprobs = logits.gather(-1, new[:, None])[:, 0].tolist()
        return Answer(tokenizer.decode(new, skip_special_tokens=True), len(new), start, logprobs)

    return answer


def assert_same(actual: Answer, wanted: Answer) -> None:
    assert actual[:3] == wanted[:3]
    assert actual.logprobs == pytest.approx(wanted.logprobs, abs=2e-4)


NAMES = ["tiny-chat", *ADAPTERS]


def test_adapters_answer_differently(expected: Callable[..., Answer]) -> None:
    assert len({expected(name).text for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("params", WHOLE_AND_STREAMED)
def test_alone(
    name: str, params: dict[str, Any], service: TestClient, expected: Callable[..., Answer]
) -> None:
    assert_same(ask(service, name, **params), expected(name))


@pytest.mark.parametrize("params", WHOLE_AND_STREAMED)
def test_all_together_in_one_batch(
    params: dict[str, Any],
    service: TestClient,
    expected: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mixed: list[int] = []
    assign = AdapterMix.assign

    def recorded(self: AdapterMix, runs: Sequence[tuple[int, int]], device: torch.device) -> None:
        mixed.append(len({adapter for adapter, _ in runs}))
        assign(self, runs, device)

    monkeypatch.setattr(AdapterMix, "assign", recorded)
    texts = ["hello", LONG, "how are you today?"]
    requests = [(name, text) for text in texts for name in NAMES]
    with ThreadPoolExecutor(len(requests)) as clients:
        answers = list(
            clients.map(lambda each: ask(service, *each, max_tokens=20, **params), requests)
        )
    for request, answer in zip(requests, answers, strict=True):
        assert_same(answer, expected(*request, tokens=20))
    assert max(mixed) >= 3
    assert engine_of(service).reason is None
    assert running(service) == 0


def test_seeds_choose_the_same_beside_other_adapters(service: TestClient) -> None:
    def sampled(name: str) -> str:
        return ask(service, name, temperature=1.0, seed=7, max_tokens=24).text

    alone = [sampled(name) for name in NAMES]
    assert len(set(alone)) == len(NAMES)
    with ThreadPoolExecutor(len(NAMES) * 2) as clients:
        assert list(clients.map(sampled, NAMES * 2)) == alone * 2


@pytest.mark.parametrize("order", list(itertools.permutations(["tiny-chat", "all", "some"])))
def test_no_prefix_is_shared_between_adapters(
    order: tuple[str, ...], service: TestClient, expected: Callable[..., Answer]
) -> None:
    """The same prompt, of which whole pages of the KV cache could be shared, in every order."""
    text = " ".join(order) + LONG
    ask(service, "all")
    assert engine_of(service).reason is None  # or the self-check has found that they share one
    for name in (*order, *order):
        assert_same(ask(service, name, text), expected(name, text))


def test_a_prefix_is_shared_within_an_adapter(
    service: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    processed: list[int] = []
    assign = AdapterMix.assign

    def recorded(self: AdapterMix, runs: Sequence[tuple[int, int]], device: torch.device) -> None:
        processed.append(sum(count for _, count in runs))
        assign(self, runs, device)

    ask(service, "all")  # loads the model, whose self-check computes as well
    monkeypatch.setattr(AdapterMix, "assign", recorded)
    work = []
    for name in ("all", "some", "all", "tiny-chat", "some"):
        processed.clear()
        ask(service, name, f"within {LONG}", max_tokens=2)
        work.append(sum(processed))
    assert work[0] == work[1] == work[3]
    assert work[2] == work[4]
    assert work[2] <= work[0] - 64


def test_the_list_of_models_names_the_base(service: TestClient) -> None:
    listed = {each["id"]: each for each in service.get("/v1/models").json()["data"]}
    assert "parent" not in listed["tiny-chat"]
    for name in ADAPTERS:
        assert listed[name]["parent"] == "tiny-chat"
        assert listed[name]["type"] == "chat"
        assert service.get(f"/v1/models/{name}").json() == listed[name]
    assert service.get("/v1/models/other").status_code == 404


def test_the_other_endpoints_answer_with_adapters(service: TestClient) -> None:
    for name in ("tiny-chat", "all"):
        body = {"model": name, "prompt": "hello", "max_tokens": 8, "temperature": 0}
        completion = service.post("/v1/completions", json=body).json()
        given = {"model": name, "input": "hello", "max_output_tokens": 8, "temperature": 0}
        response = service.post("/v1/responses", json=given).json()
        assert completion["model"] == response["model"] == name
        assert response["output"][0]["content"][0]["text"] == ask(service, name, max_tokens=8).text
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"enum": [1]}}}
    schema |= {"required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for name in ADAPTERS:
        answer = ask(service, name, response_format=form, max_tokens=64).text
        assert json.loads(answer) == {"a": 1}


def engine_of(client: TestClient) -> Any:
    model = client.app.state.registry.models["tiny-chat"]  # type: ignore[attr-defined]
    return model._engine


def running(client: TestClient) -> int:
    return len(engine_of(client)._running)


def test_cancelled_requests_leave_the_batch_and_harm_no_other(
    service: TestClient, expected: Callable[..., Answer]
) -> None:
    registry = service.app.state.registry  # type: ignore[attr-defined]

    async def begin_and_leave() -> None:
        conversation = ChatPrompt([{"role": "user", "content": f"leave {LONG}"}])
        async with AsyncExitStack() as resources:
            model = await resources.enter_async_context(registry.use("all", ChatModel))
            options = ChatOptions(max_tokens=64)
            answer = await model.answer(conversation, options, resources)
            async for _ in answer:
                break

    ask(service, "all")
    assert service.portal is not None
    service.portal.call(begin_and_leave)
    assert running(service) == 0
    # What the cancelled request has computed belongs to its adapter.
    for name in ("tiny-chat", "all", "some"):
        text = f"leave {LONG}"
        assert_same(ask(service, name, text), expected(name, text))


def test_adapters_share_the_limits_of_the_base(
    make_client: Callable[..., TestClient], base: Path, folders: dict[str, Path]
) -> None:
    options = {"max_batch_requests": 1, "max_queue": 0, "chat_adapters": setting(folders)}
    with (
        make_client(chat_model=str(base), **options) as client,
        ThreadPoolExecutor(1) as other,
    ):
        ask(client, "all")
        long = other.submit(ask, client, "tiny-chat", max_tokens=400)
        wait_until(lambda: running(client))
        body = {"model": "all", "messages": [{"role": "user", "content": "hello"}]}
        refused = client.post(CHAT, json=body)
        assert refused.status_code == 429
        assert long.result().tokens == 400
        ask(client, "some")


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that are read from here on."""
    read: list[Any] = []
    read_model = weights.read_model

    def recorded(*args: Any) -> Any:
        read.append(read_model(*args))
        return read[-1]

    monkeypatch.setattr(weights, "read_model", recorded)
    return read


def test_the_weights_of_the_base_are_in_memory_once(
    models: list[Any],
    make_client: Callable[..., TestClient],
    base: Path,
    folders: dict[str, Path],
) -> None:
    with make_client(chat_model=str(base), chat_adapters=setting(folders)) as client:
        for name in NAMES:
            ask(client, name)
        (model,) = models
        plain = dict(LlamaForCausalLM.from_pretrained(base).named_parameters())
        names = {name.replace(".base_layer", ""): each for name, each in model.named_parameters()}
        assert names.keys() == plain.keys()
        for name, parameter in plain.items():
            assert torch.equal(names[name], parameter)


def test_idle_base_and_adapters_are_unloaded_and_loaded_together(
    make_client: Callable[..., TestClient],
    base: Path,
    folders: dict[str, Path],
    expected: Callable[..., Answer],
) -> None:
    def loaded() -> set[str]:
        return {each["id"] for each in client.get("/v1/models").json()["data"] if each["loaded"]}

    with make_client(chat_model=str(base), chat_adapters=setting(folders)) as client:
        assert client.portal is not None
        registry = client.app.state.registry  # type: ignore[attr-defined]
        for name in ("all", "tiny-chat", "some"):
            assert not loaded() & set(NAMES)
            assert_same(ask(client, name), expected(name))
            assert loaded() >= set(NAMES)
            client.portal.call(registry.unload_idle, 0.0)


class PackedLinear(nn.Module):
    """A layer whose weights only it can read, as quantised ones are."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.packed = linear.weight.detach().half().float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.packed)


def test_adapters_of_a_quantised_base(
    make_client: Callable[..., TestClient],
    base: Path,
    folders: dict[str, Path],
    expected: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_model = weights.read_model

    def quantised(*args: Any) -> Any:
        model = read_model(*args)
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name != "lm_head":
                model.set_submodule(name, PackedLinear(module))
        return model

    monkeypatch.setattr(weights, "read_model", quantised)
    with make_client(chat_model=str(base), chat_adapters=setting(folders)) as client:
        for name in ("tiny-chat", "all", "biased"):
            answer, plain = ask(client, name), expected(name)
            assert answer.text == plain.text
            assert answer.logprobs == pytest.approx(plain.logprobs, abs=5e-3)
        assert engine_of(client).reason is None
        body = {"model": "dora", "messages": [{"role": "user", "content": "hello"}]}
        message = client.post(CHAT, json=body).json()["error"]["message"]
    assert "it is a DoRA, which needs weights that are not quantised" in message


def test_without_adapters_nothing_is_changed(client: TestClient) -> None:
    ask(client, "tiny-chat")
    engine = engine_of(client)
    assert not any(isinstance(module, MixedLinear) for module in engine._model.modules())
    for allocator in engine._manager.batch_processor.cache.cache_allocators.values():
        assert "mark_complete_blocks" not in vars(allocator)


def test_one_at_a_time_where_the_base_cannot_be_batched(
    make_client: Callable[..., TestClient],
    base: Path,
    folders: dict[str, Path],
    expected: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "known_obstacle", lambda config: "of this test")
    with (
        make_client(chat_model=str(base), chat_adapters=setting(folders)) as client,
        ThreadPoolExecutor(8) as clients,
    ):
        answers = list(clients.map(lambda name: ask(client, name), NAMES * 2))
        assert engine_of(client).reason == "of this test"
    for name, answer in zip(NAMES * 2, answers, strict=True):
        assert_same(answer, expected(name))


def ignore_adapters(self: AdapterMix, runs: Sequence[tuple[int, int]], device: Any) -> None:
    self.use(0)


def confuse_adapters(self: AdapterMix, runs: Sequence[tuple[int, int]], device: Any) -> None:
    self.use(max(adapter for adapter, _ in runs))


@pytest.mark.parametrize("fault", [ignore_adapters, confuse_adapters])
def test_the_self_check_finds_wrong_adapters(
    fault: Callable[..., None],
    make_client: Callable[..., TestClient],
    base: Path,
    folders: dict[str, Path],
    expected: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AdapterMix, "assign", fault)
    with make_client(chat_model=str(base), chat_adapters=setting(folders)) as client:
        assert_same(ask(client, "all"), expected("all"))
        assert "off those of a plain pass" in engine_of(client).reason


def test_an_adapter_brings_its_own_template_and_end(
    make_client: Callable[..., TestClient], base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    templates = {"same": TEMPLATE, "terse": "{{ messages[0]['content'] }}"}
    own: dict[str, Path] = {}
    for name, template in templates.items():
        own[name] = shutil.copytree(folders["all"], tmp_path / name)
        tokenizer = build_tokenizer(template)
        tokenizer.save_pretrained(own[name])
    own["file"] = shutil.copytree(folders["all"], tmp_path / "file")
    (own["file"] / "chat_template.jinja").write_text(templates["terse"])
    with make_client(chat_model=str(base), chat_adapters=setting(own)) as client:
        same, terse, file = (ask(client, name) for name in own)
        assert same.prompt_tokens > terse.prompt_tokens == file.prompt_tokens
        assert terse == file
    # An end token of its own, with which the base model does not end
    ends = shutil.copytree(own["terse"], tmp_path / "ends")
    tokenizer = AutoTokenizer.from_pretrained(ends)
    peft_model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), str(ends))
    prompt = torch.tensor([tokenizer.encode("hello")])
    tokens = peft_model.generate(prompt, do_sample=False, max_new_tokens=3)[0].tolist()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(tokens[-1])
    tokenizer.save_pretrained(ends)
    both = {"ends": ends, "terse": own["terse"]}
    with make_client(chat_model=str(base), chat_adapters=setting(both)) as client:
        assert ask(client, "terse").tokens == 12
        body = {"model": "ends", "messages": [{"role": "user", "content": "hello"}]}
        answer = client.post(CHAT, json=body | {"temperature": 0, "max_tokens": 12}).json()
        assert answer["usage"]["completion_tokens"] <= 3
        assert answer["choices"][0]["finish_reason"] == "stop"


def make_wide(folder: Path) -> Path:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return save(LlamaForCausalLM(config), folder)


QV = ["q_proj", "v_proj"]
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "prompt": (
        {"config": PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")},
        "it is an adapter of another kind than LoRA (PROMPT_TUNING)",
    ),
    "prefix": (
        {"config": PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")},
        "it is an adapter of another kind than LoRA (PREFIX_TUNING)",
    ),
    "ia3": (
        {"config": IA3Config(target_modules=["k_proj"], feedforward_modules=[])},
        "it is an adapter of another kind than LoRA (IA3)",
    ),
    "saved": (
        {"target_modules": QV, "modules_to_save": ["lm_head"]},
        "it replaces weights of the base model (modules_to_save: lm_head)",
    ),
    "tokens": (
        {"target_modules": QV, "trainable_token_indices": [1, 2]},
        "it replaces weights of the base model (trainable_token_indices: 1, 2)",
    ),
    "biases": ({"target_modules": QV, "bias": "all"}, "it replaces biases of the base model"),
    "head": (
        {"target_modules": ["lm_head"], "embeddings": False},
        "it adapts the output embeddings (lm_head)",
    ),
    "head-saved": (
        {"target_modules": ["lm_head"]},
        "it has weights beside those of LoRA (lm_head.base_layer.weight)",
    ),
    "embedding": (
        {"target_modules": ["embed_tokens"], "embeddings": False},
        "it has weights beside those of LoRA (model.embed_tokens.lora_embedding_A)",
    ),
    "pissa": (
        {"target_modules": QV, "init_lora_weights": "pissa"},
        "it was trained on other weights than the base model's (init_lora_weights: pissa)",
    ),
    "repeated": (
        {"target_modules": QV, "layer_replication": [[0, 2], [1, 2]]},
        "it repeats layers of the base model",
    ),
    "activated": (
        {"target_modules": QV, "alora_invocation_tokens": [5]},
        "it is a LoRA of an unusual kind (ALoraLinearVariant)",
    ),
}


def test_bad_adapters_are_refused_and_take_nothing_down(
    make_client: Callable[..., TestClient],
    base: Path,
    folders: dict[str, Path],
    expected: Callable[..., Answer],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = {name: build_adapter(tmp_path / name, base, **each) for name, (each, _) in BAD.items()}
    reasons = {name: reason for name, (_, reason) in BAD.items()}
    wide = make_wide(tmp_path / "model")
    bad["wide"] = build_adapter(tmp_path / "wide", wide, target_modules=QV)
    reasons["wide"] = reasons["foreign"] = reasons["half"] = "it does not fit the base model"
    bad["foreign"] = shutil.copytree(folders["some"], tmp_path / "foreign")
    edit(bad["foreign"], target_modules=["c_attn"])
    bad["half"] = shutil.copytree(folders["some"], tmp_path / "half")
    edit(bad["half"], target_modules=["q_proj", "k_proj", "v_proj"])
    bad["no-adapter"], reasons["no-adapter"] = base, "it has no adapter_config.json"
    bad["nowhere"], reasons["nowhere"] = tmp_path / "nowhere", "its folder does not exist"
    bad["broken"] = shutil.copytree(folders["some"], tmp_path / "broken")
    (bad["broken"] / "adapter_model.safetensors").write_bytes(b"no weights")
    reasons["broken"] = "its files are not those of an adapter that peft can read"
    bad["text"] = shutil.copytree(folders["some"], tmp_path / "text")
    build_tokenizer(marks=["<|new|>"], template="<|new|>").save_pretrained(bad["text"])
    reasons["text"] = "its tokenizer is another one than the base model's"

    order = {"all": folders["all"], **bad, "some": folders["some"]}
    with make_client(chat_model=str(base), chat_adapters=setting(order)) as client:
        caplog.clear()
        for name in ("tiny-chat", "all", "some"):
            assert_same(ask(client, name), expected(name))
        errors = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
        assert len(errors) == len(bad)
        listed = {each["id"]: each for each in client.get("/v1/models").json()["data"]}
        health = client.get("/health").json()
        assert health["status"] == "healthy"
        assert health["load_failures"].keys() == bad.keys()
        for (name, reason), line in zip(((n, reasons[n]) for n in bad), errors, strict=True):
            assert line.startswith(f"loading the adapter {name} failed: "), line
            assert reason in line, (name, line)
            assert "\n" not in line
            assert not listed[name]["loaded"]
            body = {"model": name, "messages": [{"role": "user", "content": "hello"}]}
            response = client.post(CHAT, json=body)
            message = response.json()["error"]["message"]
            assert response.status_code == 503
            assert message.startswith(f"The adapter '{name}' could not be loaded: ")
            assert reason in message
            assert str(tmp_path) not in message
            assert response.headers["x-should-retry"] == "false"
        assert listed["all"]["loaded"]


def edit(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_the_package_that_is_missing_is_named(
    make_client: Callable[..., TestClient],
    base: Path,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "is_installed", lambda name: name != "peft")
    with make_client(chat_model=str(base), chat_adapters=setting(folders)) as client:
        ask(client, "tiny-chat")
        body = {"model": "all", "messages": [{"role": "user", "content": "hello"}]}
        message = client.post(CHAT, json=body).json()["error"]["message"]
    assert "it is an adapter, which needs the Python package peft" in message


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("folder", "'folder' has no name; write name=source"),
        ("a=", "'a=' has no source after the ="),
        ("=b", "'' cannot be the name of a model"),
        ("a b=c", "'a b' cannot be the name of a model"),
        ("a=b,a=c", "'a' is there twice"),
    ],
)
def test_wrong_lists_are_refused_at_start(value: str, error: str) -> None:
    with pytest.raises(ConfigurationError, match=f"INFER_CHAT_ADAPTERS: {error}"):
        configured_models(Settings(_env_file=None, chat_adapters=value))


@pytest.mark.parametrize("name", ["owner/model", "owner/other"])
def test_names_must_differ_from_those_of_models(name: str) -> None:
    adapters = f"{name}=folder"
    settings = Settings(_env_file=None, chat_model="owner/model", chat_adapters=adapters)
    if name == "owner/other":
        assert configured_models(settings)[0].variants == (name,)
        return
    with pytest.raises(ValueError, match="Two models are called 'owner/model'"):
        configured_models(settings)
