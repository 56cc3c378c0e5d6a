"""The parts of a run, each a process: `python -m bench.gpu.checks PART DEVICE MODELS`.

The last line printed is the result as JSON. On a CPU everything is small.
"""

import asyncio
import itertools
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_server.serving.chat.loading import load_chat_model
from gpu_server.serving.engine.row_sampling import (
    PARAMETERS,
    RowNumbers,
    RowParams,
    kind_of,
    pack_rows,
    sample_captured,
    unpack_rows,
)
from gpu_server.serving.engine.sampling import sample_rows
from gpu_server.serving.engine.sampling_params import SamplingParams
from gpu_server.serving.models.device import Device
from gpu_server.serving.models.model_errors import SourceError
from gpu_server.settings import Settings
from torch import Tensor

from bench.serving.load import Load, Request
from bench.serving.processes import Failed, free_port, put_load, serving

COMBINATIONS = [
    RowNumbers(temperature, top_k, top_p, min_p)
    for temperature, top_k, top_p, min_p in itertools.product(
        (0.0, 0.7, 3.0), (0, 1, 50), (1.0, 0.9, 0.3), (0.0, 0.05)
    )
]


def main() -> None:
    part, device, models = sys.argv[1:]
    with torch.inference_mode():
        found = PARTS[part](device, Path(models))
    print(json.dumps(found))


def result(title: str, passed: bool, lines: list[str]) -> dict[str, Any]:
    return {"title": title, "passed": passed, "lines": lines}


def card(device: str, models: Path) -> dict[str, Any]:
    if device == "cpu":
        name = f"{platform.machine()}, {torch.get_num_threads()} threads"
        return result("The processor", True, [f"{name}; torch {torch.__version__}"])
    if not torch.cuda.is_available():
        return result("The card", False, ["torch finds no CUDA GPU: look at the driver's version"])
    properties = torch.cuda.get_device_properties(0)
    capability = ".".join(map(str, torch.cuda.get_device_capability(0)))
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    return result("The card", True, [f"{properties.name}, {memory}, {capability}; {versions}"])


def self_check(device: str, models: Path) -> dict[str, Any]:
    """Loads each architecture in each way, and generates a few tokens."""
    ways: list[dict[str, Any]] = [{"attention": "sdpa"}, {"attention": "auto"}]
    if device == "cuda":
        ways += [{"attention": "flash"}, {"cuda_graphs": True}]
    lines, passed = ["| model | settings | attention | tokens |", "|---|---|---|---|"], True
    for folder in sorted(models.iterdir()):
        for way in ways:
            settings = ", ".join(f"{name}={value}" for name, value in way.items())
            try:
                with loaded(folder, device, **way) as engine:
                    batched, tokens = engine.reason is None, asyncio.run(generate(engine, 4))
                    attention = f"{engine.attention} ({engine.attention_reason})"
                    passed &= batched and all(len(each) == 24 for each in tokens)
                    how = "" if batched else f"; not batched: {engine.reason}"
                    count = sum(map(len, tokens))
                    lines.append(f"| {folder.name} | {settings} | {attention}{how} | {count} |")
            except SourceError as error:
                passed = False
                lines.append(f"| {folder.name} | {settings} | {error} | 0 |")
    return result("The self-check on five architectures", passed, lines)


@contextmanager
def loaded(folder: Path, device: str, **settings: Any) -> Iterator[Any]:
    chosen = Settings(_env_file=None, kv_cache_tokens=4096, **settings)
    parts = load_chat_model(folder, Device(device, "bfloat16"), chosen)
    try:
        yield parts.engine
    finally:
        parts.engine.stop()


async def generate(engine: Any, count: int, tokens: int = 24) -> list[list[int]]:
    async def one(seed: int) -> list[int]:
        params = SamplingParams(max_tokens=tokens, seed=seed, ignore_eos=True, temperature=seed % 2)
        stream = engine.submit([5 + seed % 50, 6, 7], [params])
        return [token async for arrival in stream for token in arrival.tokens]

    return await asyncio.gather(*map(one, range(count)))


