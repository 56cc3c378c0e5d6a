"""POST /v1/responses through the official client, strictly validated."""

import json
import re
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field
from starlette.testclient import TestClient

from chat_server.routers.responses_parts import MessageDraft, OutputDraft
from chat_server.schemas.chat import ChatRequest
from chat_server.schemas.generation import UNSUPPORTED
from chat_server.schemas.responses import LOGPROBS, RESPONSES_UNSUPPORTED, ResponsesRequest
from chat_server.serving.chat.output_parser import Chunk, LogprobEntry, TokenText
from chat_server.serving.chat.prompt import PromptEncoder
from chat_server.serving.chat.tool_calls import ToolCallDelta

from ...tiny_chat import SPECIAL, build_tokenizer

WEATHER: Any = {
    "type": "function",
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
}
TIME: Any = {
    "type": "function",
    "name": "get_time",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"enum": ["utc", "cet"]}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}
IMAGE: Any = [{"type": "input_image", "image_url": "data:,"}]
FILE: Any = [{"type": "input_file", "file_id": "file-1"}]
CALL_TOKEN = str(SPECIAL.index("<tool_call>"))


class Person(BaseModel):
    name: str = Field(max_length=6)
    age: int = Field(ge=1, le=2)


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
    defaults = {"model": "tiny-chat", "input": "hello", "temperature": 0, "max_output_tokens": 8}
    return api.responses.create(**defaults | params)


def call(api: OpenAI, **params: Any) -> Any:
    defaults = {"tools": [WEATHER, TIME], "temperature": 1, "max_output_tokens": 300}
    return ask(api, **defaults | {"extra_body": {"seed": 1}} | params)


def chat(api: OpenAI, messages: Any, **params: Any) -> Any:
    defaults = {"model": "tiny-chat", "messages": messages, "temperature": 0, "max_tokens": 8}
    return api.chat.completions.create(**defaults | params)


def test_answer(api: OpenAI) -> None:
    answer = ask(api)
    assert (answer.object, answer.status) == ("response", "incomplete")
    assert answer.incomplete_details.reason == "max_output_tokens"
    (message,) = answer.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "incomplete")
    said = chat(api, [{"role": "user", "content": "hello"}])
    assert answer.output_text == said.choices[0].message.content
    assert answer.usage.input_tokens == said.usage.prompt_tokens
    assert answer.usage.output_tokens == said.usage.completion_tokens == 8
    assert answer.usage.total_tokens == said.usage.total_tokens


def test_an_answer_that_ends_is_complete(api: OpenAI) -> None:
    answer = ask(api, extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert answer.output_text in ("yes", "no")
    assert (answer.status, answer.output[0].status) == ("completed", "completed")
    assert answer.incomplete_details is None and answer.completed_at >= answer.created_at


def test_what_clients_in_other_languages_read(client: TestClient) -> None:
    """Whole numbers, and null where OpenAI sends null."""
    body = {"model": "tiny-chat", "input": "hello", "max_output_tokens": 1}
    response = client.post("/v1/responses", json=body).json()
    assert type(response["created_at"]) is int
    for name in ("error", "instructions", "previous_response_id", "reasoning"):
        assert response[name] is None
    assert response["output"][0]["content"][0]["annotations"] == []
    assert response["store"] is False


def test_the_response_repeats_the_request(api: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    asked: Any = {
        "instructions": "be brief",
        "metadata": {"run": "7"},
        "user": "someone",
        "top_p": 0.5,
        "tools": [TIME],
        "tool_choice": {"type": "function", "name": "get_time"},
        "parallel_tool_calls": False,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": schema}},
        "reasoning": {"effort": "low"},
        "max_output_tokens": 100,
    }
    answer = ask(api, **asked).to_dict()
    assert answer["tools"][0].items() >= TIME.items()
    answer["tools"] = asked["tools"]
    assert answer.items() >= asked.items()


def messages_of(**fields: Any) -> list[dict[str, Any]]:
    asked = ResponsesRequest.model_validate({"model": "m"} | fields)
    return [dict(message) for message in asked.conversation().messages]


def test_the_items_of_a_turn_are_one_message() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "weather"}]},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"},
        {
            "type": "reasoning",
            "id": "s",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        {
            "type": "message",
            "role": "assistant",
            "id": "m",
            "content": [{"type": "output_text", "text": "I look", "annotations": []}],
        },
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": '{"a'},
        {"type": "function_call_output", "call_id": "1", "output": "rain"},
        {
            "type": "function_call_output",
            "call_id": "2",
            "output": [{"type": "input_text", "text": "broken"}],
        },
        {"type": "function_call", "call_id": "3", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "3", "output": "sun"},
        {"role": "assistant", "content": "Sun."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No more."}]},
        {"role": "developer", "content": "be brief"},
    ]

    def called(id_: str, name: str, arguments: Any) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        return {"id": id_, "type": "function", "function": function}

    assert messages_of(input=items, instructions="be kind") == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "weather"},
        {
            "role": "assistant",
            "reasoning_content": "hm",
            "content": "I look",
            "tool_calls": [called("1", "f", {"a": 1}), called("2", "g", '{"a')],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "1"},
        {"role": "tool", "content": "broken", "tool_call_id": "2"},
        {"role": "assistant", "content": "", "tool_calls": [called("3", "f", {})]},
        {"role": "tool", "content": "sun", "tool_call_id": "3"},
        {"role": "assistant", "content": "Sun."},
        {"role": "assistant", "content": "No more."},
        {"role": "system", "content": "be brief"},
    ]


