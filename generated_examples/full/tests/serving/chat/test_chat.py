"""POST /v1/chat/completions through the official client, strictly validated."""

import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from full_server.schemas.chat import ChatRequest
from full_server.schemas.generation import HINTS, UNSUPPORTED
from full_server.serving.chat.prompt import PromptEncoder

from ...conftest import Server, wait_until
from ...tiny_chat import build_tokenizer

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
    with make_client(request_timeout_seconds=1) as client:
        request = {"model": "tiny-chat", "messages": HELLO, "max_tokens": 1}
        # The load counts, and may take longer.
        wait_until(lambda: client.post("/v1/chat/completions", json=request).status_code == 200)
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
        ({"extra_body": {"top_k": -2}}, 400, "top_k"),
        ({"extra_body": {"stop_token_ids": [300]}}, 400, "stop_token_ids"),
        ({"extra_body": {"stop_token_ids": [-1]}}, 400, "stop_token_ids[0]"),
        ({"extra_body": {"structured_outputs": {}}}, 400, "structured_outputs"),
        ({"extra_body": {"structured_outputs": {"xml": 1}}}, 400, "structured_outputs.xml"),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, 400, "structured_outputs.regex"),
        (
            {"extra_body": {"structured_outputs": {"regex": "a", "choice": ["b"]}}},
            400,
            "structured_outputs.choice",
        ),
        ({"extra_body": {"guided_json": "{"}}, 400, "guided_json"),
        ({"extra_body": {"guided_json": {"not": {}}}}, 400, "guided_json"),
        (
            {"extra_body": {"guided_regex": "a", "response_format": {"type": "json_object"}}},
            400,
            "response_format",
        ),
        (
            {"extra_body": {"continue_final_message": True, "add_generation_prompt": True}},
            400,
            "continue_final_message",
        ),
        (
            {"extra_body": {"chat_template_kwargs": {"tokenize": True}}},
            400,
            "chat_template_kwargs.tokenize",
        ),
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


@pytest.mark.parametrize(
    "turn",
    [
        {"content": None, "tool_calls": []},
        {"content": None},
        {"refusal": "No."},
        {"content": None, "refusal": "No.", "audio": None, "annotations": []},
        {"content": [{"type": "refusal", "refusal": "No."}]},
        {"content": [{"type": "output_text", "text": "Yes.", "annotations": []}]},
        {"reasoning_content": "Let me think."},
        {"content": ""},
    ],
)
def test_what_assistants_have_said_is_taken_back(api: OpenAI, turn: dict[str, Any]) -> None:
    messages: Any = [*HELLO, {"role": "assistant", **turn}, *HELLO]
    answer = api.chat.completions.create(model="tiny-chat", messages=messages, max_tokens=1)
    empty: Any = [*HELLO, {"role": "assistant", "content": ""}, *HELLO]
    less = api.chat.completions.create(model="tiny-chat", messages=empty, max_tokens=1)
    assert answer.usage and less.usage
    said = "No." in str(turn) or "Yes." in str(turn)
    assert (answer.usage.prompt_tokens > less.usage.prompt_tokens) is said


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 90_000}]}, "messages"),
        ({"messages": HELLO, "max_tokens": 2048}, "max_tokens"),
        ({"messages": HELLO, "max_completion_tokens": 9999}, "max_completion_tokens"),
    ],
)
def test_overflow_in_the_words_that_clients_look_for(
    api: OpenAI, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model="tiny-chat", **change)
    sentence = "This model's maximum context length is 2048 tokens. However, "
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"].startswith(sentence)
    assert "context_length_exceeded" in str(caught.value)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)


@pytest.mark.parametrize("change", [{"top_logprobs": 0}, {"logprobs": False, "top_logprobs": 0}])
def test_no_alternatives_are_no_logprobs(api: OpenAI, change: dict[str, Any]) -> None:
    answer = api.chat.completions.create(model="tiny-chat", messages=HELLO, max_tokens=1, **change)
    assert answer.choices[0].logprobs is None


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
def test_extreme_numbers_do_no_harm(api: OpenAI, extreme: dict[str, Any]) -> None:
    for params in (extreme, {}):
        answer = api.chat.completions.create(
            model="tiny-chat", messages=HELLO, max_tokens=3, **params
        )
        assert answer.choices


def test_a_hostile_body_is_answered_at_once(client: TestClient) -> None:
    started = time.process_time()
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": [0] * 1_000_000}]}
    assert client.post("/v1/chat/completions", json=body).status_code == 413
    assert time.process_time() - started < 3


def text_of(api: OpenAI, **params: Any) -> str:
    defaults = {"model": "tiny-chat", "messages": HELLO, "temperature": 0, "max_tokens": 8}
    answer = api.chat.completions.create(**defaults | params)
    return answer.choices[0].message.content or ""


