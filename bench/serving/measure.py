"""One measurement of each kind, into `Results`."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.serving import workload
from bench.serving.environments import (
    FOLDER,
    PACKAGE,
    Models,
    project_env,
    python_of,
    render_project,
)
from bench.serving.load import Load, Outcome, Request
from bench.serving.peers import OURS, Peer, ours
from bench.serving.processes import ROOT, Failed, Server, busy_seconds, free_port, put_load, serving
from bench.serving.workload import EmbeddingsCase, Workload

LOGS = FOLDER / "logs"
REQUEST_TIMEOUT = 150.0
"""Plain transformers serve answers the last of 16 requests after a minute."""

STREAMS = 16
TICK = 0.01
DISTURBED = 0.1
ENCODER_BATCHES = [8, 16, 32]
SOAK_PARTS = 10

MANAGER = "continuous batching manager alone"
GENERATE = "generate() on one batch"
ENCODER = "encoder alone, sorted"
SOAK = "generated service, chat and embeddings"


class Results:
    """Figures by who, what and round. Keys read like "chat 16 tokens/s"."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, dict[int, float]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        self.failures: dict[str, Counter[str]] = defaultdict(Counter)
        self.given_up: set[str] = set()
        self.round = 0

    def add(self, who: str, what: str, value: float) -> None:
        self.figures[who][what][self.round] = value

    def fail(self, who: str, reason: str) -> None:
        self.failures[who][reason] += 1

    def give_up(self, who: str, reason: str) -> None:
        """It would waste the other cases and rounds as well."""
        self.fail(who, reason)
        self.given_up.add(who)

    def values(self, who: str, what: str) -> dict[int, float]:
        return dict(self.figures.get(who, {}).get(what, {}))

    def as_json(self) -> dict[str, Any]:
        return {"figures": self.figures, "failures": self.failures}


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]


def say(text: str) -> None:
    print(f"    {text}", flush=True)


@contextmanager
def started(peers: Sequence[Peer], results: Results) -> Iterator[list[tuple[Peer, Server]]]:
    """Those that start and answer, side by side. An idle server costs nothing."""
    with ExitStack() as servers:
        running = []
        for peer in peers:
            who = f"{peer.name} {peer.kind}"
            if who in results.given_up:
                continue
            say(who)
            with attempt(who, results), ExitStack() as own:
                server = own.enter_context(start(peer, results))
                measure_boot(peer, server, results)
                servers.push(own.pop_all())
                running.append((peer, server))
        yield running


def start(peer: Peer, results: Results) -> AbstractContextManager[Server]:
    port = free_port()
    name = f"{peer.name} {peer.kind} round {results.round}"
    return serving(name, peer.command(port), port, peer.env(port), peer.cwd, LOGS)


@contextmanager
def attempt(who: str, results: Results) -> Iterator[None]:
    """One who fails is written down, and the others go on."""
    try:
        yield
    except (Failed, subprocess.SubprocessError, OSError) as error:
        say(f"{who} FAILED: {error}")
        results.give_up(who, str(error))


def measure_chat_round(
    peers: Sequence[Peer], models: Models, work: Workload, results: Results
) -> None:
    with started(peers, results) as running:
        for number, clients in enumerate(work.chat):
            steps: list[Step] = [
                (f"{peer.name} chat", partial(measure_chat, peer, server, clients, work, results))
                for peer, server in running
            ]
            for name, case in ((MANAGER, "manager"), (GENERATE, "generate")):
                measure = partial(measure_chat_ceiling, name, case, clients, models, work, results)
                steps.append((name, measure))
            in_turn(steps, number, results)


def measure_embeddings_round(
    peers: Sequence[Peer], models: Models, work: Workload, results: Results
) -> None:
    with started(peers, results) as running:
        for number, case in enumerate(work.embeddings):
            steps: list[Step] = [
                (
                    f"{peer.name} embeddings",
                    partial(measure_embeddings, peer, server, case, results),
                )
                for peer, server in running
            ]
            if case == work.ceiling_case:
                steps.append((ENCODER, partial(measure_encoder, case, models, results)))
            in_turn(steps, number, results)


Step = tuple[str, Callable[[], None]]
"""Who is measured, and how"""


def in_turn(steps: Sequence[Step], number: int, results: Results) -> None:
    """One right after the other, for the machine is slower in some minutes than in others.

    number: of the case, so that somebody else begins in each of them and in each round.
    """
    first = (results.round + number) % len(steps)
    for who, step in [*steps[first:], *steps[:first]]:
        if who not in results.given_up:
            with attempt(who, results):
                step()


@dataclass
class Clock:
    """CPU time of the machine that neither the server nor the generator has taken."""

    server: Server
    others: float = 0.0
    """As a share of one core"""

    def __enter__(self) -> "Clock":
        self._started = time.monotonic()
        self._before = self._others()
        return self

    def __exit__(self, *error: object) -> None:
        self.others = (self._others() - self._before) / (time.monotonic() - self._started)

    def _others(self) -> float:
        # The generator has ended by the second look, and the server has not.
        generators = resource.getrusage(resource.RUSAGE_CHILDREN)
        known = self.server.cpu_seconds() + generators.ru_utime + generators.ru_stime
        return busy_seconds() - known


