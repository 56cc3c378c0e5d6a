"""The generated package, to import."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from infer_scaffold import generate
from tests.conftest import builders


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The parts of a generated service for chat that the tests use."""
    project = tmp_path_factory.mktemp("families") / "server"
    answers = {"project_name": "families-server", "endpoints": ["chat", "health"]}
    generate.render(answers, project)
    sys.path.insert(0, str(project / "src"))
    try:
        from families_server.models import chat, device, loading, params, prompt, proof
        from families_server.settings import Settings

        yield SimpleNamespace(
            ChatModel=chat.ChatModel,
            Device=device.Device,
            make_engine=loading.make_engine,
            ChatOptions=params.ChatOptions,
            Conversation=prompt.Conversation,
            proof=proof,
            Settings=Settings,
            save=builders("tiny_chat").save,
            tokenizer=builders("tiny_chat").build_tokenizer(),
        )
    finally:
        sys.path.remove(str(project / "src"))
        for name in [name for name in sys.modules if name.startswith("families_server")]:
            del sys.modules[name]
