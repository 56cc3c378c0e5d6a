"""The share of the load that the engine's self-check takes: into bench/results/self-check.md.

Builds a random model in the shape of Llama 3.2 1B in float32 (5 GB on the disk, 6 GB of memory),
and loads it several times with a generated service's own code, each time in a new process.
"""

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from infer_scaffold.project import generate

RUNS = 5
RESULT = Path(__file__).parent / "results" / "self-check.md"

BUILD = """
import sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
sys.path.insert(0, sys.argv[2] + "/tests")
from tiny_chat import build_tokenizer
config = LlamaConfig(
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
    num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072,
    tie_word_embeddings=True, eos_token_id=0,
)
torch.manual_seed(0)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
build_tokenizer().save_pretrained(sys.argv[1])
"""

LOAD = """
import logging, sys, time
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
started = time.monotonic()
from pathlib import Path
from bench_server.serving.models.device import Device
from bench_server.serving.chat.loading import load_chat_model
from bench_server.settings import Settings
parts = load_chat_model(
    Path(sys.argv[1]), Device("cpu", "float32"), Settings(_env_file=None, kv_cache_tokens=8192)
)
print("loaded in", time.monotonic() - started)
assert parts.engine.reason is None
parts.engine.stop()
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        project, model = Path(folder, "project"), Path(folder, "model")
        generate.render({"project_name": "bench-server", "endpoints": ["chat"]}, project)
        environment = os.environ | {"PYTHONPATH": str(project / "src")}
        command = [sys.executable, "-c", BUILD, str(model), str(project)]
        subprocess.run(command, env=environment, check=True)
        loads, checks = [], []
        for _ in range(RUNS + 1):
            command = [sys.executable, "-c", LOAD, str(model)]
            printed = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            ).stdout
            loads.append(seconds(r"loaded in ([\d.]+)", printed))
            checks.append(seconds(r"proved right in ([\d.]+) s", printed))
    # The first reads the file from the disk, the others from the page cache.
    load, check = statistics.median(loads[1:]), statistics.median(checks[1:])
    shape = f"Llama 3.2 1B's shape, random weights, float32, {os.cpu_count()} cores"
    all_loads = ", ".join(f"{each:.1f}" for each in loads)
    all_checks = ", ".join(f"{each:.2f}" for each in checks)
    text = f"""# Cost of the engine's self-check

A chat model proves at load that its batch computes what a plain forward pass computes.
{shape} ({platform.machine()}), file in the page cache, imports included; median of {RUNS}:

| load | of it the self-check | share |
|---|---|---|
| {load:.1f} s | {check:.2f} s | {check / load:.0%} |

Loads: {all_loads} s; self-checks: {all_checks} s; the first read the file from the disk.
Again: `.venv/bin/python -m bench.self_check`.
"""
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def seconds(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    assert match is not None, text
    return float(match[1])


if __name__ == "__main__":
    main()
