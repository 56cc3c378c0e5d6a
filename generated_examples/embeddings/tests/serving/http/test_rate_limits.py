"""Limits of one client: requests and tokens a minute, and requests at the same time."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter
from starlette.testclient import TestClient

from embeddings_server import custom
from embeddings_server.serving.http import rate_limits
from embeddings_server.serving.http.rate_limits import (
    SECONDS_BETWEEN_SWEEPS,
    Allowance,
    RateLimitMiddleware,
    client_of,
    duration,
)
from embeddings_server.serving.http.token_usage import TokenUsage

from ...tiny_embeddings import build_rerank_model

router = APIRouter()


@router.post("/own")
async def post_own(body: dict[str, Any]) -> dict[str, Any]:
    return body


@router.post("/own/fail")
async def fail_own() -> None:
    raise RuntimeError("the cause")


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rate_limits, "monotonic", clock)
    monkeypatch.setattr(custom, "ROUTERS", [router])
    return clock


def key(value: str) -> dict[str, str]:
    return {"authorization": f"Bearer {value}"}


def own(client: TestClient, **headers: str) -> httpx2.Response:
    return client.post("/own", json={}, headers=headers)


def figures(response: httpx2.Response, of: str) -> list[str]:
    """Limit, remaining and reset, as the headers have them."""
    names = ("limit", "remaining", "reset")
    return [response.headers[f"x-ratelimit-{name}-{of}"] for name in names]


def test_an_allowance_comes_back_bit_by_bit() -> None:
    allowance = Allowance(6, now=0)
    allowance.take(6, now=0)
    assert not allowance.has(1, now=9.9)
    assert allowance.has(1, now=10)
    assert allowance.remaining(now=35) == 3
    assert allowance.remaining(now=1000) == 6


def test_a_debt_is_paid_off_first() -> None:
    allowance = Allowance(60, now=0)
    allowance.take(200, now=0)
    assert allowance.remaining(now=0) == 0
    assert allowance.seconds_until(1, now=0) == 141
    assert not allowance.has(1, now=140.9)
    assert allowance.has(1, now=141)


@pytest.mark.parametrize("limit", [1, 3, 7, 60, 61, 997, 10**9])
def test_who_waits_as_long_as_told_is_let_in(limit: int) -> None:
    now, allowance = 12345.678, Allowance(limit, 12345.678)
    for _ in range(1000):
        allowance.take(3, now)
        now += allowance.seconds_until(1, now)
        assert allowance.has(1, now)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0171, "18ms"),
        (0.9, "900ms"),
        (1, "1s"),
        (7.66, "7.66s"),
        (8.6412, "8.641s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3599.5, "60m0s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("testclient", "testclient"),
        (None, ""),
    ],
)
def test_clients_without_a_key_are_addresses(address: str | None, client: str) -> None:
    scope = {"state": {}, "client": (address, 1) if address else None}
    assert client_of(scope) == client


def test_without_limits_there_is_none_and_no_header(make_client: Callable[..., TestClient]) -> None:
    with make_client() as client:
        response = client.post("/v1/models", json={})
        app: Any = client.app
        assert RateLimitMiddleware not in [each.cls for each in app.user_middleware]
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]


def test_requests_a_minute(make_client: Callable[..., TestClient], clock: Clock) -> None:
    with make_client(rate_limit_requests=3, api_keys="one,two") as client:
        assert figures(own(client, **key("one")), "requests") == ["3", "2", "20s"]
        clock.now += 10
        assert figures(own(client, **key("one")), "requests") == ["3", "1", "30s"]
        own(client, **key("one"))
        refused = own(client, **key("one"))
        assert refused.status_code == 429
        assert refused.json()["error"] == {
            "message": "The key 'key-1' has reached its limit of requests per minute: 3."
            " Try again in 10s.",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        assert refused.headers["retry-after"] == "10"
        assert figures(refused, "requests") == ["3", "0", "50s"]
        assert own(client, **key("two")).status_code == 200
        assert own(client, **key("wrong")).status_code == 401
        clock.now += 9.9
        assert own(client, **key("one")).headers["retry-after"] == "1"
        clock.now += 0.1
        assert own(client, **key("one")).status_code == 200
        assert own(client, **key("one")).status_code == 429
        metrics = client.get("/metrics").text
    assert 'infer_rejections_total{reason="rate_limit_exceeded"} 3.0' in metrics
    assert 'infer_key_requests_total{key_name="key-1",status="4xx"} 3.0' in metrics
    assert "x-ratelimit" not in metrics


def test_requests_that_only_read_are_free(
    make_client: Callable[..., TestClient], clock: Clock
) -> None:
    with make_client(rate_limit_requests=1) as client:
        assert own(client).status_code == 200
        for method in ("GET", "HEAD"):
            for path in ("/v1/models", "/docs", "/metrics"):
                response = client.request(method, path)
                assert response.status_code == 200
                assert "x-ratelimit-limit-requests" not in response.headers
        assert client.options("/own").status_code == 405
        assert own(client).status_code == 429
        assert client.delete("/own").status_code == 429


def test_keys_of_one_name_share_its_limits(
    make_client: Callable[..., TestClient], clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("alice:old\nalice:new\nbob:other\n")
    with make_client(rate_limit_requests=2, api_keys_file=str(tmp_path / "keys")) as client:
        statuses = [
            own(client, **key(each)).status_code for each in ("old", "new", "old", "new", "other")
        ]
    assert statuses == [200, 200, 429, 429, 200]


def test_without_keys_each_address_has_its_limits(
    make_client: Callable[..., TestClient], clock: Clock
) -> None:
    with make_client(rate_limit_requests=1) as client:
        app = client.app
        others = TestClient(app, client=("203.0.113.7", 1))
        assert [own(each).status_code for each in (client, others)] == [200, 200]
        refused = own(client)
        assert refused.status_code == 429
        assert "The address of the client" in refused.json()["error"]["message"]
        assert own(others, **{"x-forwarded-for": "203.0.113.8"}).status_code == 429


def test_pages_of_other_origins_may_read_the_figures(
    make_client: Callable[..., TestClient], clock: Clock
) -> None:
    with make_client(rate_limit_requests=1, cors_origins="https://page.example") as client:
        headers = own(client, origin="https://page.example").headers
    assert "x-ratelimit-remaining-tokens" in headers["access-control-expose-headers"].lower()


def test_errors_count_and_have_the_figures(
    make_client: Callable[..., TestClient], clock: Clock
) -> None:
    with make_client(rate_limit_requests=9, rate_limit_concurrent=1) as client:
        answers = [
            client.post("/own", content=b"{", headers={"content-type": "application/json"}),
            client.post("/own/fail"),
            client.post("/v1/none"),
            own(client),
        ]
    assert [each.status_code for each in answers] == [400, 500, 404, 200]
    assert [figures(each, "requests")[1] for each in answers if each.status_code != 500] == [
        *("8", "6", "5")
    ]


def scope_of(client: str) -> dict[str, Any]:
    state = {"token_usage": TokenUsage()}
    return {"type": "http", "method": "POST", "path": "/", "client": (client, 1), "state": state}


async def no_body() -> dict[str, Any]:
    return {"type": "http.request"}


class Answering:
    """An app whose requests end when the test says so, one way or another."""

    def __init__(self) -> None:
        self.ends: list[asyncio.Future[None]] = []
        self.usage: list[TokenUsage] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.ends.append(asyncio.get_running_loop().create_future())
        self.usage.append(scope["state"]["token_usage"])
        end = self.ends[-1]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await end
        await send({"type": "http.response.body"})


async def begin(
    limited: RateLimitMiddleware, client: str = "a"
) -> tuple[int, dict[str, str], "asyncio.Task[None]"]:
    """Begins a request: its status, its headers, and its task."""
    started: asyncio.Future[tuple[int, dict[str, str]]] = asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = {name.decode(): value.decode() for name, value in message["headers"]}
            started.set_result((message["status"], headers))

    task = asyncio.create_task(limited(scope_of(client), no_body, send))
    status, headers = await asyncio.wait_for(started, 5)
    return status, headers, task


@pytest.mark.parametrize("end", ["answer", "error", "disconnect"])
async def test_concurrent_requests_are_freed_by_every_end(anyio_backend: str, end: str) -> None:
    app = Answering()
    limited = RateLimitMiddleware(app, concurrent=2)
    tasks = [(await begin(limited))[2] for _ in range(2)]
    status, headers, _ = await begin(limited)
    assert (status, headers["retry-after"]) == (429, "1")
    assert (await begin(limited, "b"))[0] == 200
    match end:
        case "answer":
            app.ends[0].set_result(None)
        case "error":
            app.ends[0].set_exception(RuntimeError("the cause"))
        case "disconnect":
            tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    assert (await begin(limited))[0] == 200
    assert (await begin(limited))[0] == 429


async def test_the_tokens_of_a_stream_count_at_its_end(anyio_backend: str, clock: Clock) -> None:
    app = Answering()
    limited = RateLimitMiddleware(app, tokens=60)
    _, headers, task = await begin(limited)
    assert headers["x-ratelimit-remaining-tokens"] == "60"
    app.usage[0].prompt_tokens, app.usage[0].completion_tokens = 50, 40
    assert (await begin(limited))[1]["x-ratelimit-remaining-tokens"] == "60"
    task.cancel()  # the client has left; its tokens have been computed all the same
    await asyncio.wait([task])
    status, headers, _ = await begin(limited)
    assert status == 429
    assert headers["retry-after"] == "31"
    assert headers["x-ratelimit-reset-tokens"] == "1m30s"
    clock.now += 31
    assert (await begin(limited))[1]["x-ratelimit-remaining-tokens"] == "1"


async def test_addresses_that_ask_for_nothing_are_forgotten(
    anyio_backend: str, clock: Clock
) -> None:
    app = Answering()
    limited = RateLimitMiddleware(app, requests=2)
    _, _, running = await begin(limited, "running")
    for number in range(100):
        _, _, task = await begin(limited, f"client {number}")
        app.ends[-1].set_result(None)
        await task
    clock.now += SECONDS_BETWEEN_SWEEPS
    await begin(limited, "next")
    assert limited._accounts.keys() == {"running", "next"}
    running.cancel()


EMBEDDINGS = {"model": "tiny-embeddings"}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "embeddings": ("/v1/embeddings", {**EMBEDDINGS, "input": "a cat"}),
    "embeddings of texts": ("/v1/embeddings", {**EMBEDDINGS, "input": ["a cat", "x", "a dog"]}),
    "embeddings of tokens": ("/v1/embeddings", {**EMBEDDINGS, "input": [[5, 6, 7], [8]]}),
    "rerank": (
        "/v1/rerank",
        {"model": "tiny-rerank", "query": "a cat", "documents": ["a dog", "the market fell"]},
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rerank") / "tiny-rerank"
    return {"rerank_model": str(build_rerank_model(folder))}


def test_every_endpoint_counts_the_tokens_that_it_tells(
    make_client: Callable[..., TestClient], models: dict[str, Any], clock: Clock
) -> None:
    total = 0
    with make_client(rate_limit_tokens=10_000, api_keys="k", **models) as client:
        for name, (path, body) in REQUESTS.items():
            response = client.post(path, json=body, headers=key("k"))
            assert response.status_code == 200, response.text
            used = response.json()["usage"]["total_tokens"]
            assert used > 0
            total += used
            assert figures(response, "tokens")[:2] == ["10000", str(10_000 - total)], name
        metrics = client.get("/metrics").text
    counted = [
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith('infer_key_tokens_total{key_name="key-1"')
    ]
    assert sum(counted) == total


def test_a_request_that_is_refused_uses_no_tokens(
    make_client: Callable[..., TestClient], clock: Clock
) -> None:
    path, body = next(iter(REQUESTS.values()))
    with make_client(rate_limit_tokens=10_000) as client:
        refused = client.post(path, json=body | {"model": "none"})
        assert refused.status_code == 404
        assert figures(refused, "tokens") == ["10000", "10000", "0ms"]


def test_an_answer_may_overdraw_and_the_next_waits(
    make_client: Callable[..., TestClient], clock: Clock
) -> None:
    path, body = next(iter(REQUESTS.values()))
    with make_client(rate_limit_tokens=6) as client:
        used = client.post(path, json=body).json()["usage"]["total_tokens"]
        assert used > 6
        refused = client.post(path, json=body)
        assert refused.status_code == 429
        assert "its limit of tokens per minute: 6." in refused.json()["error"]["message"]
        seconds = int(refused.headers["retry-after"])
        assert seconds == (used - 6 + 1) * 10
        clock.now += seconds - 1
        assert client.post(path, json=body).status_code == 429
        clock.now += 1
        assert client.post(path, json=body).status_code == 200
