"""Batches that form by themselves."""

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from full_server.serving.embeddings.scheduler import EmbeddingScheduler, cut_batch
from full_server.serving.models.model_errors import Unavailable

pytestmark = pytest.mark.anyio


class Compute:
    """Gives each text its length; holds when told; fails on the token 13, dies of the token 66,
    gives no numbers for 77 and 88.
    """

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    async def wait_until_running(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 30)

    def __call__(self, batch: Sequence[Sequence[int]]) -> Tensor:
        self.entered.set()
        assert self.gate.wait(30)
        self.batches.append([len(tokens) for tokens in batch])
        if any(13 in tokens for tokens in batch):
            raise RuntimeError("bad item")
        if any(66 in tokens for tokens in batch):
            raise SystemExit
        vectors = torch.tensor([[float(len(tokens))] for tokens in batch])
        vectors[[77 in tokens for tokens in batch]] = torch.nan
        vectors[[88 in tokens for tokens in batch]] = -torch.inf
        return vectors


def make_scheduler(
    compute: Compute, threads: int = 1, stall_seconds: float = 60.0
) -> EmbeddingScheduler:
    return EmbeddingScheduler(
        compute,
        max_tokens=20,
        max_texts=4,
        max_padding=6,
        threads=threads,
        stall_seconds=stall_seconds,
        prepare=lambda: None,
    )


@pytest.fixture
def compute() -> Compute:
    return Compute()


@pytest.fixture
def scheduler(compute: Compute) -> Iterator[EmbeddingScheduler]:
    scheduler = make_scheduler(compute)
    yield scheduler
    compute.gate.set()
    scheduler.stop()


def text(length: int) -> list[int]:
    return [1] * length


async def queue_up(
    scheduler: EmbeddingScheduler, *requests: list[list[int]]
) -> list[asyncio.Task[list[Tensor]]]:
    """Requests that wait, in this order."""
    tasks = []
    for request in requests:
        tasks.append(asyncio.create_task(scheduler.submit(request)))
        await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize(
    ("lengths", "head", "batch"),
    [
        ([5], 0, [5]),
        ([1, 1, 2, 9], 0, [1, 1, 2]),  # with the 9, padding would make 36 of it
        ([1, 1, 2, 9], 3, [9]),
        ([5, 5, 5, 5, 5], 0, [5, 5, 5, 5]),
        ([1] * 6, 5, [1, 1, 1, 1]),
        ([10, 10, 11], 1, [10, 10]),
        ([3, 50], 1, [50]),  # over the budget on its own: alone, not for ever
        ([1, 4, 5, 5], 2, [4, 5, 5]),  # padding of 1 but not of 5
        ([2, 3, 5, 6, 6], 3, [5, 6, 6]),
    ],
)
def test_a_batch_is_what_is_nearest_in_length(
    lengths: list[int], head: int, batch: list[int]
) -> None:
    cut = cut_batch(lengths, head, max_tokens=20, max_texts=4, max_padding=3)
    assert lengths[cut] == batch
    assert cut.start <= head < cut.stop


def test_every_batch_keeps_to_its_budgets() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        lengths = sorted(rng.randint(1, 40) for _ in range(rng.randint(1, 30)))
        head = rng.randrange(len(lengths))
        tokens, texts, padding = (rng.randint(1, 100) for _ in range(3))
        cut = cut_batch(lengths, head, max_tokens=tokens, max_texts=texts, max_padding=padding)
        batch = lengths[cut]
        assert cut.start <= head < cut.stop
        if len(batch) > 1:
            assert len(batch) <= texts
            assert max(batch) * len(batch) <= tokens
            assert max(batch) * len(batch) - sum(batch) <= padding


async def test_results_come_in_the_order_of_the_inputs(scheduler: EmbeddingScheduler) -> None:
    rows = await scheduler.submit([text(7), text(1), text(3)])
    assert [row.tolist() for row in rows] == [[7.0], [1.0], [3.0]]


