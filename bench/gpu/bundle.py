"""Writes the folder that `make gpu` runs where there is no network: wheels, project, models."""

import argparse
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from infer_scaffold.project import generate

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "gpu-server"

MAKEFILE = """\
gpu:
\tpython3 -m bench.gpu $(GPU)
"""

TOGETHER = ("pytest", "anyio", "hypothesis", "httpx2", "jsonschema", "peft>=0.21,<0.22")
"""What the generated tests need beside the service"""

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
}
"""Small, with heads that flash attention has"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.bundle", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-wheels", action="store_true", help="for runs with --device cpu")
    parser.add_argument(
        "--index", default="", help="package index of torch's CUDA build, if not the usual one"
    )
    chosen = parser.parse_args()
    write(chosen.folder)
    if not chosen.no_wheels and (failed := download(chosen.folder, chosen.index)):
        print(f"bundle: the wheels are not complete: {failed}", file=sys.stderr)
        return 1
    print(f"Copy {chosen.folder} to the machine with the GPU, and run `make gpu` in it.")
    return 0


def write(folder: Path) -> None:
    """All but the wheels. What the folder held before is gone, wheels excepted."""
    for name in ("project", "models", "bench"):
        shutil.rmtree(folder / name, ignore_errors=True)
    answers = {"project_name": PACKAGE, "endpoints": ["chat", "health"], "devices": ["cpu", "cuda"]}
    generate.render(answers, folder / "project")
    build_models(folder / "models", load_builders(folder / "project"))
    for name in ("gpu", "serving"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "bench" / name, folder / "bench" / name, ignore=ignored)
    (folder / "Makefile").write_text(MAKEFILE, encoding="utf-8")


def load_builders(project: Path) -> ModuleType:
    """The module of the generated tests that builds chat models."""
    spec = importlib.util.spec_from_file_location("tiny_chat", project / "tests" / "tiny_chat.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_models(folder: Path, builders: ModuleType) -> None:
    """Five architectures with random weights: sliding attention, normed queries, experts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    changes: dict[str, dict[str, Any]] = {
        "llama": {},
        "qwen3": {},
        "mistral": {"sliding_window": 64},
        "gemma3_text": {"sliding_window": 64},
        "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    }
    for name, changed in changes.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **SIZES, **changed)
        builders.save(AutoModelForCausalLM.from_config(config).eval(), folder / name)


def download(folder: Path, index: str) -> str | None:
    """Fetches the wheels of the service and of its tests. Returns what went wrong, if anything."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:"]
    if index:
        command += ["--index-url", index]
    wheels = ["--dest", str(folder / "wheels")]
    done = subprocess.run(
        [*command, *wheels, str(folder / "project"), *TOGETHER],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


if __name__ == "__main__":
    sys.exit(main())
