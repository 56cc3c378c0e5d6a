"""Thoughts: in a field of their own, in every format, whole and streamed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from chat_server.serving.chat.prompt import ChatPrompt, PromptEncoder, TextPrompt
from chat_server.serving.chat.thinking import (
    FORMATS,
    TagSplitter,
    begins_with_token,
    find_thinking,
)

from ...tiny_chat import TEMPLATE, build_chat_model, build_tokenizer
from .scripted import ask, script

HISTORY = """\
{%- if message['reasoning_content'] %}
{{- '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' }}
{%- endif %}
{{- message['content'] }}"""
ROLE = "{{- '<|' + message['role'] + '|>' + message['content'] }}"
THINKS = TEMPLATE.replace(ROLE, "{{- '<|' + message['role'] + '|>' }}" + HISTORY)
OPENS = THINKS.replace(
    "{{ '<|assistant|>' }}",
    "{{ '<|assistant|><think>\\n' }}{% if enable_thinking is false %}{{ '\\n</think>\\n\\n' }}{% endif %}",
)
SPELLS = OPENS.replace("<think>", "[THINK]").replace("</think>", "[/THINK]")
GEMMA = THINKS.replace("<think>", "<|channel>thought").replace("</think>", "<channel|>")
HARMONY = """\
{%- for message in messages %}
{{- '<|start|>' + message['role'] }}
{%- if message['reasoning_content'] %}
{{- '<|channel|>analysis<|message|>' + message['reasoning_content'] + '<|end|><|start|>assistant' }}
{%- endif %}
{%- if message['role'] == 'assistant' %}<|channel|>final{% endif %}
{{- '<|message|>' + message['content'] + '<|return|>' }}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""
CHANNELS = ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|return|>", "<|call|>"]


class Model(NamedTuple):
    client: TestClient
    tokenizer: PreTrainedTokenizerFast


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    match name:
        case "thinks":
            return build_tokenizer(THINKS, ["<think>", "</think>"], special=False)
        case "opens":
            return build_tokenizer(OPENS, ["<think>", "</think>"], special=False)
        case "spells":
            return build_tokenizer(SPELLS)
        case "gemma":
            return build_tokenizer(GEMMA, ["<|channel>", "<channel|>"])
    tokenizer = build_tokenizer(HARMONY, CHANNELS)
    tokenizer.eos_token = "<|return|>"
    return tokenizer


@pytest.fixture(scope="module")
def models(
    make_client: Callable[..., TestClient], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Model]]:
    """Makes a service for a model of this name, once for all tests."""
    made: dict[str, Model] = {}

    def make(name: str, **settings: Any) -> Model:
        key = f"{name} {settings}"
        if key not in made:
            tokenizer = tokenizer_of(name)
            folder: Path = tmp_path_factory.mktemp(name) / "tiny-chat"
            build_chat_model(folder, tokenizer)
            client = make_client(chat_model=str(folder), **settings)
            made[key] = Model(client.__enter__(), tokenizer)
        return made[key]

    yield make
    for model in made.values():
        model.client.__exit__(None, None, None)


ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"

WRITTEN = [
    ("thinks", "<think>\nLet me see.\n</think>\n\nHello.", "Let me see.", "Hello."),
    ("thinks", "\n<think>a < b </thin\n\nk</think>Hello\n", "a < b </thin\n\nk", "Hello\n"),
    ("thinks", "<think>\n\n</think>\n\nHello", "", "Hello"),
    ("thinks", "<think>never over \n", "never over", ""),
    ("thinks", "no thought <think> here", "", "no thought <think> here"),
    ("thinks", "\n <thin", "", "\n <thin"),
    ("opens", "Let me see.\n</think>\n\nHello.", "Let me see.", "Hello."),
    ("opens", "<think>\nAgain.\n</think>\n\nHello <think>.", "Again.", "Hello <think>."),
    ("opens", "</think>Hello", "", "Hello"),
    ("opens", "never over", "never over", ""),
    ("spells", "I see [/THIN\n[/THINK]\nHello", "I see [/THIN", "Hello"),
    ("gemma", "<|channel>thought\nLet me see.<channel|>Hello", "Let me see.", "Hello"),
    ("gemma", "Hello", "", "Hello"),
    ("harmony", f"{ANALYSIS}I see.{FINAL}Hello.", "I see.", "Hello."),
    ("harmony", f"{ANALYSIS}I see.<|end|>", "I see.", ""),
    ("harmony", "<|channel|>final<|message|>Hello", "", "Hello"),
    ("harmony", "Hello", "", "Hello"),
    ("harmony", f"{ANALYSIS}I see.", "I see.", ""),
    (
        "harmony",
        f"{ANALYSIS}I.<|end|><|start|>assistant<|channel|>commentary<|message|>Wait. {FINAL}Hello.",
        "I.",
        "Wait. Hello.",
    ),
]


