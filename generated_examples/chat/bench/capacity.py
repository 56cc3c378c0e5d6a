"""Replicas that a load needs, by a simulation of their queues: figures of bench/load.py in, waits out.

python bench/capacity.py --rate 2 --tokens 200 --measured 1=30,4=95,16=240 --slots 32 --wait 1
"""

import argparse
import heapq
import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

REQUESTS = 20_000
"""Requests of a simulation, the first tenth of which only fills the queues"""


class Point(NamedTuple):
    """The tokens a second of one replica that answers so many requests at once."""

    concurrency: float
    tokens_per_second: float


class Arrival(NamedTuple):
    time: float
    tokens: float


class Answer(NamedTuple):
    """The seconds of a request, from its arrival on."""

    wait: float
    """Until it has a place in a batch"""
    total: float


def speed(measured: Sequence[Point], concurrency: int) -> float:
    """Tokens a second at any concurrency: on a line between two measurements, level after the last."""
    index = bisect_left(measured, concurrency, key=lambda point: point.concurrency)
    if index == len(measured):
        return measured[-1].tokens_per_second
    below = measured[index - 1] if index else Point(0, 0)
    above = measured[index]
    share = (concurrency - below.concurrency) / (above.concurrency - below.concurrency)
    return below.tokens_per_second + share * (above.tokens_per_second - below.tokens_per_second)


@dataclass
class Replica:
    """A batch whose requests all advance at the same speed, and the queue before it."""

    speeds: Sequence[float]
    """Tokens a second by the number of requests in the batch, which has as many places"""
    time: float = 0.0
    served: float = 0.0
    """Tokens that a request would have that has been in the batch from the beginning"""
    batch: list[tuple[float, int, float]] = field(default_factory=list)
    """Heap of (`served` at its end, request, seconds of wait)"""
    queue: deque[tuple[int, Arrival]] = field(default_factory=deque)

    @property
    def requests(self) -> int:
        return len(self.batch) + len(self.queue)

    @property
    def tokens_per_second(self) -> float:
        """Of each request in the batch."""
        return self.speeds[len(self.batch)] / len(self.batch)

    @property
    def next_end(self) -> float:
        """The time at which the next request is answered if no other one comes before."""
        if not self.batch:
            return math.inf
        return self.time + (self.batch[0][0] - self.served) / self.tokens_per_second

    def advance(self, time: float) -> None:
        if self.batch:
            self.served += (time - self.time) * self.tokens_per_second
        self.time = time

    def admit(self) -> None:
        while self.queue and len(self.batch) < len(self.speeds) - 1:
            number, arrival = self.queue.popleft()
            end = self.served + arrival.tokens
            heapq.heappush(self.batch, (end, number, self.time - arrival.time))


def simulate(
    arrivals: Sequence[Arrival], measured: Sequence[Point], slots: int, replicas: int
) -> list[Answer]:
    """The answers in the order of their requests, each of which goes to the replica with the fewest."""
    speeds = [0.0, *(speed(measured, number) for number in range(1, slots + 1))]
    fleet = [Replica(speeds) for _ in range(replicas)]
    answers = [Answer(0.0, 0.0)] * len(arrivals)

    def answer_until(time: float) -> None:
        while (replica := min(fleet, key=lambda each: each.next_end)).next_end < time:
            replica.advance(replica.next_end)
            _, number, wait = heapq.heappop(replica.batch)
            answers[number] = Answer(wait, replica.time - arrivals[number].time)
            replica.admit()

    for number, arrival in enumerate(arrivals):
        answer_until(arrival.time)
        # Among equals another one each time, as proxies do.
        turn = number % replicas
        replica = min(fleet[turn:] + fleet[:turn], key=lambda each: each.requests)
        replica.advance(arrival.time)
        replica.queue.append((number, arrival))
        replica.admit()
    answer_until(math.inf)
    return answers


def poisson(rate: float, tokens: float, count: int, seed: int = 0) -> Iterator[Arrival]:
    """Requests at random times, with answers of random lengths (exponential) around a mean."""
    rng = random.Random(seed)
    time = 0.0
    for _ in range(count):
        time += rng.expovariate(rate)
        yield Arrival(time, rng.expovariate(1 / tokens))


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that is not exceeded by this share of them."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def points(text: str) -> list[Point]:
    """`1=30,4=95` as measurements in their order."""
    found = sorted(Point(*map(float, part.split("="))) for part in text.split(","))
    if any(value <= 0 for point in found for value in point):
        raise ValueError(text)
    return found


def positive(text: str) -> float:
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError(text)
    return value


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=positive, required=True, help="requests a second")
    parser.add_argument("--tokens", type=positive, required=True, help="mean tokens of an answer")
    parser.add_argument(
        "--measured",
        type=points,
        required=True,
        metavar="N=TOKENS,…",
        help="tokens a second of one replica at N concurrent requests, as bench/load.py prints them",
    )
    parser.add_argument("--slots", type=int, default=32, help="INFER_MAX_BATCH_REQUESTS")
    parser.add_argument("--wait", type=positive, default=1.0, help="p95 wait to reach, in seconds")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    highest = speed(chosen.measured, chosen.slots)
    arrivals = list(poisson(chosen.rate, chosen.tokens, REQUESTS))
    replicas = math.floor(chosen.rate * chosen.tokens / highest) + 1  # with fewer, queues only grow
    print("replicas     load  p95 wait  p95 answer")
    while True:
        answers = simulate(arrivals, chosen.measured, chosen.slots, replicas)[REQUESTS // 10 :]
        load = chosen.rate * chosen.tokens / highest / replicas
        wait = percentile((answer.wait for answer in answers), 0.95)
        total = percentile((answer.total for answer in answers), 0.95)
        print(f"{replicas:8}  {load:6.0%}  {wait:6.2f} s  {total:8.2f} s")
        if wait <= chosen.wait:
            break
        replicas += 1


if __name__ == "__main__":
    main()
