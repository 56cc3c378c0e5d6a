"""The formats of tool calls: each is recognised, read while it streams, and forced."""

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from chat_server.serving.chat.prompt import ChatPrompt, PromptEncoder
from chat_server.serving.chat.tool_arguments import (
    ArgumentStyle,
    BracedArguments,
    KeywordArguments,
)
from chat_server.serving.models.model_errors import InvalidInput

from ...tiny_chat import TEMPLATE, build_chat_model, build_tokenizer
from .scripted import ask, script

CALLS = TEMPLATE[TEMPLATE.index("{%- for call") : TEMPLATE.index("{{- '<|end|>' }}")]
NAME, ARGUMENTS = "call['function']['name']", "call['function']['arguments']"


def writing(calls: str, before: str = "") -> str:
    """A template that writes calls in this way."""
    head = "{%- if add_generation_prompt %}{{ '<|assistant|>' }}"
    template = TEMPLATE.replace(CALLS, before + "{%- for call in message['tool_calls'] %}" + calls)
    assert head in template
    return template


def each_argument(text: str) -> str:
    value = "(value if value is string else value | tojson)"
    return (
        f"{{%- for key, value in {ARGUMENTS}.items() %}}{{{{- {text.replace('VALUE', value)} }}}}"
        "{%- endfor %}"
    )


XML = writing(
    "{{- '<tool_call>\\n<function=' + "
    + NAME
    + " + '>\\n' }}"
    + each_argument("'<parameter=' + key + '>\\n' + VALUE + '\\n</parameter>\\n'")
    + "{{- '</function>\\n</tool_call>' }}{%- endfor %}"
)
GLM = writing(
    "{{- '\\n' }}{{- '<tool_call>' + "
    + NAME
    + " + '\\n' }}"
    + each_argument("'<arg_key>' + key + '</arg_key>\\n<arg_value>' + VALUE + '</arg_value>\\n'")
    + "{{- '</tool_call>' }}{%- endfor %}"
)
TIGHT_GLM = writing(
    "{{- '<tool_call>' + "
    + NAME
    + " }}"
    + each_argument("'<arg_key>' + key + '</arg_key><arg_value>' + VALUE + '</arg_value>'")
    + "{{- '</tool_call>' }}{%- endfor %}"
)
PYTHONIC = writing(
    "{{- '<|tool_call_start|>[' if loop.first else ', ' }}{{- "
    + NAME
    + " + '(' }}"
    + each_argument("(', ' if not loop.first else '') + key + '=' + \"'\" + VALUE + \"'\"")
    + "{{- ')' }}{{- ']<|tool_call_end|>' if loop.last }}{%- endfor %}"
)
GEMMA = writing(
    "{{- '<|tool_call>call:' + "
    + NAME
    + " + '{' }}"
    + each_argument("(',' if not loop.first else '') + key + ':<|\"|>' + VALUE + '<|\"|>'")
    + "{{- '}<tool_call|>' }}{%- endfor %}"
)
MISTRAL = writing(
    "{{- '[TOOL_CALLS] [' if loop.first else ', ' }}{{- '{\"name\": \"' + "
    + NAME
    + ' + \'", "arguments": \' + '
    + ARGUMENTS
    + " | tojson + ', \"id\": \"' + call['id'] + '\"}' }}"
    "{{- ']' if loop.last }}{%- endfor %}"
)
MISTRAL_11 = writing(
    "{{- '[TOOL_CALLS]' + " + NAME + " + '[ARGS]' + " + ARGUMENTS + " | tojson }}{%- endfor %}"
)
DEEPSEEK = writing(
    "{{- '<|calls|>' if loop.first }}{{- '<|call|>' + "
    + NAME
    + " + '<|sep|>' + "
    + ARGUMENTS
    + " + '<|call_end|>' }}{{- '<|calls_end|>' if loop.last }}{%- endfor %}"
)
THINKING = writing(
    CALLS.partition("%}")[2].replace("{%- endfor %}", "") + "{%- endfor %}",
    "{{- '<think>\\n\\n</think>\\n\\n' if message['role'] == 'assistant' }}",
)
COMMAND = writing(
    "{{- '<|START_ACTION|>[' if loop.first else ',' }}{{- '{\"tool_call_id\": \"' + loop.index0|string"
    ' + \'", "tool_name": "\' + '
    + NAME
    + ' + \'", "parameters": \' + '
    + ARGUMENTS
    + " | tojson + '}' }}"
    "{{- ']<|END_ACTION|>' if loop.last }}{%- endfor %}"
)
LLAMA = writing(
    '{{- \'{"name": "\' + '
    + NAME
    + ' + \'", "parameters": \' + '
    + ARGUMENTS
    + " | tojson + '}' }}{%- endfor %}"
)
SHORT_IDS = TEMPLATE.replace(
    "{%- for call",
    "{%- for id in [message['tool_call_id']] + message['tool_calls'] | default([]) | map(attribute='id') | list %}"
    "{%- if id and id | length != 9 %}{{ raise_exception('nine letters or digits') }}{% endif %}"
    "{%- if id %}{{ 'id=' + id + ';' }}{% endif %}{%- endfor %}"
    "{%- for call",
)
GRANITE = "{# <|tool_call|> followed by a JSON list of tools #}" + writing("{%- endfor %}")
HARMONY = """\
{%- if tools %}<|start|>developer<|message|>namespace functions {{ tools | tojson }}<|end|>{% endif %}
{%- for message in messages %}
{{- '<|start|>' + message['role'] }}
{%- if message['role'] == 'assistant' %}<|channel|>final{% endif %}
{{- '<|message|>' + message['content'] + '<|return|>' }}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}{# analysis commentary #}"""

