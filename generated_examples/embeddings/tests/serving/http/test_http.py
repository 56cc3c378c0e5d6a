"""HTTP as clients, browsers and proxies speak it: bodies, slashes, origins, hosts, WebSockets."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import APIRouter, FastAPI, WebSocket
from starlette.testclient import TestClient, WebSocketDenialResponse
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from embeddings_server import custom
from embeddings_server.__main__ import DrainingServer, is_loopback
from embeddings_server.app import create_app
from embeddings_server.serving.http.errors import MAX_MESSAGE, bounded
from embeddings_server.settings import Settings

from ...conftest import Server

JSON = {"content-type": "application/json"}

router = APIRouter()


@router.post("/own")
async def post_own(body: dict[str, Any]) -> dict[str, Any]:
    return body


@router.get("/own/slash/")
async def get_slash() -> str:
    return "slash"


@router.options("/own/options")
async def get_options() -> str:
    return "secret"


@router.get("/own/fail")
async def fail() -> None:
    raise RuntimeError("the cause")


@router.websocket("/own/socket")
async def socket_route(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        await websocket.send_text(await websocket.receive_text())


@pytest.fixture
def make(
    make_client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TestClient]:
    """Makes a client of a service that has routes of its owner."""
    monkeypatch.setattr(custom, "ROUTERS", [router])
    return make_client


@pytest.fixture
def own(make: Callable[..., TestClient]) -> Iterator[TestClient]:
    with make() as client:
        yield client


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
        "multipart/form-data; boundary=x",
    ],
)
def test_json_of_another_type_is_a_415(own: TestClient, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = own.post("/own", content=b'{"a": 1}', headers=headers)
    assert error_of(response, 415)["message"] == "Content-Type must be application/json."


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/v.x+json",
    ],
)
def test_types_of_json(own: TestClient, content_type: str) -> None:
    response = own.post("/own", content=b'{"a": 1}', headers={"content-type": content_type})
    assert response.json() == {"a": 1}


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br", "deflate", "GZIP", "x" * 500])
def test_an_encoded_body_is_a_415(own: TestClient, encoding: str) -> None:
    headers = JSON | {"content-encoding": encoding}
    response = own.post("/own", content=b'{"a": 1}', headers=headers)
    assert encoding.lower()[:64] in error_of(response, 415)["message"]
    assert len(response.content) < 300
    assert response.headers["accept-encoding"] == "identity"
    plain = own.post("/own", content=b'{"a": 1}', headers=JSON | {"content-encoding": "identity"})
    assert plain.status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "JSON object"),
        (b"{", "not valid JSON"),
        (b'{"a": "\xe9"}', "UTF-8"),
        ('{"a": "\u00e9"}'.encode("utf-16"), "UTF-8"),
        ('{"a": "\u00e9"}'.encode("utf-16-be"), "UTF-8"),
        ('{"a": "\u00e9"}'.encode("utf-32-le"), "UTF-8"),
        (b"\x1f\x8b\x08", "UTF-8"),
        (b'{"a": "\0"}', "NUL"),
        (b'{"a": ' * 5000, "nested"),
        (b"[" * 5000, "nested"),
        (b'{"a": ' + b"1" * 5000 + b"}", "number"),
    ],
)
def test_what_does_not_parse_is_invalid_json(own: TestClient, body: bytes, said: str) -> None:
    error = error_of(own.post("/own", content=body, headers=JSON), 400)
    assert error["code"] == "invalid_json"
    assert said in error["message"]


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"1", b"true"])
def test_what_is_no_object_is_told_so(own: TestClient, body: bytes) -> None:
    error = error_of(own.post("/own", content=body, headers=JSON), 400)
    assert error["message"] == "The body must be a JSON object."


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/", 200),
        ("HEAD", "/v1/models/", 200),
        ("POST", "/v1/models/", 405),
        ("GET", "/v1/models///", 200),
        ("POST", "/own/", 400),
        ("GET", "/own/slash", 200),
        ("GET", "/own/slash/", 200),
        ("GET", "/docs/", 200),
        ("GET", "/nope/", 404),
        ("GET", "//evil.example/", 404),
        ("GET", "/", 200),
    ],
)
def test_a_slash_at_the_end_is_served(own: TestClient, method: str, path: str, status: int) -> None:
    response = own.request(
        method, httpx2.URL("http://testserver", raw_path=path.encode()), follow_redirects=False
    )
    assert response.status_code == status, response.text
    assert "location" not in response.headers


def test_a_mounted_app_keeps_its_slashes(own: TestClient) -> None:
    seen = []

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app = own.app
    assert isinstance(app, FastAPI)
    app.mount("/ui", mounted)
    for path in ("/ui", "/ui/", "/ui/sub", "/ui/sub/"):
        assert own.get(path).status_code == 200
    assert seen == ["/ui/", "/ui/", "/ui/sub", "/ui/sub/"]


def test_head_answers_as_get_does(own: TestClient) -> None:
    for path in ("/v1/models", "/own/slash/", "/docs", "/openapi.json"):
        assert own.head(path).headers["content-type"] == own.get(path).headers["content-type"]
    assert own.head("/own").headers["allow"] == "POST"
    assert own.put("/v1/models").headers["allow"] == "GET, HEAD"


def test_an_unknown_url_tells_those_that_there_are(own: TestClient) -> None:
    message = error_of(own.get("/v1/" + "x" * 5000), 404)["message"]
    assert "GET /v1/models" in message
    assert "POST /own" in message
    assert len(message) <= MAX_MESSAGE + 10


@pytest.mark.parametrize("text", ["x" * 3_000_000, "a b " * 1_000_000, "\u00e9" * 90])
def test_an_error_repeats_little(own: TestClient, text: str) -> None:
    assert len(bounded(text)) <= MAX_MESSAGE + 10
    assert "x" * 65 not in bounded(text)
    error = error_of(own.get(f"/v1/models/{text[:30_000]}"), 404)
    assert text[:60] in error["message"]
    assert len(error["message"]) < 300


ORIGIN = "https://page.example"
PREFLIGHT = {"origin": ORIGIN, "access-control-request-method": "POST"}


def test_pages_of_the_origins_given_may_read_every_answer(make: Callable[..., TestClient]) -> None:
    with make(cors_origins=f"{ORIGIN}/, app://x", api_keys="k", max_body_size=10) as client:
        wanted = PREFLIGHT | {"access-control-request-headers": "authorization, x-stainless-os"}
        preflight = client.options("/own", headers=wanted)
        assert preflight.status_code == 200
        assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
        page = {"origin": ORIGIN}
        key = {"authorization": "Bearer k"}
        answers = [
            client.get("/v1/models", headers=page),
            client.get("/v1/models", headers=page | key),
            client.get("/nope", headers=page | key),
            client.post("/own", content=b"x" * 11, headers=page | key),
            client.get("/own/fail", headers=page | key),
        ]
        app = client.app
        assert isinstance(app, FastAPI)
        app.state.drain.draining = True
        answers.append(client.get("/v1/models", headers=page | key))
        assert [each.status_code for each in answers] == [401, 200, 404, 413, 500, 503]
        for each in [preflight, *answers]:
            assert each.headers["access-control-allow-origin"] == ORIGIN
            assert "origin" in each.headers["vary"].lower()
            assert "access-control-allow-credentials" not in each.headers
            assert each.headers["x-request-id"]
        for name in ("X-Request-Id", "Retry-After"):
            assert name in answers[0].headers["access-control-expose-headers"]


def test_pages_of_other_origins_may_not(make: Callable[..., TestClient]) -> None:
    with make(cors_origins=ORIGIN) as client:
        other = PREFLIGHT | {"origin": "https://page.example.evil"}
        refused = client.options("/own", headers=other)
        assert error_of(refused, 400)["code"] == "cors_refused"
        for each in (refused, client.get("/v1/models", headers=other)):
            assert "access-control-allow-origin" not in each.headers


def test_every_origin(make: Callable[..., TestClient]) -> None:
    with make(cors_origins="*") as client:
        for each in (client.options("/own", headers=PREFLIGHT), client.get("/", headers=PREFLIGHT)):
            assert each.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in each.headers


def test_without_origins_there_is_no_cors(own: TestClient) -> None:
    response = own.options("/own", headers=PREFLIGHT)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


FORM = {"content-type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        (FORM | {"origin": "https://evil.example"}, True),
        (FORM | {"origin": "null"}, True),
        (FORM | {"origin": "http://testserver", "sec-fetch-site": "cross-site"}, True),
        ({"content-type": "TEXT/plain;x", "origin": "https://evil.example"}, True),
        ({"origin": "https://evil.example"}, True),
        (FORM, False),
        (FORM | {"origin": "http://testserver"}, False),
        (FORM | {"origin": "https://proxy.example", "sec-fetch-site": "same-origin"}, False),
        (JSON | {"origin": "https://evil.example"}, False),  # the browser asks before
    ],
)
def test_other_sites_send_nothing_unasked(
    own: TestClient, headers: dict[str, str], refused: bool
) -> None:
    response = own.post("/own", content=b"--x--", headers=headers)
    assert (response.status_code == 403) == refused, response.text


def test_the_sites_given_send_what_they_like(make: Callable[..., TestClient]) -> None:
    for settings in ({"cors_origins": ORIGIN}, {"cors_origins": "*"}, {"api_keys": "k"}):
        with make(**settings) as client:
            headers = FORM | {"origin": ORIGIN, "authorization": "Bearer k"}
            assert client.post("/own", content=b"--x--", headers=headers).status_code == 415


@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        ("a.example", True),
        ("A.example:8000", True),
        ("x.b.example", True),
        ("[::1]:80", True),
        ("b.example", False),
        ("evil.example", False),
        ("a.example.evil", False),
        ("xb.example", False),
        ("a.example@evil", False),
        ("[", False),
        ("", False),
    ],
)
def test_hosts(make: Callable[..., TestClient], host: str, trusted: bool) -> None:
    with make(trusted_hosts="a.example, *.b.example, [::1]") as client:
        response = client.get("/v1/models", headers={"host": host})
        if trusted:
            assert response.status_code == 200
        else:
            assert error_of(response, 400)["code"] == "untrusted_host"
        assert client.get("/health/ready", headers={"host": host}).status_code == 200


def test_keys_hold_for_every_kind_of_request(make: Callable[..., TestClient]) -> None:
    key = {"authorization": "Bearer k"}
    with make(api_keys="k") as client:
        for headers in ({}, PREFLIGHT):
            assert error_of(client.options("/own/options", headers=headers), 401)
        assert client.options("/own/options", headers=key).text == '"secret"'
        for path in ("/own/socket", "/own/socket/"):
            with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect(path):
                pass
            assert error_of(denied.value, 401)["code"] == "invalid_api_key"
            with client.websocket_connect(path, headers=key) as websocket:
                websocket.send_text("hello")
                assert websocket.receive_text() == "hello"


def test_a_websocket_has_its_access_line(own: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="access")
    with own.websocket_connect("/own/socket", headers={"x-request-id": "abc"}) as websocket:
        websocket.send_text("four")
        websocket.receive_text()
    foreign = {"origin": "https://evil.example"}
    with (
        pytest.raises(WebSocketDenialResponse),
        own.websocket_connect("/own/socket", headers=foreign),
    ):
        pass
    lines = [vars(record) for record in caplog.records if record.name == "access"]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/own/socket", 101),
        ("/own/socket", 403),
    ]
    assert lines[0]["bytes"] == 4
    assert "unhandled" not in caplog.text


async def test_a_shutdown_closes_websockets(
    tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    monkeypatch.setattr(custom, "ROUTERS", [router])
    app = create_app(Settings(_env_file=None, **tiny_settings))
    config = uvicorn.Config(app, log_config=None)
    server = DrainingServer(config, app.state.drain, drain_seconds=0.2)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    serving = asyncio.create_task(server.serve([listening]))
    async with connect(f"ws://127.0.0.1:{port}/own/socket") as websocket:
        await websocket.send("hello")
        assert await websocket.recv() == "hello"
        assert app.state.drain.in_flight == 1
        server.should_exit = True
        with pytest.raises(ConnectionClosed) as closed:
            await websocket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    await asyncio.wait_for(serving, 10)


def test_a_service_that_leaves_takes_no_websocket(own: TestClient) -> None:
    app = own.app
    assert isinstance(app, FastAPI)
    app.state.drain.draining = True
    with pytest.raises(WebSocketDenialResponse) as denied, own.websocket_connect("/own/socket"):
        pass
    assert error_of(denied.value, 503)["code"] == "shutting_down"


@pytest.mark.parametrize("public", [False, True])
def test_the_docs_ask_for_a_key(make: Callable[..., TestClient], public: bool) -> None:
    paths = ("/docs", "/docs/", "/docs/assets/swagger-ui-bundle.js", "/openapi.json")
    with make(api_keys="k", public_docs=public) as client:
        assert {client.get(path).status_code for path in paths} == {200 if public else 401}
        for path in ("/v1/models", "/docs/../v1/models", "/docsx", "/openapi.json/x"):
            assert client.get(path).status_code == 401


def test_the_docs_need_no_other_host(own: TestClient) -> None:
    page = own.get("/docs").text
    assert "//" not in page.replace("// ", "").replace("window.location", "")
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/docs/assets/{name}" in page
        assert own.get(f"/docs/assets/{name}").status_code == 200


async def test_a_host_without_lifespan_state_is_served(
    tiny_settings: dict[str, Any], anyio_backend: str
) -> None:
    app = create_app(Settings(_env_file=None, **tiny_settings))
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://x") as client,
    ):
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200


async def test_slow_routes_of_the_owner_do_not_hold_up_health(
    tiny_settings: dict[str, Any], anyio_backend: str
) -> None:
    app = create_app(Settings(_env_file=None, **tiny_settings))

    answered = threading.Event()

    @app.get("/slow")
    def slow() -> None:
        answered.wait(60)

    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://x") as client,
    ):
        slow_ones = asyncio.gather(*(client.get("/slow") for _ in range(40)))
        await asyncio.sleep(0.2)
        try:
            async with asyncio.timeout(30):  # before any of the slow ones
                assert (await client.get("/health/ready")).status_code == 200
        finally:
            answered.set()
        await slow_ones


def ask(connection: HTTPConnection) -> bool:
    """True if the open connection still answers."""
    connection.request("GET", "/v1/models")
    connection.auto_open = 0  # another one is not what the test is about
    try:
        response = connection.getresponse()
    except ConnectionError:
        return False
    response.read()
    return response.status == 200


def test_an_idle_connection_is_kept_as_long_as_is_said(make_server: Callable[..., Server]) -> None:
    connection = HTTPConnection(*make_server(keep_alive_seconds=2).address)
    assert ask(connection)
    time.sleep(1)
    assert ask(connection)
    time.sleep(4)
    assert not ask(connection)


def test_an_idle_connection_outlives_those_of_proxies(make_server: Callable[..., Server]) -> None:
    assert Settings(_env_file=None).keep_alive_seconds == 75
    server = make_server()
    connection = HTTPConnection(*server.address)
    assert ask(connection)
    time.sleep(6.5)
    assert ask(connection)
    assert "INFER_API_KEYS" not in server.log.read_text()


def test_a_warning_beyond_loopback_without_keys(make_server: Callable[..., Server]) -> None:
    assert "no INFER_API_KEYS are set" in make_server(host="0.0.0.0").log.read_text()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com"])
def test_beyond_loopback(host: str) -> None:
    assert not is_loopback(host)
