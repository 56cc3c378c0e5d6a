"""The models that rendered services run on, and the services themselves."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from infer_scaffold import generate, template
from tests.server import Server

Boot = Callable[..., Server]


def builders(name: str) -> ModuleType:
    """A module of the template's own tests that builds models; it is the same in every project."""
    path = template.root() / "template" / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of models, by the setting that names them."""
    folder = tmp_path_factory.mktemp("models")
    chat, embeddings = builders("tiny_chat"), builders("tiny_embeddings")
    return {
        "chat_model": chat.build_chat_model(folder / "tiny-chat"),
        "embeddings_model": embeddings.build_embeddings_model(folder / "tiny-embeddings"),
    }


@pytest.fixture
def boot(tiny_models: dict[str, Path], tmp_path: Path) -> Iterator[Boot]:
    """Render a project of the given answers and start it on the tiny models."""
    with ExitStack() as servers:

        def boot(answers: dict[str, Any], **settings: Any) -> Server:
            project = tmp_path / "server"
            generate.render({"project_name": "tiny-server", **answers}, project)
            settings = {
                "device": "cpu",
                "dtype": "float32",
                "kv_cache_tokens": 4096,
                "files_url": (tmp_path / "files").as_uri(),
                **tiny_models,
                **settings,
            }
            return servers.enter_context(Server(project, **settings))

        yield boot