def sampling(device: str, models: Path) -> dict[str, Any]:
    """The tokens of the device, in a graph and not, against those of the CPU."""
    steps, vocabulary = (300, 151_936) if device == "cuda" else (12, 4_000)
    draw, noise = random.Random(1), torch.Generator().manual_seed(1)
    different = {"one after the other": 0, "captured": 0}
    rows = 8
    graphs: dict[Any, Callable[[Tensor, Tensor], list[int]]] = {}
    for _ in range(steps):
        chosen = [
            each._replace(uniform=draw.random()) for each in draw.choices(COMBINATIONS, k=rows)
        ]
        logits = torch.randn(rows, vocabulary, generator=noise) * draw.choice((2.0, 5.0))
        numbers = pack_rows(chosen).contiguous()
        expected = ordinary(logits, chosen, unpack_rows(numbers))
        there = unpack_rows(numbers.to(device))
        kind = kind_of(chosen)
        if kind not in graphs:
            graphs[kind] = capture(kind, rows, vocabulary, device)
        for name, tokens in (
            ("one after the other", ordinary(logits.to(device), chosen, there)),
            ("captured", graphs[kind](logits, numbers)),
        ):
            different[name] += sum(a != b for a, b in zip(expected, tokens, strict=True))
    lines = [f"{steps * rows} tokens of a vocabulary of {vocabulary:,}, {len(graphs)} graphs:"]
    lines += [f"{count} are others than the CPU's, {name}" for name, count in different.items()]
    return result("Sampling, token for token", not any(different.values()), lines)


def ordinary(logits: Tensor, rows: list[RowNumbers], params: RowParams) -> list[int]:
    scores = logits.clone()
    if any(row.sampled for row in rows):
        sample_rows(scores, rows, params)
    tokens: list[int] = scores.argmax(dim=-1).tolist()
    return tokens


def capture(
    kind: Any, rows: int, vocabulary: int, device: str
) -> Callable[[Tensor, Tensor], list[int]]:
    """A graph on a GPU; on a CPU, the same operations."""
    logits = torch.zeros(rows, vocabulary, device=device)
    numbers = torch.zeros(PARAMETERS, rows, dtype=torch.int32, device=device)
    chosen = torch.zeros(rows, dtype=torch.int64, device=device)

    def step() -> None:
        scores = logits.clone()
        sample_captured(scores, unpack_rows(numbers), kind)
        chosen.copy_(scores.argmax(dim=-1))

    replay = step
    if device == "cuda":
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        replay = graph.replay

    def run(new_logits: Tensor, new_numbers: Tensor) -> list[int]:
        logits.copy_(new_logits)
        numbers.copy_(new_numbers)
        replay()
        tokens: list[int] = chosen.tolist()
        return tokens

    return run


def memory(device: str, models: Path) -> dict[str, Any]:
    """Memory after each of several loads of requests: it must not grow from one to the next."""
    rounds, requests = (6, 200) if device == "cuda" else (3, 12)
    lines, passed = ["| settings | MiB after each round |", "|---|---|"], True
    for graphs in (False, True) if device == "cuda" else (False,):
        with loaded(models / "llama", device, cuda_graphs=graphs) as engine:
            sizes = []
            for _ in range(rounds):
                asyncio.run(generate(engine, requests))
                sizes.append(used(device) / 2**20)
        # What the first rounds capture and reserve stays.
        passed &= sizes[-1] - sizes[1] < 64
        figures = ", ".join(f"{size:.0f}" for size in sizes)
        lines.append(f"| {'CUDA graphs' if graphs else 'no graphs'} | {figures} |")
    return result("Memory under load", passed, lines)


