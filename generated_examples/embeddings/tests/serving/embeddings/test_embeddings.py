"""POST /v1/embeddings through the official client."""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient
from transformers import AutoConfig, AutoModel

from embeddings_server.serving.deadline import Deadline
from embeddings_server.serving.embeddings.embeddings_model import (
    Embeddings,
    EmbeddingsModel,
)
from embeddings_server.serving.models.device import Device
from embeddings_server.serving.models.model_errors import InvalidInput
from embeddings_server.settings import Settings

from ...conftest import Server, delay, delay_load, wait_until
from ...tiny_embeddings import build_embeddings_model, build_tokenizer, write_json

TEXTS = ["hello world", "a", "the quick brown fox"]


def make_api(client: TestClient, *, strict: bool) -> OpenAI:
    http_client: Any = client
    return OpenAI(
        base_url="http://testserver/v1",
        api_key="unused",
        http_client=http_client,
        max_retries=0,
        _strict_response_validation=strict,
    )


@pytest.fixture
def api(client: TestClient) -> OpenAI:
    return make_api(client, strict=True)


def embed(api: OpenAI, input: Any, **params: Any) -> list[list[float]]:
    params.setdefault("encoding_format", "float")
    answer = api.embeddings.create(model="tiny-embeddings", input=input, **params)
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    return [item.embedding for item in answer.data]


def test_order_and_batching_do_not_matter(api: OpenAI) -> None:
    together = embed(api, TEXTS)
    alone = [embed(api, text)[0] for text in TEXTS]
    for left, right in zip(together, alone, strict=True):
        assert left == pytest.approx(right, abs=1e-6)
        assert math.hypot(*left) == pytest.approx(1)


def test_base64_which_clients_ask_for_by_default(client: TestClient, api: OpenAI) -> None:
    # The client's strict mode looks at the base64 before the client itself has decoded it.
    default = make_api(client, strict=False).embeddings.create(model="tiny-embeddings", input=TEXTS)
    for item, expected in zip(default.data, embed(api, TEXTS), strict=True):
        assert item.embedding == pytest.approx(expected, abs=1e-7)


def test_tokens_instead_of_text(api: OpenAI) -> None:
    tokens = [build_tokenizer().encode(text) for text in TEXTS]
    for left, right in zip(embed(api, tokens), embed(api, TEXTS), strict=True):
        assert left == pytest.approx(right)
    assert embed(api, tokens[0])[0] == pytest.approx(embed(api, TEXTS[0])[0])