MARKS = {
    "xml": (XML, [], False),
    "glm": (GLM, ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"], False),
    "tight glm": (TIGHT_GLM, ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"], False),
    "pythonic": (PYTHONIC, ["<|tool_call_start|>", "<|tool_call_end|>"], True),
    "gemma": (GEMMA, ["<|tool_call>", "<tool_call|>", '<|"|>'], True),
    "mistral": (MISTRAL, ["[TOOL_CALLS]"], True),
    "mistral 11": (MISTRAL_11, ["[TOOL_CALLS]", "[ARGS]"], True),
    "deepseek": (
        DEEPSEEK,
        ["<|calls|>", "<|call|>", "<|sep|>", "<|call_end|>", "<|calls_end|>"],
        True,
    ),
    "thinking": (THINKING, ["<think>", "</think>"], False),
    "command": (COMMAND, ["<|START_ACTION|>", "<|END_ACTION|>"], True),
    "llama": (LLAMA, [], True),
    "granite": (GRANITE, ["<|tool_call|>"], True),
    "harmony": (
        HARMONY,
        ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|return|>", "<|call|>"],
        True,
    ),
}


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    template, marks, special = MARKS[name]
    tokenizer = build_tokenizer(template, marks, special=special)
    if name == "harmony":
        tokenizer.eos_token = "<|call|>"
    return tokenizer


@pytest.fixture(scope="module")
def service(
    make_client: Callable[..., TestClient], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], tuple[TestClient, PreTrainedTokenizerFast]]]:
    """Makes a service for a format, once for all tests."""
    made: dict[str, tuple[TestClient, PreTrainedTokenizerFast]] = {}

    def make(name: str) -> tuple[TestClient, PreTrainedTokenizerFast]:
        if name not in made:
            tokenizer = tokenizer_of(name)
            folder: Path = tmp_path_factory.mktemp("formats") / "tiny-chat"
            client = make_client(chat_model=str(build_chat_model(folder, tokenizer)))
            made[name] = client.__enter__(), tokenizer
        return made[name]

    yield make
    for client, _ in made.values():
        client.__exit__(None, None, None)


PROPERTIES: dict[str, Any] = {
    "city": {"type": "string", "maxLength": 12},
    "days": {"type": "integer", "maximum": 9, "minimum": 0},
    "unit": {"enum": ["celsius", "kelvin"]},
    "exact": {"type": "boolean"},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": PROPERTIES,
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "parameters": {"type": "object", "properties": {},
                                                   "additionalProperties": False}},
    },
]  # fmt: skip
ULM = {"city": 'Ulm "a"', "days": 3, "unit": "kelvin"}
JSON = json.dumps(ULM)
CITY = 'Ulm "a"'

