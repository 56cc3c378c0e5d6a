"""POST /v1/chat/completions through the official client, strictly validated."""

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from .conftest import Server, wait_until

HELLO: Any = [{"role": "user", "content": "hello"}]
IMAGE: Any = [{"role": "user", "content": [{"type": "image_url"}]}]


@pytest.fixture(scope="module")
def api(client: TestClient) -> OpenAI:
    return OpenAI(
        base_url="http://testserver/v1",
        api_key="unused",
        http_client=client,
        max_retries=0,
        _strict_response_validation=True,
    )


def test_models_are_listed_before_they_are_loaded(api: OpenAI) -> None:
    first, second = api.models.list().data, api.models.list().data
    assert "tiny-chat" in [model.id for model in first]
    assert first[0].created == second[0].created
    assert api.models.retrieve("tiny-chat").id == "tiny-chat"


def test_answer(api: OpenAI) -> None:
    answer = api.chat.completions.create(model="tiny-chat", messages=HELLO, max_tokens=8, seed=1)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    if answer.usage.completion_tokens == 8:
        assert answer.choices[0].finish_reason == "length"


def test_seed_and_temperature(api: OpenAI) -> None:
    def ask(**params: Any) -> str | None:
        answer = api.chat.completions.create(
            model="tiny-chat", messages=HELLO, max_completion_tokens=12, **params
        )
        return answer.choices[0].message.content

    assert ask(seed=1, temperature=1) == ask(seed=1, temperature=1)
    assert ask(seed=1, temperature=1) != ask(seed=2, temperature=1)
    assert ask(temperature=0) == ask(temperature=0)


def test_stop_string_ends_the_answer_and_is_not_shown(api: OpenAI) -> None:
    whole = api.chat.completions.create(
        model="tiny-chat", messages=HELLO, max_tokens=30, temperature=1, seed=4
    )
    text = whole.choices[0].message.content
    assert text
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    cut = api.chat.completions.create(
        model="tiny-chat", messages=HELLO, max_tokens=30, temperature=1, seed=4, stop=[stop]
    )
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_several_answers_to_one_prompt(api: OpenAI) -> None:
    def ask(**params: Any) -> list[str | None]:
        answer = api.chat.completions.create(
            model="tiny-chat", messages=HELLO, max_tokens=9, temperature=1, seed=4, **params
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 9 * len(answer.choices)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.message.content for choice in answer.choices]

    several = ask(n=4)
    assert several[0] == ask()[0]
    assert len(set(several)) == 4
    assert several == ask(n=4)


def test_logprobs_spell_the_answer(api: OpenAI) -> None:
    answer = api.chat.completions.create(
        model="tiny-chat",
        messages=HELLO,
        max_tokens=40,
        temperature=1,
        seed=6,
        logprobs=True,
        top_logprobs=2,
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    spelled = bytes(byte for entry in entries for byte in entry.bytes or [])
    assert spelled.decode(errors="ignore") == (choice.message.content or "").replace("\ufffd", "")
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)
    assert all(e.top_logprobs[0].logprob >= e.top_logprobs[1].logprob for e in entries)


