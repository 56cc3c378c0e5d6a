"""Files that an embeddings model is loaded from, and those that are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel, LlamaConfig, LlamaForCausalLM

from embeddings_server.serving.embeddings.embeddings_model import EmbeddingsModel
from embeddings_server.serving.models import checkpoint
from embeddings_server.serving.models.device import Device
from embeddings_server.serving.models.model_errors import SourceError
from embeddings_server.settings import Settings

from ...tiny_embeddings import WORDS, build_embeddings_model, build_tokenizer, write_json

CODE = """
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig
"""


def load(folder: Path, **changed: Any) -> EmbeddingsModel:
    settings = Settings(_env_file=None, **changed)
    return EmbeddingsModel.load(str(folder), Device("cpu", "float32"), settings)


def test_a_model_that_writes_text_is_refused_unless_its_files_say_how_it_embeds(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SourceError) as raised:
        load(tmp_path)
    assert "a model that writes text (LlamaForCausalLM)" in raised.value.reason
    assert "INFER_EMBEDDINGS_MODEL=<" in str(raised.value)
    transformer = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.Transformer"}
    pooling = {"idx": 1, "name": "1", "path": "1_Pooling"}
    pooling |= {"type": "sentence_transformers.models.Pooling"}
    (tmp_path / "1_Pooling").mkdir()
    mode = {"pooling_mode_lasttoken": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(mode))
    (tmp_path / "modules.json").write_text(json.dumps([transformer, pooling]))
    load(tmp_path).unload()


def test_a_gguf_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "is_installed", lambda name: True)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(SourceError, match="GGUF file, which is loaded for chat only"):
        load(tmp_path)


def test_code_of_a_model_runs_only_if_it_is_trusted(tmp_path: Path) -> None:
    folder = build_embeddings_model(tmp_path / "model")
    (folder / "own_code.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own_code.OwnConfig", "AutoModel": "own_code.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="INFER_TRUST_REMOTE_CODE=true"):
        load(folder)
    load(folder, trust_remote_code=True).unload()


def cut(folder: Path, keep: Callable[[str], bool]) -> Path:
    """Takes weights out of a model's file."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if keep(name)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "missing", ["encoder.layer.1.", "embeddings.word_embeddings.", "embeddings.LayerNorm."]
)
def test_missing_weights_are_not_made_up(tmp_path: Path, missing: str) -> None:
    folder = cut(build_embeddings_model(tmp_path / "cut"), lambda name: missing not in name)
    with pytest.raises(SourceError, match=missing) as refused:
        load(folder)
    assert refused.value.reason.startswith("its files lack ")
    assert "\n" not in str(refused.value)
    assert "copy or download the model anew" in str(refused.value)


def test_a_pooler_may_be_missing(tmp_path: Path) -> None:
    load(cut(build_embeddings_model(tmp_path / "cut"), lambda name: "pooler" not in name)).unload()


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def pointer_in_older_format(folder: Path) -> None:
    """The file that git leaves where git-lfs is not installed"""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1")


def other_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"vocab_size": 99})
    transformer = {"max_seq_length": 32, "model_args": {"ignore_mismatched_sizes": True}}
    write_json(folder / "sentence_bert_config.json", transformer)


def without_a_part(folder: Path) -> None:
    model = BertModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5KB")
    first, *_ = folder.glob("model-00001-*.safetensors")
    first.unlink()


def without_pooling(folder: Path) -> None:
    shutil.rmtree(folder / "1_Pooling")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_off, "a file of its weights is damaged or cut off"),
        (empty, "a file of its weights is damaged or cut off"),
        (pointer_in_older_format, "a file of its weights is damaged or cut off"),
        (other_size, "its weights do not have the sizes that its config.json says"),
        (without_a_part, "a part of its weights is missing (model-00001-of-"),
        (without_pooling, "its module 1_Pooling has no config.json"),
    ],
)
def test_damaged_files_are_one_line(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    folder = build_embeddings_model(tmp_path / "model")
    damage(folder)
    with pytest.raises(SourceError) as refused:
        load(folder)
    assert refused.value.reason.startswith(reason)
    assert "\n" not in str(refused.value)
    assert "copy or download the model anew" in str(refused.value)


def build_with_dense(folder: Path) -> Path:
    build_embeddings_model(folder)
    modules = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.models.Dense"
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": kind})
    write_json(folder / "modules.json", modules)
    write_json(folder / "2_Dense" / "config.json", {"in_features": 16, "out_features": 8})
    weights = {"linear.weight": torch.ones(8, 16), "linear.bias": torch.ones(8)}
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    return folder


def test_a_dense_module_is_loaded(tmp_path: Path) -> None:
    load(build_with_dense(tmp_path / "model")).unload()


def without_weights(dense: Path) -> None:
    (dense / "model.safetensors").unlink()


def without_folder(dense: Path) -> None:
    shutil.rmtree(dense)


def without_bias(dense: Path) -> None:
    save_file({"linear.weight": torch.ones(8, 16)}, dense / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_weights, "its module 2_Dense has no weights"),
        (without_folder, "its module 2_Dense has no config.json"),
        (without_bias, "the weights of its module 2_Dense are not those that its config.json"),
        (cut_off, "a file of its weights is damaged or cut off"),
    ],
)
def test_a_dense_module_is_not_made_up(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    folder = build_with_dense(tmp_path / "model")
    damage(folder / "2_Dense")
    with pytest.raises(SourceError) as refused:
        load(folder)
    assert refused.value.reason.startswith(reason)
    assert "\n" not in str(refused.value)