WRITTEN = {
    "xml": "<tool_call>\n<function=get_weather>\n<parameter=city>\n" + CITY + "\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n<parameter=unit>\nkelvin\n</parameter>\n</function>\n"
    "</tool_call>",
    "glm": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>" + CITY + "</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n<arg_key>unit</arg_key>\n"
    "<arg_value>kelvin</arg_value>\n</tool_call>",
    "tight glm": "<tool_call>get_weather<arg_key>city</arg_key><arg_value>" + CITY
    + "</arg_value><arg_key>days</arg_key><arg_value>3</arg_value><arg_key>unit</arg_key>"
    "<arg_value>kelvin</arg_value></tool_call>",
    "pythonic": "<|tool_call_start|>[get_weather(city='" + CITY + "', days=3, unit='kelvin')]"
    "<|tool_call_end|>",
    "gemma": '<|tool_call>call:get_weather{city:<|"|>' + CITY
    + '<|"|>,days:3,unit:<|"|>kelvin<|"|>}<tool_call|>',
    "mistral": '[TOOL_CALLS] [{"name": "get_weather", "arguments": ' + JSON + "}]",
    "mistral 11": "[TOOL_CALLS]get_weather[ARGS]" + JSON,
    "deepseek": "<|calls|><|call|>get_weather<|sep|>" + JSON + "<|call_end|><|calls_end|>",
    "thinking": '<tool_call>\n{"name": "get_weather", "arguments": ' + JSON + "}\n</tool_call>",
    "command": '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "get_weather", "parameters": '
    + JSON + "}]<|END_ACTION|>",
    "llama": '{"name": "get_weather", "parameters": ' + JSON + "}",
    "granite": '<|tool_call|>[{"name": "get_weather", "arguments": ' + JSON + "}]",
    "harmony": "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>" + JSON,
}  # fmt: skip
NOW = {
    "xml": "<tool_call>\n<function=now>\n</function>\n</tool_call>",
    "tight glm": "<tool_call>now</tool_call>",
    "pythonic": "<|tool_call_start|>[now()]<|tool_call_end|>",
    "gemma": "<|tool_call>call:now{}<tool_call|>",
}
BETWEEN = {
    "pythonic": ("]<|tool_call_end|><|tool_call_start|>[", ", "),
    "mistral": ("][TOOL_CALLS] [", ", "),
}


def calls_of(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    calls = [call["function"] for call in choice["message"].get("tool_calls", [])]
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_call_that_the_model_writes(
    service: Any, monkeypatch: pytest.MonkeyPatch, name: str, choice: str
) -> None:
    client, tokenizer = service(name)
    tokens = script(monkeypatch, tokenizer, WRITTEN[name])
    answer = ask(client, tools=TOOLS, tool_choice=choice)
    assert answer["usage"]["completion_tokens"] == len(tokens) + 1, "as the model wanted it"
    assert calls_of(answer) == [("get_weather", ULM)]
    assert answer["finish_reason"] == "tool_calls"
    assert not answer["message"]["content"] if "content" in answer["message"] else True


OPTIONAL: dict[str, Any] = {
    "a": {"type": ["string", "null"]},
    "b": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "c": {"type": "boolean"},
    "d": {"type": ["integer", "null"]},
    "e": {"type": "array", "items": {"type": "string"}},
    "f": {"$ref": "#/$defs/text"},
    "g": {"type": ["string", "null"], "enum": ["x", None]},
}
VALUES = [
    ({"a": "null", "b": "word", "c": "True", "d": "None"}, [None, "word", True, None]),
    ({"a": "5", "b": "None", "c": "false", "d": "7"}, ["5", None, False, 7]),
    ({"e": '["x"]', "f": '"f"', "g": "null"}, [["x"], '"f"', None]),
]


@pytest.mark.parametrize("name", ["xml", "glm"])
@pytest.mark.parametrize(("written", "values"), VALUES)
def test_values_in_tags_have_the_types_of_the_schema(
    service: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    written: dict[str, str],
    values: list[Any],
) -> None:
    client, tokenizer = service(name)
    parts = {
        "xml": (
            "<tool_call>\n<function=f>\n",
            "<parameter={}>\n{}\n</parameter>\n",
            "</function>\n",
        ),
        "glm": ("<tool_call>f\n", "<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>\n", ""),
    }
    begin, each, end = parts[name]
    text = begin + "".join(each.format(*item) for item in written.items()) + end + "</tool_call>"
    tokens = script(monkeypatch, tokenizer, text)
    schema = {"type": "object", "properties": OPTIONAL, "$defs": {"text": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    answer = ask(client, tools=[tool])
    assert answer["usage"]["completion_tokens"] == len(tokens) + 1
    assert calls_of(answer) == [("f", dict(zip(written, values, strict=True)))]


@pytest.mark.parametrize("name", ["xml", "pythonic", "gemma"])
@pytest.mark.parametrize(
    "value",
    [
        {"type": "string", "pattern": "^a"},
        {"type": "object", "minProperties": 1},
        {"type": "string", "maxLength": "x"},
    ],
)
def test_a_strict_schema_that_a_format_cannot_keep_to_is_a_400(
    service: Any, name: str, value: dict[str, Any]
) -> None:
    client, _ = service(name)
    schema = {"type": "object", "properties": {"a": value}, "required": ["a"]}
    if value["type"] == "object" and name == "xml":
        schema["minProperties"] = 2
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "q"}], "tools": [tool]}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "tools[0].function.parameters"


