"""The cost of LoRA adapters in the batch: into bench/results/adapters.md.

Builds a random model in the shape of Gemma 3 270M and adapters for all of its linear layers, and
generates with a generated service's own engine: without adapters, and with them configured for
requests to the base model alone, to one adapter, and to the base and several in one batch.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from infer_scaffold.project import generate

RESULT = Path(__file__).parent / "results" / "adapters.md"

BUILD = """
import sys
from pathlib import Path
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig
sys.path.insert(0, sys.argv[2] + "/tests")
from tiny_chat import build_tokenizer
config = Gemma3TextConfig(
    vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18,
    num_attention_heads=4, num_key_value_heads=1, head_dim=256, eos_token_id=0,
)
torch.manual_seed(0)
folder = Path(sys.argv[1])
Gemma3ForCausalLM(config).save_pretrained(folder / "model")
build_tokenizer().save_pretrained(folder / "model")
for number in range(4):
    model = Gemma3ForCausalLM.from_pretrained(folder / "model")
    lora = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder / f"adapter-{number}")
"""

GENERATE = """
import asyncio, statistics, sys, time
from pathlib import Path
import torch
from bench_server.serving.models.device import Device
from bench_server.serving.chat.loading import load_chat_model
from bench_server.serving.engine.sampling_params import SamplingParams
from bench_server.settings import Settings

STREAMS, TOKENS, ROUNDS = 16, 16, 5
folder = Path(sys.argv[1])
adapters = {path.name: path for path in sorted(folder.glob("adapter-*"))}

def load(adapters):
    settings = Settings(_env_file=None, kv_cache_tokens=4096)
    parts = load_chat_model(folder / "model", Device("cpu", "auto"), settings, adapters)
    assert parts.engine.reason is None and len(parts.adapters.ready) == len(adapters)
    return parts.engine

async def stream(engine, number, adapter):
    params = SamplingParams(
        max_tokens=TOKENS, temperature=0.0, ignore_eos=True, adapter=adapter
    )
    prompt = [1 + (number * 37 + place) % 250 for place in range(24)]
    async for _ in engine.submit(prompt, [params]):
        pass

async def rate(engine, adapters):
    started = time.perf_counter()
    await asyncio.gather(
        *(stream(engine, n, adapters[n % len(adapters)]) for n in range(STREAMS))
    )
    return STREAMS * TOKENS / (time.perf_counter() - started)

async def main():
    plain, mixed = load({}), load(adapters)
    cases = {
        "no adapter configured": (plain, [0]),
        "4 configured, all requests to the base": (mixed, [0]),
        "all requests to one adapter": (mixed, [1]),
        "4 adapters in turn": (mixed, [1, 2, 3, 4]),
    }
    rates = {name: [] for name in cases}
    for round in range(ROUNDS + 1):
        for name, case in cases.items():
            measured = await rate(*case)
            if round:  # the first one warms up
                rates[name].append(measured)
    base = rates["no adapter configured"]
    for name, each in rates.items():
        share = statistics.median(rate / of for rate, of in zip(each, base))
        print(f"| {name} | {statistics.median(each):.0f} | {share:.0%} |")
    plain.stop(), mixed.stop()

asyncio.run(main())
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        project, models = Path(folder, "project"), Path(folder, "models")
        generate.render({"project_name": "bench-server", "endpoints": ["chat"]}, project)
        paths = [str(project / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
        build = [sys.executable, "-c", BUILD, str(models), str(project)]
        subprocess.run(build, env=environment, check=True)
        rows = subprocess.run(
            [sys.executable, "-c", GENERATE, str(models)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    text = f"""# Cost of LoRA adapters

Tokens a second of 16 streams of 16 tokens, on a random model in the shape of Gemma 3 270M with
adapters of rank 16 on all linear layers ({os.cpu_count()} cores, {platform.machine()}). Medians of
5 rounds in which the cases take turns, and of the ratio in each round.

| requests | tokens/s | of those without adapters |
|---|---|---|
{rows.strip()}

Again: `.venv/bin/python -m bench.adapters`.
"""
    RESULT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
