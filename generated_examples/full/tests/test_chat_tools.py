"""Tool calls through the official client, from a model that knows nothing: the grammar decides."""

import json
from typing import Any

import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from .tiny_chat import SPECIAL

QUESTION: Any = [{"role": "user", "content": "What is the weather like?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "maxLength": 8},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["place", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["utc", "cet"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
CALL_TOKEN = str(SPECIAL.index("<tool_call>"))


@pytest.fixture(scope="module")
def api(client: TestClient) -> OpenAI:
    return OpenAI(
        base_url="http://testserver/v1",
        api_key="unused",
        http_client=client,
        max_retries=0,
        _strict_response_validation=True,
    )


def ask(api: OpenAI, **params: Any) -> Any:
    defaults = {
        "model": "tiny-chat",
        "messages": QUESTION,
        "tools": [WEATHER, TIME],
        "max_tokens": 300,
        "temperature": 1,
        "seed": 1,
    }
    return api.chat.completions.create(**defaults | params)


def check(call: Any) -> str:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert set(arguments) == {"place", "unit"}
        assert arguments["unit"] in ("celsius", "fahrenheit")
    else:
        assert call.function.name == "get_time"
        assert arguments["zone"] in ("utc", "cet")
    assert len(call.id) == 9
    return str(call.function.name)


@pytest.mark.parametrize("seed", range(5))
def test_required_calls_are_legal(api: OpenAI, seed: int) -> None:
    choice = ask(api, tool_choice="required", seed=seed).choices[0]
    calls = choice.message.tool_calls
    assert calls
    if choice.finish_reason == "length":  # this model does not know when to stop
        calls.pop()
    else:
        assert choice.finish_reason == "tool_calls"
    assert len({call.id for call in calls}) == len(calls)
    assert all(check(call) for call in calls)
    assert choice.message.content is None


@pytest.mark.parametrize("seed", range(3))
def test_a_named_tool_is_called_once(api: OpenAI, seed: int) -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    choice = ask(api, tool_choice=named, seed=seed).choices[0]
    assert [check(call) for call in choice.message.tool_calls] == ["get_time"]
    assert choice.finish_reason == "tool_calls"


def test_one_call_where_parallel_ones_are_not_wanted(api: OpenAI) -> None:
    for seed in range(4):
        answer = ask(api, tool_choice="required", parallel_tool_calls=False, seed=seed)
        assert len(answer.choices[0].message.tool_calls) == 1


def test_auto_lets_the_model_talk_and_holds_it_to_its_calls(api: OpenAI) -> None:
    talks = ask(api, max_tokens=20, logit_bias={CALL_TOKEN: -100}).choices[0].message
    assert talks.content
    assert talks.tool_calls is None
    calls = ask(api, logit_bias={CALL_TOKEN: 100}, parallel_tool_calls=False).choices[0]
    assert [check(call) for call in calls.message.tool_calls]
    assert calls.finish_reason == "tool_calls"


def test_none_means_none(api: OpenAI) -> None:
    answer = ask(api, tool_choice="none", max_tokens=10)
    plain = ask(api, tools=openai.omit, max_tokens=10)
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content == plain.choices[0].message.content


def test_the_conversation_goes_on_with_the_results(api: OpenAI) -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
        {"id": "2", "type": "function", "function": {"name": "get_time", "arguments": '{"a": 1}'}},
    ]
    messages = [
        *QUESTION,
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "one"}]},
    ]
    answer = ask(api, messages=messages, max_tokens=5)
    assert answer.usage.prompt_tokens > ask(api, max_tokens=5).usage.prompt_tokens + 50


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TIME] * 129}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]},
            "tools",
        ),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "1",
                                "type": "function",
                                "function": {"name": "f", "arguments": "["},
                            }
                        ],
                    }
                ]
            },
            "messages[0].tool_calls[0].function",
        ),
    ],
)
def test_what_cannot_be_is_a_400_that_names_the_field(
    api: OpenAI, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, **change)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"] == param


def test_an_answer_in_json(api: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"enum": [1, 2]}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wanted: Any = {
        "type": "json_schema",
        "json_schema": {"name": "person", "schema": schema, "strict": True},
    }
    answers = ask(api, tools=openai.omit, response_format=wanted, n=4)
    for choice in answers.choices:
        assert choice.finish_reason == "stop"
        person = json.loads(choice.message.content)
        assert len(person["name"]) <= 6
        assert person["age"] in (1, 2)


def test_a_schema_that_cannot_be_kept_to_is_a_400(api: OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, tools=openai.omit, response_format=wanted)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"] == "response_format"


def test_streamed_calls_are_the_same_as_whole_ones(api: OpenAI) -> None:
    params = {"tool_choice": "required", "parallel_tool_calls": False, "seed": 3, "n": 2}
    whole = ask(api, **params).choices
    pieces: list[Any] = [{}, {}]
    reasons: list[Any] = [None, None]
    deltas = 0
    for chunk in ask(api, **params, stream=True):
        for choice in chunk.choices:
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            for delta in choice.delta.tool_calls or []:
                deltas += 1
                call = pieces[choice.index].setdefault(delta.index, {"arguments": ""})
                if delta.function.name:
                    call["name"] = delta.function.name
                call["arguments"] += delta.function.arguments
    assert deltas > 6
    assert reasons == ["tool_calls", "tool_calls"]
    for choice, calls in zip(whole, pieces, strict=True):
        function = choice.message.tool_calls[0].function
        assert calls == {0: {"name": function.name, "arguments": function.arguments}}
