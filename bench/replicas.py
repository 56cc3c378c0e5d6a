"""Replicas behind one port: `python -m bench.replicas`, into bench/results/replicas.md.

Three questions, with Gemma 3 270M on one thread a replica: what a second replica brings behind
nginx and on Ray Serve, what it brings to send a conversation to the replica that has its beginning,
and whether the simulation of the template's bench/capacity.py foretells a real run.
"""

import asyncio
import importlib.util
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import yaml

from bench.serving.environments import FOLDER, PACKAGE, prepare_models, without_windows
from bench.serving.processes import ROOT, free_port, serving
from bench.serving.report import machine
from bench.serving.workload import prompts, seeded, words
from infer_scaffold.project import generate

RESULTS = ROOT / "bench" / "results" / "replicas.md"
NGINX = ROOT / os.environ.get("NGINX", "tests/nginx/usr/sbin/nginx")
CHAT = "/v1/chat/completions"
HASHING = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
CLIENTS, REQUESTS, TOKENS = 16, 32, 32
CONVERSATIONS, TURNS = 8, 5
SLOTS, RUN, LOAD = 4, 80, 0.75

RAY = """
import json, sys, time
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

port, config = int(sys.argv[1]), json.loads(sys.argv[2])
ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
_get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=True)
while True:
    time.sleep(60)
"""


@dataclass
class Fleet:
    """Replicas behind one port."""

    port: int
    metrics: list[int]
    """The ports of their metrics"""
    model: str

    def total(self, name: str) -> float:
        """A metric, added up over the replicas."""
        pages = [httpx2.get(f"http://127.0.0.1:{port}/metrics").text for port in self.metrics]
        values = [re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.M) for page in pages]
        return sum(float(value) for each in values for value in each)


@dataclass
class Answer:
    first: float
    """Seconds until the first text"""
    total: float