@pytest.mark.parametrize("name", NOW)
def test_a_call_without_arguments(service: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    client, tokenizer = service(name)
    script(monkeypatch, tokenizer, NOW[name])
    assert calls_of(ask(client, tools=TOOLS)) == [("now", {})]


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in ("llama", "harmony")])
def test_text_before_a_call(service: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    client, tokenizer = service(name)
    script(monkeypatch, tokenizer, "I look. " + WRITTEN[name])
    answer = ask(client, tools=TOOLS)
    assert calls_of(answer) == [("get_weather", ULM)]
    assert answer["message"]["content"].rstrip() == "I look."


@pytest.mark.parametrize("name", WRITTEN)
def test_text_without_a_call(service: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    client, tokenizer = service(name)
    head = "<|channel|>final<|message|>" if name == "harmony" else ""
    script(monkeypatch, tokenizer, head + 'Here is JSON: {"name": "Bob", "age": 3}')
    answer = ask(client, tools=TOOLS)
    assert answer["message"]["content"] == 'Here is JSON: {"name": "Bob", "age": 3}'
    assert answer["finish_reason"] == "stop"
    assert "tool_calls" not in answer["message"]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_call_is_forced_whatever_the_model_wants(service: Any, name: str) -> None:
    client, _ = service(name)
    one = {"type": "function", "function": {"name": "get_weather"}}

    def ask_for(choice: Any, seed: int) -> dict[str, Any]:
        return ask(
            client,
            tools=TOOLS,
            tool_choice=choice,
            parallel_tool_calls=False,
            temperature=1,
            seed=seed,
            max_tokens=300,
        )

    # In one batch: hundreds of tokens each.
    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(ask_for, ["required", one, "required", one], [0, 0, 1, 1]))
    for answer in answers:
        if answer["finish_reason"] == "length":
            continue
        ((called, arguments),) = calls_of(answer)
        if called == "get_weather":
            assert {"city", "unit"} <= set(arguments) <= set(PROPERTIES)
            assert isinstance(arguments["city"], str)
            assert arguments["unit"] in ("celsius", "kelvin")
            assert arguments.get("days", 0) in range(10)
        else:
            assert (called, arguments) == ("now", {})


@pytest.mark.parametrize("text", ['{"name": "Bob"}', '{"na', "{", '{"x": 1}', "\n{ }"])
def test_json_that_is_no_call(service: Any, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    client, tokenizer = service("llama")
    script(monkeypatch, tokenizer, f"So {text}")
    assert ask(client, tools=TOOLS)["message"]["content"] == f"So {text}"
    if "Bob" not in text:
        script(monkeypatch, tokenizer, text)
        assert ask(client, tools=TOOLS)["message"]["content"] == text


def test_a_call_after_a_thought(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, tokenizer = service("thinking")
    for choice in ("auto", "required"):
        script(
            monkeypatch, tokenizer, "<think>\nA <tool_call>?\n</think>\n\n" + WRITTEN["thinking"]
        )
        answer = ask(client, tools=TOOLS, tool_choice=choice)
        assert calls_of(answer) == [("get_weather", ULM)]
        assert answer["message"]["reasoning_content"] == "A <tool_call>?"
        assert not answer["message"].get("content")


def test_a_call_after_an_analysis(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, tokenizer = service("harmony")
    thought = "<|channel|>analysis<|message|>I see.<|end|><|start|>assistant"
    note = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
    for before, content in ((thought, ""), (thought + note, "I look.")):
        script(monkeypatch, tokenizer, before + WRITTEN["harmony"])
        answer = ask(client, tools=TOOLS)
        assert calls_of(answer) == [("get_weather", ULM)]
        assert answer["message"]["reasoning_content"] == "I see."
        assert answer["message"].get("content", "") == content


@pytest.mark.parametrize("name", ["xml", "glm", "mistral 11", "gemma", "harmony"])
@pytest.mark.parametrize("max_tokens", [1, 3, 12, 25])
def test_a_required_call_that_is_cut_off_is_no_answer(
    service: Any, monkeypatch: pytest.MonkeyPatch, name: str, max_tokens: int
) -> None:
    client, tokenizer = service(name)
    script(monkeypatch, tokenizer, WRITTEN[name])
    answer = ask(client, tools=TOOLS, tool_choice="required", max_tokens=max_tokens, stop=["Ulm"])
    assert answer["finish_reason"] == "length"
    assert not answer["message"].get("content")


@pytest.mark.parametrize("name", ["xml", "thinking", "llama", "harmony"])
def test_no_end_makes_an_answer_of_a_required_call(
    service: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    client, tokenizer = service(name)
    tokens = script(monkeypatch, tokenizer, WRITTEN[name])
    end = tokenizer.eos_token_id
    for place in (0, len(tokens) // 2, len(tokens) - 1):
        ends = {"stop_token_ids": [tokens[place]], "logit_bias": {str(end): 100}, "n": 2}
        body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "q"}], **ends}
        body |= {"tools": TOOLS, "tool_choice": "required", "temperature": 0, "max_tokens": 200}
        choices = client.post("/v1/chat/completions", json=body).json()["choices"]
        assert len(choices) == 2
        for choice in choices:
            is_whole = choice["finish_reason"] == "tool_calls"
            assert is_whole or choice["finish_reason"] == "length"
            assert not choice["message"].get("content")
            assert not is_whole or calls_of(choice)


def test_special_tokens_of_calls_are_not_shown(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, tokenizer = service("mistral 11")
    script(monkeypatch, tokenizer, "a [ARGS] b")
    assert ask(client, tools=TOOLS)["message"]["content"] == "a  b"
    assert ask(client)["message"]["content"] == "a  b"


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (KeywordArguments(), r"""a='it\'s ) <|"|> \\', b=[1, {'c': (2, ")")}]), more='x')"""),
        (BracedArguments(), """a:<|"|>it's } \\<|"|>,b:[1,{c:2}]}more:1}"""),
    ],
    ids=["keywords", "braces"],
)
def test_arguments_that_come_character_by_character(style: ArgumentStyle, text: str) -> None:
    whole = style.reader({}).read(text)
    assert whole.complete and 20 < whole.length < len(text)
    reader = style.reader({})
    for length in range(whole.length + 1):
        assert not reader.read(text[:length]).complete
    assert reader.read(text[: whole.length + 1]) == whole


@pytest.mark.parametrize("style", [KeywordArguments(), BracedArguments()])
def test_long_arguments_are_looked_at_once(style: ArgumentStyle) -> None:
    reader, text = style.reader({}), ""
    started = time.process_time()
    for _ in range(20_000):
        text += "([,"
        assert not reader.read(text).complete
    assert time.process_time() - started < 2


def test_history_in_the_forms_that_templates_want() -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": {"a": 1}}}
    history = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "", "tool_calls": [call | {"id": "call_0123456789"}]},
        {"role": "tool", "tool_call_id": "call_0123456789", "content": "noon"},
        {"role": "assistant", "content": "", "tool_calls": [call | {"id": "aB3456789"}]},
    ]
    texts = tokenizer_of("deepseek")
    prompt = str(texts.decode(PromptEncoder(texts, 500).encode(ChatPrompt(history))))
    assert prompt.count('<|call|>now<|sep|>{"a": 1}<|call_end|>') == 2
    short = build_tokenizer(SHORT_IDS)
    prompt = str(short.decode(PromptEncoder(short, 500).encode(ChatPrompt(history))))
    ids = re.findall("id=([a-zA-Z0-9]{9});", prompt)
    assert ids[0] == ids[1] and ids[2] == "aB3456789"


