"""What breaks, breaks alone: clients are told, the service stays up, and the model comes back."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient

from .conftest import wait_until


def ask(client: TestClient, **params: Any) -> httpx2.Response:
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "tiny-chat", "messages": messages, "temperature": 0, "max_tokens": 5}
    return client.post("/v1/chat/completions", json=body | params)


def assert_unavailable(response: httpx2.Response) -> None:
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "model_unavailable"
    assert int(response.headers["retry-after"]) >= 1


@pytest.fixture
def folder(tiny_settings: dict[str, Any], tmp_path: Path) -> Path:
    """The model, in a folder that the test may spoil."""
    return Path(shutil.copytree(tiny_settings["chat_model"], tmp_path / "tiny-chat"))


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lose_a_weight(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def break_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for %}")


@pytest.mark.parametrize("spoil", [cut_weights, lose_a_weight, break_config, break_template])
def test_a_corrupt_model_is_a_503(
    make_client: Callable[..., TestClient], folder: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(folder)
    with make_client(chat_model=str(folder)) as client:
        refused = ask(client)
        assert_unavailable(refused)
        assert str(folder) not in refused.text
        assert client.get("/v1/models/tiny-chat").json()["loaded"] is False


def break_inference(client: TestClient) -> None:
    def lose_the_device() -> None:
        raise RuntimeError("device lost")

    engine = client.app_state["registry"]._entries["tiny-chat"].model._engine
    wait_until(lambda: len(engine._places) == 4)
    engine._manager.batch_processor.prepare_next_batch = lose_the_device


def test_a_dead_inference_thread_is_replaced(
    make_client: Callable[..., TestClient], folder: Path
) -> None:
    with make_client(chat_model=str(folder)) as client, ThreadPoolExecutor() as clients:
        assert ask(client).status_code == 200
        whole = [clients.submit(ask, client, max_tokens=1900) for _ in range(2)]
        streamed = [clients.submit(ask, client, max_tokens=1900, stream=True) for _ in range(2)]
        # Starting it again fails as long as its folder is away.
        away = folder.rename(folder.with_name("away"))
        break_inference(client)

        for answer in whole:
            assert_unavailable(answer.result())
        for answer in streamed:
            *_, last = answer.result().text.strip().split("\n\n")
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "model_unavailable"
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        assert_unavailable(ask(client))

        away.rename(folder)
        wait_until(lambda: ask(client).status_code == 200)
        assert client.get("/health/ready").status_code == 200
