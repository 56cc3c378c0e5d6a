"""Pooling, against the formulas, and what a model's files may ask for."""

from pathlib import Path

import pytest
import torch

from embeddings_server.serving.embeddings.pooling import Pooling, read_pooling

from ...tiny_embeddings import build_embeddings_model, write_json

HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], [[5.0, 6.0], [7.0, 8.0], [0.0, 1.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("cls", [[1.0, 2.0], [5.0, 6.0]]),
        ("mean", [[2.0, 3.0], [4.0, 5.0]]),
        ("max", [[3.0, 4.0], [7.0, 8.0]]),
        ("lasttoken", [[3.0, 4.0], [0.0, 1.0]]),
    ],
)
def test_modes_leave_padding_out(mode: str, expected: list[list[float]]) -> None:
    assert Pooling(mode)(HIDDEN, MASK).tolist() == expected


def test_normalize() -> None:
    lengths = Pooling("mean", normalize=True)(HIDDEN, MASK).norm(dim=-1)
    assert lengths.tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "lasttoken"])
@pytest.mark.parametrize("normalize", [True, False])
def test_read_from_the_model(tmp_path: Path, mode: str, normalize: bool) -> None:
    folder = build_embeddings_model(tmp_path, mode, normalize)
    assert read_pooling(folder) == Pooling(mode, normalize, max_length=32)


def test_read_the_older_spelling(tmp_path: Path) -> None:
    folder = build_embeddings_model(tmp_path)
    older = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    write_json(folder / "1_Pooling" / "config.json", older)
    assert read_pooling(folder).mode == "cls"


def test_mean_where_the_model_says_nothing(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == Pooling("mean", normalize=False)


def test_what_is_not_supported_is_said(tmp_path: Path) -> None:
    folder = build_embeddings_model(tmp_path, "weightedmean")
    with pytest.raises(ValueError, match="weightedmean"):
        read_pooling(folder)
    dense = [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]
    write_json(folder / "modules.json", dense)
    with pytest.raises(ValueError, match="Dense"):
        read_pooling(folder)
