"""A service through OpenAI's own client: prints each step that it did, and fails on anything odd.

Every major version of the client runs this file, each in an environment of its own. OPENAI_BASE_URL
and OPENAI_API_KEY say where the service is and how to get in, as they do for anybody.
"""

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any, Literal

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

OPTIONS: Any = {"max_retries": 0, "timeout": 60}

api = OpenAI(**OPTIONS)
# Answers that its types do not allow are errors, which they are not by default.
strict = OpenAI(**OPTIONS, _strict_response_validation=True)

HELLO: Any = {
    "model": "tiny-chat",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 8,
    "temperature": 0,
}
STREAMED: Any = {"stream": True, "stream_options": {"include_usage": True}}


class Weather(BaseModel):
    """Weather of a place"""

    place: str = Field(max_length=8)
    unit: Literal["celsius", "fahrenheit"]


CALL: Any = HELLO | {
    "tools": [openai.pydantic_function_tool(Weather, name="get_weather")],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_tokens": 300,
    "temperature": 1,
    "seed": 1,
}


def models() -> None:
    names = [model.id for model in strict.models.list()]
    assert names == ["tiny-chat", "tiny-embeddings"]
    assert strict.models.retrieve("tiny-chat").id == "tiny-chat"


def chat() -> None:
    answer = strict.chat.completions.create(**HELLO)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 8

    *chunks, last = strict.chat.completions.create(**HELLO, **STREAMED)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.choices == [] and last.usage == answer.usage

    assert asyncio.run(read_with_the_asynchronous_client()) == text


async def read_with_the_asynchronous_client() -> str:
    async with AsyncOpenAI(**OPTIONS, _strict_response_validation=True) as client:
        stream = await client.chat.completions.create(**HELLO, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def tools() -> None:
    whole = strict.chat.completions.create(**CALL).choices[0]
    assert whole.finish_reason == "tool_calls"

    # The client adds up the deltas, which it has done differently from version to version.
    with strict.chat.completions.stream(**CALL) as stream:
        events = list(stream)
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    (expected,), (call,) = whole.message.tool_calls, streamed.message.tool_calls
    assert call.id and call.function.name == "get_weather"
    assert call.function.arguments == expected.function.arguments
    assert isinstance(call.function.parsed_arguments, Weather)
    kind = "tool_calls.function.arguments.delta"
    deltas = [event.arguments_delta for event in events if event.type == kind]
    assert len(deltas) > 6
    assert "".join(deltas) == call.function.arguments


def history() -> None:
    """A call that `max_tokens` cut off goes back, as a loop of calls and results sends it."""
    cut = strict.chat.completions.create(**CALL | {"max_tokens": 40}).choices[0]
    assert cut.finish_reason == "length"
    (call,) = cut.message.tool_calls
    assert not is_json(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "Error: invalid JSON"}
    messages = [*HELLO["messages"], cut.message, result]
    again = strict.chat.completions.create(**CALL | {"messages": messages})
    assert again.choices[0].message.tool_calls


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def documents() -> None:
    sampled = HELLO | {"max_tokens": 300, "temperature": 1, "seed": 1}
    answer = strict.chat.completions.parse(**sampled, response_format=Weather)
    assert isinstance(answer.choices[0].message.parsed, Weather)
    with strict.chat.completions.stream(**sampled, response_format=Weather) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == answer.choices[0].message.parsed

    parse = strict.chat.completions.parse
    refused(openai.LengthFinishReasonError, parse, **HELLO, response_format=Weather)


def responses() -> None:
    asked: Any = {"model": "tiny-chat", "instructions": "be brief", "input": "hello"}
    short = asked | {"max_output_tokens": 8, "temperature": 0}
    answer = strict.responses.create(**short)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output_text and answer.usage.output_tokens == 8
    *events, last = strict.responses.create(**short, stream=True)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == last.response.output_text == answer.output_text
    assert last.response.usage == answer.usage

    sampled = asked | {"temperature": 1, "extra_body": {"seed": 1}}
    parsed = strict.responses.parse(**sampled, text_format=Weather)
    assert isinstance(parsed.output_parsed, Weather)
    with strict.responses.stream(**sampled, text_format=Weather) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed

    refused(openai.BadRequestError, strict.responses.create, **short, store=True)


def response_tools() -> None:
    """A loop of calls and results, which sends the items of each response back."""
    tool = openai.pydantic_function_tool(Weather, name="get_weather")["function"]
    asked: Any = {"model": "tiny-chat", "tools": [{"type": "function", **tool}]}
    asked |= {"parallel_tool_calls": False, "temperature": 1, "extra_body": {"seed": 1}}
    items: list[Any] = [{"role": "user", "content": "hello"}]
    whole = strict.responses.create(**asked, input=items, tool_choice="required")
    with strict.responses.stream(**asked, input=items, tool_choice="required") as stream:
        events = list(stream)
        (call,) = stream.get_final_response().output
    assert call.name == "get_weather" and call.arguments == whole.output[0].arguments
    kind = "response.function_call_arguments.delta"
    deltas = [event.delta for event in events if event.type == kind]
    assert len(deltas) > 6 and "".join(deltas) == call.arguments
    items += whole.output
    call_id = whole.output[0].call_id
    items.append({"type": "function_call_output", "call_id": call_id, "output": "sunny"})
    again = strict.responses.create(**asked, input=items, max_output_tokens=8)
    assert again.usage.input_tokens > whole.usage.input_tokens


def embeddings() -> None:
    asked: Any = {"model": "tiny-embeddings", "input": ["hello world", "a"]}
    numbers = strict.embeddings.create(**asked, encoding_format="float").data
    # By default the client asks for base64 and decodes it, which its strict mode does not survive.
    decoded = api.embeddings.create(**asked).data
    assert [item.index for item in numbers] == [item.index for item in decoded] == [0, 1]
    for item, same in zip(numbers, decoded, strict=True):
        assert math.isclose(math.hypot(*item.embedding), 1, abs_tol=1e-5)
        assert len(item.embedding) == len(same.embedding)
        pairs = zip(item.embedding, same.embedding, strict=True)
        assert all(math.isclose(one, other, abs_tol=1e-6) for one, other in pairs)
    raw = api.embeddings.create(**asked, encoding_format="base64").data
    assert all(isinstance(item.embedding, str) for item in raw)


def files() -> None:
    content = bytes(range(256)) * 1000
    file = strict.files.create(file=("grün.bin", content), purpose="user_data")
    assert (file.filename, file.bytes, file.purpose) == ("grün.bin", len(content), "user_data")
    assert [listed.id for listed in strict.files.list()] == [file.id]
    assert strict.files.retrieve(file.id) == file
    assert strict.files.content(file.id).read() == content
    assert strict.files.delete(file.id).deleted
    assert list(strict.files.list()) == []
    refused(openai.NotFoundError, strict.files.retrieve, file.id)


def completions() -> None:
    asked: Any = {"model": "tiny-chat", "prompt": ["hello", "you"], "max_tokens": 8}
    asked |= {"temperature": 0}
    answer = strict.completions.create(**asked)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage.completion_tokens == 16

    texts = ["", ""]
    usage = None
    # Not strictly: OpenAI's own chunks have no finish_reason, which its type does not know.
    for chunk in api.completions.create(**asked, **STREAMED):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in answer.choices]
    assert usage == answer.usage


