"""`make bench`: the generated service, its peers and the ceilings, side by side.

Writes serving.md, serving.json and plots to bench/results/ after every round, so that a run that
is cut short leaves what it has measured.
"""

import argparse
import json
import signal
import subprocess
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from types import FrameType

from bench.serving import measure, report
from bench.serving.environments import FOLDER, install, prepare_models
from bench.serving.measure import Results
from bench.serving.peers import OURS, Peer, all_peers
from bench.serving.processes import ROOT, Failed
from bench.serving.workload import FULL, QUICK, Workload

RESULTS = ROOT / "bench" / "results"
ROUNDS = {"chat": measure.measure_chat_round, "embeddings": measure.measure_embeddings_round}


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=positive, help="3, or 1 with --quick")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few requests each, into .bench/results/: shows that all of it works",
    )
    parser.add_argument(
        "--only", action="append", help="only peers whose name has this in it; may be repeated"
    )
    parser.add_argument("--kind", choices=ROUNDS, help="chat or embeddings alone, no soak")
    return parser.parse_args()


def installed(everybody: list[Peer], results: Results) -> list[Peer]:
    """Those whose environment could be made."""
    broken: dict[str, str] = {}
    for name in sorted({peer.environment for peer in everybody if peer.environment}):
        try:
            install(name)
        except Failed as error:
            print(f"{name}: {error}", flush=True)
            broken[name] = str(error)
    for peer in everybody:
        if peer.environment in broken:
            results.fail(f"{peer.name} {peer.kind}", broken[peer.environment])
    return [peer for peer in everybody if peer.environment not in broken]


def heading(started: datetime, rounds: int, *, quick: bool) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    libraries = ("fastapi", "uvicorn", "torch", "transformers")
    ours = ", ".join(f"{name} {version(name)}" for name in libraries)
    kind = "A quick run, which shows only that everything works. " if quick else ""
    return (
        f"{kind}{started:%Y-%m-%d}, {rounds} round{'s' if rounds > 1 else ''}. "
        f"Generated from {commit}, with {ours}."
    )


def save(results: Results, work: Workload, everybody: list[Peer], head: str, *, quick: bool) -> str:
    folder = FOLDER / "results" if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "head": head,
        "machine": report.machine(),
        "workload": asdict(work),
        "ceilings": report.CEILINGS,
        **results.as_json(),
    }
    path = folder / "serving.json"
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    text = report.write(results, work, everybody, head=head, stem=path.stem)
    path.with_suffix(".md").write_text(text)
    try:
        measure.plot(path)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"no plots: {error}", flush=True)
    return text


def stop(signal_number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signal_number)


def main() -> None:
    chosen = options()
    signal.signal(signal.SIGTERM, stop)
    work = QUICK if chosen.quick else FULL
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    results = Results()

    try:
        models = prepare_models()
        install("plots")
    except Failed as error:
        raise SystemExit(f"bench: {error}") from None
    everybody = all_peers(models)
    usable = installed(everybody, results)
    if chosen.only:
        usable = [peer for peer in usable if any(word in peer.name for word in chosen.only)]

    begun = time.monotonic()
    head = heading(datetime.now(UTC), rounds, quick=chosen.quick)

    def minutes() -> str:
        return f"[{(time.monotonic() - begun) / 60:4.1f} min]"

    for number in range(rounds):
        results.round = number
        for kind, measure_round in ROUNDS.items():
            if chosen.kind not in (None, kind):
                continue
            print(f"{minutes()} round {number + 1} of {rounds}: {kind}", flush=True)
            peers = [peer for peer in usable if peer.kind == kind]
            measure_round(peers, models, work, results)
        if chosen.kind:
            save(results, work, everybody, head, quick=True)
            continue
        ours = next(peer for peer in everybody if peer.name == OURS and peer.kind == "chat")
        print(f"{minutes()} round {number + 1} of {rounds}: cost of a token", flush=True)
        measure.measure_token_cost(ours, models, work, results)
        save(results, work, everybody, head, quick=chosen.quick)
    if chosen.kind:
        return
    print(f"{minutes()} memory under many requests", flush=True)
    measure.measure_memory(models, work, results)
    text = save(results, work, everybody, head, quick=chosen.quick)
    print(f"{minutes()} done\n\n{text}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