def used(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.memory_reserved())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def bench(device: str, models: Path) -> dict[str, Any]:
    """Tokens a second: the service, transformers serve, and its manager without a server."""
    clients, tokens, requests = (16, 128, 64) if device == "cuda" else (2, 8, 4)
    model = str(models / "llama")
    graphs = "true" if device == "cuda" else "false"
    service = {"INFER_DEVICE": device, "INFER_CHAT_MODEL": model, "INFER_PRELOAD": "true"}
    serve = [
        str(Path(sys.executable).with_name("transformers")),
        *("serve", model, "--device", device, "--dtype", "bfloat16", "--continuous-batching"),
        *("--cb-num-blocks", "256", "--cb-max-batch-tokens", "512", "--host", "127.0.0.1"),
    ]
    ours = [sys.executable, "-m", "gpu_server"]
    candidates = [("generated service", ours, "/health/ready", {**service})]
    if device == "cuda":
        name = "generated service, CUDA graphs"
        candidates.append((name, ours, "/health/ready", {**service, "INFER_CUDA_GRAPHS": graphs}))
    candidates.append(("transformers serve, continuous batching", serve, "/health", {}))
    lines, passed = ["| what | tokens a second |", "|---|---|"], True
    for name, command, ready, env in candidates:
        port = free_port()
        command = [*command, "--port", str(port)] if command is serve else command
        env = {**env, "INFER_PORT": str(port), "INFER_DTYPE": "bfloat16"}
        try:
            with serving(name, command, port, env, Path.cwd(), Path.cwd() / "logs") as server:
                server.wait_ready(ready)
                put_load(chat_load(port, model, clients, clients, tokens))  # warms up
                speed = measured(chat_load(port, model, clients, requests, tokens))
            lines.append(f"| {name} | {speed:,.0f} |")
        except Failed as error:
            passed &= command is not ours
            lines.append(f"| {name} | not measured: {error} |")
    lines.append(f"| its manager alone | {manager(model, device, requests, tokens):,.0f} |")
    lines.append(f"\nA tiny model, {clients} clients, {tokens} tokens an answer, bfloat16.")
    return result("Beside transformers' continuous batching", passed, lines)


def measured(load: Load) -> float:
    """Tokens a second. Raises Failed if a request failed."""
    outcome = put_load(load)
    if errors := [sample.error for sample in outcome.samples if sample.error]:
        raise Failed(errors[0])
    return sum(sample.units for sample in outcome.samples) / outcome.seconds


def chat_load(port: int, model: str, clients: int, count: int, tokens: int) -> Load:
    body = {
        "model": model,
        "max_tokens": tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    requests = [
        Request(
            "/v1/chat/completions",
            {**body, "messages": [{"role": "user", "content": f"hello {number} world " * 10}]},
            tokens,
        )
        for number in range(count)
    ]
    return Load(port, clients, requests, timeout=120)


def manager(folder: str, device: str, requests: int, tokens: int) -> float:
    """Tokens a second of transformers' manager, which chooses its own graphs and attention."""
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    batching = model.init_continuous_batching(
        GenerationConfig(do_sample=False),
        ContinuousBatchingConfig(page_size=256, num_blocks=64, max_batch_tokens=512),
    )
    batching.warmup()
    batching.start()
    started = time.perf_counter()
    for number in range(requests):
        batching.add_request([5 + number % 50] * 60, max_new_tokens=tokens, eos_token_id=-1)
    generated = 0
    for _ in range(requests):
        output = batching.get_result(timeout=120)
        if output is None or output.error is not None:
            raise RuntimeError(f"the manager failed: {output}")
        generated += len(output.generated_tokens)
    seconds = time.perf_counter() - started
    batching.stop(block=True)
    return generated / seconds


PARTS = {
    "card": card,
    "self_check": self_check,
    "sampling": sampling,
    "memory": memory,
    "bench": bench,
}

if __name__ == "__main__":
    main()