async def test_what_waits_during_a_batch_is_the_next_batch(
    scheduler: EmbeddingScheduler, compute: Compute
) -> None:
    compute.gate.clear()
    requests = [asyncio.create_task(scheduler.submit([text(2)])) for _ in range(5)]
    await asyncio.sleep(0.1)
    compute.gate.set()
    await asyncio.gather(*requests)
    assert [len(batch) for batch in compute.batches] in ([1, 4], [4, 1])


async def test_a_short_request_does_not_wait_for_a_long_one(
    scheduler: EmbeddingScheduler, compute: Compute
) -> None:
    compute.gate.clear()
    await queue_up(scheduler, [text(1)])
    await compute.wait_until_running()
    tasks = await queue_up(scheduler, [text(3)] * 50, [text(10)])
    compute.gate.set()
    await asyncio.gather(*tasks)
    assert compute.batches.index([10]) <= 2


async def test_short_requests_do_not_starve_a_long_one(
    scheduler: EmbeddingScheduler, compute: Compute
) -> None:
    async def ask_again_and_again() -> None:
        while True:
            await scheduler.submit([text(3)])

    compute.gate.clear()
    busy = [asyncio.create_task(ask_again_and_again()) for _ in range(8)]
    await compute.wait_until_running()
    (long,) = await queue_up(scheduler, [text(20)] * 10)
    compute.gate.set()
    async with asyncio.timeout(30):
        await long
    for task in busy:
        task.cancel()
    assert sum(batch == [20] for batch in compute.batches) == 10


class BusyCompute(Compute):
    """Waits after each batch until so many texts wait again, but for no text that is long."""

    def __init__(self, waiting: int) -> None:
        super().__init__()
        self.scheduler: EmbeddingScheduler | None = None
        self._waiting = waiting

    def __call__(self, batch: Sequence[Sequence[int]]) -> Tensor:
        vectors = super().__call__(batch)
        deadline = time.monotonic() + 30
        while self.scheduler and [18] not in self.batches and time.monotonic() < deadline:
            if self.scheduler.load().waiting >= self._waiting:
                break
            time.sleep(0.001)
        return vectors


async def test_a_long_text_is_passed_over_by_little_more_than_was_there_before_it() -> None:
    """Clients with one short text each, who send the next when they have an answer."""
    compute = BusyCompute(waiting=10)
    scheduler = make_scheduler(compute)
    compute.gate.clear()
    long: list[asyncio.Task[list[Tensor]]] = []

    async def client() -> None:
        while not (long and long[0].done()):
            await scheduler.submit([text(4)])

    clients = [asyncio.create_task(client()) for _ in range(20)]
    await compute.wait_until_running()
    long += await queue_up(scheduler, [text(18)])
    compute.scheduler = scheduler
    compute.gate.set()
    await asyncio.gather(*clients)
    scheduler.stop()
    passed = sum(map(sum, compute.batches[: compute.batches.index([18])]))
    # A share of one in twenty would let 18 * 20 tokens pass. Four clients are in each batch.
    assert passed <= 16 + 1.25 * 20 * 4 + 2 * 18 + 16


async def test_one_bad_item_does_not_fail_its_neighbours(
    scheduler: EmbeddingScheduler, compute: Compute
) -> None:
    compute.gate.clear()
    await queue_up(scheduler, [text(1)])
    await compute.wait_until_running()
    tasks = await queue_up(scheduler, [text(2)], [[13, 13]], [text(2)], [text(2)])
    compute.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], Unavailable)
    assert not any(isinstance(results[index], BaseException) for index in (0, 2, 3))
    assert [len(batch) for batch in compute.batches[1:]] == [4, 2, 1, 1, 2]
    assert scheduler.alive


@pytest.mark.parametrize("bad", [77, 88])
async def test_a_vector_that_is_not_finite_fails_alone(
    scheduler: EmbeddingScheduler, compute: Compute, bad: int
) -> None:
    compute.gate.clear()
    good = asyncio.create_task(scheduler.submit([text(2), text(3)]))
    worse = [asyncio.create_task(scheduler.submit([text(2), [bad] * 2])) for _ in range(2)]
    await asyncio.sleep(0)
    compute.gate.set()
    assert [row.tolist() for row in await good] == [[2.0], [3.0]]
    for request in worse:
        with pytest.raises(Unavailable, match="not finite"):
            await request


