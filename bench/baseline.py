"""This checkout beside the newest release, on gemma-3-270m and MiniLM: bench/results/baseline.md.

Takes ten minutes. Both services run side by side and are asked in turn. Compared is the processor
time of a token or text, each service with one thread: unlike speed, it hardly depends on what else
the machine does. Ends with 1 if one takes more than allowed.
"""

import argparse
import shutil
import statistics
import sys
from collections import defaultdict
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from packaging.version import Version

from bench.serving import report
from bench.serving.environments import FOLDER, PACKAGE, Models, prepare_models, project_env
from bench.serving.load import Load
from bench.serving.peers import Peer, ours
from bench.serving.processes import ROOT, Failed, Server, free_port, put_load, serving
from bench.serving.workload import prompts, texts
from infer_scaffold.project import generate, history

ROUNDS = 7
MOST = 1.15
"""Times the release's processor time: caches are shared with what else the machine does"""
RESULT = ROOT / "bench" / "results" / "baseline.md"
LOGS = FOLDER / "logs"


@dataclass(frozen=True)
class Case:
    label: str
    kind: str
    clients: int
    requests: int
    tokens: int = 1


CASES = (
    Case("chat, 1 stream: token", "chat", 1, 1, 48),
    Case("chat, 16 streams: token", "chat", 16, 16, 32),
    Case("embeddings, 1 client: text", "embeddings", 1, 60),
    Case("embeddings, 64 clients: text", "embeddings", 64, 320),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.baseline", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--release", type=Version, default=max(history.versions()))
    chosen = parser.parse_args()
    try:
        models = prepare_models()
    except Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    times = measure(models, chosen.release, chosen.rounds)
    text = page(times, chosen.release, chosen.rounds)
    RESULT.write_text(text, "utf-8")
    print(text)
    slower = [label for label, pairs in times.items() if ratio(pairs) > MOST]
    if slower:
        print(f"More than {MOST:.0%} of the release: {', '.join(slower)}.", file=sys.stderr)
    return 1 if slower else 0


Pair = tuple[float, float]
"""Milliseconds of the release and of this checkout in one round"""


def measure(models: Models, release: Version, rounds: int) -> dict[str, list[Pair]]:
    times: dict[str, list[Pair]] = defaultdict(list)
    for kind in ("chat", "embeddings"):
        now = ours(kind, models)
        then = released(now, release, models)
        with running(then) as old, running(now) as new:
            both = [(then, old), (now, new)]
            for peer, server in both:
                server.wait_ready(peer.ready)
            for number in range(-1, rounds):  # the first only warms up
                for case in CASES:
                    if case.kind != kind:
                        continue
                    order = both if number % 2 else both[::-1]
                    found = {peer.name: ask(peer, server, case, number) for peer, server in order}
                    if number >= 0:
                        times[case.label].append((found[then.name], found[now.name]))
                        print(case.label, times[case.label][-1], flush=True)
    return times


def released(now: Peer, release: Version, models: Models) -> Peer:
    """The same service, rendered from the template of a release."""
    folder = FOLDER / "projects" / f"{release}-{now.kind}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    history.unpack(release, folder / "template")
    project = folder / PACKAGE
    answers = {"project_name": PACKAGE, "endpoints": [now.kind, "health"]}
    generate.render(answers, project, source=folder / "template")
    return replace(
        now,
        name=f"generated service {release}",
        env=lambda port: project_env(project, port, models),
        cwd=project,
    )


def running(peer: Peer) -> AbstractContextManager[Server]:
    port = free_port()
    name = f"baseline {peer.name} {peer.kind}"
    # With more threads, they would also count while they wait for each other.
    env = {**peer.env(port), "OMP_NUM_THREADS": "1"}
    return serving(name, peer.command(port), port, env, peer.cwd, LOGS)


def ask(peer: Peer, server: Server, case: Case, number: int) -> float:
    """Milliseconds of processor time for a token or text. Raises Failed without an answer."""
    key = ("baseline", case.label, number)
    if case.kind == "chat":
        requests = [peer.chat(prompt, case.tokens) for prompt in prompts(key, case.requests)]
    else:
        requests = [peer.embed([text]) for text in texts(key, case.requests)]
    before = server.cpu_seconds()
    outcome = put_load(Load(server.port, case.clients, requests, timeout=120))
    spent = server.cpu_seconds() - before
    if errors := [sample.error for sample in outcome.samples if sample.error]:
        raise Failed(f"{peer.name}: {errors[0]}")
    return 1000 * spent / sum(sample.units for sample in outcome.samples)


def ratio(pairs: list[Pair]) -> float:
    return statistics.median(new / old for old, new in pairs)


def page(times: dict[str, list[Pair]], release: Version, rounds: int) -> str:
    def row(label: str, pairs: list[Pair]) -> str:
        old, new = (statistics.median(each) for each in zip(*pairs, strict=True))
        ratios = sorted(new / old for old, new in pairs)
        return (
            f"| {label} | {old:.2f} | {new:.2f} | {ratio(pairs):.3f} "
            f"| {ratios[0]:.3f} to {ratios[-1]:.3f} |"
        )

    rows = "\n".join(row(label, pairs) for label, pairs in times.items())
    return f"""# Beside the release {release}

Milliseconds of processor time, the prompt's and the server's included: gemma-3-270m and
all-MiniLM-L6-v2, both services with the same settings and one thread; {rounds} rounds in which they
take turns. {report.machine()}. Again: `python -m bench.baseline`.

| | {release} | this checkout | median of the ratios | all of them |
|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    raise SystemExit(main())
