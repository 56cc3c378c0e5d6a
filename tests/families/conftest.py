"""The generated package, to import, and the report of what was measured."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from infer_scaffold.project import generate
from tests.conftest import builders


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--families-json",
        type=Path,
        help="file for what was measured: family, class, engine, reason, seconds",
    )


class FamiliesReport:
    """Collects the facts that tests record about families, and writes them at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: list[dict[str, object]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.facts += [
                {**facts, "seconds": round(report.duration, 1)}
                for name, facts in report.user_properties
                if name == "family" and isinstance(facts, dict)
            ]

    def pytest_sessionfinish(self) -> None:
        self.facts.sort(key=lambda facts: str(facts["family"]))
        self.path.write_text(json.dumps(self.facts, indent=2) + "\n", encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--families-json")
    if path and not hasattr(config, "workerinput"):  # the controller of xdist has all reports
        config.pluginmanager.register(FamiliesReport(path))


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The parts of a generated service for chat that the tests use."""
    project = tmp_path_factory.mktemp("families") / "server"
    answers = {"project_name": "families-server", "endpoints": ["chat", "health"]}
    generate.render(answers, project)
    sys.path.insert(0, str(project / "src"))
    try:
        from families_server.app import create_app
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
        from families_server.serving.models import admission, model_errors
        from families_server.settings import Settings

        yield SimpleNamespace(
            ChatModel=chat_model.ChatModel,
            create_app=create_app,
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