@pytest.mark.parametrize(("name", "text", "thought", "content"), WRITTEN)
def test_a_thought_is_not_content(
    models: Callable[..., Model],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str,
    thought: str,
    content: str,
) -> None:
    client, tokenizer = models(name)
    script(monkeypatch, tokenizer, text)
    choice = ask(client)
    assert choice["message"].get("reasoning_content", "") == thought
    assert choice["message"]["content"] == content
    assert choice["finish_reason"] == "stop"


def test_a_response_has_the_thought_as_an_item(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tokenizer = models("thinks")
    script(monkeypatch, tokenizer, "<think>\nLet me see.\n</think>\n\nHello.")
    body = {"model": "tiny-chat", "input": "hello", "temperature": 0}
    answer = client.post("/v1/responses", json=body).json()
    thought, message = answer["output"]
    assert (thought["type"], thought["summary"]) == ("reasoning", [])
    assert thought["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert message["content"][0]["text"] == "Hello."
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] > 0

    again = [{"role": "user", "content": "hello"}, thought, message]
    assert client.post("/v1/responses", json=body | {"input": again}).status_code == 200


def test_tokens_and_logprobs_are_told_apart(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tokenizer = models("thinks")
    thought, content = "<think>\nLet me see.\n</think>\n\n", "Hello."
    tokens = script(monkeypatch, tokenizer, thought + content)
    choice = ask(client, logprobs=True)
    assert "".join(each["token"] for each in choice["logprobs"]["content"]) == content
    usage = choice["usage"]
    assert usage["completion_tokens"] == len(tokens) + 1
    expected = len(tokenizer.encode(thought, add_special_tokens=False))
    assert usage["completion_tokens_details"]["reasoning_tokens"] == expected


def test_what_the_prompt_says_of_thoughts_counts(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tokenizer = models("opens")
    script(monkeypatch, tokenizer, "Hello </think>")
    choice = ask(client, chat_template_kwargs={"enable_thinking": False})
    assert choice["message"]["content"] == "Hello </think>"
    assert "reasoning_content" not in choice["message"]
    ends = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "So"}]
    choice = ask(client, messages=ends, continue_final_message=True)
    assert choice["message"]["content"] == "Hello </think>"
    ends[1]["content"] = "<think>I s"
    script(monkeypatch, tokenizer, "ee.</think>Hello")
    choice = ask(client, messages=ends, continue_final_message=True)
    assert choice["message"]["reasoning_content"] == "ee."


def test_a_thought_goes_back_to_the_template() -> None:
    tokenizer = tokenizer_of("thinks")
    message = {"role": "assistant", "content": "Hello", "reasoning_content": "I see."}
    prompt = PromptEncoder(tokenizer, 100).encode(ChatPrompt([message]))
    assert "<think>\nI see.\n</think>\n\nHello" in str(tokenizer.decode(prompt))


def test_a_text_to_continue_has_no_thoughts() -> None:
    encoder = PromptEncoder(tokenizer_of("opens"), 100)
    prompt = TextPrompt("<think>")
    assert encoder.opening(prompt, encoder.encode(prompt)) == "over"


def test_stop_strings_apply_to_the_content_alone(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tokenizer = models("opens")
    script(monkeypatch, tokenizer, "A full stop.\n</think>\n\nHello. World")
    choice = ask(client, stop=["."])
    assert choice["message"] == {
        "role": "assistant",
        "content": "Hello",
        "reasoning_content": "A full stop.",
    }


DOCUMENT = {
    "type": "json_schema",
    "json_schema": {
        "name": "document",
        "schema": {
            "type": "object",
            "properties": {"yes": {"type": "boolean"}},
            "required": ["yes"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("thinks", '<think>\n{"yes": no}.\n</think>\n\n{"yes": true}'),
        ("thinks", '{"yes": true}'),
        ("opens", 'I think.\n</think>\n\n{"yes": true}'),
        ("opens", '</think>{"yes": true}'),
        ("spells", 'I think.[/THINK]\n{"yes": true}'),
        ("gemma", '<|channel>thought\nI think.<channel|>{"yes": true}'),
        ("harmony", f'{ANALYSIS}I think.{FINAL}{{"yes": true}}'),
        ("harmony", '<|channel|>final<|message|>{"yes": true}'),
    ],
)
def test_a_grammar_begins_after_the_thought(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    client, tokenizer = models(name)
    tokens = script(monkeypatch, tokenizer, text)
    choice = ask(client, response_format=DOCUMENT)
    assert choice["usage"]["completion_tokens"] == len(tokens) + 1, "as the model wanted it"
    assert json.loads(choice["message"]["content"]) == {"yes": True}


@pytest.mark.parametrize("name", ["thinks", "opens", "gemma", "harmony"])
def test_a_grammar_holds_after_the_thought(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    begin, end = {
        "thinks": ("<think>", "</think>"),
        "opens": ("", "</think>"),
        "gemma": ("<|channel>thought\n", "<channel|>"),
        "harmony": (ANALYSIS, FINAL),
    }[name]
    client, tokenizer = models(name)
    script(monkeypatch, tokenizer, f"{begin}No document.{end}No document.")
    choice = ask(client, response_format=DOCUMENT)
    assert choice["message"]["reasoning_content"] == "No document."
    assert set(json.loads(choice["message"]["content"])) == {"yes"}


def test_a_thought_does_not_end_an_answer_that_has_a_form(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tokenizer = models("opens")
    script(monkeypatch, tokenizer, "I")
    choice = ask(client, response_format=DOCUMENT, max_tokens=20)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == ""


@pytest.mark.parametrize("name", ["thinks", "opens", "spells", "gemma", "harmony"])
@pytest.mark.parametrize("form", [None, DOCUMENT])
def test_a_thought_that_is_too_long_ends(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, name: str, form: Any
) -> None:
    begin = {"thinks": "<think>", "gemma": "<|channel>thought\n", "harmony": ANALYSIS}.get(name, "")
    client, tokenizer = models(name, max_thinking_tokens=24)
    script(monkeypatch, tokenizer, begin + "again and " * 100)
    choice = ask(client, max_tokens=60, **({"response_format": form} if form else {}))
    thought = choice["message"]["reasoning_content"]
    assert 5 < len(tokenizer.encode(thought, add_special_tokens=False)) <= 24
    assert choice["message"]["content"]
    assert choice["message"]["content"].startswith("{" if form else "a") or not form


def test_a_limit_within_the_head_of_a_message(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tokenizer = models("harmony", max_thinking_tokens=2)
    script(monkeypatch, tokenizer, ANALYSIS + "again and " * 10)
    assert ask(client, response_format=DOCUMENT)["message"]["content"].startswith("{")


def test_a_thought_in_a_channel_of_another_name(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tokenizer = models("gemma")
    script(monkeypatch, tokenizer, '<|channel>other<channel|>{"yes":true}')
    message = ask(client, response_format=DOCUMENT)["message"]
    assert message["reasoning_content"] == "other"
    assert set(json.loads(message["content"])) == {"yes"}


def test_a_mark_within_a_text_begins_no_thought() -> None:
    tokenizer = tokenizer_of("thinks")
    mark = tokenizer.convert_tokens_to_ids("<think>")
    blank, text = (tokenizer.encode(each, add_special_tokens=False) for each in (" ", "<"))
    assert begins_with_token(tokenizer, mark, blank) is None
    assert begins_with_token(tokenizer, mark, [*blank, mark]) is True
    assert begins_with_token(tokenizer, mark, text) is False


def test_an_answer_without_a_thought_has_no_limit(
    models: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tokenizer = models("thinks", max_thinking_tokens=24)
    script(monkeypatch, tokenizer, "again and " * 10)
    assert ask(client)["message"]["content"] == "again and " * 10


@pytest.mark.parametrize(
    ("template", "begin"),
    [
        (TEMPLATE, None),
        (OPENS, "<think>"),
        (SPELLS, "[THINK]"),
        (GEMMA, "<|channel>thought\n"),
        (HARMONY.replace("final", "analysis"), "<|channel|>analysis<|message|>"),
        ("{{ content.split('<|END_THINKING|>') }}", "<|START_THINKING|>"),
    ],
)
def test_formats_are_recognised_from_the_template(template: str, begin: str | None) -> None:
    found = find_thinking(template)
    assert (found and found.begin) == begin


@pytest.mark.parametrize("thinking", [each for each in FORMATS if not each.channels])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_pieces_cover_all_of_the_answer(thinking: Any, size: int) -> None:
    text = f"\n{thinking.begin}\n a {thinking.end[:3]} \n{thinking.end}\n\nb {thinking.begin}"
    splitter = TagSplitter(thinking, "possible")
    pieces = []
    for start in range(0, len(text), size):
        pieces += splitter.push(text[start : start + size])
    pieces += splitter.flush()
    assert sum(piece.length for piece in pieces) == len(text)
    thought = "".join(piece.text for piece in pieces if piece.kind == "thought")
    said = "".join(piece.text for piece in pieces if piece.kind == "text")
    assert (thought, said) == (f"a {thinking.end[:3]}", f"b {thinking.begin}")