def test_variables_reach_the_template() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ enable_thinking }} {{ reasoning_effort }}"
    fields: Any = {"input": "hi", "reasoning": {"effort": "low", "summary": "auto"}}
    fields |= {"model": "m", "chat_template_kwargs": {"enable_thinking": False}}
    asked = ResponsesRequest.model_validate(fields)
    prompt = PromptEncoder(tokenizer, 100).encode(asked.conversation())
    assert tokenizer.decode(prompt) == "False low"


def check(item: Any) -> str:
    assert item.type == "function_call" and len(item.call_id) == 9
    arguments = json.loads(item.arguments)
    if item.name == "get_weather":
        assert set(arguments) == {"place", "unit"}
    else:
        assert arguments["zone"] in ("utc", "cet")
    return str(item.name)


@pytest.mark.parametrize("seed", range(3))
def test_required_calls_are_legal(api: OpenAI, seed: int) -> None:
    answer = call(api, tool_choice="required", extra_body={"seed": seed})
    *calls, last = answer.output
    assert {item.status for item in calls} <= {"completed"}
    assert last.status == answer.status
    if last.status == "completed":  # this model does not know when to stop
        calls.append(last)
    assert all(check(item) for item in calls)
    assert len({item.call_id for item in answer.output}) == len(answer.output)
    assert answer.output_text == ""


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "name": "get_time"},
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "get_time"}],
        },
    ],
)
def test_a_named_tool_is_called(api: OpenAI, choice: Any) -> None:
    (item,) = call(api, tool_choice=choice, parallel_tool_calls=False).output
    assert check(item) == "get_time"


def test_auto_lets_the_model_talk_and_holds_it_to_its_calls(api: OpenAI) -> None:
    never = {"logit_bias": {CALL_TOKEN: -100}, "seed": 1}
    talks = call(api, max_output_tokens=20, extra_body=never)
    assert [item.type for item in talks.output] == ["message"] and talks.output_text
    always = {"logit_bias": {CALL_TOKEN: 100}, "seed": 1}
    allowed = {"type": "allowed_tools", "mode": "auto"}
    allowed["tools"] = [{"type": "function", "name": "get_time"}]
    for choice in ("auto", allowed):
        (item,) = call(api, tool_choice=choice, parallel_tool_calls=False, extra_body=always).output
        assert check(item) == "get_time" or choice == "auto"


def test_none_means_none(api: OpenAI) -> None:
    assert call(api, tool_choice="none", max_output_tokens=9).output_text == (
        call(api, tools=openai.omit, max_output_tokens=9).output_text
    )


@pytest.mark.parametrize("max_output_tokens", range(1, 6))
def test_a_required_call_that_is_cut_off_leaks_nothing(api: OpenAI, max_output_tokens: int) -> None:
    answer = call(api, tool_choice="required", max_output_tokens=max_output_tokens)
    assert [item.type for item in answer.output] == ["message"]
    assert answer.output_text == "" and answer.status == "incomplete"


