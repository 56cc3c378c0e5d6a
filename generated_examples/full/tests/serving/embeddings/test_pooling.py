"""Poolings and the modules after them, against the formulas, and what a model's files may ask for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from full_server.serving.embeddings.encoder import Encoder, read_modes_of
from full_server.serving.embeddings.head import read_head
from full_server.serving.embeddings.layout import read_model_layout
from full_server.serving.embeddings.pooling import pool
from full_server.serving.models.device import Device
from full_server.serving.models.hub import fetch_model
from full_server.serving.models.model_errors import SourceError

from ...tiny_embeddings import build_embeddings_model, write_json

HIDDEN = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], [[5.0, 6.0], [7.0, 8.0], [0.0, 1.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])
PACKAGE = "sentence_transformers.models"


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("cls", [[1.0, 2.0], [5.0, 6.0]]),
        ("mean", [[2.0, 3.0], [4.0, 5.0]]),
        ("max", [[3.0, 4.0], [7.0, 8.0]]),
        ("lasttoken", [[3.0, 4.0], [0.0, 1.0]]),
        ("mean_sqrt_len_tokens", [[4 / 2**0.5, 6 / 2**0.5], [12 / 3**0.5, 15 / 3**0.5]]),
        ("weightedmean", [[7 / 3, 10 / 3], [19 / 6, 25 / 6]]),
    ],
)
def test_modes_leave_padding_out(mode: str, expected: list[list[float]]) -> None:
    for row, wanted in zip(pool(HIDDEN, MASK, [mode]).tolist(), expected, strict=True):
        assert row == pytest.approx(wanted)


def test_several_modes_are_concatenated() -> None:
    assert pool(HIDDEN, MASK, ["cls", "mean"])[0].tolist() == [1, 2, 2, 3]


def modes_of(folder: Path) -> tuple[str, ...]:
    return read_modes_of(read_model_layout(folder))


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "lasttoken"])
def test_read_from_the_model(tmp_path: Path, mode: str) -> None:
    folder = build_embeddings_model(tmp_path, mode)
    assert modes_of(folder) == (mode,)
    assert read_model_layout(folder).max_length == 32


def test_read_the_older_spelling(tmp_path: Path) -> None:
    folder = build_embeddings_model(tmp_path)
    older = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    write_json(folder / "1_Pooling" / "config.json", older)
    assert modes_of(folder) == ("cls", "mean")


def test_mean_where_the_model_says_nothing(tmp_path: Path) -> None:
    assert modes_of(tmp_path) == ("mean",)


def write_dense(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    write_json(folder / "config.json", {"in_features": 2, "out_features": 1} | config)
    weights = {"linear.weight": torch.tensor([[1.0, -1.0]]), "linear.bias": torch.tensor([0.5])}
    save_file(weights, folder / "model.safetensors")
    return folder


def test_the_modules_after_the_pooling(tmp_path: Path) -> None:
    vectors = torch.tensor([[3.0, 4.0]])
    assert read_head([("Normalize", tmp_path)])(vectors).tolist() == [pytest.approx([0.6, 0.8])]
    linear = write_dense(tmp_path / "1", activation_function="torch.nn.modules.linear.Identity")
    assert read_head([("Dense", linear)])(vectors).tolist() == [[-0.5]]
    tanh = write_dense(tmp_path / "2")
    assert read_head([("Dense", tanh)])(vectors).item() == pytest.approx(-0.46211716)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"activation_function": "torch.load"}, "activation torch.load"),
        ({"activation_function": "custom.Swish"}, "activation custom.Swish"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
        ({"bias": False}, "linear.bias"),
        ({"in_features": 3}, "size mismatch"),
    ],
)
def test_a_dense_module_that_cannot_be_had(
    tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    with pytest.raises(SourceError, match=match):
        read_head([("Dense", write_dense(tmp_path / "dense", **change))])


def change_modules(folder: Path, *types: str) -> None:
    modules = [{"path": "1_Pooling" if "Pool" in each else "", "type": each} for each in types]
    write_json(folder / "modules.json", modules)


@pytest.mark.parametrize(
    ("types", "match"),
    [
        (["Transformer", "Pooling", "WordWeights"], "WordWeights"),
        (["Transformer", "Dense"], "Dense where its pooling"),
        (["Transformer"], "nothing where its pooling"),
        (["CLIPModel"], "CLIPModel"),
    ],
)
def test_what_is_not_supported_is_said(tmp_path: Path, types: list[str], match: str) -> None:
    folder = build_embeddings_model(tmp_path)
    change_modules(folder, *(f"{PACKAGE}.{each}" for each in types))
    with pytest.raises(SourceError, match=match):
        Encoder.load(folder, Device("cpu", "float32"))


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "attention pooling"),
        ("sentence_bert_config.json", {"query_length": 32}, "query_length"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "fill-mask"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default prompt 'x'"),
    ],
)
def test_a_file_that_asks_for_something_else(
    tmp_path: Path, file: str, content: dict[str, Any], match: str
) -> None:
    folder = build_embeddings_model(tmp_path)
    write_json(folder / file, content)
    with pytest.raises(SourceError, match=match):
        Encoder.load(folder, Device("cpu", "float32"))


def test_modules_of_other_packages_are_not_taken_for_known_ones(tmp_path: Path) -> None:
    folder = build_embeddings_model(tmp_path)
    change_modules(folder, "custom_st.Transformer", f"{PACKAGE}.Pooling")
    with pytest.raises(SourceError, match="custom_st"):
        read_model_layout(folder)


def test_the_transformer_may_have_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = build_embeddings_model(tmp_path / "model")
    old = folder / "0_Transformer"
    old.mkdir()
    for file in folder.glob("*.*"):
        if file.name != "modules.json":
            file.rename(old / file.name)
    modules = [
        {"path": "0_Transformer", "type": f"{PACKAGE}.Transformer"},
        {"path": "1_Pooling", "type": f"{PACKAGE}.Pooling"},
    ]
    write_json(folder / "modules.json", modules)
    encoder = Encoder.load(fetch_model(str(folder), "X"), Device("cpu", "float32"))
    assert (encoder.max_length, encoder.dimensions) == (32, 16)