def test_a_request_that_takes_too_long_is_a_504(make_client: Callable[..., TestClient]) -> None:
    with make_client(request_timeout_seconds=0.2) as client:
        request = {"model": "tiny-chat", "messages": HELLO, "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=request).status_code == 200
        long = request | {"max_tokens": 1900, "temperature": 0, "n": 8}
        response = client.post("/v1/chat/completions", json=long)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "timeout"
        assert client.post("/v1/chat/completions", json=request).status_code == 200


def test_parts_and_the_developer_role(api: OpenAI) -> None:
    parts: Any = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}],
        },
    ]
    plain: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    answers = [
        api.chat.completions.create(model="tiny-chat", messages=m, max_tokens=9, temperature=0)
        for m in (parts, plain)
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert answers[0].usage == answers[1].usage


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "nope"}, 404, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, 400, "messages[0].role"),
        ({"messages": IMAGE}, 400, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, 400, "messages"),
        ({"max_tokens": 100_000}, 400, "max_tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": 3}, 400, "temperature"),
        ({"top_p": -1}, 400, "top_p"),
        ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
        ({"n": 1000}, 400, "n"),
        ({"n": 0}, 400, "n"),
        ({"max_completion_tokens": 100_000}, 400, "max_completion_tokens"),
        ({"top_logprobs": 3}, 400, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        ({"frequency_penalty": 3}, 400, "frequency_penalty"),
        ({"logit_bias": {"300": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"5": 101}}, 400, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(2000)}}, 400, "logit_bias"),
        ({"extra_body": {"min_tokens": 9}, "max_tokens": 8}, 400, "min_tokens"),
        ({"extra_body": {"repetition_penalty": 0}}, 400, "repetition_penalty"),
        ({"functions": [{"name": "f"}]}, 400, "functions"),
        ({"modalities": ["audio"]}, 400, "modalities"),
        ({"response_format": {"type": "xml"}}, 400, "response_format"),
    ],
)
def test_bad_requests_name_the_field(
    api: OpenAI, change: dict[str, Any], status: int, param: str
) -> None:
    request = {"model": "tiny-chat", "messages": HELLO} | change
    with pytest.raises(openai.APIStatusError) as caught:
        api.chat.completions.create(**request)
    assert caught.value.status_code == status
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"] == param


@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b'{"a": NaN}', b'"\xff"', b"[" * 5000])
def test_broken_bodies_are_400(client: TestClient, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = client.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_lone_surrogate_is_a_400(client: TestClient) -> None:
    content = b'{"model": "tiny-chat", "messages": [{"role": "user", "content": "\\ud800"}]}'
    headers = {"content-type": "application/json"}
    assert client.post("/v1/chat/completions", content=content, headers=headers).status_code == 400


def test_what_is_too_deep_for_the_template_is_a_400(api: OpenAI) -> None:
    arguments = '{"a": ' + "[" * 900 + "]" * 900 + "}"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    deep: Any = [{"role": "assistant", "tool_calls": [call]}, *HELLO]
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model="tiny-chat", messages=deep)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"] == "messages"


@pytest.mark.parametrize(
    "extreme",
    [{"temperature": 1e-40}, {"extra_body": {"top_k": 2**63}}, {"seed": -(2**70)}],
)
def test_extreme_numbers_harm_nobody(api: OpenAI, extreme: dict[str, Any]) -> None:
    for params in (extreme, {}):
        answer = api.chat.completions.create(
            model="tiny-chat", messages=HELLO, max_tokens=3, **params
        )
        assert answer.choices


def test_a_hostile_body_is_answered_at_once(client: TestClient) -> None:
    started = time.monotonic()
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": [0] * 1_000_000}]}
    assert client.post("/v1/chat/completions", json=body).status_code == 413
    assert time.monotonic() - started < 3


def test_unknown_fields_are_accepted_with_a_warning(
    api: OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    api.chat.completions.create(
        model="tiny-chat", messages=HELLO, max_tokens=1, extra_body={"brand_new": 1}
    )
    assert "brand_new" in caplog.text


def test_a_client_that_leaves_frees_its_place(narrow_server: Server) -> None:
    """Not streamed, too: the work is cancelled, and the only place is free for the next one."""
    api = OpenAI(base_url=f"{narrow_server.url}/v1", api_key="unused", max_retries=0)

    def ask() -> openai.RateLimitError | None:
        try:
            api.chat.completions.create(model="tiny-chat", messages=HELLO, max_tokens=1)
        except openai.RateLimitError as error:
            return error
        return None

    assert ask() is None  # loads the model
    request = {"model": "tiny-chat", "messages": HELLO, "max_tokens": 1900, "temperature": 0}
    long = json.dumps(request)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

    def take_the_place() -> socket.socket | None:
        connection = socket.create_connection(narrow_server.address)
        connection.sendall(f"{head}Content-Length: {len(long)}\r\n\r\n{long}".encode())
        time.sleep(0.2)
        if refused := ask():
            assert refused.response.headers["retry-after"] == "1"
            return connection
        connection.close()  # this question came first
        return None

    wait_until(take_the_place).close()
    wait_until(lambda: ask() is None)
    assert "status=499" in narrow_server.log.read_text()
