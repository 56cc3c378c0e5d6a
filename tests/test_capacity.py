"""The simulation of bench/capacity.py has the results that queueing theory has in closed form."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

from infer_scaffold.project import template

PROGRAM = template.root() / "template" / "bench" / "capacity.py"
SPEC = importlib.util.spec_from_file_location("capacity", PROGRAM)
assert SPEC is not None
assert SPEC.loader is not None
capacity = importlib.util.module_from_spec(SPEC)
sys.modules["capacity"] = capacity  # dataclasses look their module up
SPEC.loader.exec_module(capacity)

COUNT = 50_000


def erlang_c(servers: int, load: float) -> float:
    """The share of requests that wait in M/M/c with this load in servers."""
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(load**k / math.factorial(k) for k in range(servers)) + last)


@pytest.mark.parametrize(("servers", "rate"), [(1, 0.7), (4, 3.2), (16, 12.0)])
def test_places_that_do_not_slow_each_other_down_are_servers(servers: int, rate: float) -> None:
    arrivals = list(capacity.poisson(rate, 1.0, COUNT, seed=0))
    measured = [capacity.Point(1, 1.0), capacity.Point(servers, float(servers))]
    waits = [each.wait for each in capacity.simulate(arrivals, measured, servers, 1)]
    waiting = erlang_c(servers, rate)
    assert sum(wait > 0 for wait in waits) / COUNT == pytest.approx(waiting, rel=0.1)
    assert fmean(waits) == pytest.approx(waiting / (servers - rate), rel=0.1)
    # The wait of those that wait is exponential.
    p95 = max(0.0, math.log(waiting / 0.05) / (servers - rate))
    assert capacity.percentile(waits, 0.95) == pytest.approx(p95, rel=0.1, abs=0.02)


def test_a_batch_that_gains_nothing_shares_one_processor() -> None:
    rate = 0.7
    arrivals = list(capacity.poisson(rate, 1.0, COUNT, seed=2))
    answers = capacity.simulate(arrivals, [capacity.Point(1, 1.0)], 1000, 1)
    assert max(each.wait for each in answers) == 0
    assert fmean(each.total for each in answers) == pytest.approx(1 / (1 - rate), rel=0.1)
    # In processor sharing an answer takes time in proportion to its length.
    long = [
        each.total / arrival.tokens
        for each, arrival in zip(answers, arrivals, strict=True)
        if arrival.tokens > 2
    ]
    assert fmean(long) == pytest.approx(1 / (1 - rate), rel=0.1)


def test_answers_of_one_length_wait_half_as_long() -> None:
    """Pollaczek and Khinchine: M/D/1."""
    rate = 0.7
    times = [each.time for each in capacity.poisson(rate, 1.0, COUNT, seed=3)]
    arrivals = [capacity.Arrival(time, 1.0) for time in times]
    waits = [each.wait for each in capacity.simulate(arrivals, [capacity.Point(1, 1.0)], 1, 1)]
    assert fmean(waits) == pytest.approx(rate / (2 * (1 - rate)), rel=0.1)


def test_a_request_goes_to_the_replica_with_the_fewest() -> None:
    arrivals = [capacity.Arrival(0.0, tokens) for tokens in (10.0, 1.0, 1.0)]
    arrivals += [capacity.Arrival(3.0, 1.0)]
    answers = capacity.simulate(arrivals, [capacity.Point(1, 1.0)], 1, 2)
    assert [each.total for each in answers] == [10.0, 1.0, 11.0, 1.0]


def test_speeds_between_and_beyond_the_measurements() -> None:
    measured = capacity.points("4=40,2=30")
    speeds = [capacity.speed(measured, number) for number in (1, 2, 3, 4, 9)]
    assert speeds == [15.0, 30.0, 35.0, 40.0, 40.0]


def test_the_program_finds_how_many() -> None:
    command = [sys.executable, PROGRAM, "--rate", "2", "--tokens", "200", "--slots", "16"]
    command += ["--measured", "1=30,4=95,16=240", "--wait"]

    def replicas(wait: str) -> int:
        done = subprocess.run([*command, wait], capture_output=True, text=True, check=True)
        return int(done.stdout.splitlines()[-1].split()[0])

    assert replicas("60") == 2
    assert replicas("0.1") == 3
    wrong = subprocess.run([*command, "-1"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_it_needs_the_standard_library_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", Path(PROGRAM), "--help"], capture_output=True, check=True
    )
    assert b"--measured" in done.stdout
