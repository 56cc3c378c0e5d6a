"""The figures as a page: targets, tables, definitions."""

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.serving import measure, peers
from bench.serving.measure import ENCODER, GENERATE, MANAGER, SOAK, Results
from bench.serving.peers import INFINITY, LITSERVE, OURS, SERVE, SERVE_BATCHING, Peer
from bench.serving.workload import Workload

CEILINGS = [MANAGER, GENERATE, ENCODER]
TORCH_CHAT = [SERVE, SERVE_BATCHING, LITSERVE]
CHAT_PEERS = [*TORCH_CHAT, peers.LLAMA]
MIB = 2**20

Column = tuple[str, str, Callable[[float], str]]
"""Heading, key of the figure, how a value is written"""


@dataclass(frozen=True)
class Target:
    """What the generated service should reach."""

    text: str
    limit: float
    unit: str
    values: list[float]
    """One for each round"""
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if not self.values:
            return "not measured"
        middle = statistics.median(self.values)
        reached = middle <= self.limit if self.at_most else middle >= self.limit
        return "reached" if reached else "**missed**"


def ratios(results: Results, ours: tuple[str, str], other: tuple[str, str]) -> list[float]:
    """Round by round, since the rounds are what was measured side by side."""
    mine, theirs = results.values(*ours), results.values(*other)
    return [mine[number] / theirs[number] for number in mine if theirs.get(number)]


def best(results: Results, names: Sequence[str], key: str, *, lowest: bool = False) -> str:
    """Who of them has the best median; the first where nobody has one."""
    medians = {
        name: measure.median(values) for name in names if (values := results.values(name, key))
    }
    if not medians:
        return names[0]
    return (min if lowest else max)(medians, key=lambda name: medians[name])


def targets(results: Results, work: Workload) -> list[Target]:
    def against(text: str, limit: float, key: str, other: str, other_key: str = "") -> Target:
        values = ratios(results, (OURS, key), (other, other_key or key))
        return Target(f"{text} ÷ {other}", limit, " x", values)

    first = "chat 16 first p95"
    quickest = best(results, CHAT_PEERS, first, lowest=True)
    single = best(results, TORCH_CHAT, "chat 1 tokens/s")
    found = [
        against("chat, 16 streams: tokens/s", 8.0, "chat 16 tokens/s", SERVE),
        against("chat, 16 streams: tokens/s", 1.0, "chat 16 tokens/s", SERVE_BATCHING),
        against("chat, 16 streams: tokens/s", 0.95, "chat 16 tokens/s", MANAGER),
        Target(
            f"chat, 16 streams: p95 of the first text ÷ the best peer's ({quickest})",
            1.0,
            " x",
            ratios(results, (OURS, first), (quickest, first)),
            at_most=True,
        ),
        against("chat, 1 stream: tokens/s", 0.95, "chat 1 tokens/s", single),
        Target(
            "CPU time of the server for one streamed token",
            60.0,
            " µs",
            [value * 1e6 for value in results.values(OURS, "token cost").values()],
            at_most=True,
        ),
    ]
    for clients in (16, 64):
        text = f"embeddings, 1 text a request, {clients} clients"
        key = f"embeddings 1x{clients}"
        found.append(against(f"{text}: texts/s", 2.5, f"{key} texts/s", INFINITY))
        slowest = ratios(results, (OURS, f"{key} p99"), (INFINITY, f"{key} p99"))
        found.append(Target(f"{text}: p99 ÷ {INFINITY}", 1.0, " x", slowest, at_most=True))
    text = "embeddings, 1 text a request, 64 clients: texts/s"
    found.append(against(text, 0.95, "embeddings 1x64 texts/s", ENCODER, "texts/s"))
    text = "embeddings, 32 texts a request: texts/s"
    found.append(against(text, 3.0, "embeddings 32x8 texts/s", INFINITY))
    found.append(against(text, 0.85, "embeddings 32x8 texts/s", ENCODER, "texts/s"))
    for key, what in (("ready", "process start to ready"), ("answered", "… to the first answer")):
        values = ratios(results, (OURS, f"chat {key}"), (SERVE, f"chat {key}"))
        found.append(Target(f"chat: {what} ÷ {SERVE}", 1.0, " x", values, at_most=True))
    part = work.soak_requests // measure.SOAK_PARTS
    end = measure.resident_after(part + work.soak_requests)
    for before, name in ((0, "just loaded"), (part, f"after {part:,}")):
        found.append(
            Target(
                f"resident memory after {part + work.soak_requests:,} requests ÷ {name}",
                1.05,
                " x",
                ratios(results, (SOAK, end), (SOAK, measure.resident_after(before))),
                at_most=True,
            )
        )
    return found


