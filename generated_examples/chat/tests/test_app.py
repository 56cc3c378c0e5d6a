"""The layers around all routes: errors, ids, keys, limits, start and shutdown."""

import json
import logging
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from chat_server.app import create_app
from chat_server.settings import Settings


def assert_envelope(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


def test_unknown_url_has_the_envelope(client: TestClient) -> None:
    assert "/nope" in assert_envelope(client.get("/nope"), 404)["message"]


def test_wrong_method_has_the_envelope(client: TestClient) -> None:
    response = client.post("/v1/models")
    assert_envelope(response, 405)
    assert response.headers["allow"] == "GET, HEAD"


def test_unknown_model_has_the_envelope(client: TestClient) -> None:
    assert assert_envelope(client.get("/v1/models/a/b"), 404)["param"] == "model"


def failing_app(tiny_settings: dict[str, Any]) -> FastAPI:
    app = create_app(Settings(_env_file=None, **tiny_settings))

    @app.get("/fail")
    async def fail() -> None:
        raise RuntimeError("the secret cause")

    return app


def test_unhandled_error_is_a_500_with_the_request_id(
    tiny_settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(failing_app(tiny_settings)) as client:
        response = client.get("/fail", headers={"x-request-id": "abc-1"})
    error = assert_envelope(response, 500)
    assert "abc-1" in error["message"]
    assert "secret" not in response.text
    assert "the secret cause" in caplog.text
    assert response.headers["x-request-id"] == "abc-1"
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("given", ["", "with space", "x" * 200])
def test_unfit_request_ids_are_replaced(client: TestClient, given: str) -> None:
    answered = client.get("/v1/models", headers={"x-request-id": given}).headers["x-request-id"]
    assert len(answered) == 32


def test_one_access_line_a_request(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="access"):
        size = len(client.get("/v1/models").content)
        client.head("/v1/models")
    get, head = [vars(record) for record in caplog.records if record.name == "access"]
    assert (get["method"], get["path"], get["status"]) == ("GET", "/v1/models", 200)
    assert get["duration_ms"] > 0
    assert get["bytes"] == size > 0
    assert (head["method"], head["bytes"]) == ("HEAD", 0)


def test_fields_of_one_s_own_in_the_access_line(
    tiny_settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(Settings(_env_file=None, **tiny_settings))

    @app.get("/hello/{name}")
    async def hello(name: str, request: Request) -> None:
        request.state.log_fields |= {"tenant": name, "name": "of the logger"}

    with TestClient(app) as client, caplog.at_level(logging.INFO, logger="access"):
        client.get("/hello/acme")
        client.get("/v1/models")
    hello_line, other = [record for record in caplog.records if record.name == "access"]
    assert (vars(hello_line)["tenant"], hello_line.name) == ("acme", "access")
    assert "tenant" not in vars(other)


@pytest.fixture
def locked(make_client: Callable[..., TestClient]) -> Iterator[TestClient]:
    with make_client(api_keys="first-key, second-key") as client:
        yield client


@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer wrong", "Basic first-key"])
def test_without_a_key_nothing_is_answered(locked: TestClient, authorization: str | None) -> None:
    headers = {"authorization": authorization} if authorization else {}
    response = locked.get("/v1/models", headers=headers)
    assert_envelope(response, 401)
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_every_key_opens(locked: TestClient, key: str) -> None:
    response = locked.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    assert response.status_code == 200


def test_large_body_is_refused_when_announced(make_client: Callable[..., TestClient]) -> None:
    with make_client(max_body_size=100) as client:
        assert "100" in assert_envelope(client.post("/v1/x", content=b"x" * 101), 413)["message"]


def test_large_body_is_refused_while_it_arrives(make_client: Callable[..., TestClient]) -> None:
    with make_client(max_body_size=100) as client:
        app = client.app
        assert isinstance(app, FastAPI)

        @app.post("/echo")
        async def echo(body: dict[str, str]) -> dict[str, str]:
            return body

        chunks = (b" " * 40 for _ in range(4))
        response = client.post(
            "/echo", content=chunks, headers={"content-type": "application/json"}
        )
        assert_envelope(response, 413)


@pytest.mark.parametrize("style", ["text", "json"])
def test_process_starts_logs_and_leaves(make_server: Callable[..., Any], style: str) -> None:
    server = make_server(log_format=style)
    assert httpx2.get(f"{server.url}/v1/models%0Ax").status_code == 404
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    lines = server.log.read_text().splitlines()
    assert any("Application shutdown complete" in line for line in lines)
    if style == "json":
        paths = [json.loads(line).get("path") for line in lines]
        assert "/v1/models\nx" in paths
    else:
        assert any('path="/v1/models\\nx"' in line for line in lines)
