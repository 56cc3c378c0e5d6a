"""The generated package, to import."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from infer_scaffold.project import generate
from tests.conftest import builders


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The parts of a generated service for chat that the tests use."""
    project = tmp_path_factory.mktemp("families") / "server"
    answers = {"project_name": "families-server", "endpoints": ["chat", "health"]}
    generate.render(answers, project)
    sys.path.insert(0, str(project / "src"))
    try:
        from families_server.schemas import chat
        from families_server.serving.chat import (
            chat_model,
            grammar_compiler,
            loading,
            options,
            output_parser,
            prompt,
            quantization,
        )
        from families_server.serving.engine import sampling, self_check
        from families_server.serving.models import admission, device, model_errors
        from families_server.settings import Settings

        yield SimpleNamespace(
            ChatModel=chat_model.ChatModel,
            Device=device.Device,
            make_engine=loading.make_engine,
            quantize_on_processor=quantization.quantize_on_processor,
            ChatOptions=options.ChatOptions,
            ChatPrompt=prompt.ChatPrompt,
            ChatRequest=chat.ChatRequest,
            Admission=admission.Admission,
            GrammarCompiler=grammar_compiler.GrammarCompiler,
            InvalidInput=model_errors.InvalidInput,
            OutputParser=output_parser.OutputParser,
            PromptEncoder=prompt.PromptEncoder,
            SamplingState=sampling.SamplingState,
            adjust=sampling.SamplingState.adjust,
            self_check=self_check,
            Settings=Settings,
            save=builders("tiny_chat").save,
            tokenizer=builders("tiny_chat").build_tokenizer(),
        )
    finally:
        sys.path.remove(str(project / "src"))
        for name in [name for name in sys.modules if name.startswith("families_server")]:
            del sys.modules[name]
