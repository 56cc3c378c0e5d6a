"""Folders that hold something else than a model which can be served: one line says what."""

import json
from pathlib import Path
from typing import Any

import pytest

from full_server.serving.models import checkpoint
from full_server.serving.models.checkpoint import PACKAGES, explained, find_weights
from full_server.serving.models.model_errors import SourceError

SETTING = "INFER_CHAT_MODEL"


def make_folder(folder: Path, *files: str, **config: Any) -> Path:
    """Files without content, beside a config.json if one is given."""
    for file in files:
        (folder / file).touch()
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def refusal(path: Path) -> SourceError:
    with pytest.raises(SourceError) as raised:
        find_weights(path, SETTING)
    assert "\n" not in str(raised.value)
    assert str(path) not in raised.value.reason
    assert raised.value.permanent
    return raised.value


@pytest.mark.parametrize("beside", [(), ("config.json", "model.safetensors", "tokenizer.json")])
def test_an_adapter_is_no_model_even_beside_one(beside: tuple[str, ...], tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "adapter_model.safetensors", *beside)
    base = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (folder / "adapter_config.json").write_text(json.dumps(base))
    error = refusal(folder)
    assert "adapter (LoRA" in error.reason
    beside = f"set {SETTING}=owner/base and INFER_CHAT_ADAPTERS=<name>={folder}, or"
    assert (beside in str(error)) is (SETTING == "INFER_CHAT_MODEL")
    assert "owner/base" in str(error)
    assert "owner/base" not in error.reason
    assert f"{SETTING}=<" in str(error)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "model.safetensors", model_type="llama")
    assert "no tokenizer (tokenizer.json)" in refusal(folder).reason
    for file in ("tokenizer.model", "vocab.txt", "tekken.json"):
        (folder / file).touch()
        assert find_weights(folder, SETTING) == folder
        (folder / file).unlink()


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_weights_may_be_older_files(file: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path, file, "tokenizer.json", model_type="llama")
    assert find_weights(folder, SETTING) == folder


def test_what_a_training_leaves_is_no_weights(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "training_args.bin", "tokenizer.json", model_type="llama")
    assert "no weights" in refusal(folder).reason


def test_gguf_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "is_installed", lambda name: True)
    folder = make_folder(tmp_path, "model-Q4.gguf", "mmproj-model.gguf")
    assert find_weights(folder, SETTING) == folder / "model-Q4.gguf"
    assert find_weights(folder / "model-Q4.gguf", SETTING) == folder / "model-Q4.gguf"
    (folder / "model-Q8.gguf").touch()
    error = refusal(folder)
    assert "several GGUF files" in error.reason
    assert "model-Q4.gguf, model-Q8.gguf" in str(error)


def test_a_part_of_a_gguf_file_is_not_enough(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    for path in (folder, folder / "m-00001-of-00002.gguf"):
        assert "one part of several" in refusal(path).reason


def test_a_gguf_file_names_the_package_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "is_installed", lambda name: False)
    error = refusal(make_folder(tmp_path, "model.gguf"))
    assert error.reason == "it is a GGUF file, which needs the Python package accelerate"
    assert "pip install accelerate" in str(error)


@pytest.mark.parametrize("method", PACKAGES)
@pytest.mark.parametrize("inner", [False, True])
def test_quantised_weights_name_the_packages_that_they_need(
    method: str, inner: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised = {"quantization_config": {"quant_method": method}}
    config: dict[str, Any] = {"text_config": quantised} if inner else quantised
    folder = make_folder(tmp_path, "model.safetensors", "tokenizer.json", **config)
    monkeypatch.setattr(checkpoint, "is_installed", lambda name: False)
    error = refusal(folder)
    assert f"quantised with {method}" in error.reason
    for package in (*PACKAGES[method], "accelerate"):
        assert package in error.reason
    monkeypatch.setattr(checkpoint, "is_installed", lambda name: True)
    assert find_weights(folder, SETTING) == folder


def test_bitsandbytes_goes_without_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "is_installed", lambda name: False)
    config = {"quantization_config": {"load_in_4bit": True}}
    folder = make_folder(tmp_path, "model.safetensors", "tokenizer.json", **config)
    assert "bitsandbytes" in refusal(folder).reason


@pytest.mark.parametrize("method", checkpoint.UNREADABLE)
def test_quantised_weights_that_transformers_does_not_load(method: str, tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": method}}
    folder = make_folder(tmp_path, "model.safetensors", "tokenizer.json", **config)
    assert f"quantised with {method}, which transformers does not load" in refusal(folder).reason


def test_modelopt_has_a_file_of_its_own(tmp_path: Path) -> None:
    files = ("model.safetensors", "tokenizer.json", "hf_quant_config.json")
    folder = make_folder(tmp_path, *files, model_type="llama")
    assert "quantised with modelopt" in refusal(folder).reason


def test_installed_packages() -> None:
    assert checkpoint.is_installed("transformers")
    assert not checkpoint.is_installed("no-such-package-anywhere")


@pytest.mark.parametrize(
    ("error", "reason", "way_out"),
    [
        (ValueError("pass the argument `trust_remote_code=True`"), "code", "TRUST_REMOTE_CODE"),
        (ImportError("wants einops.\nRun `pip install einops`"), "package einops", "einops"),
        (ImportError("no idea"), "a Python package", "no idea"),
        (ValueError("You need to have sentencepiece or tiktoken"), "tokenizer", "sentencepiece"),
        (ValueError("Transformers does not recognize this architecture"), "type", "update"),
    ],
)
def test_errors_of_transformers_become_one_line(
    error: Exception, reason: str, way_out: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError) as raised, explained(tmp_path, SETTING):
        raise error
    assert reason in raised.value.reason
    assert way_out in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (RuntimeError("shapes differ"), OSError("no such file"), SourceError("a", "b")):
        with pytest.raises(type(error)) as raised, explained(tmp_path, SETTING):
            raise error
        assert raised.value is error


def test_an_error_with_quantised_weights_names_their_method(tmp_path: Path) -> None:
    make_folder(tmp_path, quantization_config={"quant_method": "gptq"})
    with pytest.raises(SourceError, match=r"quantised with gptq.*a GPU is required"):
        with explained(tmp_path, SETTING):
            raise RuntimeError("a GPU is required")
    with pytest.raises(RuntimeError, match="out of memory"), explained(tmp_path, SETTING):
        raise RuntimeError("CUDA out of memory")
