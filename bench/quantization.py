"""Quantised weights on a processor: speed, memory, agreement. Writes bench/results/quantization.md.

Loads gemma-3-270m with a generated service's own code, each time in a new process, one setting
after the other in each round. Takes the folder of the model, as demo/models.py prints it.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from infer_scaffold.project import generate

ROUNDS = 3
SETTINGS = ["none", "int8", "int4"]
RESULT = Path(__file__).parent / "results" / "quantization.md"

MEASURE = """
import asyncio, json, logging, pydoc_data.topics, sys, time
from contextlib import AsyncExitStack
from pathlib import Path
import torch
from bench_server.serving.models.device import Device
from bench_server.serving.chat.chat_model import ChatModel
from bench_server.serving.chat.weights import read_chat_model
from bench_server.serving.chat.options import ChatOptions
from bench_server.serving.chat.prompt import ChatPrompt
from bench_server.settings import Settings

folder, method, dtype, reference = sys.argv[1:]

def megabytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

before = megabytes("RssAnon")
started = time.monotonic()
settings = Settings(_env_file=None, quantization=method, kv_cache_tokens=4096)
device = Device("cpu", dtype)
model = ChatModel.load(folder, device, settings)
result = {"load": time.monotonic() - started, "peak": megabytes("VmHWM") - before}
result["memory"] = megabytes("RssAnon") - before
assert model.details["engine"] == "continuous", model.details

async def ask(i):
    conversation = ChatPrompt([{"role": "user", "content": f"Tell me about the number {i}."}])
    bias = {1: -1000.0, 106: -1000.0}  # the end tokens: every sequence has the same length
    sampling = {"temperature": 0.0, "logit_bias": bias}
    options = ChatOptions(sampling=sampling, max_tokens=TOKENS)
    async with AsyncExitStack() as resources:
        async for chunk in await model.answer(conversation, options, resources):
            pass

async def speed(streams):
    started = time.monotonic()
    await asyncio.gather(*map(ask, range(streams)))
    return streams * TOKENS / (time.monotonic() - started)

TOKENS = 4
asyncio.run(speed(2))
TOKENS = 48
result["one"] = asyncio.run(speed(1))
TOKENS = 16
result["sixteen"] = asyncio.run(speed(16))
model.unload()

if reference:
    weights = read_chat_model(Path(folder), device, trust_remote_code=False, quantization=method)
    texts = sorted(pydoc_data.topics.topics.values(), key=len)[-16:]
    ids = [weights.tokenizer.encode(text)[:160] for text in texts]
    with torch.inference_mode():
        logits = torch.cat([weights.model(torch.tensor([each])).logits[0, :-1] for each in ids])
    chosen = logits.argmax(-1)
    if Path(reference).exists():
        expected = torch.load(reference)
        result["agreement"] = (chosen == expected).float().mean().item()
    else:
        torch.save(chosen, reference)
    targets = torch.tensor([token for each in ids for token in each[1:]])
    loss = torch.nn.functional.cross_entropy(logits.float(), targets)
    result["perplexity"] = loss.exp().item()
print(json.dumps(result))
"""


def main() -> None:
    folder = Path(sys.argv[1])  # as demo/models.py prints it
    with tempfile.TemporaryDirectory() as work:
        project = Path(work, "project")
        generate.render({"project_name": "bench-server", "endpoints": ["chat"]}, project)
        environment = os.environ | {"PYTHONPATH": str(project / "src")}
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
        for index in range(ROUNDS):
            for name in SETTINGS:
                reference = str(Path(work, "reference.pt")) if index == 0 else ""
                command = [sys.executable, "-c", MEASURE, str(folder), name, "float32", reference]
                done = subprocess.run(
                    command, env=environment, check=True, stdout=subprocess.PIPE, text=True
                )
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(name, runs[name][-1], flush=True)
    RESULT.write_text(page(runs), "utf-8")


def page(runs: dict[str, list[dict[str, float]]]) -> str:
    given = torch.cpu.get_capabilities()
    names = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    has = [name for name in names if given.get(name)] or ["none of those that count"]
    rows = "\n".join(f"| {name} | {row(each)} |" for name, each in runs.items())
    return f"""# Quantised weights on a processor

gemma-3-270m in float32, of which the tied embeddings are 63 %, with a generated service's own code.
{os.cpu_count()} cores with {", ".join(has)}; medians of {ROUNDS} rounds, one setting after the
other in each. Memory is what loading adds to the process, the KV cache of 4096 tokens included.
Agreement is the share of equal greedy tokens, teacher-forced, with `none` on 16 pages of Python's
own documentation (160 tokens each); perplexity is on the same pages.

| INFER_QUANTIZATION | tokens/s, 1 stream | 16 streams | memory, MB | peak at load, MB | load, s | \
agreement | perplexity |
|---|---|---|---|---|---|---|---|
{rows}
"""


def row(runs: list[dict[str, float]]) -> str:
    def median(key: str) -> float:
        return statistics.median(run[key] for run in runs)

    speeds = f"{median('one'):.1f} | {median('sixteen'):.1f}"
    memory = f"{median('memory'):.0f} | {median('peak'):.0f} | {median('load'):.1f}"
    agreement = runs[0].get("agreement", 1.0)
    return f"{speeds} | {memory} | {agreement:.1%} | {runs[0]['perplexity']:.2f}"


if __name__ == "__main__":
    main()
