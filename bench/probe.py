"""What `probe` finds of servers that are not ours: `python -m bench.probe [NAME...]`.

Starts each of the peers of bench/serving with its model, asks all questions that are safe in
production, and writes bench/results/probe.md with every deviation as it was seen. NAME: only the
servers whose names contain it; the others' results stay as they were.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from bench.serving.environments import FOLDER, install, prepare_models
from bench.serving.measure import say
from bench.serving.peers import INFINITY_BF16, Peer, all_peers
from bench.serving.processes import ROOT, Failed, free_port, serving
from infer_scaffold.checklist import BY_CODE
from infer_scaffold.probe.catalogue import QUESTIONS
from infer_scaffold.probe.prober import Options, probe

RESULTS = ROOT / "bench" / "results"
MARKS = {"pass": "✓", "fail": "✗", "error": "not asked", "skip": "n/a"}
TIMEOUT = 60.0
"""Seconds: some compute one answer after the other."""


def ask(peer: Peer) -> list[dict[str, Any]]:
    """The answers of one server, as JSON has them."""
    port = free_port()
    with serving(
        f"probe-{peer.name}-{peer.kind}",
        peer.command(port),
        port,
        peer.env(port),
        peer.cwd,
        FOLDER / "logs",
    ) as server:
        server.wait_ready(peer.ready)
        options = Options(timeout=TIMEOUT, **{f"{peer.kind}_model": peer.model})
        answers = asyncio.run(probe(f"http://127.0.0.1:{port}", options, frozenset(BY_CODE)))
    return [
        {
            "name": answer.question.name,
            "verdict": str(answer.verdict),
            # Where the models lie is nobody's business.
            "request": answer.request.replace(str(ROOT), "").replace(str(Path.home()), "~"),
            "got": answer.got.replace(str(ROOT), "").replace(str(Path.home()), "~"),
            "wanted": answer.wanted,
            "reason": answer.reason,
        }
        for answer in answers
    ]


def title(peer: Peer) -> str:
    return f"{peer.name} ({peer.kind}, {peer.version})"


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The table, and below it what each server did otherwise."""
    lines = [
        "# What other servers answer",
        "",
        "`infer-scaffold probe` on servers as they come, each with one model. Written by",
        "`python -m bench.probe`. ✓ as wanted, ✗ something else, n/a does not apply.",
        "",
        f"| question | {' | '.join(results)} |",
        f"|---|{'---|' * len(results)}",
    ]
    verdicts = {
        server: {answer["name"]: answer["verdict"] for answer in answers}
        for server, answers in results.items()
    }
    for question in QUESTIONS:
        if not question.destructive:
            cells = [MARKS[verdicts[server].get(question.name, "error")] for server in results]
            text = f"{question.code} `{question.name}`: {question.holds}"
            lines.append(f"| {text} | {' | '.join(cells)} |")
    counts = []
    for server in results:
        found = list(verdicts[server].values())
        counts.append(f"{found.count('pass')} of {len(found) - found.count('skip')}")
    lines += [f"| **as wanted** | {' | '.join(counts)} |", "", "## The deviations"]
    for server, answers in results.items():
        failed = [answer for answer in answers if answer["verdict"] in ("fail", "error")]
        lines += ["", f"### {server}", ""]
        lines += ["None."] if not failed else []
        for answer in failed:
            lines += [
                f"- `{answer['name']}`",
                f"  - request: `{code(answer['request'])}`",
                f"  - got: `{code(answer['got'] or answer['reason'])}`",
                f"  - wanted: {answer['wanted']}",
            ]
    return "\n".join(lines) + "\n"


def code(text: str) -> str:
    return text.replace("`", "'").replace("|", "\\|")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wanted = sys.argv[1:]
    stored = RESULTS / "probe.json"
    before = json.loads(stored.read_text("utf-8")) if wanted and stored.exists() else {}
    results: dict[str, list[dict[str, Any]]] = {}
    for peer in all_peers(prepare_models()):
        if peer.name == INFINITY_BF16:
            continue
        if wanted and not any(word in title(peer) for word in wanted):
            if title(peer) in before:
                results[title(peer)] = before[title(peer)]
            continue
        say(f"asking {title(peer)}")
        try:
            if peer.environment:
                install(peer.environment)
            results[title(peer)] = ask(peer)
        except Failed as error:
            say(f"{title(peer)}: {error}")
        # At once: what follows may take minutes, and be given up.
        text = json.dumps(before | results, indent=1, ensure_ascii=False)
        stored.write_text(f"{text}\n", encoding="utf-8")
    (RESULTS / "probe.md").write_text(table(results), encoding="utf-8")
    say(table(results))


if __name__ == "__main__":
    main()
