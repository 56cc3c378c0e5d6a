"""The streamed response: its events on the wire, and through the official client."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, Field, TypeAdapter
from starlette.testclient import TestClient

from chat_server.routers.responses_parts import started_response
from chat_server.routers.responses_stream import EventWriter
from chat_server.schemas.responses import ResponsesRequest
from chat_server.serving.chat.output_parser import Chunk
from chat_server.serving.chat.tool_calls import ToolCallDelta
from chat_server.serving.engine.base_engine import TokenStream

from ...conftest import Server, wait_until

ASKED: Any = {"model": "tiny-chat", "input": "hello", "temperature": 0, "max_output_tokens": 8}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
START = ["response.created", "response.in_progress"]
TEXT_START = ["response.output_item.added", "response.content_part.added"]
TEXT_END = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
CALL_END = ["response.function_call_arguments.done", "response.output_item.done"]


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


def parse(stream: str) -> list[Any]:
    """The events, each of which has the name of its type and the next number."""
    frames = stream.split("\n\n")
    assert frames.pop() == ""
    events = []
    for frame in frames:
        if frame == ": ping":
            continue
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        events.append(EVENT.validate_python(event))
    return events


def events(client: TestClient, **changes: Any) -> list[Any]:
    response = client.post("/v1/responses", json=ASKED | {"stream": True} | changes)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return parse(response.text)


def kinds(events: list[Any]) -> list[str]:
    """The types of the events, those of neighbouring deltas once."""
    types = [event.type for event in events]
    return [kind for i, kind in enumerate(types) if "delta" not in kind or kind != types[i - 1]]


def test_the_events_of_a_message(client: TestClient) -> None:
    found = events(client)
    delta = "response.output_text.delta"
    assert kinds(found) == [*START, *TEXT_START, delta, *TEXT_END, "response.incomplete"]
    created, last = found[0].response, found[-1].response
    assert (created.status, created.output, created.usage) == ("in_progress", [], None)
    assert found[2].item.content == [] and found[2].item.status == "in_progress"
    assert (last.id, last.status) == (created.id, "incomplete")
    assert last.incomplete_details.reason == "max_output_tokens"
    assert last.output == [found[-2].item]
    (part,) = last.output[0].content
    assert "".join(event.delta for event in found if event.type == delta) == part.text
    assert found[-4].text == found[-3].part.text == part.text
    assert {event.item_id for event in found if "text" in event.type} == {last.output[0].id}


def test_the_events_of_calls(client: TestClient) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    found = events(client, tools=[tool], tool_choice="required", max_output_tokens=100)
    delta = "response.function_call_arguments.delta"
    item = ["response.output_item.added", delta, *CALL_END]
    last = found[-1].response
    assert kinds(found) == [*START, *(item * len(last.output)), f"response.{last.status}"]
    for index, call in enumerate(last.output):
        own = [event for event in found if getattr(event, "output_index", None) == index]
        assert own[0].item.arguments == "" and own[0].item.call_id == call.call_id
        assert "".join(event.delta for event in own if event.type == delta) == call.arguments
        assert own[-2].arguments == call.arguments
        assert own[-1].item == call


def test_a_stream_is_the_same_as_the_whole(api: OpenAI) -> None:
    params = ASKED | {"temperature": 1, "top_logprobs": 2, "extra_body": {"seed": 5}}
    whole = api.responses.create(**params)
    *_, last = api.responses.create(**params, stream=True)
    assert last.type == "response.incomplete"
    assert last.response.usage == whole.usage

    def parts(response: Any) -> Any:
        return [item.content for item in response.output]

    assert parts(last.response) == parts(whole)


def test_documents(api: OpenAI) -> None:
    asked: Any = {"model": "tiny-chat", "input": "hello", "extra_body": {"seed": 1}}
    with api.responses.stream(**asked, text_format=Person) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert isinstance(response.output_parsed, Person)
    assert "".join(deltas) == response.output_text


def test_what_can_fail_fails_before_the_stream_begins(client: TestClient) -> None:
    body = ASKED | {"stream": True, "max_output_tokens": 100_000}
    assert client.post("/v1/responses", json=body).status_code == 400


def test_an_error_in_the_middle_is_the_last_event(
    client: TestClient, api: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = TokenStream.put

    def fail_after_three(self: TokenStream, sequence: int, tokens: list[int]) -> None:
        put(self, sequence, tokens)
        if self.counts[sequence] >= 3:
            self.fail(RuntimeError("the secret cause"))

    monkeypatch.setattr(TokenStream, "put", fail_after_three)
    *_, failed, error = events(client, max_output_tokens=50)
    assert failed.type == "response.failed"
    assert (failed.response.status, failed.response.error.code) == ("failed", "server_error")
    assert failed.response.output[0].status == "incomplete"
    assert (error.type, error.code) == ("error", "internal_error")
    assert error.error["message"] == error.message and "secret" not in error.message
    with pytest.raises(openai.APIError) as caught:
        list(api.responses.create(**ASKED | {"max_output_tokens": 50}, stream=True))
    assert caught.value.code == "internal_error"


def written(*chunks: Chunk) -> list[Any]:
    response = started_response(ResponsesRequest.model_validate({"model": "m", "input": "hi"}))

    def write() -> Iterator[bytes]:
        writer = EventWriter(response)
        yield from writer.begin()
        for chunk in chunks:
            yield from writer.push(chunk)
        yield from writer.end(5)

    return parse(b"".join(write()).decode())


def test_a_thought_comes_before_the_message() -> None:
    found = written(
        Chunk(0, 1, thought="I "),
        Chunk(0, 3, "so", thought="see", thought_tokens=2),
        Chunk(0, 4, thought_tokens=2, finish_reason="stop"),
    )
    delta = "response.reasoning_text.delta"
    end = ["response.reasoning_text.done", *TEXT_END[1:]]
    expected = [*START, *TEXT_START, delta, delta, *end]
    expected += [*TEXT_START, "response.output_text.delta", *TEXT_END, "response.completed"]
    assert [event.type for event in found] == expected
    assert [event.output_index for event in found[2:-1]] == [0] * 7 + [1] * 6
    response = found[-1].response
    thought, message = response.output
    assert (thought.type, thought.content[0].text) == ("reasoning", "I see")
    assert message.content[0].text == "so"
    assert response.usage.output_tokens_details.reasoning_tokens == 2


def test_a_message_and_calls_that_come_in_one_chunk() -> None:
    """As they do when the event loop is busy: items never interleave."""
    calls = [
        ToolCallDelta(0, '{"a":', "1", "f"),
        ToolCallDelta(0, "1}"),
        ToolCallDelta(1, "", "2", "g"),
        ToolCallDelta(1, "{}"),
    ]
    last = Chunk(0, 9, finish_reason="tool_calls")
    expected = [*START, *TEXT_START, "response.output_text.delta", *TEXT_END]
    delta = "response.function_call_arguments.delta"
    expected += ["response.output_item.added", delta, *CALL_END] * 2 + ["response.completed"]
    pieces = [Chunk(0, 3, tool_calls=[call]) for call in calls]
    apart = [Chunk(0, 1, "so "), Chunk(0, 2, "I"), *pieces]
    for chunks in ([Chunk(0, 3, "so I", tool_calls=calls)], apart):
        found = written(*chunks, last)
        assert kinds(found) == expected
        response = found[-1].response
        message, *made = response.output
        assert message.content[0].text == "so I"
        assert [item.status for item in response.output] == ["completed"] * 3
        assert [(c.call_id, c.name, c.arguments) for c in made] == [
            ("1", "f", '{"a":1}'),
            ("2", "g", "{}"),
        ]
        assert [event.output_index for event in found if event.type == CALL_END[-1]] == [0, 1, 2]


def test_a_call_that_is_cut_off_is_the_only_item_that_is_incomplete() -> None:
    calls = [ToolCallDelta(0, "{}", "1", "f"), ToolCallDelta(1, '{"', "2", "g")]
    found = written(Chunk(0, 3, "so", tool_calls=calls), Chunk(0, 4, finish_reason="length"))
    assert found[-1].type == "response.incomplete"
    statuses = [item.status for item in found[-1].response.output]
    assert statuses == ["completed", "completed", "incomplete"]
    assert [event.item.status for event in found if event.type == CALL_END[-1]] == statuses


def test_nothing_at_all_is_an_empty_message() -> None:
    found = written(Chunk(0, 1, finish_reason="stop"))
    assert kinds(found) == [*START, *TEXT_START, *TEXT_END, "response.completed"]
    assert found[-1].response.output[0].content[0].text == ""


def test_a_client_that_leaves_frees_its_place(narrow_server: Server) -> None:
    def refused() -> bool:
        url, body = f"{narrow_server.url}/v1/responses", ASKED | {"max_output_tokens": 1}
        return httpx2.post(url, json=body, timeout=60).status_code == 429

    assert not refused()  # loads the model
    api = OpenAI(base_url=f"{narrow_server.url}/v1", api_key="unused", max_retries=0)
    stream = api.responses.create(**ASKED | {"max_output_tokens": 1900}, stream=True)
    next(iter(stream))
    assert refused()
    stream.close()
    wait_until(lambda: not refused())