def test_dimensions_shorten_and_normalise(api: OpenAI) -> None:
    full, short = embed(api, "hello")[0], embed(api, "hello", dimensions=4)[0]
    scale = math.hypot(*full[:4])
    assert short == pytest.approx([number / scale for number in full[:4]], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["fine", ""]}, "input[1]"),
        ({"input": "a " * 40}, "input"),
        ({"input": [[5, 10_000]]}, "input"),
        ({"input": [[-1]]}, "input"),
        ({"input": ["a"] * 3000}, "input"),
        ({"input": "a", "dimensions": 17}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": True}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "extra_body": {"input_type": "query"}}, "input_type"),
        ({"input": "a", "extra_body": {"input_type": "image"}}, "input_type"),
        ({"input": "a", "extra_body": {"prompt_name": "query"}}, "prompt_name"),
        ({"input": "a", "extra_body": {"truncate": "START"}}, "truncate"),
        ({"input": "a", "extra_body": {"truncate": 1}}, "truncate"),
        ({"input": "a", "extra_body": {"truncation_direction": "Left"}}, "truncation_direction"),
    ],
)
def test_bad_requests_name_the_field(api: OpenAI, change: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.embeddings.create(**{"model": "tiny-embeddings"} | change)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["param"] == param


@pytest.mark.parametrize("given", ["word " * 600, ["a", "word " * 600], [[5] * 600]])
def test_overflow_in_the_words_that_clients_look_for(api: OpenAI, given: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="context_length_exceeded") as caught:
        api.embeddings.create(model="tiny-embeddings", input=given)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"].startswith("This model's maximum context length is ")
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


@pytest.mark.parametrize(
    "given",
    [
        "a " * 2_000_000,
        "x" * 4_000_000,
        ["ok", "ö" * 1_000_000],
        [[1] * 400_000],
        ["a " * 999] * 2000,
    ],
    ids=["words", "one word", "second", "tokens", "many"],
)
def test_what_is_far_too_long_costs_nothing(client: TestClient, given: Any) -> None:
    api = make_api(client, strict=True)
    embed(api, "warm")
    started = time.process_time()
    with pytest.raises(openai.BadRequestError) as error:
        embed(api, given)
    assert time.process_time() - started < 2
    assert error.value.code == "context_length_exceeded"


def test_white_space_is_not_too_long(api: OpenAI) -> None:
    assert embed(api, "hello" + " " * 100_000 + "world") == embed(api, "hello world")


@pytest.mark.parametrize("truncate", [True, "END"])
def test_long_texts_are_cut_on_request(api: OpenAI, truncate: object) -> None:
    cut: dict[str, Any] = {"extra_body": {"truncate": truncate}}
    short = embed(api, "ab " * 15)  # two tokens a word, and two of the text: 32
    assert embed(api, ["ab " * 5000, "ab " * 15], **cut) == [pytest.approx(short[0], abs=1e-6)] * 2
    # Tokens have no special ones that would have to stay.
    (tokens,) = embed(api, [5] * 32)
    assert embed(api, [[5] * 33], **cut)[0] == pytest.approx(tokens, abs=1e-6)


def test_usage_is_what_was_computed(api: OpenAI) -> None:
    answer = api.embeddings.create(
        model="tiny-embeddings",
        input=["ab " * 500, "a"],
        encoding_format="float",
        extra_body={"truncate": True},
    )
    assert answer.usage.prompt_tokens == 32 + 3


PROMPTS = {"query": "ask ", "passage": "told ", "empty": None}


def with_prompts(folder: Path, **config: Any) -> EmbeddingsModel:
    build_embeddings_model(folder)
    write_json(folder / "config_sentence_transformers.json", {"prompts": PROMPTS} | config)
    return load(folder)


@pytest.mark.parametrize(
    ("choice", "prompt"),
    [
        ({}, "told "),
        ({"input_type": "query"}, "ask "),
        ({"input_type": "document"}, "told "),
        ({"prompt_name": "query"}, "ask "),
        ({"prompt_name": "empty"}, ""),
    ],
)
def test_a_prompt_is_put_in_front(tmp_path: Path, choice: dict[str, Any], prompt: str) -> None:
    async def embed_both() -> tuple[Embeddings, Embeddings]:
        chosen = await model.embed(["a cat"], **choice)
        return chosen, await model.embed([f"{prompt}a cat"], prompt_name="empty")

    model = with_prompts(tmp_path / "model", default_prompt_name="passage")
    try:
        chosen, expected = asyncio.run(embed_both())
    finally:
        model.unload()
    assert chosen.vectors.tolist() == expected.vectors.tolist()
    assert chosen.tokens == expected.tokens


@pytest.mark.parametrize(
    ("config", "choice", "message"),
    [
        ({"prompts": {"sts": "x"}}, {"input_type": "query"}, "no prompts for queries"),
        ({"prompts": {"query": "", "document": ""}}, {"input_type": "query"}, "are: none"),
        ({}, {"prompt_name": "q"}, "its prompts are: passage, query"),
        ({}, {"prompt_name": "query", "input_type": "query"}, "send one of them"),
    ],
)
def test_a_prompt_that_does_not_exist(
    tmp_path: Path, config: dict[str, Any], choice: dict[str, Any], message: str
) -> None:
    model = with_prompts(tmp_path / "model", **config)
    try:
        with pytest.raises(InvalidInput, match=message):
            asyncio.run(model.embed(["a cat"], **choice))
    finally:
        model.unload()


def test_a_side_without_a_prompt_is_embedded_as_it_is(tmp_path: Path) -> None:
    model = with_prompts(tmp_path / "model", prompts={"query": "ask "})
    try:
        assert asyncio.run(model.embed(["a"], input_type="document")).tokens == 3
        assert asyncio.run(model.embed(["a"], input_type="query")).tokens == 6
    finally:
        model.unload()


def test_tokens_have_no_prompt(tmp_path: Path) -> None:
    model = with_prompts(tmp_path / "model", default_prompt_name="passage")
    try:
        assert asyncio.run(model.embed([[2, 5, 3]])).tokens == 3
        with pytest.raises(InvalidInput, match="tokens"):
            asyncio.run(model.embed([[2, 5, 3]], input_type="query"))
    finally:
        model.unload()


def test_the_model_may_keep_fewer_dimensions(tmp_path: Path) -> None:
    model = with_prompts(tmp_path / "model", truncate_dim=4)
    try:
        assert asyncio.run(model.embed(["a"])).vectors.shape == (1, 4)
        with pytest.raises(InvalidInput, match="4 dimensions"):
            asyncio.run(model.embed(["a"], dimensions=5))
    finally:
        model.unload()


def test_an_unknown_model_is_a_404(api: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        api.embeddings.create(model="nope", input="a")


def test_many_clients_at_once(api: OpenAI) -> None:
    with ThreadPoolExecutor(20) as clients:
        texts = ["ab " * (index % 9 + 1) for index in range(60)]
        vectors = [vector for (vector,) in clients.map(lambda text: embed(api, text), texts)]
    for index, vector in enumerate(vectors):
        assert vector == pytest.approx(vectors[index % 9], abs=1e-6)


def test_a_full_queue_is_a_429_at_once(narrow_server: Server) -> None:
    heavy = {"model": "tiny-embeddings", "input": ["word " * 6] * 2000}

    async def ask() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(base_url=narrow_server.url, timeout=60) as client:
            await client.post("/v1/embeddings", json=heavy)  # loads
            requests = [client.post("/v1/embeddings", json=heavy) for _ in range(4)]
            return await asyncio.gather(*requests)

    responses = asyncio.run(ask())
    statuses = sorted(response.status_code for response in responses)
    assert statuses[0] == 200
    assert statuses[-1] == 429
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"


def test_tokens_that_wait_are_bounded_too(make_client: Callable[..., TestClient]) -> None:
    with make_client(max_queue_tokens=0, embeddings_batch_texts=1) as client:

        def ask(_: int) -> int:
            heavy = {"model": "tiny-embeddings", "input": ["word " * 6] * 2000}
            return client.post("/v1/embeddings", json=heavy).status_code

        with ThreadPoolExecutor(4) as clients:
            statuses = set(clients.map(ask, range(4)))
        # The first request finds an idle model, which accepts any size.
        assert statuses == {200, 429}


def test_a_request_that_takes_too_long_is_a_504(make_client: Callable[..., TestClient]) -> None:
    with make_client(request_timeout_seconds=0.2, embeddings_batch_texts=1) as client:
        request = {"model": "tiny-embeddings", "input": "word"}
        # The load counts, and may take longer.
        wait_until(lambda: client.post("/v1/embeddings", json=request).status_code == 200)
        long = request | {"input": ["word " * 6] * 2048}
        response = client.post("/v1/embeddings", json=long)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "timeout"
        assert client.post("/v1/embeddings", json=request).status_code == 200


def seconds_of_all_waits(make_client: Callable[..., TestClient]) -> float:
    """The time until a request is refused that waits for everything, with 1.5 seconds for it."""
    with make_client(request_timeout_seconds=1.5) as client:
        request = {"model": "tiny-embeddings", "input": "word"}
        wait_until(lambda: client.post("/v1/embeddings", json=request).status_code == 200)
        app: Any = client.app
        model = delay_load(app.state.registry, "tiny-embeddings", 0.6)
        delay(model, "_tokenize", 0.6)
        delay(model._scheduler, "_compute", 0.6)
        late = client.post("/v1/embeddings", json=request)
        assert late.status_code == 504
        return late.elapsed.total_seconds()


def test_one_deadline_for_all_waits(make_client: Callable[..., TestClient]) -> None:
    # One wait that did not count would make it 2.1. A machine is busy at times.
    assert any(seconds_of_all_waits(make_client) < 1.9 for _ in range(3))


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt])
def test_a_thread_that_ends_fails_its_requests_alone(
    make_client: Callable[..., TestClient], tmp_path: Path, end: type[BaseException]
) -> None:
    def leave(*_: object) -> None:
        raise end

    folder = build_embeddings_model(tmp_path / "tiny-embeddings")
    request = {"model": "tiny-embeddings", "input": "word"}
    with make_client(embeddings_model=str(folder), request_timeout_seconds=20) as client:

        def ask() -> int:
            return client.post("/v1/embeddings", json=request).status_code

        assert ask() == 200
        app: Any = client.app
        model = app.state.registry.models["tiny-embeddings"]
        model._tokenize = leave
        assert ask() == 500
        del model._tokenize  # the instance's
        assert ask() == 200

        away = folder.rename(folder.with_name("away"))  # what is not there is not loaded
        model._scheduler._compute = leave
        started = time.monotonic()
        assert ask() == 503
        assert time.monotonic() - started < 10
        assert not model.alive
        assert client.get("/health/ready").status_code == 503
        away.rename(folder)
        wait_until(lambda: ask() == 200)
        assert client.get("/health/ready").status_code == 200


