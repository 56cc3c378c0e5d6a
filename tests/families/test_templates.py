"""Real chat templates: each one's tool calls are forced, read and rendered, and its thoughts split.

With TEMPLATES_JSON=PATH the formats of all templates are written to that file.
"""

import asyncio
import json
import os
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from tests.families.models import build
from tests.families.templates import (
    END_IDS,
    HARMONY,
    JSON_CALLS,
    LFM,
    VOCABULARY,
    formats,
    render,
    templates,
    tokenizer_of,
)

FORMATS = formats()
CALLING = [name for name, (calls, _) in FORMATS.items() if calls]
SILENT = [name for name, (calls, _) in FORMATS.items() if not calls]
PROMPTED = [
    "axolotl/gemma",
    "axolotl/phi_4",
    "axolotl/mistral_v1",
    "axolotl/command_a",
    "trl/llama3",
]
PROMPTED += ["trl/deepseekv3", "trl/smolvlm"]
"""Some of them: without a system message, with thoughts or parts"""
THINKING = [name for name, (_, thoughts) in FORMATS.items() if thoughts]

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "unit": {"enum": ["celsius", "kelvin"]},
        "exact": {"type": "boolean"},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
OPEN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "rate": {"type": "number"},
        "exact": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "more": {"type": "object"},
    },
}


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "description": "Weather", "parameters": parameters}
    return {"type": "function", "function": function}


