"""The streamed answer, on the wire and through the official client."""

import json
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from full_server.serving.engine.base_engine import TokenStream

from ...conftest import Server, wait_until

HELLO: Any = [{"role": "user", "content": "hello"}]


def request(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny-chat", "messages": HELLO, "stream": True, "seed": 1} | changes


def events(client: TestClient | httpx2.Client, **changes: Any) -> list[str]:
    response = client.post("/v1/chat/completions", json=request(**changes))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = response.text.split("\n\n")
    assert frames.pop() == ""
    frames = [frame for frame in frames if frame != ": ping"]
    assert all(frame.startswith("data: ") for frame in frames)
    return [frame.removeprefix("data: ") for frame in frames]


def test_framing_and_stable_head(client: TestClient) -> None:
    *frames, done = events(client, max_tokens=10)
    assert done == "[DONE]"
    chunks = [json.loads(frame) for frame in frames]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0].get("finish_reason") for chunk in chunks[:-1]] == [None] * (
        len(chunks) - 1
    )
    assert chunks[-1]["choices"][0]["finish_reason"] in ("length", "stop")


def test_stream_and_whole_answer_are_the_same_text(client: TestClient) -> None:
    http_client: Any = client
    api = OpenAI(
        base_url="http://testserver/v1",
        api_key="unused",
        http_client=http_client,
        _strict_response_validation=True,
    )
    params: Any = {"model": "tiny-chat", "messages": HELLO, "max_tokens": 40, "seed": 5}
    whole = api.chat.completions.create(**params)
    streamed = list(
        api.chat.completions.create(**params, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in streamed if c.choices)
    assert text == whole.choices[0].message.content
    assert streamed[-1].choices == []
    assert streamed[-1].usage == whole.usage


@pytest.mark.parametrize("setting", ["request", "always"])
def test_usage_on_request_or_always(make_client: Callable[..., TestClient], setting: str) -> None:
    with make_client(stream_usage=setting) as client:
        for asked in (True, False):
            frames = events(client, max_tokens=2, stream_options={"include_usage": asked})
            with_usage = [frame for frame in frames if '"usage"' in frame]
            assert len(with_usage) == (asked or setting == "always")


def test_what_can_fail_fails_before_the_stream_begins(client: TestClient) -> None:
    response = client.post("/v1/chat/completions", json=request(max_tokens=100_000))
    assert response.status_code == 400


def test_an_error_in_the_middle_is_the_last_event(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = TokenStream.put

    def fail_after_three(self: TokenStream, sequence: int, tokens: list[int]) -> None:
        put(self, sequence, tokens)
        if self.counts[sequence] >= 3:
            self.fail(RuntimeError("the secret cause"))

    monkeypatch.setattr(TokenStream, "put", fail_after_three)
    *_, last = events(client, max_tokens=50, temperature=0)
    error = json.loads(last)["error"]
    assert error["code"] == "internal_error"
    assert "secret" not in last


def stream_from(url: str, **changes: Any) -> Any:
    api = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    return api.chat.completions.create(**request(**changes))


def refused(url: str) -> bool:
    try:
        list(stream_from(url, max_tokens=1))
    except (openai.APIStatusError, openai.APIConnectionError):
        return True
    return False


def test_tokens_arrive_one_by_one(narrow_server: Server) -> None:
    assert not refused(narrow_server.url)  # loads the model
    stream = stream_from(narrow_server.url, max_tokens=200, temperature=0)
    arrivals = [time.monotonic() for _ in stream]
    assert len(set(arrivals)) > 50
    assert arrivals[-1] - arrivals[0] > 0.05


def test_a_client_that_leaves_frees_its_place(narrow_server: Server) -> None:
    assert not refused(narrow_server.url)
    stream = stream_from(narrow_server.url, max_tokens=1900, temperature=0)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError):
        stream_from(narrow_server.url, max_tokens=1)
    stream.close()
    wait_until(lambda: not refused(narrow_server.url))
    lines = narrow_server.log.read_text().splitlines()
    sent = [int(size) for line in lines for size in re.findall(r"bytes=(\d+)", line)]
    assert max(sent) < 300_000  # of the 400,000 that the whole answer has


def test_sigterm_lets_the_stream_finish(make_server: Callable[..., Any]) -> None:
    server = make_server(drain_seconds=60)
    assert not refused(server.url)
    chunks = iter(stream_from(server.url, max_tokens=900, temperature=0))
    next(chunks)
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: refused(server.url))
    *_, last = chunks
    assert last.choices[0].finish_reason == "length"
    assert server.process.wait(60) == 0
    assert "unloaded tiny-chat" in server.log.read_text()


def lines_of(url: str, lines: list[str]) -> None:
    """Streams an answer of 1900 tokens into `lines`, which others may watch."""
    body = request(max_tokens=1900, temperature=0)
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        lines.extend(line for line in response.iter_lines() if line)


def test_sigterm_ends_streams_that_overstay(make_server: Callable[..., Server]) -> None:
    server = make_server(drain_seconds=2)
    assert not refused(server.url)
    answers: list[list[str]] = [[] for _ in range(8)]  # more than fit the KV cache
    with ThreadPoolExecutor(8) as clients:
        reading = [clients.submit(lines_of, server.url, lines) for lines in answers]
        wait_until(lambda: all(answers))
        server.process.send_signal(signal.SIGTERM)
        ready = f"{server.url}/health/ready"
        wait_until(lambda: httpx2.get(ready).status_code == 503)
        assert httpx2.get(f"{server.url}/health/live").status_code == 200
        assert not all(each.done() for each in reading)
        for each in reading:
            each.result()
    cut_off = [lines[-1] for lines in answers if lines[-1] != "data: [DONE]"]
    assert cut_off
    for line in cut_off:
        assert json.loads(line.removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert server.process.wait(60) == 0
    log = server.log.read_text()
    assert "unloaded tiny-chat" in log
    assert "Traceback" not in log