@pytest.mark.parametrize("threads", [1, 2])
async def test_a_thread_that_hangs_is_given_up(compute: Compute, threads: int) -> None:
    scheduler = make_scheduler(compute, threads, stall_seconds=0.3)
    compute.gate.clear()
    hanging = [asyncio.create_task(scheduler.submit([text(2)])) for _ in range(8)]
    await compute.wait_until_running()
    assert scheduler.alive
    await asyncio.sleep(0.5)
    assert not scheduler.alive
    await asyncio.wait_for(asyncio.to_thread(scheduler.stop), 5)
    for request in hanging:
        with pytest.raises(Unavailable, match="stopped working"):
            await asyncio.wait_for(request, 5)
    compute.gate.set()


async def test_an_idle_thread_does_not_hang(compute: Compute) -> None:
    scheduler = make_scheduler(compute, stall_seconds=0.2)
    await scheduler.submit([text(2)])
    await asyncio.sleep(0.4)
    assert scheduler.alive
    scheduler.stop()


@pytest.mark.parametrize("threads", [1, 2])
async def test_all_hear_of_a_thread_that_dies(compute: Compute, threads: int) -> None:
    scheduler = make_scheduler(compute, threads)
    compute.gate.clear()
    running = await queue_up(scheduler, *[[[66]]] * 2)
    await compute.wait_until_running()
    waiting = await queue_up(scheduler, [text(9)], [text(9)])
    compute.gate.set()
    async with asyncio.timeout(30):
        results = await asyncio.gather(*running, *waiting, return_exceptions=True)
    hit = results if threads == 1 else results[:2]  # the other thread may have taken the rest
    assert all(isinstance(result, Unavailable) for result in hit)
    assert not scheduler.alive
    with pytest.raises(Unavailable):
        await scheduler.submit([text(1)])
    scheduler.stop()


async def test_what_fails_or_is_given_up_leaves_nothing_behind(
    scheduler: EmbeddingScheduler, compute: Compute
) -> None:
    with pytest.raises(Unavailable):
        await scheduler.submit([[13], text(9), text(20)])
    (given_up,) = await queue_up(scheduler, [text(20)] * 20)
    given_up.cancel()
    await asyncio.wait([given_up])
    await scheduler.submit([text(1)])
    assert len(compute.batches) < 10


async def test_what_was_given_up_is_not_computed(
    scheduler: EmbeddingScheduler, compute: Compute
) -> None:
    compute.gate.clear()
    first = asyncio.create_task(scheduler.submit([text(1)]))
    await compute.wait_until_running()
    given_up = asyncio.create_task(scheduler.submit([text(9)]))
    await asyncio.sleep(0.05)
    given_up.cancel()
    await asyncio.sleep(0)
    compute.gate.set()
    await first
    await scheduler.submit([text(2)])
    assert [9] not in compute.batches


async def test_stop_fails_what_waits(compute: Compute) -> None:
    scheduler = make_scheduler(compute)
    compute.gate.clear()
    running = asyncio.create_task(scheduler.submit([text(1)]))
    await compute.wait_until_running()
    waiting = asyncio.create_task(scheduler.submit([text(2)]))
    await asyncio.sleep(0.05)
    stopping = asyncio.create_task(asyncio.to_thread(scheduler.stop))
    await asyncio.sleep(0.05)
    compute.gate.set()
    assert await running
    with pytest.raises(Unavailable):
        await waiting
    await stopping
    assert not scheduler.alive


async def test_background_texts_wait_until_no_others_do(
    scheduler: EmbeddingScheduler, compute: Compute
) -> None:
    compute.gate.clear()
    first = asyncio.create_task(scheduler.submit([text(1)]))
    await compute.wait_until_running()
    batch = asyncio.create_task(scheduler.submit([text(2)] * 6, background=True))
    await asyncio.sleep(0)
    requests = await queue_up(scheduler, [text(2)], [text(3)])
    compute.gate.set()
    await asyncio.gather(first, batch, *requests)
    assert compute.batches == [[1], [2, 3], [2] * 4, [2] * 2]
