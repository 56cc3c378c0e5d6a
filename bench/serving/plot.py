"""Draws `serving.json` beside it: `plot.py FILE`. Runs where matplotlib is, and imports no more."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

FIRST = "generated service"
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"]
Point = tuple[float, float, float]
"""Median, lowest and highest"""

CEILING = {"linestyle": "--", "color": "#333333", "linewidth": 1.4}


def line(figures: dict[str, dict[str, float]], keys: list[str]) -> list[Point] | None:
    """Median, lowest and highest for each key; None when one is missing."""
    points = []
    for key in keys:
        values = list(figures.get(key, {}).values())
        if not values:
            return None
        points.append((statistics.median(values), min(values), max(values)))
    return points


def draw(
    axes: Any, data: dict[str, Any], levels: list[int], key: str, *, scale: float = 1.0
) -> None:
    """One line a server; `key` has a place for the level."""
    names = sorted(data["figures"], key=lambda name: (name != FIRST, name))
    number = 0
    for name in names:
        points = line(data["figures"][name], [key.format(level) for level in levels])
        if points is None:
            continue
        medians = [point[0] * scale for point in points]
        errors = [
            [(point[0] - point[1]) * scale for point in points],
            [(point[2] - point[0]) * scale for point in points],
        ]
        if name in data["ceilings"]:
            marker = "^" if "generate" in name else "v"
            axes.plot(levels, medians, marker=marker, label=name, **CEILING)
            continue
        axes.errorbar(
            levels,
            medians,
            yerr=errors,
            marker="o",
            capsize=4,
            label=name,
            color=COLORS[number % len(COLORS)],
            linewidth=3 if name == FIRST else 1.8,
            zorder=3 if name == FIRST else 2,
        )
        number += 1
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [str(level) for level in levels])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def milliseconds(axes: Any) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def chat(data: dict[str, Any], path: Path) -> None:
    levels = [int(level) for level in data["workload"]["chat"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6.4), layout="constrained")
    draw(left, data, levels, "chat {} tokens/s")
    left.set(title="Throughput", xlabel="streams at a time", ylabel="tokens a second")
    left.set_ylim(bottom=0)
    draw(right, data, levels, "chat {} first p95", scale=1000)
    milliseconds(right)
    right.set(
        title="Time to first text, p95", xlabel="streams at a time", ylabel="milliseconds, log"
    )
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"Chat: gemma-3-270m, {data['workload']['tokens']} tokens a request")
    figure.savefig(path, dpi=110)


def embeddings(data: dict[str, Any], path: Path) -> None:
    levels = [case["clients"] for case in data["workload"]["embeddings"] if case["texts"] == 1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6.4), layout="constrained")
    for axes, what, scale in ((left, "texts/s", 1.0), (right, "p95", 1000.0)):
        draw(axes, data, levels, "embeddings 1x{} " + what, scale=scale)
    ceiling = line(data["figures"].get("encoder alone, sorted", {}), ["texts/s"])
    if ceiling:
        left.axhline(ceiling[0][0], label="encoder alone, sorted", **CEILING)
    left.set(title="Throughput", xlabel="clients", ylabel="texts a second")
    left.set_ylim(bottom=0)
    milliseconds(right)
    right.set(title="Latency, p95", xlabel="clients", ylabel="milliseconds, log")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Embeddings: all-MiniLM-L6-v2, one text of 5 to 160 words a request")
    figure.savefig(path, dpi=110)


def main() -> None:
    results = Path(sys.argv[1])
    data = json.loads(results.read_text())
    plt.rcParams.update({"font.size": 13, "axes.titlesize": 14})
    chat(data, results.with_name(f"{results.stem}-chat.png"))
    embeddings(data, results.with_name(f"{results.stem}-embeddings.png"))


if __name__ == "__main__":
    main()