@dataclass
class Bench:
    """The rendered service and its model."""

    project: Path
    model: Path
    settings: dict[str, str] = field(default_factory=dict)

    def env(self, **settings: object) -> dict[str, str]:
        given = {f"INFER_{name.upper()}": str(value) for name, value in settings.items()}
        return {
            "PYTHONPATH": str(self.project / "src"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "INFER_CHAT_MODEL": str(self.model),
            "INFER_PRELOAD": "true",
            "INFER_KEEP_ALIVE_SECONDS": "600",
            **given,
        }

    @contextmanager
    def processes(self, count: int, **settings: object) -> Iterator[list[int]]:
        ports = [free_port() for _ in range(count)]
        with ExitStack() as stack:
            servers = [
                stack.enter_context(
                    serving(
                        f"replica-{number}",
                        [sys.executable, "-m", PACKAGE],
                        port,
                        self.env(port=port, **settings),
                        self.project,
                        FOLDER / "logs",
                    )
                )
                for number, port in enumerate(ports)
            ]
            for server in servers:
                server.wait_ready("/health/ready")
            yield ports

    @contextmanager
    def nginx(self, count: int, **settings: object) -> Iterator[Fleet]:
        """The configuration of deploy/replicas, with addresses in place of a name."""
        port = free_port()
        with self.processes(count, **settings) as ports:
            text = (self.project / "deploy" / "replicas" / "nginx.conf").read_text()
            servers = " ".join(
                f"server 127.0.0.1:{each} max_fails=1 fail_timeout=2s;" for each in ports
            )
            text = re.sub(r"server replicas:8000 .*;", servers, text)
            text = text.replace("listen 8000;", f"listen 127.0.0.1:{port};")
            own = "".join(
                f"{kind}_temp_path {kind};"
                for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            (self.project / "nginx.conf").write_text(text.replace("http {\n", f"http {{ {own}\n"))
            command = [str(NGINX), "-p", str(self.project), "-c", str(self.project / "nginx.conf")]
            command += ["-g", "daemon off; pid nginx.pid;"]
            with serving("nginx", command, port, {}, self.project, FOLDER / "logs") as server:
                server.wait_ready("/health/ready")
                yield Fleet(port, ports, self.model.name)

    @contextmanager
    def ray(self, count: int, router: str = "", **settings: object) -> Iterator[Fleet]:
        """The configuration of deploy/ray."""
        port, metrics = free_port(), free_port()
        config = yaml.safe_load((self.project / "deploy" / "ray" / "serve.yaml").read_text())
        (application,) = config["applications"]
        (deployment,) = application["deployments"]
        env = self.env(metrics_port=metrics, **settings)
        application["runtime_env"]["env_vars"] = env
        deployment |= {"num_replicas": count, "ray_actor_options": {"num_cpus": 1}}
        if router:
            deployment["request_router_config"] = {"request_router_class": router}
        del config["http_options"]
        command = [sys.executable, "-c", RAY, str(port), json.dumps(config)]
        driver = env | {"RAY_memory_monitor_refresh_ms": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        with serving("ray", command, port, driver, self.project, FOLDER / "logs") as server:
            server.wait_ready("/v1/models")
            yield Fleet(port, list(range(metrics, metrics + count)), self.model.name)


async def ask(
    fleet: Fleet, client: httpx2.AsyncClient, messages: list[dict[str, str]], tokens: int
) -> Answer:
    """Streams one answer, which has exactly so many tokens."""
    started = time.monotonic()
    body = {
        "model": fleet.model,
        "messages": messages,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }
    first, text = 0.0, ""
    async with client.stream("POST", CHAT, json=body) as answer:
        async for line in answer.aiter_lines():
            if '"content":"' in line and '"content":""' not in line and not first:
                first = time.monotonic() - started
            text = line or text
    if answer.status_code != 200 or text != "data: [DONE]":
        raise RuntimeError(f"{answer.status_code}: {text[:300]}")
    return Answer(first, time.monotonic() - started)


async def in_parallel(
    fleet: Fleet,
    clients: int,
    work: Callable[[httpx2.AsyncClient, int], Awaitable[Any]],
    count: int,
) -> tuple[float, list[Any]]:
    """Work 0 … count - 1 by so many clients; the seconds and the results."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    url = f"http://127.0.0.1:{fleet.port}"
    waiting = iter(range(count))
    results: list[Any] = []
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def run() -> None:
            for number in waiting:
                results.append(await work(client, number))

        started = time.monotonic()
        await asyncio.gather(*(run() for _ in range(clients)))
        return time.monotonic() - started, results


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def throughput(fleet: Fleet, clients: int, requests: int, key: str) -> tuple[float, float]:
    """Tokens a second, and the median seconds to the first token."""
    asked = prompts(("replicas", key), requests)

    async def work(client: httpx2.AsyncClient, number: int) -> Answer:
        return await ask(fleet, client, [user(asked[number])], TOKENS)

    asyncio.run(in_parallel(fleet, clients, work, min(clients, requests)))  # warm
    asked = prompts(("replicas again", key), requests)
    seconds, answers = asyncio.run(in_parallel(fleet, clients, work, requests))
    return requests * TOKENS / seconds, statistics.median(each.first for each in answers)


def conversations(fleet: Fleet, *, named: bool) -> dict[str, float]:
    """Conversations whose prompts grow by about 150 tokens a turn, each turn after the last."""
    queries, hits = (f"vllm:prefix_cache_{each}_total" for each in ("queries", "hits"))
    before = fleet.total(queries), fleet.total(hits)

    async def work(client: httpx2.AsyncClient, number: int) -> list[Answer]:
        rng = seeded("conversation", number)
        messages = [user(f"{number} {words(rng, 200)}")]
        answers = []
        named_client = httpx2.AsyncClient(
            base_url=client.base_url,
            timeout=300,
            headers={"X-Session-ID": f"conversation-{number}"} if named else {},
        )
        async with named_client:
            for _ in range(TURNS):
                answers.append(await ask(fleet, named_client, messages, 8))
                messages += [
                    {"role": "assistant", "content": words(rng, 60)},
                    user(words(rng, 60)),
                ]
                await asyncio.sleep(rng.expovariate(1.0))  # so that turns do not march in step
        return answers

    _, results = asyncio.run(in_parallel(fleet, CONVERSATIONS, work, CONVERSATIONS))
    later = [answer.first for answers in results for answer in answers[1:]]
    asked = fleet.total(queries) - before[0]
    return {
        "from the cache": (fleet.total(hits) - before[1]) / asked,
        "first token": statistics.median(later),
        "p95": statistics.quantiles(later, n=20)[-1],
    }


def load_capacity(project: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("capacity", project / "bench" / "capacity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["capacity"] = module
    spec.loader.exec_module(module)
    return module


def lengths(count: int) -> list[int]:
    rng = random.Random(7)
    return [min(48, 8 + round(rng.expovariate(1 / 8))) for _ in range(count)]


def calibrate(fleet: Fleet, clients: int, count: int) -> float:
    """Tokens a second of all replicas together, at a concurrency, with the lengths of the run."""
    asked, tokens = prompts(("calibrate", clients), count), lengths(count)

    async def work(client: httpx2.AsyncClient, number: int) -> float:
        await ask(fleet, client, [user(asked[number])], tokens[number])
        return time.monotonic()

    started = time.monotonic()
    _, ends = asyncio.run(in_parallel(fleet, clients, work, count))
    # Until the first client has nothing more to do: all of them are busy so long.
    ordered = sorted(ends)
    busy_until = ordered[count - clients]
    done = sum(tokens[: count - clients]) + sum(tokens[count - clients :]) / 2
    return done / (statistics.mean([busy_until, ordered[-1]]) - started)


def run_open(fleet: Fleet, arrivals: list[Any]) -> list[Answer]:
    """Requests at their times, whether or not others have been answered."""
    asked = prompts(("open",), len(arrivals))

    async def at(client: httpx2.AsyncClient, number: int) -> Answer:
        await asyncio.sleep(arrivals[number].time)
        return await ask(fleet, client, [user(asked[number])], int(arrivals[number].tokens))

    _, answers = asyncio.run(in_parallel(fleet, len(arrivals), at, len(arrivals)))
    return answers


def foretold(bench: Bench) -> str:
    """The table of the simulation beside the run."""
    capacity = load_capacity(bench.project)
    with bench.nginx(2, max_batch_requests=SLOTS) as fleet:
        calibrate(fleet, 8, 16)  # warm
        measured = [
            capacity.Point(each, calibrate(fleet, 2 * each, 12 + 6 * each) / 2)
            for each in (1, 2, SLOTS)
        ]
        tokens = lengths(RUN)
        rate = LOAD * 2 * measured[-1].tokens_per_second / statistics.mean(tokens)
        times = [each.time for each in capacity.poisson(rate, 1.0, RUN, seed=4)]
        arrivals = [
            capacity.Arrival(at, float(length)) for at, length in zip(times, tokens, strict=True)
        ]
        name = "vllm:request_queue_time_seconds_sum"
        before = fleet.total(name)
        answers = run_open(fleet, arrivals)
        waited = (fleet.total(name) - before) / RUN
    simulated = capacity.simulate(arrivals, measured, SLOTS, 2)
    real, told = ([each.total for each in some] for some in (answers, simulated))
    rows = {
        "seconds in the queue, mean": (waited, statistics.mean(each.wait for each in simulated)),
        "seconds of an answer, mean": (statistics.mean(real), statistics.mean(told)),
        "seconds of an answer, p95": (
            capacity.percentile(real, 0.95),
            capacity.percentile(told, 0.95),
        ),
    }
    speeds = ", ".join(
        f"{point.concurrency:.0f}={point.tokens_per_second:.0f}" for point in measured
    )
    lines = [
        f"{RUN} requests for {statistics.mean(tokens):.0f} tokens in the mean, {rate:.2f} a second "
        f"at random times, to two replicas behind nginx with INFER_MAX_BATCH_REQUESTS={SLOTS}: a "
        f"load of {LOAD:.0%}. Tokens a second of one replica by concurrent requests, measured "
        f"while both were busy: {speeds}. The simulation has the same times and lengths.",
        "",
        "| | run | simulation | difference |",
        "|---|---|---|---|",
        *(
            f"| {what} | {run:.2f} | {told:.2f} | {told / run - 1:+.0%} |"
            for what, (run, told) in rows.items()
        ),
    ]
    return "\n".join(lines)


def scaled(bench: Bench) -> str:
    """The table of one and two replicas."""
    lines = ["| | tokens/s | first token, median |", "|---|---|---|"]

    def add(what: str, fleet: Fleet) -> None:
        rounds = [throughput(fleet, CLIENTS, REQUESTS, str(number)) for number in range(3)]
        rate, first = (statistics.median(each) for each in zip(*rounds, strict=True))
        row = f"| {what} | {rate:.0f} | {first:.2f} s |"
        print(row, flush=True)
        lines.append(row)

    with bench.processes(1) as (port,):
        add("1 process", Fleet(port, [port], bench.model.name))
    for count in (1, 2):
        with bench.nginx(count) as fleet:
            add(f"{count} behind nginx", fleet)
    for count in (1, 2):
        with bench.ray(count) as fleet:
            add(f"{count} on Ray Serve", fleet)
    return "\n".join(lines)


def routed(bench: Bench) -> str:
    """The table of routes for conversations."""
    bench = replace(bench, model=without_windows(bench.model))
    lines = [
        "| | prompt tokens from the cache | first token, median | p95 |",
        "|---|---|---|---|",
    ]

    def add(what: str, fleet: Fleet, *, named: bool) -> None:
        found = conversations(fleet, named=named)
        row = (
            f"| {what} | {found['from the cache']:.0%} | {found['first token']:.2f} s "
            f"| {found['p95']:.2f} s |"
        )
        print(row, flush=True)
        lines.append(row)

    for count in (2, 3):
        with bench.nginx(count) as fleet:
            add(f"nginx, {count} replicas, the one with the fewest connections", fleet, named=False)
        with bench.nginx(count) as fleet:
            add(f"nginx, {count} replicas, by X-Session-ID", fleet, named=True)
    with bench.ray(2) as fleet:
        add("Ray, 2 replicas, the less busy of two", fleet, named=False)
    with bench.ray(2, HASHING) as fleet:
        add("Ray, 2 replicas, by X-Session-ID", fleet, named=True)
    return "\n".join(lines)


def main() -> None:
    project = FOLDER / "projects" / "replicas"
    subprocess.run(["rm", "-rf", str(project)], check=True)
    answers = {"endpoints": ["chat", "health"], "deploy": ["docker", "ray"]}
    generate.render({"project_name": PACKAGE, **answers}, project)
    bench = Bench(project, prepare_models().chat)
    chosen = sys.argv[1:] or ["scaled", "routed", "foretold"]
    parts = {"scaled": scaled, "routed": routed, "foretold": foretold}
    found = {name: parts[name](bench) for name in chosen}
    text = TEXT.format(
        machine=machine(),
        clients=CLIENTS,
        tokens=TOKENS,
        conversations=CONVERSATIONS,
        turns=TURNS,
        **{name: found.get(name, "") for name in parts},
    )
    print(text)
    if len(found) == len(parts):
        RESULTS.write_text(text)


TEXT = """\
# Replicas

Gemma 3 270M in bfloat16, one thread a replica. Machine: {machine}.
It runs the replicas, the proxy and the load generator: a second replica has no core to itself.

## One and two

{clients} streams at a time of {tokens} tokens each, the median of three rounds.

{scaled}

## Conversations

{conversations} conversations of {turns} turns, whose prompts grow from 250 to 850 tokens. The times
are those of the second turn and later ones.

{routed}

## The simulation of bench/capacity.py

{foretold}
"""

if __name__ == "__main__":
    main()