def ask(server: Server, requests: list[Request], clients: int) -> Outcome:
    return put_load(Load(server.port, clients, requests, timeout=REQUEST_TIMEOUT))


def measure_boot(peer: Peer, server: Server, results: Results) -> None:
    """Until ready, and until the first answer. Raises Failed when there is none."""
    ready = server.wait_ready(peer.ready)
    if peer.kind == "chat":
        request = peer.chat("Say hello", 1, stream=False)
    else:
        request = peer.embed(["hello"])
    before = server.age
    outcome = ask(server, [request], 1)
    # The generator's own start is not the server's.
    answered = before + outcome.seconds
    if error := outcome.samples[0].error:
        raise Failed(f"no first answer: {error}")
    resident = server.resident_bytes()
    results.add(peer.name, f"{peer.kind} ready", ready)
    results.add(peer.name, f"{peer.kind} answered", answered)
    results.add(peer.name, f"{peer.kind} resident", resident)
    say(f"ready {ready:.1f} s, answered {answered:.1f} s, {resident / 2**20:.0f} MiB")


def measure_chat(
    peer: Peer, server: Server, clients: int, work: Workload, results: Results
) -> None:
    asked = peer.chat_requests(clients, work.chat[clients])
    warm = workload.prompts((results.round, clients, "warm"), clients)
    prompts = workload.prompts((results.round, clients), asked)
    if not peer.one_at_a_time or clients == 1:
        ask(server, [peer.chat(prompt, 4) for prompt in warm], clients)
    requests = [peer.chat(prompt, work.tokens) for prompt in prompts]
    with Clock(server) as clock:
        outcome = ask(server, requests, clients)
    record(peer, f"chat {clients}", outcome, clock, results)
    fine = [sample for sample in outcome.samples if sample.units]
    if not fine:
        return
    rate = sum(sample.units for sample in fine) / outcome.seconds
    firsts = [sample.first for sample in fine]
    results.add(peer.name, f"chat {clients} tokens/s", rate)
    results.add(peer.name, f"chat {clients} first p50", percentile(firsts, 0.5))
    results.add(peer.name, f"chat {clients} first p95", percentile(firsts, 0.95))
    say(
        f"{clients:>2} streams: {rate:6.1f} tokens/s, first text "
        f"p50 {percentile(firsts, 0.5) * 1000:.0f} ms, "
        f"p95 {percentile(firsts, 0.95) * 1000:.0f} ms ({peer.name}, {asked} requests)"
    )


def measure_embeddings(peer: Peer, server: Server, case: EmbeddingsCase, results: Results) -> None:
    warm_requests = case.clients if case.texts == 1 else 1
    warm = workload.texts((results.round, case.key, "warm"), warm_requests * case.texts)
    ask(server, batches(peer, warm, case.texts), case.clients)
    texts = workload.texts((results.round, case.key), case.requests * case.texts)
    with Clock(server) as clock:
        outcome = ask(server, batches(peer, texts, case.texts), case.clients)
    record(peer, case.key, outcome, clock, results)
    fine = [sample for sample in outcome.samples if sample.units]
    if not fine:
        return
    rate = sum(sample.units for sample in fine) / outcome.seconds
    totals = [sample.total for sample in fine]
    results.add(peer.name, f"{case.key} texts/s", rate)
    results.add(peer.name, f"{case.key} p50", percentile(totals, 0.5))
    results.add(peer.name, f"{case.key} p95", percentile(totals, 0.95))
    results.add(peer.name, f"{case.key} p99", percentile(totals, 0.99))
    say(
        f"{case.label}: {rate:6.1f} texts/s, p50 {percentile(totals, 0.5) * 1000:.0f} ms, "
        f"p99 {percentile(totals, 0.99) * 1000:.0f} ms ({peer.name})"
    )


def batches(peer: Peer, texts: list[str], size: int) -> list[Request]:
    return [peer.embed(texts[start : start + size]) for start in range(0, len(texts), size)]


def record(peer: Peer, case: str, outcome: Outcome, clock: Clock, results: Results) -> None:
    """What failed, and what generator and others took of the machine."""
    errors = [sample.error for sample in outcome.samples if sample.error]
    results.add(peer.name, f"{case} requests", len(outcome.samples))
    results.add(peer.name, f"{case} failed", len(errors))
    results.add(peer.name, f"{case} generator", outcome.cpu_seconds / outcome.seconds)
    results.add(peer.name, f"{case} others", clock.others)
    if clock.others > DISTURBED:
        say(f"{case}: DISTURBED, others took {clock.others * 100:.0f} % of a core")
    for error, count in Counter(errors).items():
        results.fail(f"{peer.name} {peer.kind}", f"{case}: {error}")
        say(f"{case}: {count} failed: {error}")