def test_tokens_that_stop(api: OpenAI) -> None:
    tokenizer = build_tokenizer()
    whole = api.chat.completions.create(
        model="tiny-chat", messages=HELLO, temperature=0, max_tokens=12, logprobs=True
    ).choices[0]
    assert whole.logprobs and whole.logprobs.content
    said = [entry.token for entry in whole.logprobs.content]
    place = next(i for i, token in enumerate(said) if i > 2 and said.index(token) == i)
    stop = tokenizer.convert_tokens_to_ids(
        tokenizer.tokenize(said[place]) if "\ufffd" not in said[place] else []
    )
    for ignore_eos in (False, True):
        answer = api.chat.completions.create(
            model="tiny-chat", messages=HELLO, temperature=0, max_tokens=12,
            extra_body={"stop_token_ids": stop, "ignore_eos": ignore_eos},
        ).choices[0]  # fmt: skip
        if len(stop) == 1:
            assert answer.message.content == "".join(said[:place])
            assert answer.finish_reason == "stop"
            longer: Any = {"stop_token_ids": stop, "min_tokens": 12}
            text = text_of(api, max_tokens=12, extra_body=longer)
            assert text.startswith("".join(said[:place])) and said[place] not in text


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"regex": "[0-9]{3}"}}, "[0-9]{3}"),
        ({"structured_outputs": {"grammar": 'root ::= "a" [bc] "d"'}}, "a[bc]d"),
        ({"structured_outputs": {"json": {"enum": [1, 23]}}}, "1|23"),
        ({"structured_outputs": {"json": '{"enum": [1, 23]}'}}, "1|23"),
        ({"structured_outputs": {"json_object": True}, "max_tokens": 2}, r"\{.*"),
        ({"guided_choice": ["left", "right"]}, "left|right"),
        ({"guided_regex": "^x{2}$"}, "xx"),
        ({"guided_grammar": 'start: "hi" | "ho"'}, "hi|ho"),
        ({"guided_json": {"const": {"a": 1}}}, r'\{"a": ?1\}'),
        (
            {"response_format": {"type": "json_object", "schema": {"const": {"a": 1}}}},
            r'\{"a": ?1\}',
        ),
    ],
)
def test_forms_of_the_answer(api: OpenAI, fields: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(pattern, text_of(api, extra_body=fields))


@pytest.mark.parametrize("fields", [{}, {"add_generation_prompt": False}])
def test_the_last_message_is_continued(api: OpenAI, fields: dict[str, Any]) -> None:
    tokenizer = build_tokenizer()
    messages: Any = [*HELLO, {"role": "assistant", "content": "I think that"}]
    fields = fields | {"continue_final_message": True}
    asked = ChatRequest.model_validate({"model": "m", "messages": messages} | fields)
    prompt = PromptEncoder(tokenizer, 100).encode(asked.conversation())
    assert tokenizer.decode(prompt) == "<|user|>hello<|end|><|assistant|>I think that"
    answer = api.chat.completions.create(
        model="tiny-chat", messages=messages, max_tokens=1, extra_body=fields
    )
    assert answer.usage and answer.usage.prompt_tokens == len(prompt)


def test_a_prompt_without_the_head_of_an_answer(api: OpenAI) -> None:
    def prompt_tokens(**fields: Any) -> int:
        answer = api.chat.completions.create(
            model="tiny-chat", messages=HELLO, max_tokens=1, extra_body=fields
        )
        assert answer.usage
        return answer.usage.prompt_tokens

    assert prompt_tokens(add_generation_prompt=False) == prompt_tokens() - 1
    assert prompt_tokens(add_generation_prompt=True) == prompt_tokens()


def test_variables_reach_the_template() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ enable_thinking }} {{ reasoning_effort }}"
    body = {"model": "m", "messages": HELLO, "reasoning_effort": "low"}
    asked = ChatRequest.model_validate(body | {"chat_template_kwargs": {"enable_thinking": False}})
    prompt = PromptEncoder(tokenizer, 100).encode(asked.conversation())
    assert tokenizer.decode(prompt) == "False low"


NOTHING: dict[str, Any] = {"top_k": -1, "user": 12, "structured_outputs": None}
NOTHING |= {name: values[0] for name, values in UNSUPPORTED.items() if values}
NOTHING |= dict.fromkeys(UNSUPPORTED.keys() - NOTHING.keys())


def test_fields_that_ask_for_nothing_change_nothing(
    api: OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    hints = {name: "x" for name in HINTS} | NOTHING
    assert text_of(api, extra_body=hints) == text_of(api)
    assert "ignored" not in caplog.text


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_fields_that_ask_for_what_is_not_there_are_refused(api: OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        text_of(api, extra_body={name: ["something"]})
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"] == name


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
