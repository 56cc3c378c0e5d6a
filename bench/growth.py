"""As contexts, clients and connections grow: `python -m bench.growth`.

Into bench/results/growth.md. Names of parts as arguments measure these alone, and keep what is
known of the others.
"""

import asyncio
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2

from bench.serving.environments import (
    FOLDER,
    PACKAGE,
    prepare_models,
    render_project,
    without_windows,
)
from bench.serving.processes import ROOT, Server, free_port, serving
from bench.serving.report import machine
from bench.serving.workload import seeded, words

RESULTS = ROOT / "bench" / "results" / "growth.md"
FIGURES = ROOT / "bench" / "results" / "growth.json"
CHAT = "/v1/chat/completions"

POINTS = [(8, 64), (8, 512), (8, 1500), (8, 4000), (8, 8000), (32, 64), (32, 512), (32, 1500)]
"""Sequences and the tokens of each"""

CONTEXT = """
import asyncio, json, random, statistics, sys, time
import torch
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM
from myserver.serving.engine.continuous import ContinuousBatchingEngine
from myserver.serving.engine.sampling_params import SamplingParams

points = json.loads(sys.argv[1])
LAYERS, KV_HEADS, SIZE = 6, 8, 128
torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=32000, num_hidden_layers=LAYERS, max_position_embeddings=40960, hidden_size=1024,
    intermediate_size=3072, num_attention_heads=16, num_key_value_heads=KV_HEADS, head_dim=SIZE,
)
model = Qwen3ForCausalLM(config).eval()


@torch.inference_mode()
def static_step(count, length):
    cache = DynamicCache(config=config)
    for layer in range(LAYERS):
        keys = torch.randn(count, KV_HEADS, length, SIZE)
        cache.update(keys, torch.randn_like(keys), layer)
    tokens, seconds = torch.full((count, 1), 7), []
    for step in range(10):
        started = time.perf_counter()
        positions = torch.full((count, 1), length + step)
        output = model(tokens, past_key_values=cache, use_cache=True, position_ids=positions)
        tokens = output.logits[:, -1].argmax(-1, keepdim=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


async def ask(engine, prompt, tokens):
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return [time.perf_counter() async for _ in engine.submit(prompt, [params])]


async def batch_step(engine, count, length):
    text = [random.randrange(1, 32000) for _ in range(length)]
    await ask(engine, text, 1)  # the others find its pages, so that their prompts take no time
    prompts = [text[:-1] + [number + 1] for number in range(count)]
    times = await asyncio.gather(*(ask(engine, prompt, 24) for prompt in prompts))
    return statistics.median(b - a for each in times for a, b in zip(each[8:], each[9:]))


def static(point):
    model.set_attn_implementation("sdpa")
    return static_step(*point)


async def main():
    before = [static(point) for point in points]
    most = max(4096, max(count * (length + 64) for count, length in points))
    engine = ContinuousBatchingEngine(
        model, eos_token_ids=[0], kv_cache_tokens=most, max_batch_tokens=512, max_batch_requests=32
    )
    own = model.config._attn_implementation
    for point, first in zip(points, before):
        model.set_attn_implementation(own)
        batched = await batch_step(engine, *point)
        print(json.dumps([*point, (first + static(point)) / 2, batched]), flush=True)
    engine.stop()

asyncio.run(main())
"""


@dataclass(frozen=True)
class Figure:
    """A line of the table."""

    what: str
    value: str
    goal: str
    reached: bool | None = None
    """None where there is no goal"""


@contextmanager
def service(model: Path, **settings: object) -> Iterator[Server]:
    project = render_project(["chat", "health"])
    port = free_port()
    env = {
        "PYTHONPATH": str(project / "src"),
        "INFER_PORT": str(port),
        "INFER_CHAT_MODEL": str(model),
        "INFER_PRELOAD": "true",
        "HF_HUB_OFFLINE": "1",
        **{f"INFER_{name.upper()}": str(value) for name, value in settings.items()},
    }
    command = [sys.executable, "-m", PACKAGE]
    with serving("growth", command, port, env, project, FOLDER / "logs") as server:
        server.wait_ready("/health/ready")
        yield server


