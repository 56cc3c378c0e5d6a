"""The files of a model, looked at before they are loaded: one line for what cannot be served."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from .model_errors import SourceError

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")

NAME_OF_WEIGHTS = re.compile(r"[^\s/\\']+\.(?:safetensors|bin)\b")

TOKENIZERS = (
    "tokenizer.json",
    "tokenization_*.py",
    "tekken.json",
    "vocab.*",
    "*.model",
    "*.model.v[0-9]*",
    "*.tiktoken",
)
"""Files of which a tokenizer needs one"""

PART_OF_GGUF = re.compile(r"-\d{5}-of-\d{5}$")

PACKAGES: dict[str, tuple[str, ...]] = {
    "auto-round": ("auto-round",),
    "awq": ("gptqmodel",),
    "bitnet": (),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "fp8": (),
    "gptq": ("optimum", "gptqmodel"),
    "mxfp4": (),
    "mxfp8": (),
    "quanto": ("optimum-quanto",),
    "torchao": ("torchao",),
}
"""Packages that transformers wants for quantised weights, beside accelerate, which all need"""

UNREADABLE = ("hqq", "modelopt", "nvfp4")
"""Methods of quantisation that transformers knows by name at most, and does not load"""

INSTALL = re.compile(r"pip install (?:-U |--upgrade )?['\"]?([a-zA-Z0-9_.-]+)")


def find_weights(path: Path, setting: str) -> Path:
    """The folder that holds a model, or its GGUF file. Raises SourceError.

    path: a folder, or a file. setting: the variable that names the model.
    """
    if path.is_file():
        if path.suffix != ".gguf":
            raise SourceError("it is a file and not a folder", f"set {setting}=<folder>")
        return whole_gguf(path, setting)
    refuse_adapter(path, setting)
    if not has_weights(path) and (files := gguf_files(path)):
        if len(files) > 1 and not PART_OF_GGUF.search(files[0].stem):
            names = ", ".join(file.name for file in files[:20])
            raise SourceError(
                "its folder holds several GGUF files", f"set {setting}=<one of them>: {names}"
            )
        return whole_gguf(files[0], setting)
    if missing := missing_part(path):
        raise SourceError(
            f"it is not a model that transformers can read, as it has no {missing}",
            f"look into {path}, or set {setting}=<another model or a folder>",
        )
    require_quantisation(transformer_folder(path))
    return path


def missing_part(folder: Path) -> str | None:
    """The first necessary part that the folder of a model lacks; None if it is complete."""
    folder = transformer_folder(folder)
    if not (folder / "config.json").is_file():
        return "config.json"
    if not has_weights(folder):
        return "weights (*.safetensors)"
    if not has_one(folder, TOKENIZERS):
        return "tokenizer (tokenizer.json)"
    return None


def transformer_folder(folder: Path) -> Path:
    """The folder of configuration and weights: one below the model's own where sentence-transformers
    has a folder for each module, as its older versions have.
    """
    modules = folder / "modules.json"
    listed = json.loads(modules.read_text("utf-8")) if modules.is_file() else []
    path: str = listed[0]["path"] if listed else ""
    return folder / path


def has_weights(folder: Path) -> bool:
    return has_one(folder, WEIGHTS)


def has_one(folder: Path, patterns: Sequence[str]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def gguf_files(folder: Path) -> list[Path]:
    """The GGUF files of a folder, without those that hold the part of a model that reads images."""
    return sorted(file for file in folder.glob("*.gguf") if "mmproj" not in file.name)


def whole_gguf(file: Path, setting: str) -> Path:
    """The file, if it is a whole model and can be read here. Raises SourceError."""
    if PART_OF_GGUF.search(file.stem):
        raise SourceError(
            "its GGUF file is one part of several",
            f"join them with llama-gguf-split --merge, and set {setting}=<the whole file>",
        )
    require_packages("it is a GGUF file", ["accelerate"])
    return file


def refuse_adapter(folder: Path, setting: str) -> None:
    """Raises SourceError for an adapter, beside a whole model too: who would know if it is used?"""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    base = read_object(file).get("base_model_name_or_path") or "its base model"
    merge = (
        f"merge it into {base} with peft's merge_and_unload(), save model and tokenizer into a "
        f"folder without adapter_config.json, and set {setting}=<that folder>"
    )
    beside = f"set {setting}={base} and INFER_CHAT_ADAPTERS=<name>={folder}, or "
    raise SourceError(
        "its folder holds an adapter (LoRA or another kind of PEFT) and not a whole model",
        beside + merge if setting == "INFER_CHAT_MODEL" else merge,
    )


def require_quantisation(folder: Path) -> None:
    """Raises SourceError for quantised weights that need a package which is not installed."""
    method = quantisation(read_object(folder / "config.json"))
    if method is None and (folder / "hf_quant_config.json").is_file():
        method = "modelopt"
    if method in UNREADABLE:
        raise SourceError(
            f"its weights are quantised with {method}, which transformers does not load",
            "take the model without quantisation, or quantised with compressed-tensors",
        )
    if method in PACKAGES:
        what = f"its weights are quantised with {method}"
        require_packages(what, [*PACKAGES[method], "accelerate"])


def quantisation(config: Mapping[str, Any]) -> str | None:
    """The method that the weights of a model are quantised with, as its config.json says."""
    for part in (config, config.get("text_config") or {}):
        given = part.get("quantization_config") or part.get("compression_config")
        if given:
            bits = given.get("load_in_4bit") or given.get("load_in_8bit")
            return str(given.get("quant_method") or ("bitsandbytes" if bits else "unknown"))
    return None


def require_packages(what: str, packages: Sequence[str]) -> None:
    """Raises SourceError when one of these is not installed. what: why they are needed."""
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        noun = "package" if len(missing) == 1 else "packages"
        raise SourceError(
            f"{what}, which needs the Python {noun} {' and '.join(missing)}",
            f"pip install {' '.join(missing)}",
        )


def is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def architecture(folder: Path) -> str:
    """The name of the class that the weights were saved from; empty where nothing says it."""
    names = read_object(transformer_folder(folder) / "config.json").get("architectures") or [""]
    return str(names[0])


def is_embeddings_model(folder: Path) -> bool:
    """True for the files of sentence-transformers."""
    return (folder / "modules.json").is_file()


def refuse_missing_weights(missing: Collection[str], folder: Path) -> None:
    """Raises SourceError for weights that a folder lacks: transformers fills them with random
    numbers.
    """
    if missing:
        raise SourceError(
            f"its files lack {len(missing)} of its weights",
            f"{min(missing)} is not in {folder}: copy or download the model anew",
        )


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def explained(path: Path, setting: str) -> Iterator[None]:
    """Raises SourceError in place of the errors of transformers with which a person can do
    something. path: the model's folder or GGUF file.
    """
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        known = known_problem(error, setting) or quantisation_problem(error, path)
        if known is None:
            raise
        raise known from error


def known_problem(error: Exception, setting: str) -> SourceError | None:
    """The failure behind an error that transformers raises while it reads any model."""
    if damage := damaged_weights(error):
        return damage
    message = " ".join(str(error).split())
    other = f"set {setting}=<another model>"
    if "trust_remote_code" in message:
        return SourceError(
            "it needs Python code of its own, which this service does not run",
            f"read that code and set INFER_TRUST_REMOTE_CODE=true to run it, or {other}",
        )
    if isinstance(error, ImportError):
        name = INSTALL.search(message)
        package = f"the Python package {name[1]}" if name else "a Python package"
        return SourceError(f"it needs {package}, which is not installed", message[:300])
    if "does not recognize this architecture" in message or "Unrecognized model in" in message:
        return SourceError(
            "transformers knows no model of the type that its config.json names",
            f"update transformers as far as pyproject.toml allows, or {other}",
        )
    if "sentencepiece or tiktoken" in message:
        return SourceError(
            "its tokenizer is not in tokenizer.json, and cannot be converted",
            "pip install sentencepiece tiktoken protobuf, or save its tokenizer with "
            "transformers on a machine that has these",
        )
    return None


def damaged_weights(error: Exception) -> SourceError | None:
    """The failure of a file with weights that is missing, cut off or not what its name says."""
    part = NAME_OF_WEIGHTS.search(str(error))
    if isinstance(error, FileNotFoundError) and part:
        reason, said = f"a part of its weights is missing ({part[0]})", str(error)
    elif isinstance(error, (EOFError, SafetensorError, UnpicklingError)):
        reason = "a file of its weights is damaged or cut off"
        said = str(error).partition(".")[0] or "it is empty"
    elif "ignore_mismatched_sizes" in str(error):
        reason = "its weights do not have the sizes that its config.json says"
        said = "the line before lists them"
    else:
        return None
    return SourceError(reason, f"{said}: copy or download the model anew")


def quantisation_problem(error: Exception, path: Path) -> SourceError | None:
    """The failure of quantised weights; None if the weights are not quantised, or memory is short."""
    if "out of memory" in str(error).lower():
        return None
    said = f"{type(error).__name__}: {error}"[:400]
    if path.suffix == ".gguf":
        return SourceError("it is a GGUF file that transformers cannot load", said)
    if method := quantisation(read_object(path / "config.json")):
        reason = f"its weights are quantised with {method}, which does not work on this machine"
        return SourceError(reason, said)
    return None