def test_the_conversation_goes_on_with_the_results(api: OpenAI) -> None:
    items: Any = [{"role": "user", "content": "What time is it?"}]
    first = call(api, input=items, tool_choice="required", max_output_tokens=60)
    items += first.output  # the last one cut off, or not
    items += [
        {"type": "function_call_output", "call_id": item.call_id, "output": "noon"}
        for item in first.output
    ]
    second = call(api, input=items, max_output_tokens=5)
    assert second.usage.input_tokens > first.usage.input_tokens + 20


def test_documents(api: OpenAI) -> None:
    params: Any = {"model": "tiny-chat", "input": "hello", "temperature": 1}
    answer = api.responses.parse(**params, text_format=Person, extra_body={"seed": 1})
    assert isinstance(answer.output_parsed, Person)
    some = ask(api, text={"format": {"type": "json_object"}}, max_output_tokens=2)
    assert some.output_text.startswith("{")
    assert ask(api, text={"format": {"type": "text"}}).output_text == ask(api).output_text


def test_a_schema_that_cannot_be_enforced(api: OpenAI) -> None:
    schema = {"properties": {"a": {"type": "array", "uniqueItems": True}}}
    form: Any = {"type": "json_schema", "name": "n", "schema": schema}
    assert ask(api, text={"format": form}).output
    tool = TIME | {"parameters": {"type": "object"} | schema}
    assert ask(api, tools=[tool]).output
    for params, param in (
        ({"text": {"format": form | {"strict": True}}}, "text.format"),
        ({"tools": [WEATHER, tool | {"strict": True}]}, "tools[1].parameters"),
    ):
        with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
            ask(api, **params)
        assert caught.value.param == param


@pytest.mark.parametrize("asked", [{"top_logprobs": 2}, {"include": [LOGPROBS]}])
def test_logprobs_spell_the_answer(api: OpenAI, asked: dict[str, Any]) -> None:
    answer = ask(api, **asked, temperature=1, max_output_tokens=40, extra_body={"seed": 6})
    (part,) = answer.output[0].content
    spelled = bytes(byte for entry in part.logprobs for byte in entry.bytes)
    assert spelled.decode(errors="ignore") == part.text.replace("\ufffd", "")
    assert all(len(entry.top_logprobs) == answer.top_logprobs for entry in part.logprobs)
    assert ask(api).output[0].content[0].logprobs == []


def test_text_after_a_call_is_a_message_with_its_own_logprobs() -> None:
    output = OutputDraft()
    for text, calls in (("a", ()), ("", [ToolCallDelta(0, "{}", "1", "f")]), ("b", ())):
        entry = LogprobEntry(TokenText(text or "{}", None, -1.0), [])
        output.push(Chunk(0, 1, text, tool_calls=calls, logprobs=[entry]))
    first, _, second = output.drafts
    assert isinstance(first, MessageDraft) and isinstance(second, MessageDraft)
    assert [entry.token for entry in first.logprobs] == ["a"]
    assert [entry.token for entry in second.logprobs] == ["b"]