@dataclass
class Client:
    """A connection of its own to the service."""

    server: Server
    model: str
    key: str = ""

    async def ask(self, text: str | list[dict[str, str]], tokens: int) -> list[float]:
        """When the request was sent, when each piece of text came, and when the answer ended."""
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
        }
        url = f"http://127.0.0.1:{self.server.port}"
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        times = [time.monotonic()]
        async with (
            httpx2.AsyncClient(
                base_url=url,
                headers=headers,
                timeout=600,
                verify=False,  # a context takes 50 ms
            ) as client,
            client.stream("POST", CHAT, json=body) as answer,
        ):
            text = ""
            async for line in answer.aiter_lines():
                text = line
                if '"content":"' in line and '"content":""' not in line:
                    times.append(time.monotonic())
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code}: {text}")
        return [*times, time.monotonic()]


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def context() -> list[Figure]:
    """Steps of the batch beside those of one static batch of equal lengths."""
    project = render_project(["chat", "health"])
    done = subprocess.run(
        [sys.executable, "-c", CONTEXT, json.dumps(POINTS)],
        env={"PYTHONPATH": str(project / "src")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures = []
    for count, length, static, batched in map(json.loads, done.stdout.splitlines()):
        ratio = batched / static
        value = f"{ratio:.2f} x ({batched * 1000:.0f} ms, static {static * 1000:.0f} ms)"
        what = f"{count} sequences of {length:,} tokens: a step, beside a static batch's"
        figures.append(Figure(what, value, "≤ 1.15 x", ratio <= 1.15))
    return figures


def prefix() -> list[Figure]:
    """The second turn of a long conversation, and one system prompt for many."""
    chat = prepare_models().chat
    model = without_windows(chat)
    rng = seeded("prefix")
    with service(model, kv_cache_tokens=65536, max_queue=400) as server:
        client = Client(server, model.name)
        asyncio.run(client.ask(words(rng, 50), 2))

        async def first_token(messages: list[dict[str, str]]) -> float:
            times = await client.ask(messages, 8)
            return times[1] - times[0]

        ratios = []
        for _ in range(3):
            messages = [{"role": "user", "content": words(rng, 3400)}]
            first = asyncio.run(first_token(messages))
            messages.append({"role": "assistant", "content": words(rng, 20)})
            messages.append({"role": "user", "content": words(rng, 20)})
            ratios.append(asyncio.run(first_token(messages)) / first)
        system = {"role": "system", "content": words(rng, 800)}
        before = metrics(server)

        async def many() -> None:
            slots = asyncio.Semaphore(16)

            async def one(number: int) -> None:
                async with slots:
                    question = {"role": "user", "content": f"{number} {words(rng, 10)}"}
                    await client.ask([system, question], 2)

            await one(0)
            await asyncio.gather(*(one(number) for number in range(1, 200)))

        asyncio.run(many())
        after = metrics(server)
    queries, hits = (
        after[f"vllm:prefix_cache_{name}_total"] - before[f"vllm:prefix_cache_{name}_total"]
        for name in ("queries", "hits")
    )
    ratio = statistics.median(ratios)
    return [
        Figure(
            "second turn of a conversation of 4,000 tokens: first token ÷ the first turn's",
            f"{ratio:.3f}",
            "≤ 0.10",
            ratio <= 0.10,
        ),
        Figure(
            "200 clients with one system prompt of 900 tokens: tokens found in the prefix cache",
            f"{hits / queries:.0%}",
            "",
        ),
    ]


def metrics(server: Server) -> dict[str, float]:
    page = httpx2.get(f"http://127.0.0.1:{server.port}/metrics").text
    found: dict[str, float] = {}
    for name, value in re.findall(r"^([\w:]+)(?:{.*})? ([\d.e+]+)$", page, re.M):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def prompts() -> list[Figure]:
    """Gaps of running streams while a long prompt is read; the wait of a short one behind it."""
    chat = prepare_models().chat
    model = without_windows(chat)
    rng = seeded("prompts")
    with service(model, kv_cache_tokens=32768) as server:
        client = Client(server, model.name)
        long, short = words(rng, 6800), words(rng, 20)

        async def measure(*, disturbed: bool) -> tuple[list[float], float, float]:
            started = time.monotonic()
            streams = [
                asyncio.create_task(client.ask(words(rng, 20), 700 if disturbed else 100))
                for _ in range(8)
            ]
            await asyncio.sleep(2)
            begin, end, waited = time.monotonic(), float("inf"), 0.0
            if disturbed:
                reading = asyncio.create_task(client.ask(long, 1))
                await asyncio.sleep(1)
                times = await client.ask(short, 1)
                waited = times[-1] - times[0]
                times = await reading
                begin, end = times[0], times[-1]
                print(f"read in {end - begin:.1f} s", flush=True)
                if time.monotonic() - started > 60:
                    print("the streams may have ended before", flush=True)
            gaps = [
                b - a
                for times in await asyncio.gather(*streams)
                for a, b in pairwise(times[2:])
                if begin <= a and b <= end
            ]
            return gaps, waited, end - begin

        asyncio.run(client.ask(short, 4))
        asyncio.run(client.ask(words(rng, 3000), 1))
        alone, _, _ = asyncio.run(measure(disturbed=False))
        gaps, waited, seconds = asyncio.run(measure(disturbed=True))
    ratio = percentile(gaps, 0.99) / percentile(alone, 0.99)
    return [
        Figure(
            "8 streams while a prompt of 8,000 tokens is read: p99 of the gaps ÷ undisturbed",
            f"{ratio:.2f} x ({percentile(gaps, 0.99) * 1000:.0f} ms)",
            "≤ 3 x",
            ratio <= 3,
        ),
        Figure(
            "a prompt of 25 tokens behind it: first token",
            f"{waited:.2f} s; the long one takes {seconds:.1f} s",
            "",
        ),
    ]


def fairness() -> list[Figure]:
    """Ten clients with one request each, beside one with a hundred."""
    model = prepare_models().chat
    rng = seeded("fairness")
    names = ["large", *(f"small-{number}" for number in range(10))]
    keys = FOLDER / "keys.txt"
    keys.write_text("".join(f"{name}:key-of-{name}\n" for name in names))
    with service(model, max_queue=200, api_keys_file=keys) as server:

        async def one(name: str) -> float:
            client = Client(server, model.name, f"key-of-{name}")
            times = await client.ask(words(rng, 20), 32)
            return times[-1] - times[0]

        async def ten() -> float:
            return percentile(await asyncio.gather(*(one(name) for name in names[1:])), 0.95)

        async def beside() -> float:
            hundred = [asyncio.create_task(one("large")) for _ in range(100)]
            await asyncio.sleep(3)
            seconds = await ten()
            if not any(each for each in hundred if not each.done()):
                raise RuntimeError("the hundred were over before the ten")
            for each in hundred:
                each.cancel()
            await asyncio.gather(*hundred, return_exceptions=True)
            await asyncio.sleep(1)
            return seconds

        asyncio.run(ten())
        ratios = []
        for _ in range(3):
            alone = asyncio.run(ten())
            ratios.append(asyncio.run(beside()) / alone)
    ratio = statistics.median(ratios)
    return [
        Figure(
            "ten clients with a request each beside one with a hundred: p95 ÷ alone",
            f"{ratio:.2f} x ({', '.join(f'{each:.2f}' for each in sorted(ratios))})",
            "≤ 2 x",
            ratio <= 2,
        )
    ]


def connections() -> list[Figure]:
    """A thousand idle connections, and two hundred streams."""
    chat = prepare_models().chat
    model = without_windows(chat)
    rng = seeded("connections")
    with service(model, max_connections=1300, max_queue=200) as server:
        client = Client(server, model.name)
        files = Path(f"/proc/{server.process.pid}/fd")

        async def measure() -> tuple[float, float, int, list[float]]:
            await client.ask(words(rng, 20), 4)
            memory, open_files = server.resident_bytes(), len(list(files.iterdir()))
            idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(1000)]
            for _, writer in idle:
                writer.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for reader, _ in idle:
                await reader.readuntil(b"\r\n\r\n")
            after_idle = server.resident_bytes()
            streams = [asyncio.create_task(client.ask(words(rng, 10), 40)) for _ in range(200)]
            seconds = []
            async with httpx2.AsyncClient(timeout=60) as prober:
                while not all(each.done() for each in streams):
                    started = time.monotonic()
                    await prober.get(f"http://127.0.0.1:{server.port}/health/live")
                    seconds.append(time.monotonic() - started)
                    await asyncio.sleep(0.02)
            await asyncio.gather(*streams)
            open_now = len(list(files.iterdir()))
            for _, writer in idle:
                writer.close()
            return (
                after_idle - memory,
                server.resident_bytes() - after_idle,
                (open_now - open_files),
                seconds,
            )

        idle, busy, opened, seconds = asyncio.run(measure())
    p99 = percentile(seconds, 0.99)
    return [
        Figure("1,000 idle connections: memory", f"{idle / 2**20:.0f} MiB", ""),
        Figure("200 streams beside them: memory", f"{busy / 2**20:.0f} MiB", ""),
        Figure("file descriptors that the idle ones take", f"{opened:,}", ""),
        Figure(
            "200 streams beside 1,000 idle connections: p99 of /health/live",
            f"{p99 * 1000:.1f} ms of {len(seconds)} probes",
            "≤ 50 ms",
            p99 <= 0.05,
        ),
    ]


PARTS: dict[str, Callable[[], list[Figure]]] = {
    "context": context,
    "prefix": prefix,
    "prompts": prompts,
    "fairness": fairness,
    "connections": connections,
}


def main() -> None:
    known: dict[str, list[list[Any]]] = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    for name in sys.argv[1:] or PARTS:
        known[name] = [list(astuple(figure)) for figure in PARTS[name]()]
        for figure in known[name]:
            print(*figure, flush=True)
        FIGURES.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    RESULTS.write_text(page([Figure(*each) for name in PARTS for each in known.get(name, [])]))


def page(figures: Sequence[Figure]) -> str:
    verdicts = {None: "", True: "reached", False: "**missed**"}
    rows = "\n".join(
        f"| {each.what} | {each.value} | {each.goal} | {verdicts[each.reached]} |"
        for each in figures
    )
    return f"""# As contexts, clients and connections grow

{machine()}. Load generator and service share it.

| | measured | goal | |
|---|---|---|---|
{rows}

Contexts: the engine alone, with six layers of Qwen3 0.6B's shape and random weights in float32;
the static batch is transformers' own forward pass over a dynamic cache. Prefixes and prompts: a
model of Qwen3's kind with 12 layers of 512 and random weights, because Gemma 3 has layers that see
a window, for which transformers shares no prefixes. Fairness: Gemma 3 270M, a key for each client.
Again: `python -m bench.growth`, or with the names of parts: {", ".join(PARTS)}.
"""


if __name__ == "__main__":
    main()
