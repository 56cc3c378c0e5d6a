"""Subsets of the endpoints: each boots as a process and answers OpenAI's client."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from infer_scaffold.checklist import BY_CODE
from infer_scaffold.probe import connections, files, streams
from infer_scaffold.probe.outcomes import Verdict
from infer_scaffold.probe.prober import Options, probe
from infer_scaffold.project.questions import Answers
from tests.conftest import Boot
from tests.server import Server
from tests.template.test_matrix import CHOICES, subsets

KEY = "sk-tests"
ORIGIN = "https://app.example"
HELLO: Any = [{"role": "user", "content": "hello"}]
TEXTS = ["hello world", "a", "the quick brown fox"]

VARIANTS: list[Answers] = [{"endpoints": list(some)} for some in subsets(CHOICES["endpoints"])]
VARIANTS.append({"endpoints": ["chat"], "streaming": "none"})
FIRST = [{"endpoints": list(CHOICES["endpoints"])}, VARIANTS[-1]]
"""Variants that have all modules of the others. They start in a Python that has imported nothing,
and are asked with all the time that questions take: what answers these is the same everywhere."""

ROUTES = {
    "chat": ["POST /v1/chat/completions"],
    "embeddings": ["POST /v1/embeddings"],
    "files": [
        "POST /v1/files",
        "GET /v1/files",
        "GET /v1/files/file-1",
        "GET /v1/files/file-1/content",
        "DELETE /v1/files/file-1",
    ],
    "health": ["GET /health", "GET /health/live", "GET /health/ready"],
}


STREAMS = {question.name for question in streams.QUESTIONS} | {"chunk-schema", "tool-stream"}
CHAT = STREAMS | {"chat-answer", "chat-schema", "cut-off-calls", "context-overflow", "overload"}
CHAT |= {"tool-required"}
THOUGHTS = {"reasoning"}
"""The tiny model does not think."""
EMBEDDINGS = {"embeddings-answer", "embeddings-schema", "embeddings-base64"}
FILES = {"files-answer"} | {question.name for question in files.QUESTIONS}
BOTH = {"free-loop", "validation", "no-json", "no-500", "unknown-model", "openai-python", "model"}
BOTH |= {"content-type", "content-encoding"}


def skipped_without(variant: Answers) -> set[str]:
    """The questions that a variant cannot be asked."""
    endpoints = variant["endpoints"]
    found = set() if variant.get("streaming") != "none" else STREAMS
    found |= THOUGHTS if "chat" in endpoints else THOUGHTS | CHAT
    found |= set() if "embeddings" in endpoints else EMBEDDINGS
    found |= set() if "files" in endpoints else FILES
    return found | (set() if {"chat", "embeddings"} & set(endpoints) else BOTH)


def name_of(variant: Answers) -> str:
    return "-".join([*variant["endpoints"], variant.get("streaming", "")]).strip("-")


def make_api(server: Server, *, key: str = KEY, strict: bool = True) -> OpenAI:
    return OpenAI(
        base_url=f"{server.url}/v1",
        api_key=key,
        max_retries=0,
        timeout=60,
        _strict_response_validation=strict,
    )


# One test for a variant and not one for each endpoint, as every process costs seconds.
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_the_variant_boots_and_answers(
    variant: Answers, boot: Boot, fresh_boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints = variant["endpoints"]
    models = [f"tiny-{kind}" for kind in ("chat", "embeddings") if kind in endpoints]
    is_first = variant in FIRST
    if not is_first:
        monkeypatch.setattr(streams, "_LONG", 2.0)
        monkeypatch.setattr(streams, "_LEFT", (4,))
    start = fresh_boot if is_first else boot
    server = start(variant, api_keys=KEY, max_queue=16, cors_origins=ORIGIN)
    api = make_api(server)

    check_models(api, models)
    check_errors(api, make_api(server, key="sk-wrong"))
    for endpoint, routes in ROUTES.items():
        if endpoint not in endpoints:
            check_absence(server, routes)
    if "health" in endpoints:
        check_health(server, loaded=[])
    if "files" in endpoints:
        check_files(api)
    # Nothing so far needs a model, so nothing has waited for the imports that take seconds. A
    # process that is forked does not tell what it imports.
    assert not {"torch", "transformers"} & server.imported()

    if "embeddings" in endpoints:
        check_embeddings(api, make_api(server, strict=False))
    if "chat" in endpoints:
        answer = check_chat(api)
        if variant.get("streaming") == "none":
            check_no_streaming(api)
        else:
            check_streaming(api, answer)
    if is_first:
        assert server.imported() >= {"torch", "transformers"}
    if "health" in endpoints:
        check_health(server, loaded=models)

    # The last question is how it leaves.
    options = Options(
        key=KEY,
        pid=server.process.pid,
        destructive=True,
        origin=ORIGIN,
        silence=connections.LEAST if is_first else 0.0,
    )
    codes = frozenset(BY_CODE) - ({"IS701"} if "health" not in endpoints else set())
    answers = asyncio.run(probe(server.url, options, codes))
    assert [each for each in answers if each.is_unwanted] == []
    skipped = {each.question.name for each in answers if each.verdict is Verdict.SKIP}
    assert skipped <= skipped_without(variant)
    assert server.process.wait(10) == 0, server.messages()
    assert "Traceback" not in server.messages(), server.messages()


def check_models(api: OpenAI, expected: list[str]) -> None:
    assert [model.id for model in api.models.list().data] == expected
    for name in expected:
        assert api.models.retrieve(name).id == name


def check_errors(api: OpenAI, stranger: OpenAI) -> None:
    error = refusal(404, lambda: api.get("/nowhere", cast_to=object))
    assert "/v1/nowhere" in error["message"]
    refusal(404, lambda: api.models.retrieve("unknown"))
    refusal(405, lambda: api.delete("/models", cast_to=object))
    assert refusal(401, stranger.models.list)["code"] == "invalid_api_key"


def refusal(status: int, call: Callable[[], object]) -> dict[str, Any]:
    """The body of the error that the call raises in the client."""
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    assert caught.value.status_code == status
    body = caught.value.body
    assert caught.value.response.json() == {"error": body}
    assert isinstance(body, dict)
    assert set(body) == {"message", "type", "param", "code"}
    return body


def check_absence(server: Server, routes: list[str]) -> None:
    for route in routes:
        method, path = route.split()
        headers = {"Authorization": f"Bearer {KEY}"}
        response = httpx2.request(method, f"{server.url}{path}", headers=headers)
        assert response.status_code == 404, route
        assert path in response.json()["error"]["message"]


def check_health(server: Server, loaded: list[str]) -> None:
    """Without a key: a load balancer has none."""
    health = httpx2.get(f"{server.url}/health").json()
    assert health["status"] == "healthy"
    assert health["pid"] == server.process.pid
    assert health["loaded_models"] == loaded
    assert {"device", "timestamp"} <= set(health)
    for path, word in {"live": "alive", "ready": "ready"}.items():
        response = httpx2.get(f"{server.url}/health/{path}")
        assert (response.status_code, response.json()) == (200, {"status": word})


def check_files(api: OpenAI) -> None:
    content = bytes(range(256)) * 1000
    file = api.files.create(file=("grün.bin", content), purpose="user_data")
    assert (file.filename, file.bytes, file.purpose) == ("grün.bin", len(content), "user_data")
    assert [listed.id for listed in api.files.list()] == [file.id]
    assert api.files.retrieve(file.id) == file
    assert api.files.content(file.id).read() == content
    assert api.files.delete(file.id).deleted
    assert list(api.files.list()) == []
    assert refusal(404, lambda: api.files.retrieve(file.id))["param"] == "file_id"

    purpose: Any = "fun"
    error = refusal(400, lambda: api.files.create(file=b"x", purpose=purpose))
    assert error["param"] == "purpose"


def check_embeddings(api: OpenAI, lenient: OpenAI) -> None:
    answer = api.embeddings.create(model="tiny-embeddings", input=TEXTS, encoding_format="float")
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens > len(TEXTS)
    for item in answer.data:
        assert math.hypot(*item.embedding) == pytest.approx(1)

    # By default the client asks for base64 and decodes it. Its strict mode validates the answer
    # before that, against a type that knows numbers only, and so refuses what it asked for.
    decoded = lenient.embeddings.create(model="tiny-embeddings", input=TEXTS)
    for item, expected in zip(decoded.data, answer.data, strict=True):
        assert item.embedding == pytest.approx(expected.embedding, abs=1e-6)

    error = refusal(400, lambda: api.embeddings.create(model="tiny-embeddings", input=[]))
    assert error["param"] == "input"
    refusal(404, lambda: api.embeddings.create(model="unknown", input="a"))


def check_chat(api: OpenAI) -> str:
    answer = api.chat.completions.create(
        model="tiny-chat", messages=HELLO, max_tokens=8, temperature=0
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8 > 8

    error = refusal(400, lambda: api.chat.completions.create(model="tiny-chat", messages=[]))
    assert error["param"] == "messages"
    refusal(404, lambda: api.chat.completions.create(model="unknown", messages=HELLO))
    return choice.message.content


def check_streaming(api: OpenAI, answer: str) -> None:
    """The same answer in pieces, its usage last."""
    stream: Any = {
        "model": "tiny-chat",
        "messages": HELLO,
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    *chunks, last = api.chat.completions.create(**stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "length"]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 8

    # The client says nothing about how a stream ended, so once more as lines.
    with api.chat.completions.with_streaming_response.create(**stream) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    assert lines.count("data: [DONE]") == 1


def check_no_streaming(api: OpenAI) -> None:
    def ask() -> object:
        return api.chat.completions.create(model="tiny-chat", messages=HELLO, stream=True)

    assert refusal(400, ask)["param"] == "stream"
