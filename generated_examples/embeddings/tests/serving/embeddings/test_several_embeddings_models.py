"""Several embeddings models and rerankers in one service, each on its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from embeddings_server.catalog import embeddings_models, rerank_models
from embeddings_server.serving.embeddings.embeddings_model import EmbeddingsModel
from embeddings_server.serving.embeddings.rerank_model import RerankModel
from embeddings_server.serving.models.device import Device
from embeddings_server.serving.models.registry import ModelRegistry
from embeddings_server.settings import Settings

from ...conftest import delay, wait_until
from ...tiny_embeddings import build_embeddings_model, build_rerank_model

NAMES = ["first", "second"]

MakeClient = Callable[..., TestClient]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    parent = tmp_path_factory.mktemp("models")
    return [build_embeddings_model(parent / f"model-{seed}", seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def listed(folders: list[Path]) -> str:
    return ",".join(f"{name}={folder}" for name, folder in zip(NAMES, folders, strict=True))


def post(client: TestClient, model: str) -> httpx2.Response:
    body = {"model": model, "input": "hello world", "encoding_format": "float"}
    return client.post("/v1/embeddings", json=body)


def embed(client: TestClient, model: str) -> list[float]:
    response = post(client, model)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == model
    vector: list[float] = response.json()["data"][0]["embedding"]
    return vector


def registry_of(client: TestClient) -> ModelRegistry:
    assert isinstance(client.app, FastAPI)
    registry: ModelRegistry = client.app.state.registry
    return registry


@pytest.fixture(scope="module")
def alone(make_client: MakeClient, folders: list[Path]) -> dict[str, Any]:
    """The vector of each model in a service of its own."""
    vectors = {}
    for name, folder in zip(NAMES, folders, strict=True):
        with make_client(embeddings_model=str(folder)) as client:
            vectors[name] = pytest.approx(embed(client, folder.name), abs=1e-6)
            if name == "second":
                assert embed(client, folder.name) != vectors["first"]
    return vectors


def test_each_answers_as_itself(
    make_client: MakeClient, listed: str, alone: dict[str, Any]
) -> None:
    with make_client(embeddings_model=listed) as client, ThreadPoolExecutor(8) as clients:
        cards = client.get("/v1/models").json()["data"]
        assert [card["id"] for card in cards if card["type"] == "embeddings"] == NAMES
        asked = NAMES * 8
        answers = list(clients.map(lambda name: embed(client, name), asked))
        assert post(client, "third").json()["error"]["code"] == "model_not_found"
    assert answers == [alone[name] for name in asked]


def test_unloading_one_leaves_the_other(
    make_client: MakeClient, listed: str, alone: dict[str, Any]
) -> None:
    with make_client(embeddings_model=listed) as client:
        for name in NAMES:
            embed(client, name)
        registry = registry_of(client)
        second = registry.models["second"]
        registry._entries["first"].last_used -= 1000
        assert client.portal
        client.portal.call(registry.unload_idle, 500)
        assert registry.models == {"second": second}
        assert embed(client, "second") == alone["second"]
        assert embed(client, "first") == alone["first"]
        assert registry.models["second"] is second


def test_a_full_queue_is_that_of_one_model(make_client: MakeClient, listed: str) -> None:
    settings = {"embeddings_model": listed, "max_queue": 0, "embeddings_batch_texts": 1}
    with make_client(**settings) as client, ThreadPoolExecutor() as clients:
        for name in NAMES:
            embed(client, name)
        first: Any = registry_of(client).models["first"]
        delay(first._scheduler, "_compute", 2)
        slow = [clients.submit(post, client, "first") for _ in range(4)]
        wait_until(lambda: any(each.done() for each in slow))
        assert post(client, "second").status_code == 200
        assert not all(each.done() for each in slow)
        assert {each.result().status_code for each in slow} == {200, 429}


def test_all_are_preloaded_but_the_one_that_fails(
    make_client: MakeClient, listed: str, alone: dict[str, Any], tmp_path: Path
) -> None:
    models = f"gone={tmp_path}/gone,{listed}"
    with make_client(embeddings_model=models, preload=True) as client:
        registry = registry_of(client)
        wait_until(lambda: registry.wanted == {"gone"} and registry.load_failures)
        assert {name: embed(client, name) for name in NAMES} == alone
        assert post(client, "gone").status_code == 503
        health = client.get("/health").json()
        assert health["load_failures"] == {"gone": "its folder does not exist"}
        assert set(NAMES) <= set(health["loaded_models"])
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json()["reason"] == "Not loaded yet: gone (its folder does not exist)."


@pytest.mark.parametrize(
    ("kind", "model_class", "specs"),
    [
        ("embeddings", EmbeddingsModel, embeddings_models),
        ("rerank", RerankModel, rerank_models),
    ],
)
def test_each_has_a_revision_of_its_own(
    monkeypatch: pytest.MonkeyPatch, kind: str, model_class: type, specs: Callable[..., Any]
) -> None:
    loaded = []

    def load(source: str, device: Device, settings: Settings, revision: str) -> None:
        loaded.append((source, revision))

    monkeypatch.setattr(model_class, "load", load)
    lists: Any = {f"{kind}_model": "a=owner/a,owner/b", f"{kind}_model_revision": "a=v1"}
    for spec in specs(Settings(_env_file=None, **lists)):
        spec.load(Device())
    assert loaded == [("owner/a", "v1"), ("owner/b", "")]


def test_two_rerankers(make_client: MakeClient, tmp_path: Path) -> None:
    folders = [build_rerank_model(tmp_path / f"rerank-{seed}", seed=seed) for seed in range(2)]

    def rank(client: TestClient, model: str) -> list[float]:
        body = {"model": model, "query": "where", "documents": ["a cat", "the market"]}
        response = client.post("/v1/rerank", json=body)
        assert response.status_code == 200, response.text
        results = sorted(response.json()["results"], key=lambda each: each["index"])
        return [each["relevance_score"] for each in results]

    alone = []
    for folder in folders:
        with make_client(rerank_model=str(folder)) as client:
            alone.append(pytest.approx(rank(client, folder.name), abs=1e-6))
    with make_client(rerank_model=f"a={folders[0]},{folders[1]}") as client:
        assert [rank(client, name) for name in ("a", "rerank-1")] == alone
        assert rank(client, "a") != alone[1]
