"""How long `/health/live` takes to answer while the service works: `python -m bench.liveness`.

A kubelet restarts what does not answer, so nothing may hold up the event loop: no import, no load,
no tokenizer, no forward pass and no rendering of numbers. Writes bench/results/liveness.md.
"""

import http.client
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from bench.serving.environments import PACKAGE, render_project
from bench.serving.load import Load, Request
from bench.serving.processes import ROOT, Server, free_port, put_load, serving
from bench.serving.workload import seeded, texts, words

RESULTS = ROOT / "bench" / "results" / "liveness.md"
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
PERIOD = 0.02
GOAL = 0.050


class Probe(NamedTuple):
    due: float
    """When it should have been sent, on the monotonic clock: who waits has waited since then"""
    seconds: float


def probe(port: int, pipe: Connection) -> None:
    """Asks every 20 ms, until the pipe says that it is over; then sends what it has measured."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    probes: list[Probe] = []
    due = time.monotonic()
    while not pipe.poll():
        connection.request("GET", "/health/live")
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        probes.append(Probe(due, time.monotonic() - due))
        due += PERIOD
        time.sleep(max(0.0, due - time.monotonic()))
    pipe.send(probes)


LOADING = """\
A load is the exception. It runs in a thread of its own and the garbage collector is paused, but
some calls of C and Rust code keep the interpreter to themselves: for this model the dynamic linker
with torch's libraries (0.2 s), json.load() of the 33 MB of tokenizer.json, twice (0.35 s each), and
the tokenizers library that builds 262,144 tokens from it (0.4 s). They add up where one follows the
other. `INFER_PRELOAD=true` has it over before the service is ready; deploy/ gives liveness 5 s."""


class Service:
    """The requests of the phases."""

    def __init__(self, server: Server, chat: str, embeddings: str) -> None:
        self.server = server
        self.chat_model, self.embeddings_model = chat, embeddings

    def chat(self, number: int, tokens: int) -> Request:
        rng = seeded("liveness", number)
        content = f"{words(rng, 4)} {number}: tell a long story about {words(rng, 20)}"
        body = {
            "model": self.chat_model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return Request(CHAT, body, tokens)

    def embed(self, inputs: list[str], encoding: str = "base64") -> Request:
        body = {"model": self.embeddings_model, "input": inputs, "encoding_format": encoding}
        return Request(EMBEDDINGS, body, len(inputs))

    def put(self, clients: int, requests: list[Request]) -> None:
        outcome = put_load(Load(self.server.port, clients, requests, timeout=120))
        if errors := [sample.error for sample in outcome.samples if sample.error]:
            raise RuntimeError(errors[0])

    def ask(self, request: Request) -> int:
        """The status of the answer, whatever it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", request.path, json.dumps(request.body), headers)
        response = connection.getresponse()
        response.read()
        return response.status

    def first_chat(self) -> None:
        self.put(1, [self.chat(0, tokens=1)])

    def first_embedding(self) -> None:
        self.put(1, [self.embed(["hello"])])

    def streams(self) -> None:
        self.put(16, [self.chat(number, tokens=64) for number in range(48)])

    def batches(self) -> None:
        self.put(8, [self.embed(texts(("liveness", number), 32)) for number in range(24)])

    def numbers(self) -> None:
        """Answers of 15 MB: 2,048 vectors of 384 numbers, spelled out."""
        rng = seeded("liveness", "numbers")
        inputs = [words(rng, 2) for _ in range(2048)]
        self.put(2, [self.embed(inputs, "float") for _ in range(4)])

    def long_texts(self) -> None:
        """A megabyte to tokenise in each, for a 400 that says that it is too long."""
        rng = seeded("liveness", "long")
        content = words(rng, 150_000)
        long_chat = self.chat(0, tokens=1)
        long_chat.body["messages"] = [{"role": "user", "content": content}]
        long_input = self.embed([content])
        with ThreadPoolExecutor(4) as clients:
            statuses = set(clients.map(self.ask, [long_chat, long_input] * 6))
        assert statuses == {400}, statuses

    def everything(self) -> None:
        with ThreadPoolExecutor() as loads:
            running = [loads.submit(load) for load in (self.streams, self.batches, self.long_texts)]
            for each in running:
                each.result()


def measure(server: Server, service: Service) -> tuple[list[tuple[str, float, float]], list[Probe]]:
    """The phases with their start and end, and the probes of all of them."""
    phases: dict[str, Callable[[], None]] = {
        "idle": lambda: time.sleep(3),
        "import of torch and transformers, load of Gemma 3 270M": service.first_chat,
        "load of MiniLM": service.first_embedding,
        "16 chat streams": service.streams,
        "embeddings, 32 texts a request, 8 at a time": service.batches,
        "embeddings, 2,048 texts a request as numbers, 2 at a time": service.numbers,
        "texts of a megabyte, 4 at a time": service.long_texts,
        "streams, embeddings and texts of a megabyte together": service.everything,
    }
    ours, theirs = get_context("spawn").Pipe()
    prober = get_context("spawn").Process(target=probe, args=(server.port, theirs))
    prober.start()
    times = []
    try:
        time.sleep(1)  # it starts
        for name, run in phases.items():
            started = time.monotonic()
            run()
            times.append((name, started, time.monotonic()))
            print(f"{name}: {times[-1][2] - started:.1f} s", flush=True)
        ours.send("over")
        probes: list[Probe] = ours.recv()
    finally:
        prober.terminate()
        prober.join()
    return times, probes


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f}" if seconds < 0.01 else f"{seconds * 1000:.0f}"


def row(name: str, seconds: list[float]) -> str:
    ordered = sorted(seconds)

    def quantile(share: float) -> str:
        return milliseconds(ordered[math.ceil(share * len(ordered)) - 1])

    return f"| {name} | {len(ordered)} | {quantile(0.5)} | {quantile(0.99)} | {quantile(1.0)} |"


def main() -> None:
    printed = subprocess.run(
        [sys.executable, ROOT / "demo" / "models.py"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    chat, embeddings = printed.split("\n")[-3:-1]
    project = render_project(["chat", "embeddings", "health"])
    port = free_port()
    env = {name: "" for name in os.environ if name.startswith("INFER_")} | {
        "PYTHONPATH": str(project / "src"),
        "HF_HUB_OFFLINE": "1",
        "INFER_PORT": str(port),
        "INFER_CHAT_MODEL": chat,
        "INFER_EMBEDDINGS_MODEL": embeddings,
        "INFER_MAX_QUEUE_TOKENS": "100000000",  # all of it is to be worked on, nothing refused
    }
    command = [sys.executable, "-m", PACKAGE]
    with (
        tempfile.TemporaryDirectory() as logs,
        serving("liveness", command, port, env, project, Path(logs)) as server,
    ):
        server.wait_ready("/health/ready")
        times, probes = measure(server, Service(server, Path(chat).name, Path(embeddings).name))
    lines = ["| while | probes | p50 | p99 | max |", "|---|---|---|---|---|"]
    for name, start, end in times:
        lines.append(row(name, [each.seconds for each in probes if start <= each.due < end]))
    lines.append(row("all of it", [each.seconds for each in probes]))
    text = (
        f"# Liveness under load\n\nHow long `GET /health/live` takes, in milliseconds, asked every "
        f"{PERIOD * 1000:.0f} ms. The goal is a p99 of {GOAL * 1000:.0f} ms. "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"which the load generator and the prober share with the service.\n\n"
        + "\n".join(lines)
        + f"\n\n{LOADING}\n"
    )
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
