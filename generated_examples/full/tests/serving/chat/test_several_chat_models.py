"""Several chat models in one service: each answers, waits, fails and leaves on its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from full_server.catalog import chat_models
from full_server.serving.chat.chat_model import ChatModel
from full_server.serving.models.device import Device
from full_server.serving.models.registry import ModelRegistry
from full_server.settings import Settings

from ...conftest import wait_until
from ...tiny_chat import build_chat_model

NAMES = ["first", "second"]

MakeClient = Callable[..., TestClient]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    parent = tmp_path_factory.mktemp("models")
    return [build_chat_model(parent / f"chat-{seed}", seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def listed(folders: list[Path]) -> str:
    return ",".join(f"{name}={folder}" for name, folder in zip(NAMES, folders, strict=True))


def post(client: TestClient, model: str | None, tokens: int = 24) -> httpx2.Response:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
    body |= {"max_tokens": tokens, "temperature": 0} | ({"model": model} if model else {})
    return client.post("/v1/chat/completions", json=body)


def ask(client: TestClient, model: str) -> str:
    response = post(client, model)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["model"] == model
    text: str = answer["choices"][0]["message"]["content"]
    return text


def registry_of(client: TestClient) -> ModelRegistry:
    assert isinstance(client.app, FastAPI)
    registry: ModelRegistry = client.app.state.registry
    return registry


@pytest.fixture(scope="module")
def alone(make_client: MakeClient, folders: list[Path]) -> dict[str, str]:
    """The answer of each model in a service of its own."""
    answers = {}
    for name, folder in zip(NAMES, folders, strict=True):
        with make_client(chat_model=str(folder)) as client:
            answers[name] = ask(client, folder.name)
    assert len(set(answers.values())) == len(NAMES)
    return answers


def test_each_answers_as_itself(
    make_client: MakeClient, listed: str, alone: dict[str, str]
) -> None:
    with make_client(chat_model=listed) as client, ThreadPoolExecutor(8) as clients:
        cards = client.get("/v1/models").json()["data"]
        assert [card["id"] for card in cards if card["type"] == "chat"] == NAMES
        asked = NAMES * 8
        answers = list(clients.map(lambda name: ask(client, name), asked))
    assert answers == [alone[name] for name in asked]


def test_a_request_names_one_of_them(
    make_client: MakeClient, listed: str, folders: list[Path]
) -> None:
    with make_client(chat_model=listed) as client:
        for name in ("third", folders[0].name, str(folders[0]), listed, ""):
            if name:
                error = post(client, name).json()["error"]
                assert (error["code"], error["param"]) == ("model_not_found", "model")
            else:
                missing = post(client, None)
                assert (missing.status_code, missing.json()["error"]["param"]) == (400, "model")
        assert registry_of(client).loaded == []


def test_unloading_one_leaves_the_other(
    make_client: MakeClient, listed: str, alone: dict[str, str]
) -> None:
    with make_client(chat_model=listed) as client:
        for name in NAMES:
            ask(client, name)
        registry = registry_of(client)
        first, second = (registry.models[name] for name in NAMES)
        registry._entries["first"].last_used -= 1000
        assert client.portal
        client.portal.call(registry.unload_idle, 500)
        assert not first.alive
        assert registry.models == {"second": second}
        assert ask(client, "second") == alone["second"]
        assert ask(client, "first") == alone["first"]
        assert registry.models["second"] is second
        assert registry.models["first"] is not first


def test_a_full_queue_is_that_of_one_model(make_client: MakeClient, listed: str) -> None:
    settings = {"chat_model": listed, "max_queue": 0, "max_batch_requests": 1}
    with make_client(**settings) as client, ThreadPoolExecutor() as clients:
        for name in NAMES:
            ask(client, name)
        long = [clients.submit(post, client, "first", 1000) for _ in range(3)]
        wait_until(lambda: any(each.done() for each in long))
        assert post(client, "second").status_code == 200
        assert not all(each.done() for each in long)
        assert {each.result().status_code for each in long} == {200, 429}


def test_all_are_preloaded(make_client: MakeClient, listed: str) -> None:
    with make_client(chat_model=listed, preload=True) as client:
        wait_until(lambda: not registry_of(client).wanted)
        cards = client.get("/v1/models").json()["data"]
        assert all(card["loaded"] for card in cards)
        health = client.get("/health").json()
        assert health["status"] == "healthy"
        assert health["loaded_models"] == [card["id"] for card in cards]
        engines = {each["id"]: each.get("engine") for each in health["models"]}
        assert [engines[name] for name in NAMES] == ["continuous"] * 2


def test_one_fails_while_the_other_answers(
    make_client: MakeClient, listed: str, alone: dict[str, str], tmp_path: Path
) -> None:
    with make_client(chat_model=f"gone={tmp_path}/gone,{listed}") as client:
        failed = post(client, "gone")
        assert failed.status_code == 503
        assert failed.headers["x-should-retry"] == "false"
        assert "'gone' could not be loaded: its folder does not exist" in failed.text
        assert {name: ask(client, name) for name in NAMES} == alone
        health = client.get("/health").json()
        assert health["load_failures"] == {"gone": "its folder does not exist"}
        assert health["loaded_models"] == NAMES


def test_each_has_a_revision_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(source: str, device: Device, *, revision: str, **options: Any) -> None:
        loaded.append((source, revision))

    monkeypatch.setattr(ChatModel, "load", load)
    models, revisions = "old=owner/a,new=owner/a,owner/b", "owner/b=v3,old=v1"
    settings = Settings(_env_file=None, chat_model=models, chat_model_revision=revisions)
    for spec in chat_models(settings):
        spec.load(Device())
    assert loaded == [("owner/a", "v1"), ("owner/a", ""), ("owner/b", "v3")]


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"CHAT_MODEL": "owner/a,"},
            "INFER_CHAT_MODEL: '' is no model; write source or name=source, separated by commas",
        ),
        (
            {"CHAT_MODEL": "a=owner/a,a=owner/b"},
            "Two models are called 'a'. Give one of them another name; a setting that lists models "
            "takes name=source.",
        ),
        (
            {"CHAT_MODEL": "a=owner/a,b=owner/b", "CHAT_MODEL_REVISION": "v1"},
            "INFER_CHAT_MODEL_REVISION: 'v1' is not name=revision; models are: a, b",
        ),
        (
            {"CHAT_MODEL": "a=owner/a", "EMBEDDINGS_MODEL": "a=owner/b"},
            "Two models are called 'a'. Give one of them another name; a setting that lists models "
            "takes name=source.",
        ),
    ],
)
def test_a_wrong_list_ends_the_start_in_one_line(variables: dict[str, str], line: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "full_server"],
        env=os.environ | {f"INFER_{name}": value for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2
    assert run.stderr == f"{line}\n"