def load(folder: Path) -> EmbeddingsModel:
    settings = Settings(_env_file=None)
    return EmbeddingsModel.load(str(folder), Device("cpu", "float32"), settings)


@pytest.mark.parametrize(("family", "reserved"), [("roberta", 2), ("mpnet", 2), ("bert", 0)])
def test_the_last_position_is_known(tmp_path: Path, family: str, reserved: int) -> None:
    folder = build_embeddings_model(tmp_path / "model")
    (folder / "sentence_bert_config.json").unlink()
    size = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        family, **size, intermediate_size=32, max_position_embeddings=34, pad_token_id=1
    )
    AutoModel.from_config(config).save_pretrained(folder)
    model = load(folder)
    longest = 34 - reserved
    try:
        assert asyncio.run(embed_tokens(model, [5] * longest)).tokens == longest
        with pytest.raises(InvalidInput) as refused:
            asyncio.run(embed_tokens(model, [5] * (longest + 1)))
        assert refused.value.code == "context_length_exceeded"
    finally:
        model.unload()


async def embed_tokens(model: EmbeddingsModel, tokens: list[int]) -> Embeddings:
    return await model.embed([tokens], deadline=Deadline(60))


async def embed_text(model: EmbeddingsModel, text: str) -> Embeddings:
    return await model.embed([text], deadline=Deadline(60))


def test_a_token_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    folder = build_embeddings_model(tmp_path / "model")
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(folder)
    model = load(folder)
    try:
        with pytest.raises(InvalidInput, match="token"):
            asyncio.run(embed_text(model, "an extra word"))
    finally:
        model.unload()
