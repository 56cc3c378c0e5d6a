"""The page at /: who sees it, what it may load, and what takes its place."""

import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256

import pytest
from fastapi import APIRouter, FastAPI
from starlette.testclient import TestClient

from embeddings_server import custom
from embeddings_server.serving.http.page import add_page


@pytest.mark.parametrize("keys", [None, "k"])
def test_it_is_open_and_can_be_removed(
    make_client: Callable[..., TestClient], keys: str | None
) -> None:
    settings = {"api_keys": keys} if keys else {}
    with make_client(**settings) as client:
        page = client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "<h1>embeddings-server</h1>" in page.text
        assert client.get("/v1/models").status_code == (401 if keys else 200)
    with make_client(**settings, page=False) as client:
        assert client.get("/").status_code == (401 if keys else 404)


@pytest.mark.parametrize(
    ("settings", "links"),
    [
        ({}, ["docs", "metrics"]),
        ({"metrics": "off"}, ["docs"]),
        ({"api_keys": "k"}, ["metrics"]),
        ({"api_keys": "k", "metrics": "key"}, []),
        ({"api_keys": "k", "metrics": "key", "public_docs": True}, ["docs"]),
    ],
)
def test_it_links_to_what_a_browser_can_open(
    make_client: Callable[..., TestClient], settings: dict[str, str], links: list[str]
) -> None:
    with make_client(**settings) as client:
        assert re.findall(r'<a href="([^"]+)"', client.get("/").text) == links
        assert {client.get(f"/{link}").status_code for link in links} <= {200}


def test_it_may_run_its_own_script_alone(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    [script] = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "innerHTML" not in script
    assert not re.findall(r"https?:|src=|url\(", page.text)


def test_a_title_is_no_markup() -> None:
    app = FastAPI(title='<b onclick="x">&</b>')
    add_page(app, [])
    page = TestClient(app).get("/").text
    assert "<title>&lt;b onclick=&quot;x&quot;&gt;&amp;&lt;/b&gt;</title>" in page


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/", ["GET"]), ("/", ["POST"]), ("/{rest:path}", ["GET"]), ("/", ["GET", "POST"])],
)
@pytest.mark.parametrize("url", ["/", "/metrics"])
def test_a_route_of_one_s_own_in_place_of_a_page_asks_for_the_key(
    make_client: Callable[..., TestClient],
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    path: str,
    methods: list[str],
) -> None:
    router = APIRouter()
    router.add_api_route(url if path == "/" else path, lambda: "secret", methods=methods)
    monkeypatch.setattr(custom, "ROUTERS", [router])
    with make_client(api_keys="k") as client:
        for method in methods:
            assert client.request(method, url).status_code == 401
            headers = {"authorization": "Bearer k"}
            assert client.request(method, url, headers=headers).json() == "secret"


def test_a_page_of_one_s_own_comes_first(
    make_client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    router = APIRouter()
    router.add_api_route("/", lambda: "own")
    monkeypatch.setattr(custom, "ROUTERS", [router])
    with make_client() as client:
        assert client.get("/").json() == "own"
