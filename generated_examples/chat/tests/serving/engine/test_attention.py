"""The attention of a model that is loaded: asked for, proved, reported."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from chat_server.serving.chat import loading
from chat_server.serving.chat.chat_model import ChatModel
from chat_server.serving.engine import acceleration, transformers_private
from chat_server.serving.engine.acceleration import DeviceFacts
from chat_server.serving.engine.base_engine import Engine
from chat_server.serving.models.device import Device
from chat_server.serving.models.model_errors import SourceError
from chat_server.settings import Settings

from ...tiny_chat import build_chat_model
from .flash_stand_in import lengths_attention
from .simulated_graphs import simulate

GPU = DeviceFacts("cuda", (9, 0), torch_flash=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The processor passes for a GPU."""
    monkeypatch.setattr(loading, "facts_of_device", lambda device: GPU)
    monkeypatch.setattr(transformers_private, "varlen_attn", lengths_attention)
    yield


def broken(*args: Any, **kwargs: Any) -> Tensor:
    return lengths_attention(*args, **kwargs) * 0.5


def engine_for(folder: Path, dtype: torch.dtype = torch.bfloat16, **settings: Any) -> Engine:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chosen = Settings(_env_file=None, kv_cache_tokens=4096, **settings)
    return loading.make_engine(model, tokenizer, [0], chosen)


@pytest.mark.parametrize("setting", ["auto", "flash"])
def test_flash_attention_that_has_proved_right(folder: Path, gpu: None, setting: str) -> None:
    engine = engine_for(folder, attention=setting)
    engine.stop()
    assert (engine.reason, engine.attention) == (None, "flash")


def test_flash_attention_that_computes_something_else(
    folder: Path, gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transformers_private, "varlen_attn", broken)
    with caplog.at_level("INFO"):
        engine = engine_for(folder)
    engine.stop()
    assert (engine.reason, engine.attention) == (None, "sdpa")
    assert "failed its check: RuntimeError: its logits in a batch" in engine.attention_reason
    assert "LlamaForCausalLM: attention sdpa (flash attention failed" in caplog.text
    with pytest.raises(SourceError, match="INFER_ATTENTION=flash does not work with this model"):
        engine_for(folder, attention="flash")


def test_a_model_in_graphs(folder: Path, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch)
    # The stand-in reads the lengths of sequences on the host, so that no graph can have it.
    monkeypatch.setattr(acceleration, "VARLEN", "sdpa")
    monkeypatch.setattr(acceleration, "model_obstacle", lambda model: None)
    engine = engine_for(folder, torch.float32, cuda_graphs=True)
    engine.stop()
    assert (engine.reason, engine.cuda_graphs) == (None, True)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"attention": "flash"}, "INFER_ATTENTION=flash does not work: cpu has no flash attention"),
        ({"cuda_graphs": True}, "INFER_CUDA_GRAPHS=true does not work: cpu has no CUDA graphs"),
    ],
)
def test_what_the_device_lacks_is_refused_before_the_weights_are_read(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=sentence):
        loading.load_chat_model(tmp_path, Device("cpu"), Settings(_env_file=None, **settings))


def test_health_says_which_attention_and_why(folder: Path) -> None:
    settings = Settings(_env_file=None, kv_cache_tokens=4096)
    model = ChatModel.load(str(folder), Device("cpu"), settings)
    model.unload()
    assert model.details == {
        "engine": "continuous",
        "engine_reason": None,
        "attention": "sdpa",
        "attention_reason": "cpu has no flash attention",
        "cuda_graphs": "off",
        "quantization": None,
    }