def spread(values: Sequence[float], write: Callable[[float], str]) -> str:
    """Median, with lowest and highest where there are several."""
    if not values:
        return "-"
    middle = write(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({write(min(values))} to {write(max(values))})"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def count(value: float) -> str:
    return f"{value:.0f}"


def ms(value: float) -> str:
    return f"{value * 1000:,.0f}"


def mib(value: float) -> str:
    return f"{value / MIB:,.0f}"


def table(results: Results, names: Sequence[str], columns: Sequence[Column]) -> str:
    lines = ["| | " + " | ".join(heading for heading, _, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name in names:
        cells = [
            spread(list(results.values(name, key).values()), write) for _, key, write in columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def targets_table(results: Results, work: Workload) -> str:
    lines = ["| the generated service | goal | measured | |", "|---|---|---|---|"]
    for target in targets(results, work):
        sign = "≤" if target.at_most else "≥"
        goal = f"{sign} {target.limit:g}{target.unit}"
        measured = spread(target.values, lambda value: f"{value:.2f}")
        lines.append(f"| {target.text} | {goal} | {measured} | {target.verdict} |")
    return "\n".join(lines)


def chat_tables(results: Results, work: Workload) -> str:
    names = [OURS, *CHAT_PEERS, MANAGER, GENERATE]
    levels = list(work.chat)
    rates: list[Column] = [
        (f"{level} at a time", f"chat {level} tokens/s", number) for level in levels
    ]
    firsts: list[Column] = [
        (f"{level}: {share}", f"chat {level} first {share}", ms)
        for level in levels
        for share in ("p50", "p95")
    ]
    failed: list[Column] = [
        (f"{level} at a time: {what}", f"chat {level} {what}", count)
        for level in levels
        for what in ("requests", "failed")
    ]
    return "\n\n".join(
        [
            "Tokens a second:",
            table(results, names, rates),
            "Time to the first text, in ms:",
            table(results, names[:-2], firsts),
            "Requests in one round, and how many of them failed:",
            table(results, names[:-2], failed),
        ]
    )


def embeddings_tables(results: Results, work: Workload, names: Sequence[str]) -> str:
    rates: list[Column] = [(case.label, f"{case.key} texts/s", number) for case in work.embeddings]
    times: list[Column] = [
        (f"{case.label}: {share}", f"{case.key} {share}", ms)
        for case in work.embeddings
        for share in ("p50", "p95", "p99")
    ]
    failed: list[Column] = [
        (f"{case.label}: failed", f"{case.key} failed", count) for case in work.embeddings
    ]
    sizes: list[Column] = [
        (f"batches of {size}", f"batch {size} texts/s", number) for size in measure.ENCODER_BATCHES
    ]
    return "\n\n".join(
        [
            "Texts a second:",
            table(results, names, rates),
            table(results, [ENCODER], sizes),
            "Latency of a request, in ms:",
            table(results, names, times),
            "Failed requests in one round:",
            table(results, names, failed),
        ]
    )


def boot_tables(results: Results, work: Workload, everybody: Sequence[Peer]) -> str:
    parts = []
    for kind in ("chat", "embeddings"):
        names = [peer.name for peer in everybody if peer.kind == kind]
        columns: list[Column] = [
            ("ready, s", f"{kind} ready", lambda value: f"{value:.1f}"),
            ("first answer, s", f"{kind} answered", lambda value: f"{value:.1f}"),
            ("resident then, MiB", f"{kind} resident", mib),
        ]
        parts += [f"{kind.capitalize()}:", table(results, names, columns)]
    part = work.soak_requests // measure.SOAK_PARTS
    soak: list[Column] = [
        (f"{requests:,}", measure.resident_after(requests), mib)
        for requests in (part * number for number in range(measure.SOAK_PARTS + 2))
    ]
    parts += ["Resident memory after so many requests, in MiB:", table(results, [SOAK], soak)]
    cost: list[Column] = [
        ("paced, µs", "token cost", lambda value: f"{value * 1e6:.1f}"),
        ("tokens an event", "token cost, tokens an event", lambda value: f"{value:.2f}"),
        ("all at once, µs", "token cost, all at once", lambda value: f"{value * 1e6:.1f}"),
        ("tokens an event", "token cost, all at once, tokens an event", number),
    ]
    parts += ["CPU time of the server for one streamed token:", table(results, [OURS], cost)]
    return "\n\n".join(parts)


def highest(results: Results, ending: str) -> tuple[str, str]:
    """The highest of the shares of a core whose keys end so, and where that was."""
    shares = [
        (share, f"{name}, {key.removesuffix(ending).strip()}")
        for name, figures in results.figures.items()
        for key, values in figures.items()
        if key.endswith(ending)
        for share in values.values()
    ]
    share, where = max(shares, default=(0.0, "nothing measured"))
    return f"{share * 100:.0f} %", where


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({processor()}), {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


DEFINITIONS = Path(__file__).with_name("definitions.md")


def write(
    results: Results, work: Workload, everybody: Sequence[Peer], *, head: str, stem: str
) -> str:
    embedders = [peer.name for peer in everybody if peer.kind == "embeddings"]
    versions = {f"{peer.name} {peer.version}" for peer in everybody if peer.name != OURS}
    short, long = work.streamed_tokens
    others, where = highest(results, "others")
    definitions = DEFINITIONS.read_text().format(
        generator=highest(results, "generator")[0],
        others=others,
        where=where,
        tokens=work.tokens,
        short=short,
        long=long,
        tick=measure.TICK * 1000,
    )
    problems = [
        f"- {who}: {reason} ({times} times)"
        for who, reasons in results.failures.items()
        for reason, times in reasons.items()
    ]
    parts = [
        "# Serving",
        head,
        f"Machine: {machine()}.  \nPeers: {', '.join(sorted(versions))}.",
        targets_table(results, work),
        "## Chat",
        f"![Throughput and time to the first text]({stem}-chat.png)",
        chat_tables(results, work),
        "## Embeddings",
        f"![Throughput and latency]({stem}-embeddings.png)",
        embeddings_tables(results, work, embedders),
        "## Start, memory, cost of a token",
        boot_tables(results, work, everybody),
        *(["## What failed", "\n".join(problems)] if problems else []),
        definitions,
    ]
    return "\n\n".join(parts)