SILENT = """\
{%- for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
TURNS = """\
{%- for message in messages %}
{%- if message['role'] != ['user', 'assistant'][loop.index0 % 2] %}
{{- raise_exception('user and assistant take turns') }}{% endif %}{% endfor %}"""
BY_TURNS = TURNS + SILENT
WEATHER_CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Ulm"}},
}
TIME_CALL = {"id": "2", "type": "function", "function": {"name": "now", "arguments": {}}}
HISTORY = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "I look.", "tool_calls": [WEATHER_CALL, TIME_CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "2", "content": "noon"},
    {"role": "user", "content": "and?"},
]


def prompt_of(template: str, messages: Any, tools: Any = (), *, tool_prompt: bool = True) -> str:
    tokenizer = build_tokenizer(template)
    prompts = PromptEncoder(tokenizer, 1000, tool_prompt=tool_prompt)
    return str(tokenizer.decode(prompts.encode(ChatPrompt(messages, tools))))


@pytest.mark.parametrize("template", [SILENT, BY_TURNS])
def test_tools_calls_and_results_as_text(template: str) -> None:
    prompt = prompt_of(template, HISTORY, TOOLS)
    begin, after = prompt.split("# Tools")
    assert begin == ("<|system|>" if template == SILENT else "<|user|>") + "be kind\n\n"
    assert "\n".join(json.dumps(tool) for tool in TOOLS) in after
    between = "<|end|><|user|>" if template == SILENT else "\n\n"
    assert after.endswith(
        f"</tool_call>{between}hello<|end|><|assistant|>I look.\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|end|>'
        "<|user|><tool_response>\nsunny\n</tool_response>\n"
        "<tool_response>\nnoon\n</tool_response>\nand?<|end|><|assistant|>"
    )
    assert "# Tools" not in prompt_of(template, HISTORY[1:])


def test_a_template_with_tools_describes_them_itself() -> None:
    prompt = prompt_of(TEMPLATE, HISTORY, TOOLS)
    assert prompt == prompt_of(TEMPLATE, HISTORY, TOOLS, tool_prompt=False)
    assert "# Tools" not in prompt


def test_calls_that_the_template_would_leave_out_are_refused() -> None:
    with pytest.raises(InvalidInput, match="leaves out tool calls or their results"):
        prompt_of(SILENT, HISTORY, tool_prompt=False)


def test_calls_that_the_template_leaves_out_are_written_in_the_format_that_it_describes() -> None:
    template = "{# <|tool_call|> JSON list of tools #}{{ tools | tojson }}" + SILENT
    prompt = prompt_of(template, HISTORY, TOOLS, tool_prompt=False)
    assert (
        '<|assistant|>I look.\n<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Ulm"}}'
        ', {"name": "now", "arguments": {}}]<|end|><|tool|>sunny<|end|><|tool|>noon<|end|>'
    ) in prompt


def test_a_template_that_writes_one_call_gets_each_in_a_message_of_its_own() -> None:
    template = TEMPLATE.replace(
        "in message['tool_calls'] %}", "in (message['tool_calls'] | default([]))[:1] %}"
    )
    prompt = prompt_of(template, HISTORY, tool_prompt=False)
    assert (
        '<|assistant|>I look.<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm"}}\n'
        "</tool_call><|end|><|tool|>sunny<|end|><|assistant|><tool_call>\n"
        '{"name": "now", "arguments": {}}\n</tool_call><|end|><|tool|>noon<|end|><|user|>and?'
    ) in prompt


def test_a_service_with_tools_in_the_prompt(
    make_client: Callable[..., TestClient],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = build_tokenizer(BY_TURNS)
    folder = str(build_chat_model(tmp_path / "tiny-chat", tokenizer))
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "q"}], "tools": TOOLS}
    with make_client(chat_model=folder) as client:
        refused = client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 400
        assert "INFER_TOOL_PROMPT=true" in refused.json()["error"]["message"]
    caplog.set_level("INFO")
    with make_client(chat_model=folder, tool_prompt=True) as client:
        named = {"type": "function", "function": {"name": "get_weather"}}
        ((called, arguments),) = calls_of(
            ask(client, tools=TOOLS, tool_choice=named, temperature=1, max_tokens=400, seed=1)
        )
        assert called == "get_weather"
        assert {"city", "unit"} <= arguments.keys() <= PROPERTIES.keys()
        script(monkeypatch, tokenizer, "I look. " + WRITTEN["thinking"])
        answer = ask(client, tools=TOOLS)
        assert calls_of(answer) == [("get_weather", ULM)]
        assert answer["message"]["content"].rstrip() == "I look."
    assert sum("the service writes tools as text" in each.message for each in caplog.records) == 1
