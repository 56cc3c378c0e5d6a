"""Processor time of the metrics for one streamed token: `python -m bench.metrics`.

Calls what the service calls for a token, and nothing else, in one process: the counters and the
histogram of the request on the event loop, the histogram of the step on the inference thread.
Processor time, medians of rounds. Writes bench/results/metrics.md.
"""

import importlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infer_scaffold.project import generate

RESULTS = Path(__file__).parent / "results" / "metrics.md"
GOAL = 2.0
TOKENS, ROUNDS = 20_000, 31
BATCHES = (1, 8, 32)


def metrics_of(project: Path) -> tuple[Any, Any]:
    """The modules of a generated service that count requests and steps."""
    generate.render({"project_name": "measured", "endpoints": ["chat", "health"]}, project)
    sys.path.insert(0, str(project / "src"))
    serving = "measured.serving"
    requests = importlib.import_module(f"{serving}.models.request_metrics")
    return requests, importlib.import_module(f"{serving}.engine.engine_metrics")


def cost(work: Callable[[int], None]) -> float:
    """Microseconds of the processor for one token; work is given a number of tokens."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work(TOKENS)
        rounds.append((time.process_time() - started) / TOKENS * 1e6)
    return statistics.median(rounds)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        requests, engines = metrics_of(Path(folder) / "measured")
    registry = importlib.import_module("prometheus_client").CollectorRegistry()
    meter = requests.RequestMetrics(registry).of("model")
    batch = engines.EngineMetrics(registry).batch.labels("model")

    def nothing(tokens: int) -> None:
        for _ in range(tokens):
            pass

    def stream(tokens: int) -> None:
        request = requests.RequestMeter(meter, "chat")
        for _ in range(tokens):
            request.tokens(0, 1)

    def steps(tokens: int) -> None:
        for _ in range(tokens):
            batch.observe(8)

    loop = cost(nothing)
    token, step = cost(stream) - loop, cost(steps) - loop
    lines = [
        "# Cost of metrics",
        "",
        "Processor time of the server that the metrics of one streamed token take, in microseconds:"
        f" median of {ROUNDS} rounds of {TOKENS:,} tokens, without the rest of the service."
        f" The goal is {GOAL:g} µs. Python {platform.python_version()}.",
        "",
        "| sequences in a step | request | step | a token |",
        "|---|---|---|---|",
    ]
    for size in BATCHES:
        whole = token + step / size
        lines.append(f"| {size} | {token:.2f} | {step / size:.2f} | {whole:.2f} |")
    text = "\n".join(lines) + "\n"
    RESULTS.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