def item(**fields: Any) -> Any:
    return {"input": [{"role": "user", "content": "hello"}, fields]}


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"store": True}, "store", "keeps no state"),
        ({"background": True}, "background", "keeps no state"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation in input"),
        ({"conversation": "conv_1"}, "conversation", "whole conversation in input"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "in instructions"),
        ({"truncation": "auto"}, "truncation", "leave items out"),
        (item(type="item_reference", id="m"), "input[1]", "send the item itself"),
        (item(type="web_search_call", id="w"), "input[1]", "'web_search_call' is not supported"),
        (item(type=["message"]), "input[1]", "is not supported"),
        (item(role="user", content=IMAGE), "input[1].content[0]", "'input_image' is not supported"),
        (item(role="user", content=FILE), "input[1].content[0]", "'input_file' is not supported"),
        (
            item(type="function_call_output", call_id="1", output=IMAGE),
            "input[1].output[0]",
            "'input_image' is not supported",
        ),
        (item(role="wizard", content="hi"), "input[1].role", "'developer'"),
        (item(type="function_call", call_id="1", name="f"), "input[1].arguments", "required"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "reasoning", "id": "r", "summary": []}]}, "input", "no message"),
        ({"input": "word " * 2000}, "input", "maximum context length is 2048 tokens"),
        ({"max_output_tokens": 3000}, "max_output_tokens", "context_length_exceeded"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"max_tokens": 8}, "max_tokens", "use max_output_tokens"),
        ({"max_completion_tokens": 8}, "max_completion_tokens", "use max_output_tokens"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages", "use input"),
        ({"response_format": {"type": "json_object"}}, "response_format", "use text.format"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "use reasoning.effort"),
        ({"logprobs": True}, "logprobs", "use include"),
        ({"n": 2}, "n", "is not supported"),
        ({"top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"include": ["everything"]}, "include[0]", "Input should be"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "'auto'"),
        ({"tools": [WEATHER, {"type": "web_search"}]}, "tools[1]", "'web_search' is not supported"),
        ({"tools": [TIME | {"defer_loading": True}]}, "tools[0].defer_loading", "true"),
        ({"tools": [TIME] * 129}, "tools", "more than 128 entries"),
        ({"tools": [TIME], "tool_choice": {"type": "mcp"}}, "tool_choice", "'mcp' is not"),
        ({"tool_choice": "perhaps"}, "tool_choice", "'required'"),
        ({"tool_choice": "required"}, "tool_choice", "no such tool"),
        (
            {"tools": [TIME], "tool_choice": {"type": "function", "name": "nope"}},
            "tool_choice",
            "no such tool",
        ),
        (
            {
                "tools": [TIME],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [TIME, {"type": "function", "name": "nope"}],
                },
            },
            "tool_choice",
            "no tool 'nope'",
        ),
        ({"tools": [TIME], "ignore_eos": True}, "ignore_eos", "together with tools"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools", "may be set"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "req"),
        (
            {"text": {"format": {"type": "json_object"}}, "guided_regex": "a"},
            "text.format",
            "together with guided_regex",
        ),
    ],
)
def test_bad_requests_say_what_to_do(
    api: OpenAI, change: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(words)) as caught:
        ask(api, extra_body=change)
    assert caught.value.param == param


# What is in the request is in the response, which has to be written.
@pytest.mark.parametrize("value", ['"\\ud800"', "[" * 260 + "]" * 260])
def test_what_cannot_be_repeated_is_a_400(client: TestClient, value: str) -> None:
    for field in (
        '"tools": [{"type": "function", "name": "f", "parameters": {"a": %s}}]',
        '"text": {"format": {"type": "json_schema", "name": "n", "schema": {"a": %s}}}',
        '"metadata": {"a": %s}',
        '"instructions": %s',
    ):
        body = '{"model": "tiny-chat", "input": "hi", "tool_choice": "none", ' + field % value + "}"
        headers = {"content-type": "application/json"}
        response = client.post("/v1/responses", content=body, headers=headers)
        assert response.status_code == 400


REFUSED = sorted(ResponsesRequest.unsupported)
NOTHING = {name: next(iter(values), None) for name, values in ResponsesRequest.unsupported.items()}


def test_no_field_of_chat_is_left_aside() -> None:
    assert ChatRequest.model_fields.keys() <= {*ResponsesRequest.model_fields, *REFUSED}
    assert {*UNSUPPORTED, *RESPONSES_UNSUPPORTED} == {*REFUSED}


def test_fields_that_ask_for_nothing_change_nothing(
    api: OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    nothing: dict[str, Any] = {name: "x" for name in ResponsesRequest.hints} | NOTHING
    nothing |= {"include": ["reasoning.encrypted_content"], "reasoning": {"summary": "auto"}}
    nothing |= {"stream_options": {"include_obfuscation": True}, "text": {"verbosity": "low"}}
    assert ask(api, extra_body=nothing).output_text == ask(api).output_text
    assert "ignored" not in caplog.text


@pytest.mark.parametrize("name", REFUSED)
def test_fields_that_ask_for_what_is_not_there_are_refused(api: OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, extra_body={name: ["something"]})
    assert caught.value.param == name


def test_sampling(api: OpenAI) -> None:
    def text(**fields: Any) -> str:
        return str(ask(api, max_output_tokens=12, extra_body=fields).output_text)

    hot: dict[str, Any] = {"temperature": 2, "seed": 7}
    assert text(**hot) == text(**hot) != text(**hot | {"seed": 8})
    for narrow in ({"top_k": 1}, {"top_p": 0}, {"min_p": 1}):
        assert text(**hot | narrow) == text()
    stop = text()[3:5]
    assert text(stop=[stop]) == text()[: text().index(stop)]
