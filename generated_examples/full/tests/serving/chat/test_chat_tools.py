"""Tool calls through the official client, from a model that knows nothing: the grammar decides."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from full_server.serving.engine.base_engine import TokenBatch, TokenStream

from ...tiny_chat import SPECIAL, build_tokenizer

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


def tool_with(parameters: Any, **fields: Any) -> Any:
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **fields}}


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


def test_an_answer_that_was_cut_off_goes_back(api: OpenAI) -> None:
    cut = ask(api, tool_choice="required", max_tokens=40, seed=2).choices[0].message
    with pytest.raises(ValueError):
        json.loads(cut.tool_calls[-1].function.arguments)
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "Error: invalid JSON"}
        for call in cut.tool_calls
    ]
    again = ask(api, messages=[*QUESTION, cut.model_dump(), *results], max_tokens=1)
    assert again.choices


@pytest.mark.parametrize(
    "arguments",
    ['{"', '{"place": "Ul', "null", "[1, 2]", "7", '"text"', "true", "", " ", "NaN", "{]", "[" * 1200,
     None, {"place": "Ulm"}],
)  # fmt: skip
def test_any_arguments_of_earlier_calls_are_taken(api: OpenAI, arguments: Any) -> None:
    call = {"id": None, "type": None, "function": {"name": "f", "arguments": arguments}}
    history = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": None, "content": None},
        *QUESTION,
    ]
    assert ask(api, messages=history[:1] + history, max_tokens=1, tools=openai.omit).choices


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TIME] * 129}, "tools"),
        ({"tools": [TIME, tool_with({"type": "array"})]}, "tools[1].function.parameters"),
        ({"tools": [TIME, tool_with({"not": {}}, strict=True)]}, "tools[1].function.parameters"),
        ({"tools": [tool_with({"enum": 1}), TIME]}, "tools[0].function.parameters"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": 5}}},
            "response_format.json_schema.name",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 5}}]}]},
            "messages[0].tool_calls[0].function.name",
        ),
    ],
)
def test_what_cannot_be_is_a_400_that_names_the_field(
    api: OpenAI, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, extra_body=change)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"] == param


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        (
            {"properties": {"a": {"type": "object", "propertyNames": {"maxLength": 3}}}},
            "propertyNames",
        ),
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
        ({"properties": {"a": {"type": "string", "format": "uint64"}}}, "format"),
        ({"properties": {"a": {"type": "string", "pattern": "^(?!x)"}}}, "pattern"),
        ({"if": {}, "then": {}}, "if"),
        ({"$dynamicRef": "#x"}, "$dynamicRef"),
    ],
)
def test_a_schema_that_cannot_be_enforced(api: OpenAI, schema: Any, keyword: str) -> None:
    """With `strict` it is refused with its place, else it is kept as far as it can."""
    for strict in (False, None):
        tools = [TIME, tool_with(schema, strict=strict)]
        call = ask(api, tools=tools, tool_choice="required", max_tokens=3)
        assert call.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, tools=[TIME, tool_with(schema, strict=True)])
    assert isinstance(caught.value.body, dict)
    message = caught.value.body["message"]
    assert message.startswith("tools[1].function.parameters: of the tool 'f': ")
    assert f'"{keyword}"' in message

    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    assert ask(api, tools=openai.omit, response_format=form, max_tokens=3).choices
    form["json_schema"]["strict"] = True
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, tools=openai.omit, response_format=form)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"] == "response_format"
    assert f'"{keyword}"' in caught.value.body["message"]


@pytest.mark.parametrize("parameters", [{}, None, ...])
def test_a_tool_without_parameters_takes_none(api: OpenAI, parameters: Any) -> None:
    tool = tool_with(parameters)
    if parameters is ...:
        del tool["function"]["parameters"]
    for seed in range(3):
        answer = ask(
            api, tools=[tool], tool_choice="required", parallel_tool_calls=False, seed=seed
        )
        assert answer.choices[0].message.tool_calls[0].function.arguments == "{}"


DOCUMENT: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "schema": {
            "type": "object",
            "properties": {"verdict": {"enum": ["<tool_call>", "no"]}},
            "required": ["verdict"],
            "additionalProperties": False,
        },
    },
}


def test_tools_beside_a_form_of_the_answer(api: OpenAI) -> None:
    """A call or a document, as the model likes; a document alone or a call alone on demand."""
    brace, opening = ask_tokens("{"), CALL_TOKEN
    for parallel in (True, False):
        params: Any = {"response_format": DOCUMENT, "parallel_tool_calls": parallel}
        said = ask(api, **params, logit_bias={brace: 100}).choices[0]
        assert json.loads(said.message.content)["verdict"] in ("<tool_call>", "no")
        assert said.message.tool_calls is None and said.finish_reason == "stop"
        called = ask(api, **params, logit_bias={opening: 100}, max_tokens=400).choices[0].message
        assert called.content is None and check(called.tool_calls[0])
    said = ask(api, response_format=DOCUMENT, tool_choice="none").choices[0].message
    assert json.loads(said.content) and said.tool_calls is None
    for seed in range(3):
        must: Any = {"tool_choice": "required", "parallel_tool_calls": False, "seed": seed}
        called = ask(api, response_format={"type": "json_object"}, **must).choices[0].message
        assert called.content is None and check(called.tool_calls[0])


@pytest.mark.parametrize("max_tokens", [1, 3, 9])
def test_a_call_beside_a_form_that_is_cut_off_leaks_nothing(api: OpenAI, max_tokens: int) -> None:
    params: Any = {"response_format": DOCUMENT, "logit_bias": {CALL_TOKEN: 100}}
    message = ask(api, **params, max_tokens=max_tokens).choices[0].message
    assert not message.content and message.tool_calls is None


def ask_tokens(text: str) -> str:
    (token,) = build_tokenizer().encode(text, add_special_tokens=False)
    return str(token)


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
    wanted["json_schema"]["strict"] = True
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, tools=openai.omit, response_format=wanted)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"] == "response_format"


@pytest.mark.parametrize("max_tokens", range(1, 6))
def test_a_required_call_that_is_cut_off_leaks_nothing(api: OpenAI, max_tokens: int) -> None:
    choice = ask(api, tool_choice="required", max_tokens=max_tokens).choices[0]
    assert not choice.message.content
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "length"


@pytest.mark.parametrize("token", ["{", "<tool_call>"])
def test_a_streamed_call_or_document_is_the_same_as_a_whole_one(api: OpenAI, token: str) -> None:
    bias = {ask_tokens(token): 100}
    params: Any = {"response_format": DOCUMENT, "logit_bias": bias, "parallel_tool_calls": False}
    message = ask(api, **params).choices[0].message
    deltas = [chunk.choices[0].delta for chunk in ask(api, **params, stream=True)]
    assert "".join(delta.content or "" for delta in deltas) == (message.content or "")
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    arguments = [call.function.arguments for call in message.tool_calls or []]
    assert "".join(call.function.arguments for call in calls) == "".join(arguments)


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


def slow_loop(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Lets a reader see the tokens in steps of so many, as it does on a busy event loop."""
    arrivals = TokenStream.__aiter__

    async def in_steps(stream: TokenStream) -> AsyncIterator[TokenBatch]:
        held: dict[int, list[int]] = {}
        async for index, new, finished in arrivals(stream):
            waiting = held.setdefault(index, [])
            waiting += new
            while len(waiting) >= tokens or finished:
                step, waiting[:] = waiting[:tokens], waiting[tokens:]
                ended = finished and not waiting
                yield TokenBatch(index, step, ended)
                if ended:
                    break

    monkeypatch.setattr(TokenStream, "__aiter__", in_steps)


@pytest.mark.parametrize("tokens", [1, 3, 40, 1000])
@pytest.mark.parametrize("parallel", [False, True])
def test_an_event_says_one_thing_however_many_tokens_arrive(
    api: OpenAI, monkeypatch: pytest.MonkeyPatch, tokens: int, parallel: bool
) -> None:
    slow_loop(monkeypatch, tokens)
    params = {"tool_choice": "required", "parallel_tool_calls": parallel, "n": 3, "max_tokens": 200}
    whole = ask(api, **params).choices
    calls: list[dict[int, Any]] = [{}, {}, {}]
    for chunk in ask(api, **params, stream=True):
        for choice in chunk.choices:
            deltas = choice.delta.tool_calls or []
            assert len(deltas) + bool(choice.delta.content) <= 1
            for delta in deltas:
                if delta.id:  # the first of its call, and no other has a name
                    assert delta.index == len(calls[choice.index])
                    calls[choice.index][delta.index] = [delta.function.name, ""]
                calls[choice.index][delta.index][1] += delta.function.arguments
    for answer, streamed in zip(whole, calls, strict=True):
        functions = [call.function for call in answer.message.tool_calls]
        assert [[each.name, each.arguments] for each in functions] == list(streamed.values())
