"""The sampling of a step beside the newest release's, on this processor: bench/results/sampler.md.

Both get the same logits and requests, in turn, and are compared token by token as well.
"""

import argparse
import importlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from packaging.version import Version
from torch import Tensor

from infer_scaffold.project import generate, history

VOCABULARY = 262_144
"""Gemma's"""
ROWS = (1, 16, 64)
ROUNDS = 16
"""Even, as the version that comes first in a round finds the caches cold"""
RESULT = Path(__file__).parent / "results" / "sampler.md"

PEAKED, FLAT = 5.0, 2.0
"""Standard deviations of the logits. With the first, top_p 0.9 keeps a few hundred tokens; with the
second, tens of thousands."""

TOP_P = {"temperature": 0.8, "top_p": 0.9}
PENALISED = {"temperature": 0.8, "frequency_penalty": 0.5, "repetition_penalty": 1.1}
CASES: dict[str, tuple[float, list[dict[str, float]]]] = {
    "greedy": (PEAKED, [{"temperature": 0.0}]),
    "plain": (PEAKED, [{"temperature": 0.8}]),
    "top_k and top_p": (PEAKED, [{"temperature": 0.8, "top_k": 40, "top_p": 0.9}]),
    "top_p": (PEAKED, [TOP_P]),
    "top_p, flat": (FLAT, [TOP_P]),
    "mixed": (PEAKED, [{"temperature": 0.0}, {"temperature": 0.8}, TOP_P, PENALISED]),
    "penalised": (PEAKED, [PENALISED]),
}
"""The requests of a batch, repeated; and the spread of their logits"""


class Sampling(NamedTuple):
    """One version's sampling."""

    name: str
    sample: Callable[[Tensor, list[Any]], Tensor]
    make_state: Callable[[dict[str, float], int], Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sampler", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--release", type=Version, default=max(history.versions()))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        history.unpack(chosen.release, Path(folder, "released"))
        old = load(str(chosen.release), "sampler-old", Path(folder, "released"), folder)
        new = load("this checkout", "sampler-new", None, folder)
        lines = [
            line(label, rows, measure(old, new, spread, requests, rows, chosen.rounds))
            for label, (spread, requests) in CASES.items()
            for rows in ROWS
        ]
    text = page(lines, chosen.release, chosen.rounds)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


def load(name: str, project: str, template: Path | None, folder: str) -> Sampling:
    """Renders a project and imports its sampling.

    template: None for that of this checkout
    """
    root = Path(folder, project)
    answers = {"project_name": project, "endpoints": ["chat"]}
    generate.render(answers, root, **({} if template is None else {"source": template}))
    sys.path.insert(0, str(root / "src"))
    package = f"{project.replace('-', '_')}.serving.engine"
    sampling = importlib.import_module(f"{package}.sampling")
    params = importlib.import_module(f"{package}.sampling_params")
    return Sampling(name, sampling.sample_into_logits, state_maker(sampling, params))


def state_maker(sampling: ModuleType, params: ModuleType) -> Callable[[dict[str, float], int], Any]:
    def make_state(options: dict[str, float], seed: int) -> Any:
        draw = torch.Generator().manual_seed(seed)
        prompt, answer = torch.randint(VOCABULARY, (2, 200), generator=draw).tolist()
        chosen = params.SamplingParams(max_tokens=1000, seed=seed, **options)
        state = sampling.SamplingState(chosen, prompt, [0], [])
        state.advance(answer)
        return state

    return make_state


class Measured(NamedTuple):
    old: float
    """Milliseconds, the median"""
    new: float
    different: int
    """Tokens that differ"""
    tokens: int


def measure(
    old: Sampling,
    new: Sampling,
    spread: float,
    requests: list[dict[str, float]],
    rows: int,
    rounds: int,
) -> Measured:
    draw = torch.Generator().manual_seed(rows)
    options = [requests[row % len(requests)] for row in range(rows)]
    states = {
        each.name: [each.make_state(o, i) for i, o in enumerate(options)] for each in (old, new)
    }
    times: dict[str, list[float]] = {old.name: [], new.name: []}
    different = 0
    for number in range(-2, rounds):  # the first two only warm up
        logits = torch.randn(rows, VOCABULARY, generator=draw) * spread
        chosen = []
        for each in (old, new) if number % 2 else (new, old):
            scores = logits.clone()
            started = time.perf_counter()
            # A step: the last token is taken in, and the next one chosen as the manager does it.
            for state in states[each.name]:
                state.advance([*range(200 + number + 3)])
            with torch.inference_mode():
                tokens = each.sample(scores, states[each.name]).argmax(dim=-1)
            seconds = time.perf_counter() - started
            chosen.append(tokens)
            if number >= 0:
                times[each.name].append(seconds * 1000)
        different += int((chosen[0] != chosen[1]).sum())
    medians = (statistics.median(times[each.name]) for each in (old, new))
    return Measured(*medians, different, rows * (rounds + 2))


def line(label: str, rows: int, measured: Measured) -> str:
    old, new, different, tokens = measured
    text = (
        f"| {label} | {rows} | {old:.2f} | {new:.2f} | {new / old:.2f} | {different} of {tokens} |"
    )
    print(text, flush=True)
    return text


def page(lines: list[str], release: Version, rounds: int) -> str:
    capabilities = torch.cpu.get_capabilities()
    vectors = "AVX-512" if capabilities.get("avx512_f") else "AVX2"
    return f"""# Milliseconds of sampling, for a step

A vocabulary of {VOCABULARY:,} tokens, sequences of 400 tokens, float32,
{torch.get_num_threads()} threads ({platform.machine()}, {vectors}), torch {torch.__version__}.
Release {release} and this checkout in turn, medians of {rounds} steps, the argmax that follows
included; and how many tokens were different.

| requests | rows | {release} | now | ratio | different tokens |
|---|---|---|---|---|---|
{chr(10).join(lines)}

Again: `.venv/bin/python -m bench.sampler`.
"""


if __name__ == "__main__":
    main()