def measure_chat_ceiling(
    name: str, case: str, clients: int, models: Models, work: Workload, results: Results
) -> None:
    prompts = workload.prompts((results.round, clients), work.chat[clients])
    rates = run_ceiling(
        name,
        {
            "case": case,
            "folder": str(models.chat),
            "tokens": work.tokens,
            "cases": {str(clients): prompts},
        },
    )
    results.add(name, f"chat {clients} tokens/s", rates[str(clients)])


def measure_encoder(case: EmbeddingsCase, models: Models, results: Results) -> None:
    figures = run_ceiling(
        ENCODER,
        {
            "case": "encoder",
            "folder": str(models.embeddings),
            "texts": workload.texts((results.round, case.key), case.requests),
            "sizes": ENCODER_BATCHES,
        },
    )
    for size, rate in figures.items():
        results.add(ENCODER, f"batch {size} texts/s", rate)
    results.add(ENCODER, "texts/s", max(figures.values()))


def run_ceiling(name: str, case: dict[str, Any]) -> dict[str, float]:
    """Raises Failed with the last line of what went wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.serving.ceilings"],
        input=json.dumps(case),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    if done.returncode:
        raise Failed(done.stderr.strip().splitlines()[-1])
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    say(f"{name}: " + ", ".join(f"{key}: {rate:.0f}/s" for key, rate in figures.items()))
    return figures


def measure_token_cost(peer: Peer, models: Models, work: Workload, results: Results) -> None:
    """CPU time of the server for one more token of a stream, on an engine that computes nothing."""
    for tick, name in ((TICK, "token cost"), (0.0, "token cost, all at once")):
        port = free_port()
        project = peer.cwd
        env = project_env(project, port, models)
        env |= {"TICK": str(tick), "PYTHONPATH": f"{project / 'src'}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-m", "bench.serving.stub_server"]
        try:
            with serving(name, command, port, env, project, LOGS) as server:
                server.wait_ready(peer.ready)
                cost, together = token_cost(peer, server, work)
        except (Failed, subprocess.SubprocessError, OSError) as error:
            say(f"{name} FAILED: {error}")
            results.fail(name, str(error))
            continue
        results.add(OURS, name, cost)
        results.add(OURS, f"{name}, tokens an event", together)
        say(f"{name}: {cost * 1e6:.1f} µs, {together:.2f} tokens an event")


def token_cost(peer: Peer, server: Server, work: Workload) -> tuple[float, float]:
    """Seconds a token, and how many tokens came in one event."""
    taken: list[float] = []
    units = events = 0
    prompts = workload.prompts(("stub",), STREAMS)
    ask(server, [peer.chat(prompt, 16) for prompt in prompts], STREAMS)
    for tokens in work.streamed_tokens:
        before = server.thread_seconds()
        outcome = ask(server, [peer.chat(prompt, tokens) for prompt in prompts], STREAMS)
        taken.append(server.thread_seconds() - before)
        if errors := [sample.error for sample in outcome.samples if sample.error]:
            raise Failed(errors[0])
        units = sum(sample.units for sample in outcome.samples)
        events = sum(sample.events for sample in outcome.samples)
    short, long = work.streamed_tokens
    return (taken[1] - taken[0]) / (STREAMS * (long - short)), units / events


def measure_memory(models: Models, work: Workload, results: Results) -> None:
    """Resident memory of the service with both models, from loaded on, under many requests."""
    port = free_port()
    project = render_project(["chat", "embeddings", "health"])
    chat, embed = ours("chat", models), ours("embeddings", models)

    def mixed(key: int, count: int) -> list[Request]:
        return [
            request
            for text in workload.short_texts((key,), count // 2)
            for request in (chat.chat(text, 1), embed.embed([text]))
        ]

    command = [sys.executable, "-m", PACKAGE]
    env = project_env(project, port, models)
    part = work.soak_requests // SOAK_PARTS
    try:
        with serving(SOAK, command, port, env, project, LOGS) as server:
            server.wait_ready("/health/ready")
            results.add(SOAK, resident_after(0), server.resident_bytes())
            # One part more than asked for: in the first, the service gets to its working size.
            for number in range(1, SOAK_PARTS + 2):
                outcome = ask(server, mixed(number, part), STREAMS)
                for sample in outcome.samples:
                    if sample.error:
                        results.fail(SOAK, sample.error)
                resident = server.resident_bytes()
                results.add(SOAK, resident_after(number * part), resident)
                rate = len(outcome.samples) / outcome.seconds
                say(f"{number * part}: {resident / 2**20:.0f} MiB, {rate:.0f} requests/s")
    except (Failed, subprocess.SubprocessError, OSError) as error:
        say(f"FAILED: {error}")
        results.fail(SOAK, str(error))


def resident_after(requests: int) -> str:
    return f"resident after {requests}"


def median(values: dict[int, float]) -> float:
    return statistics.median(values.values())


def plot(results_file: Path) -> None:
    """Draws the plots beside the figures, in the environment that has matplotlib."""
    script = ROOT / "bench" / "serving" / "plot.py"
    subprocess.run([python_of("plots"), script, results_file], check=True)