def call(name: str, arguments: dict[str, Any], id_: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


TOOLS = [tool("get_weather", OPEN), tool("get_time", OPEN)]
QUESTION = {"role": "user", "content": "hello"}
WEATHER = {
    "city": 'Ulm "on" the\nDanube ü',
    "days": 3,
    "rate": 1.5,
    "exact": True,
    "tags": ["a, b", "c"],
    "more": {"x": {"y": [1, None]}},
}
CALLS = [call("get_weather", WEATHER, "abcdefgh1"), call("get_time", {"city": "Bonn"}, "abcdefgh2")]


@pytest.fixture(scope="module")
def engine(package: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One for all templates: their tokenizers have the same end tokens."""
    model = build("llama", vocab_size=VOCABULARY, max_position_embeddings=8192)
    settings = package.Settings(_env_file=None, kv_cache_tokens=32768, max_batch_tokens=2048)
    engine = package.make_engine(model, package.tokenizer, END_IDS, settings)
    assert engine.reason is None
    yield engine
    engine.stop()


def make_model(engine: Any, package: SimpleNamespace, name: str, **options: Any) -> Any:
    tokenizer = tokenizer_of(templates()[name])
    return package.ChatModel(
        tokenizer,
        engine,
        package.GrammarCompiler(tokenizer, VOCABULARY, END_IDS),
        eos_token_ids=END_IDS,
        default_max_tokens=400,
        default_sampling={},
        admission=package.Admission(64, 1_000_000),
        **options,
    )


def script(monkeypatch: pytest.MonkeyPatch, package: SimpleNamespace, tokens: list[int]) -> None:
    """Lets the model write these tokens and end, as far as the grammar allows it."""

    def adjust_to_script(state: Any, row: int, adjustments: Any) -> None:
        place = state.position
        token = tokens[place] if place < len(tokens) else END_IDS[0]

        def write(logits: Tensor) -> None:
            logits[token] += 1000

        adjustments.watch(row, write)
        package.adjust(state, row, adjustments)

    monkeypatch.setattr(package.SamplingState, "adjusts", True)
    monkeypatch.setattr(package.SamplingState, "adjust", adjust_to_script)


class Answer:
    """A sequence of an answer, joined."""

    def __init__(self, chunks: list[Any]) -> None:
        self.text = "".join(chunk.text for chunk in chunks)
        self.thought = "".join(chunk.thought for chunk in chunks)
        self.calls: list[tuple[str, str]] = []
        for delta in (delta for chunk in chunks for delta in chunk.tool_calls):
            if delta.name is not None:
                self.calls.append((delta.name, ""))
            name, arguments = self.calls[delta.call]
            self.calls[delta.call] = name, arguments + delta.arguments
        self.reason = chunks[-1].finish_reason
        self.tokens = chunks[-1].completion_tokens

    @property
    def called(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


async def ask(model: Any, package: SimpleNamespace, **body: Any) -> list[Answer]:
    """The answers to a request, which comes as clients send it."""
    request = package.ChatRequest(
        **{"model": "m", "messages": [QUESTION], "temperature": 0, "max_tokens": 500} | body
    )
    async with AsyncExitStack() as resources:
        generation = await model.answer(request.conversation(), request.options(), resources)
        chunks = [chunk async for chunk in generation]
    return [
        Answer([chunk for chunk in chunks if chunk.index == index])
        for index in range(generation.sequences)
    ]


def ask_all(model: Any, package: SimpleNamespace, *bodies: dict[str, Any]) -> list[list[Answer]]:
    """Several requests in one batch."""

    async def gather() -> list[list[Answer]]:
        return list(await asyncio.gather(*(ask(model, package, **body) for body in bodies)))

    return asyncio.run(gather())


def read_at_once(model: Any, package: SimpleNamespace, tokens: list[int], **body: Any) -> Answer:
    """An answer of these tokens that comes in one piece."""
    request = package.ChatRequest(**{"model": "m", "messages": [QUESTION]} | body)
    conversation, options = request.conversation(), request.options()
    _, opening, _ = model._encode(conversation, options)
    parser = package.OutputParser(
        0,
        model._decoder,
        marks=model._marks(options, opening),
        thoughts=model._splitter(options, opening),
        parser=model._parser(options),
    )
    chunk, _ = parser.push([*tokens, END_IDS[0]], [])
    return Answer([chunk, parser.finish(parser.reason("stop"))])


def label(layout: Any) -> str | None:
    style = layout and type(layout.arguments).__name__.removesuffix("Arguments")
    return layout and f"{layout.trigger} {style}"


def facts(package: SimpleNamespace, name: str) -> dict[str, str | None]:
    """The formats of calls and thoughts that the service reads from a template."""
    prompts = package.PromptEncoder(tokenizer_of(templates()[name]), 8192)
    thinking = prompts.thinking
    return {"calls": label(prompts.layout), "thoughts": thinking and thinking.begin.strip()}


def turn(tokenizer: Any, message: dict[str, Any], **variables: Any) -> str:
    """What the model writes for a message, by its own template."""
    head = render(tokenizer, [QUESTION], tools=TOOLS, add_generation_prompt=True, **variables)
    whole = render(tokenizer, [QUESTION, message], tools=TOOLS, **variables)
    same = next(
        (i for i, pair in enumerate(zip(head, whole, strict=False)) if pair[0] != pair[1]),
        len(head),
    )
    same = whole.rindex("<", 0, same) if re.search(r"<[^<>]*$", whole[:same]) else same
    rest = whole[same:].replace("<|python_start|><|python_end|>", "")  # Llama 4's, around no text
    rest = re.sub(', "id": "abcdefgh."', "", rest)  # Mistral's, which the service makes
    ends = tokenizer.convert_ids_to_tokens(END_IDS)
    return re.split("|".join(map(re.escape, ends)), rest)[0]


LEFT_OUT = {
    JSON_CALLS: '<tool_call>\n{"name": "get_weather", "arguments": ARGUMENTS}\n</tool_call>',
    LFM: "<|tool_call_start|>[get_weather(city='Ulm', exact=True, tags=['a'])]<|tool_call_end|>",
    HARMONY: "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>ARGUMENTS",
}
"""Calls in formats of templates that do not write them, or not as models do"""


def written_calls(tokenizer: Any, calls: str | None) -> tuple[str, list[tuple[str, Any]]]:
    """The text of a model that calls tools, by its own template, and these calls."""
    try:
        text, asked = turn(tokenizer, calling(*CALLS)), CALLS
    except Exception:  # one call at most, as Llama's
        text, asked = turn(tokenizer, calling(CALLS[0])), CALLS[:1]
    if calls == HARMONY or "get_weather" not in text:
        arguments = {"city": "Ulm", "exact": True, "tags": ["a"]}
        text = LEFT_OUT[str(calls)].replace("ARGUMENTS", json.dumps(arguments))
        return text, [("get_weather", arguments)]
    return text, [(each["function"]["name"], each["function"]["arguments"]) for each in asked]


def test_formats_are_read_from_the_templates(package: SimpleNamespace) -> None:
    found = {name: facts(package, name) for name in templates()}
    if path := os.environ.get("TEMPLATES_JSON"):
        Path(path).write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    expected = {
        name: dict(zip(("calls", "thoughts"), FORMATS[name.removesuffix("_training")], strict=True))
        for name in found
    }
    assert found == expected
    assert {name.removesuffix("_training") for name in found} == FORMATS.keys()


@pytest.mark.parametrize("name", CALLING)
def test_calls_as_the_template_writes_them(
    name: str, engine: Any, package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(engine, package, name)
    tokenizer = tokenizer_of(templates()[name])
    text, expected = written_calls(tokenizer, FORMATS[name][0])
    text = text.lstrip(" ")  # before a forced call there is none
    tokens = tokenizer.encode(text, add_special_tokens=False)
    script(monkeypatch, package, tokens)
    body = {"tools": TOOLS}
    answers = ask_all(model, package, body, body | {"tool_choice": "required"})
    answers.append([read_at_once(model, package, tokens, tools=TOOLS)])
    for (answer,) in answers:
        assert answer.called == expected, answer.calls
        assert (answer.text.strip(), answer.thought) == ("", "")
        assert answer.reason == "tool_calls"
        assert answer.tokens == len(tokens) + 1, "as the model wanted it"


@pytest.mark.parametrize("name", CALLING)
def test_forced_calls(name: str, engine: Any, package: SimpleNamespace) -> None:
    check_forced_calls(make_model(engine, package, name, max_thinking_tokens=4), package)


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raises AssertionError for what is invalid against PARAMETERS."""
    assert {"city", "unit"} <= arguments.keys() <= PARAMETERS["properties"].keys()
    assert isinstance(arguments["city"], str) and len(arguments["city"]) <= 8
    assert arguments["unit"] in ("celsius", "kelvin")
    assert arguments.get("days", 0) in range(10)
    assert isinstance(arguments.get("exact", True), bool)


def check_forced_calls(model: Any, package: SimpleNamespace) -> None:
    """A model that knows nothing makes valid calls."""
    tools = [tool("get_weather", PARAMETERS), tool("get_time", PARAMETERS)]
    named = {"type": "function", "function": {"name": "get_time"}}
    common = {"tools": tools, "temperature": 1, "parallel_tool_calls": False, "seed": 1}
    answers = ask_all(
        model, package, common | {"tool_choice": "required"}, common | {"tool_choice": named}
    )
    for answer in (each for group in answers for each in group):
        assert answer.reason == "tool_calls", (answer.calls, answer.text, answer.thought)
        ((called, arguments),) = answer.called
        assert called in ("get_weather", "get_time")
        check_arguments(arguments)
        assert not answer.text
    assert {answer.called[0][0] for answer in answers[1]} == {"get_time"}


HISTORY = [
    {"role": "system", "content": "be kind"},
    QUESTION,
    calling(*CALLS) | {"reasoning_content": "deepthought"},
    {"role": "tool", "tool_call_id": "abcdefgh1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "abcdefgh2", "content": "noon"},
    {"role": "assistant", "content": "It is sunny."},
    {"role": "user", "content": "And now?"},
]


def prompt_of(prompts: Any, package: SimpleNamespace, messages: Any, tools: Any = None) -> str:
    request = package.ChatRequest(model="m", messages=messages, tools=tools)
    return str(prompts.decode(prompts.encode(request.conversation())))


@pytest.mark.parametrize("name", CALLING)
def test_history_with_calls_and_results(name: str, package: SimpleNamespace) -> None:
    prompts = package.PromptEncoder(tokenizer_of(templates()[name]), 8192)
    for tools in (TOOLS, None):
        prompt = prompt_of(prompts, package, HISTORY, tools)
        wanted = ["be kind", "hello", "get_weather", "Danube", "get_time", "Bonn"]
        wanted += ["sunny", "noon", "And now?"]
        assert [text for text in wanted if text not in prompt] == []
        assert prompt.count("Danube") == 1


@pytest.mark.parametrize("name", THINKING)
def test_thoughts(
    name: str, engine: Any, package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(engine, package, name)
    tokenizer, thinking = tokenizer_of(templates()[name]), model._prompts.thinking
    asked = {"role": "user", "content": "hello"}
    for variables in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
        head = render(tokenizer, [asked], add_generation_prompt=True, **variables).rstrip()
        begun, over = head.endswith(thinking.begin.strip()), head.endswith(thinking.end)
        thought = "" if over else f"{thinking.begin}\nI see.\n{thinking.end}\n\n"
        thought = thought.removeprefix(thinking.begin) if begun else thought
        if thinking.channels:
            thought += "<|start|>assistant<|channel|>final<|message|>"
        tokens = tokenizer.encode(f"{thought}Hello!", add_special_tokens=False)
        script(monkeypatch, package, tokens)
        body = {"chat_template_kwargs": variables}
        schema = {"type": "json_schema", "json_schema": {"schema": {"const": "Hello!"}}}
        answers = [*ask_all(model, package, body)[0], read_at_once(model, package, tokens, **body)]
        quoted = tokenizer.encode(f'{thought}"Hello!"', add_special_tokens=False)
        script(monkeypatch, package, quoted)
        answers += ask_all(model, package, body | {"response_format": schema})[0]
        for answer in answers:
            assert answer.thought.strip() == ("" if over else "I see."), variables
            assert answer.text.strip().strip('"') == "Hello!"
            assert answer.reason == "stop"


@pytest.mark.parametrize("name", [name for name in THINKING if FORMATS[name][0]])
def test_calls_after_a_thought(
    name: str, engine: Any, package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(engine, package, name)
    tokenizer, thinking = tokenizer_of(templates()[name]), model._prompts.thinking
    text, expected = written_calls(tokenizer, FORMATS[name][0])
    text = text.rpartition(thinking.end)[2].lstrip()
    text = f"<|start|>assistant{text}" if thinking.channels else text
    head = render(tokenizer, [QUESTION], tools=TOOLS, add_generation_prompt=True).rstrip()
    if head.endswith(thinking.end):
        pytest.skip("does not think unless it is asked to")
    begin = "" if head.endswith(thinking.begin.strip()) else thinking.begin
    tokens = tokenizer.encode(
        f"{begin}A <tool_call>?\n{thinking.end}{text}", add_special_tokens=False
    )
    script(monkeypatch, package, tokens)
    body = {"tools": TOOLS}
    answers = ask_all(model, package, body, body | {"tool_choice": "required"})
    answers.append([read_at_once(model, package, tokens, tools=TOOLS)])
    for (answer,) in answers:
        assert answer.called == expected
        assert (answer.thought.strip(), answer.text.strip()) == ("A <tool_call>?", "")


@pytest.mark.parametrize("name", SILENT)
def test_templates_without_calls(name: str, engine: Any, package: SimpleNamespace) -> None:
    with pytest.raises(package.InvalidInput, match="writes no calls that can be read"):
        ask_all(make_model(engine, package, name), package, {"tools": TOOLS})


@pytest.mark.parametrize("name", PROMPTED)
def test_calls_that_only_the_prompt_asks_for(
    name: str, engine: Any, package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(engine, package, name, tool_prompt=True, max_thinking_tokens=4)
    check_forced_calls(model, package)

    tokenizer, thinking = tokenizer_of(templates()[name]), model._prompts.thinking
    head = render(tokenizer, [QUESTION], add_generation_prompt=True).rstrip()
    begun = bool(thinking) and head.endswith(thinking.begin.strip())
    text = (
        (f"{thinking.end}\n\n" if begun else "")
        + '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm"}}\n</tool_call>\n'
        + '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    )
    tokens = tokenizer.encode(text, add_special_tokens=False)
    script(monkeypatch, package, tokens)
    answers = ask_all(model, package, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "required"})
    answers.append([read_at_once(model, package, tokens, tools=TOOLS)])
    for (answer,) in answers:
        assert answer.called == [("get_weather", {"city": "Ulm"}), ("get_time", {})]
        assert (answer.text, answer.thought) == ("", "")


@pytest.mark.parametrize("name", SILENT)
def test_tools_in_the_prompt_of_a_template_without_calls(
    name: str, package: SimpleNamespace
) -> None:
    tokenizer = tokenizer_of(templates()[name])
    prompts = package.PromptEncoder(tokenizer, 8192, tool_prompt=True)
    for messages in (HISTORY, HISTORY[1:], HISTORY[:5], HISTORY[1:5]):
        prompt = prompt_of(prompts, package, messages, TOOLS)
        wanted = ["<tools>", '"name": "get_time", "description": "Weather"', "hello", "Danube"]
        wanted += [
            "sunny\n</tool_response>\n<tool_response>\nnoon",
            '"arguments": {"city": "Bonn"}',
        ]
        wanted += ["be kind"] if messages[0]["role"] == "system" else []
        assert [text for text in wanted if text not in prompt] == []
    assert "<tools>" not in prompt_of(prompts, package, HISTORY[1:])
    without = package.PromptEncoder(tokenizer, 8192)
    try:
        prompt = prompt_of(without, package, HISTORY[1:])
    except package.InvalidInput:
        return
    assert [text for text in ("get_weather", "Danube", "sunny") if text not in prompt] == []
