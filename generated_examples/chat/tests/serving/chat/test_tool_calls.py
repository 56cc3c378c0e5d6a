"""Tool calls as chat templates write them."""

from typing import Any

import pytest

from chat_server.serving.chat.prompt import ChatPrompt, PromptEncoder
from chat_server.serving.chat.tool_calls import ToolCallParser, ToolLayout
from chat_server.serving.models.model_errors import InvalidInput

from ...tiny_chat import build_tokenizer

HERMES = ToolLayout(
    trigger="<tool_call>",
    prefix='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    between='}\n</tool_call>\n<tool_call>\n{"name": "',
    suffix="}\n</tool_call>",
)

LLAMA = """\
{% if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}
{{- '<|' + message['role'] + '|>' }}
{%- if message['tool_calls'] %}
{%- if message['tool_calls'] | length > 1 %}{{ raise_exception('one call') }}{% endif %}
{%- set call = message['tool_calls'][0]['function'] %}
{{- '{"name": "' + call['name'] + '", "parameters": ' + call['arguments'] | tojson + '}' }}
{%- else %}{{ message['content'] }}{% endif %}
{{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

XML = """\
{% if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}
{{- '<|' + message['role'] + '|>' + message['content'] }}
{%- for call in message['tool_calls'] %}<call>{{ call['function']['name'] }}
{%- for key, value in call['function']['arguments'].items() %}
{{- '<' + key + '>' + value }}{% endfor %}{% endfor %}
{{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


def layout_of(template: str | None) -> ToolLayout | None:
    tokenizer = build_tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    return PromptEncoder(tokenizer, 100).layout


def test_layouts_are_read_from_the_template() -> None:
    assert layout_of(None) == HERMES
    assert layout_of(LLAMA) == ToolLayout(
        trigger='{"name": "',
        prefix='{"name": "',
        middle='", "parameters": ',
        between=None,
        suffix="}",
    )


@pytest.mark.parametrize(
    "template",
    [
        XML,
        LLAMA.removeprefix("{% if tools %}{{ tools | tojson }}{% endif %}"),  # ignores the tools
        LLAMA.replace('\'{"name": "\'', "message['tool_calls'][0]['id'] + '{\"name\": \"'").replace(
            "| tojson + '}'", "| tojson + message['tool_calls'][0]['id']"
        ),
        "{{ raise_exception('no') }}",
    ],
)
def test_templates_that_no_grammar_can_follow(template: str) -> None:
    assert layout_of(template) is None


@pytest.mark.parametrize("arguments", ["{", "[1]", '{"cut', "7"])
def test_a_template_that_iterates_over_arguments_gets_an_object(arguments: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = XML
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    prompt = PromptEncoder(tokenizer, 100).encode(ChatPrompt([message]))
    assert f"<call>f<raw>{arguments}" in str(tokenizer.decode(prompt))


def test_a_template_that_takes_texts_gets_the_text_itself() -> None:
    tokenizer = build_tokenizer()
    call = {"id": "1", "function": {"name": "f", "arguments": '{"cut'}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    tokenizer.chat_template = "{{ messages[0]['tool_calls'][0]['function']['arguments'] }}"
    prompt = PromptEncoder(tokenizer, 100).encode(ChatPrompt([message]))
    assert tokenizer.decode(prompt) == '{"cut'


@pytest.mark.parametrize(
    "statement",
    ["{{ 1 // 0 }}", "{{ messages[0].x.y }}", "{{ 0.5 + 10 ** 999 }}", "{{ none() }}"],
)
def test_whatever_a_template_raises_is_about_the_messages(statement: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "q{% if messages[0].content == 'odd' %}" + statement + "{% endif %}"
    with pytest.raises(InvalidInput, match="chat template refuses"):
        PromptEncoder(tokenizer, 100).encode(ChatPrompt([{"role": "user", "content": "odd"}]))


def parse(text: str, size: int) -> tuple[str, list[dict[str, Any]]]:
    parser = ToolCallParser(HERMES)
    plain = ""
    calls: list[dict[str, Any]] = []
    for start in range(0, len(text), size):
        shown, deltas = parser.push(text[start : start + size])
        plain += shown
        assert len({delta.call for delta in deltas}) == len(deltas)
        for delta in deltas:
            if delta.name is not None:
                calls.append({"name": delta.name, "arguments": ""})
            calls[delta.call]["arguments"] += delta.arguments
    return plain + parser.flush(), calls


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("text", "plain", "calls"),
    [
        ("just text", "just text", []),
        ("a <tool", "a <tool", []),
        ("a <tool_cal b", "a <tool_cal b", []),
        (HERMES.prefix + 'f", "arguments": {}' + HERMES.suffix, "", [("f", "{}")]),
        (
            "well: " + HERMES.prefix + 'f", "arguments": {"a": "}\\"{", "b": [{}]}' + HERMES.suffix,
            "well: ",
            [("f", '{"a": "}\\"{", "b": [{}]}')],
        ),
        (
            f'{HERMES.prefix}f", "arguments": {{}}{HERMES.between}g", "arguments": {{"x": 1}}{HERMES.suffix}',
            "",
            [("f", "{}"), ("g", '{"x": 1}')],
        ),
        (HERMES.prefix + 'f", "arguments": {"cut', "", [("f", '{"cut')]),
        (HERMES.prefix + "cut", "", []),
    ],
)
def test_calls_are_told_from_text(
    size: int, text: str, plain: str, calls: list[tuple[str, str]]
) -> None:
    expected = [{"name": name, "arguments": arguments} for name, arguments in calls]
    assert parse(text, size) == (plain, expected)


@pytest.mark.parametrize("length", [1, 4, 10, 11, len(HERMES.prefix), len(HERMES.prefix) + 3])
def test_a_required_call_that_is_cut_off_is_no_text(length: int) -> None:
    parser = ToolCallParser(HERMES, "call")
    begin = (HERMES.prefix + "function")[:length]
    assert [parser.push(character) for character in begin] == [("", [])] * length
    assert parser.flush() == ""
