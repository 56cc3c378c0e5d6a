"""Files that an embeddings model is loaded from, and those that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from embeddings_server.serving.embeddings.embeddings_model import EmbeddingsModel
from embeddings_server.serving.models import checkpoint
from embeddings_server.serving.models.device import Device
from embeddings_server.serving.models.model_errors import SourceError
from embeddings_server.settings import Settings

from ...tiny_embeddings import WORDS, build_embeddings_model, build_tokenizer

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