def errors() -> None:
    stranger = OpenAI(**OPTIONS, api_key="sk-wrong")
    error = refused(openai.AuthenticationError, stranger.models.list)
    assert error.code == "invalid_api_key"

    chat, embed = api.chat.completions.create, api.embeddings.create
    too_long = [{"role": "user", "content": "word " * 20_000}]
    for way in ({}, STREAMED):
        asked = HELLO | way
        error = refused(openai.NotFoundError, chat, **asked | {"model": "unknown"})
        assert error.code == "model_not_found" and "unknown" in error.message
        error = refused(openai.BadRequestError, chat, **asked | {"max_tokens": 0})
        assert error.code == "invalid_value" and error.param == "max_tokens"
        error = refused(openai.BadRequestError, chat, **asked | {"messages": too_long})
        assert error.code == "context_length_exceeded" and error.param == "messages"
        assert "maximum context length is 2048 tokens" in error.message
    refused(openai.NotFoundError, embed, model="unknown", input="a")
    refused(openai.NotFoundError, api.get, "/nowhere", cast_to=object)


def refused(kind: type[Exception], call: Callable[..., object], *given: Any, **named: Any) -> Any:
    """The error that the call ends in, which is of just this class."""
    try:
        answer = call(*given, **named)
    except openai.OpenAIError as error:
        assert type(error) is kind, repr(error)
        return error
    raise AssertionError(f"not refused: {answer!r}")


print("openai", openai.__version__.partition(".")[0])
steps = [models, chat, tools, history, documents, responses, response_tools, embeddings, files]
for step in [*steps, completions, errors]:
    step()
    print(step.__name__)
