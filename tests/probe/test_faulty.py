"""Faulty servers, each a process of its own: the questions that should find a fault do, no others.

They wait far more than they compute, so that several are asked at the same time.
"""

import asyncio
import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infer_scaffold.checklist import BY_CODE
from infer_scaffold.probe.answers import Answer
from infer_scaffold.probe.outcomes import CannotBeAsked, Verdict
from infer_scaffold.probe.patience import Patience
from infer_scaffold.probe.prober import Options, probe
from tests.probe.test_hostile import MODELS, serving

ROOT = Path(__file__).parents[2]
LONGEST = 180.0
"""Seconds that any of them may be asked for."""
AT_ONCE = 6
TIMEOUT = 20.0
"""Seconds: the longest answer takes four, on a machine that is not busy."""


@dataclass(frozen=True)
class Case:
    """A server with faults, and the questions that have to fail."""

    faults: str
    noticed: set[str] = field(default_factory=set)
    timeout: float = TIMEOUT
    skipped: set[str] = field(default_factory=set)
    codes: str = "IS"


DETAIL = {
    *("validation", "no-json", "content-type", "content-encoding", "unknown-model"),
    *("unknown-route", "wrong-method", "model", "context-overflow"),
}
# What an answer says changes nothing for a client that leaves or a connection that idles: these
# questions take half of the time of all.
WITHOUT_WAITS = "IS2,IS301,IS302,IS4,IS5,IS6,IS7"
# The longest ones first.
CASES = [
    # What leaks answers all other questions alike, however many slots there are.
    Case("leak-64", {"stream-disconnect"}, codes="IS303"),
    Case("leak-8", {"stream-disconnect"}),
    Case("leak-2", {"stream-disconnect"}, codes="IS303"),
    Case("block", {"free-loop"}),
    Case("one-at-a-time", {"free-loop"}),
    Case("slow-first", {"chat-answer"}, 8.0),
    Case("buffer", {"stream-delivery"}),
    Case(""),
    Case(
        "never-ends",
        {"stream-done"},
        6.0,
        {"stream-finish", "stream-usage", "stream-disconnect", "tool-stream"},
    ),
    Case("dead", {"chat-answer"}),
    Case("detail", DETAIL, codes=WITHOUT_WAITS),
    Case("wrong-usage", {"stream-usage", "chat-schema"}, codes=WITHOUT_WAITS),
    Case("no-done", {"stream-done"}, codes=WITHOUT_WAITS),
    Case(
        "embeddings-dead files-dead",
        {"embeddings-answer", "files-answer"},
        codes="IS501",
    ),
    Case(
        "cors-errors cut-arguments metrics-stand no-call other-overflow short-keep-alive "
        "thoughts-lost",
        {
            *("cors", "context-overflow", "keep-alive", "metrics", "reasoning"),
            *("tool-required", "tool-stream"),
        },
        codes="IS101,IS203,IS501,IS701",
    ),
]
IDS = [case.faults or "none" for case in CASES]


@dataclass(frozen=True)
class Told:
    """The verdicts on a server by the names of the questions, the exit code, and the seconds."""

    verdicts: dict[str, str]
    answers: list[dict[str, Any]]
    code: int | None
    seconds: float


async def ask(case: Case, limit: asyncio.Semaphore) -> Told:
    """Start the server and ask it, both as processes: a busy one is late for what it measures."""
    run = asyncio.create_subprocess_exec
    async with limit:
        server = await run(
            *(sys.executable, "-m", "tests.probe.faulty", *case.faults.split()),
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        try:
            assert server.stdout is not None
            port = int(await server.stdout.readline())
            started = time.monotonic()
            probe = await run(
                *(sys.executable, "-m", "infer_scaffold", "probe", f"127.0.0.1:{port}"),
                *("--format", "json", "--timeout", str(case.timeout), "--select", case.codes),
                stdout=subprocess.PIPE,
            )
            out, _ = await probe.communicate()
        finally:
            server.kill()
            await server.wait()
    answers = json.loads(out)["answers"]
    verdicts = {answer["name"]: answer["verdict"] for answer in answers}
    return Told(verdicts, answers, probe.returncode, time.monotonic() - started)


@pytest.fixture(scope="module")
def asked() -> dict[str, Told]:
    """What was told of all servers, by their faults."""

    async def ask_all() -> list[Told]:
        limit = asyncio.Semaphore(AT_ONCE)
        return await asyncio.gather(*(ask(case, limit) for case in CASES))

    return dict(zip(IDS, asyncio.run(ask_all()), strict=True))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_fault_is_found_and_nothing_else(case: Case, asked: dict[str, Told]) -> None:
    told = asked[case.faults or "none"]
    by_verdict = {
        verdict: {name for name, each in told.verdicts.items() if each == verdict}
        for verdict in Verdict
    }

    assert by_verdict[Verdict.FAIL] == case.noticed, told.answers
    assert by_verdict[Verdict.ERROR] == set(), told.answers
    assert case.skipped <= by_verdict[Verdict.SKIP]
    assert told.code == (1 if case.noticed else 0)
    assert told.seconds < LONGEST


HANGING = 1.0
"""Seconds of a timeout where a server hangs."""


def ask_one_that_hangs(path: str) -> tuple[list[Answer], float]:
    """Ask a server everything that answers in time below the path alone."""

    def answer(asked: str, connection: socket.socket) -> None:
        if not asked.startswith(path):
            time.sleep(60)
        connection.sendall(MODELS)

    started = time.monotonic()
    with serving(answer) as address:
        codes = frozenset(BY_CODE) - {"IS101"}
        answers = asyncio.run(probe(address, Options(timeout=HANGING), codes))
    return answers, time.monotonic() - started


def test_a_server_that_hangs_costs_two_timeouts() -> None:
    started = time.monotonic()
    with pytest.raises(CannotBeAsked, match="no whole answer within 1 s"):
        ask_one_that_hangs("/nowhere")

    assert time.monotonic() - started < 2 * HANGING + 8


def test_endpoints_that_hang_cost_two_timeouts() -> None:
    answers, seconds = ask_one_that_hangs("/v1/models")

    failed = {answer.question.name for answer in answers if answer.verdict is Verdict.FAIL}
    assert failed >= {"chat-answer", "embeddings-answer", "files-answer", "health"}
    # A tenth of a timeout for all that is asked after these two.
    assert seconds < 2 * HANGING + 20 * HANGING / 10 + 10


def test_patience_ends() -> None:
    patience = Patience(60.0)
    patience.waited("GET /", 0.0, 60.0)
    patience.waited("GET /", 30.0, 90.0)  # At the same time: they are one.
    assert (patience.seconds("GET /"), patience.spent) == (60.0, 1)

    patience.waited("POST /", 100.0, 160.0)
    assert patience.seconds("POST /") == 6.0
    assert patience.seconds("GET /") == 0.0
    patience.answered("GET /")
    assert patience.seconds("GET /") == 6.0
