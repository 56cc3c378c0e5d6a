"""POST /v1/completions through the official client, strictly validated."""

import re
from typing import Any

import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient
from tokenizers.processors import TemplateProcessing

from full_server.schemas.chat import ChatRequest
from full_server.schemas.completions import CHAT_ONLY, CompletionRequest
from full_server.schemas.generation import HINTS, UNSUPPORTED
from full_server.serving.chat.prompt import PromptEncoder

from ...tiny_chat import build_tokenizer

HELLO = "hello world"
TOKENS = build_tokenizer().encode(HELLO, add_special_tokens=False)


@pytest.fixture(scope="module")
def api(client: TestClient) -> OpenAI:
    return OpenAI(
        base_url="http://testserver/v1",
        api_key="unused",
        http_client=client,
        max_retries=0,
    )


def ask(api: OpenAI, **params: Any) -> Any:
    defaults = {"model": "tiny-chat", "prompt": HELLO, "temperature": 0, "max_tokens": 8}
    return api.completions.create(**defaults | params)


def test_answer(api: OpenAI) -> None:
    answer = ask(api)
    assert (answer.object, answer.choices[0].index) == ("text_completion", 0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(TOKENS)
    assert answer.usage.completion_tokens == 8
    assert ask(api, max_tokens=openai.omit).usage.completion_tokens == 16


def test_the_four_forms_of_a_prompt(api: OpenAI) -> None:
    (alone,) = [choice.text for choice in ask(api).choices]
    for prompt in ([HELLO], TOKENS, [TOKENS]):
        assert [choice.text for choice in ask(api, prompt=prompt).choices] == [alone]
    answer = ask(api, prompt=["you", HELLO, "how"], n=2)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert answer.choices[2].text == answer.choices[3].text == alone
    assert answer.usage.completion_tokens == 6 * 8
    several = ask(api, prompt=[TOKENS, TOKENS], best_of=1)
    assert [choice.text for choice in several.choices] == [alone, alone]


def test_echo_and_stop(api: OpenAI) -> None:
    text = ask(api).choices[0].text
    assert ask(api, echo=True).choices[0].text == HELLO + text
    assert ask(api, echo=True, prompt=TOKENS).choices[0].text == HELLO + text
    cut = ask(api, stop=[text[3:5]]).choices[0]
    assert (cut.text, cut.finish_reason) == (text[: text.index(text[3:5])], "stop")


@pytest.mark.parametrize("alternatives", [0, 3])
def test_logprobs(api: OpenAI, alternatives: int) -> None:
    choice = ask(api, logprobs=alternatives).choices[0]
    found = choice.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) > 5
    assert found.text_offset[0] == 0 and found.text_offset == sorted(found.text_offset)
    for token, logprob, top in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert top[token] >= logprob and len(top) <= alternatives + 1


def test_what_load_generators_and_harnesses_send(api: OpenAI) -> None:
    fields = {"repetition_penalty": 1.0, "ignore_eos": True, "min_tokens": 4}
    assert ask(api, max_tokens=4, best_of=1, extra_body=fields).usage.completion_tokens == 4
    assert ask(api, stop=["\n\n", "Q:"], seed=1234, n=1, echo=False).choices
    assert ask(api, extra_body={"guided_choice": ["yes", "no"]}).choices[0].text in ("yes", "no")


def one_token(text: str) -> int:
    (token,) = build_tokenizer().encode(text, add_special_tokens=False)
    return int(token)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"max_completion_tokens": 2, "logit_bias": {one_token("x"): 100}}, "xx"),
        ({"stop_token_ids": [one_token("x")], "logit_bias": {one_token("x"): 100}}, ""),
        ({"stop": "xxx", "logit_bias": {one_token("x"): 100}}, ""),
        ({"structured_outputs": {"regex": "[0-9]{3}"}}, "[0-9]{3}"),
        ({"guided_grammar": 'start: "hi" | "ho"'}, "hi|ho"),
        ({"guided_json": '{"enum": [1, 23]}'}, "1|23"),
        ({"response_format": {"type": "json_object", "schema": {"const": 1}}}, "1"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 1}}}},
            "1",
        ),
    ],
)
def test_fields_that_shape_the_answer(api: OpenAI, fields: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(pattern, ask(api, extra_body=fields).choices[0].text)


def test_sampling(api: OpenAI) -> None:
    def text(**fields: Any) -> str:
        return str(ask(api, max_tokens=12, extra_body=fields).choices[0].text)

    greedy = text()
    hot: dict[str, Any] = {"temperature": 2, "seed": 7}
    assert text(**hot) == text(**hot) != text(**hot | {"seed": 8})
    for narrow in ({"top_k": 1}, {"top_p": 0}, {"min_p": 1}):
        assert text(**hot | narrow) == greedy
    biased = {"logit_bias": {one_token("x"): 1}}
    assert text(**biased) == "x" * 12
    for penalty in ({"presence_penalty": 2}, {"frequency_penalty": 2}):
        assert text(**biased | penalty) != "x" * 12
    assert text(repetition_penalty=0.01) != greedy


def test_special_tokens_are_the_client_s_choice() -> None:
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", one_token("<|system|>"))]
    )
    for fields, start in (({}, "<|system|>"), ({"add_special_tokens": False}, "")):
        asked = CompletionRequest.model_validate({"model": "m", "prompt": HELLO} | fields)
        (prompt,) = asked.prompts()
        assert tokenizer.decode(PromptEncoder(tokenizer, 100).encode(prompt)) == start + HELLO


REFUSED = sorted({*UNSUPPORTED, *CHAT_ONLY} - CompletionRequest.model_fields.keys())
NOTHING = {name: values[0] for name, values in {**UNSUPPORTED, **CHAT_ONLY}.items() if values}


def test_no_field_of_chat_is_left_aside() -> None:
    assert ChatRequest.model_fields.keys() <= {*CompletionRequest.model_fields, *REFUSED}


def test_fields_that_ask_for_nothing_change_nothing(
    api: OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = {name: NOTHING.get(name) for name in REFUSED}
    fields = {name: "x" for name in HINTS} | nothing
    assert ask(api, extra_body=fields).choices[0].text == ask(api).choices[0].text
    assert "ignored" not in caplog.text


@pytest.mark.parametrize("name", REFUSED)
def test_fields_that_ask_for_what_is_not_there_are_refused(api: OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, extra_body={name: ["something"]})
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"] == name


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "logprobs"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [1, 2**64]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": "word " * 2000}, "prompt"),
        ({"max_tokens": 3000}, "max_tokens"),
        ({"max_tokens": 8, "extra_body": {"max_completion_tokens": 3000}}, "max_completion_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_bad_requests_name_the_field(api: OpenAI, change: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, **change)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"] == param


def test_a_stream_is_the_same_as_the_whole(api: OpenAI) -> None:
    params: Any = {"prompt": [HELLO, "you"], "n": 2, "echo": True, "seed": 3, "temperature": 1}
    whole = ask(api, **params)
    texts = [""] * 4
    reasons: list[Any] = [None] * 4
    usage = None
    for chunk in ask(api, **params, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
