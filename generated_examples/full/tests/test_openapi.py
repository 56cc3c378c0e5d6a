"""The OpenAPI document keeps its word: every operation, called with much of what the document
allows and much of what it does not, answers as it says.
"""

import shutil
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from schemathesis import Case

from full_server.app import create_app
from full_server.settings import Settings

from .tiny_embeddings import build_rerank_model

# For each operation, beside the examples that go through its schema one field at a time. A few
# thousand take minutes and find more.
RANDOM_EXAMPLES = 10

CONFIG = {
    "suppress-health-check": ["all"],  # machines are slow at times
    "generation": {"max-examples": RANDOM_EXAMPLES, "deterministic": True, "database": "none"},
    "auth": {"openapi": {"HTTPBearer": {"bearer": "sk-tests"}}},
    # The document cannot say everything: a model holds so many tokens, a tool has to exist.
    "checks": {"positive_data_acceptance": {"enabled": False}},
    "operations": [
        {  # A number in place of a file is a file with digits in it.
            "include-name": "POST /v1/files",
            "checks": {"negative_data_rejection": {"enabled": False}},
        }
    ],
}


def make_app(**settings: Any) -> FastAPI:
    return create_app(Settings(_env_file=None, api_keys="sk-tests", **settings))


def document() -> dict[str, Any]:
    document = make_app().openapi()
    for path in document["paths"].values():
        for operation in path.values():
            del operation["responses"]["default"]  # a status that is not listed is a failure
    schemas = document["components"]["schemas"]  # the name of a model cannot be guessed
    for name in ("ChatRequest", "CompletionRequest", "ResponsesRequest"):
        schemas[name]["properties"]["model"]["enum"] = ["tiny-chat"]
    schemas["EmbeddingsRequest"]["properties"]["model"]["enum"] = ["tiny-embeddings"]
    schemas["RerankRequest"]["properties"]["model"]["enum"] = ["tiny-rerank"]
    return document


schema = schemathesis.openapi.from_dict(document(), config=schemathesis.Config.from_dict(CONFIG))


@pytest.fixture(scope="module")
def app(tiny_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    reranker = build_rerank_model(tmp_path_factory.mktemp("models") / "tiny-rerank")
    return make_app(default_max_tokens=4, rerank_model=str(reranker), **tiny_settings)


@schema.parametrize()
def test_every_operation_answers_as_documented(case: Case, app: FastAPI) -> None:
    # The tests were collected before there were models to serve.
    case.operation.app = case.operation.schema.app = app
    case.call_and_validate()


def test_files_are_there_from_their_upload_to_their_deletion(
    tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    files = schema.include(path_regex="^/v1/files")
    files.app = make_app(**tiny_settings | {"files_url": tmp_path.as_uri()})

    class Scenario(files.as_state_machine()):
        def setup(self) -> None:
            # None of the files of an earlier scenario: hypothesis repeats each to the letter.
            shutil.rmtree(tmp_path / "meta", ignore_errors=True)

    settings = hypothesis.settings(
        max_examples=RANDOM_EXAMPLES,
        stateful_step_count=10,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),  # machines are slow at times
    )
    Scenario.run(settings=settings)
