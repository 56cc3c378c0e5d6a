"""Batches that form by themselves."""

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from full_server.models.batcher import Batcher, Item, micro_batches
from full_server.models.errors import Unavailable

pytestmark = pytest.mark.anyio


class Compute:
    """Gives each text its length; holds when told; fails on the token 13."""

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
        return torch.tensor([[float(len(tokens))] for tokens in batch])


@pytest.fixture
def compute() -> Compute:
    return Compute()


@pytest.fixture
def batcher(compute: Compute) -> Iterator[Batcher]:
    batcher = Batcher(compute, max_tokens=20, max_texts=4)
    yield batcher
    compute.gate.set()
    batcher.stop()


def text(length: int) -> list[int]:
    return [1] * length


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [
        ([], []),
        ([5], [[5]]),
        ([9, 1, 2, 1], [[1, 1, 2], [9]]),  # with the 9, padding would make 36 of it
        ([5, 5, 5, 5, 5], [[5, 5, 5, 5], [5]]),
        ([1] * 6, [[1, 1, 1, 1], [1, 1]]),
        ([10, 10, 11], [[10, 10], [11]]),
        ([50, 3], [[3], [50]]),  # over the budget on its own: alone, not for ever
    ],
)
async def test_micro_batches(lengths: list[int], batches: list[list[int]]) -> None:
    items = [Item(text(length), asyncio.Future()) for length in lengths]
    made = micro_batches(items, max_tokens=20, max_texts=4)
    assert [[len(item.tokens) for item in batch] for batch in made] == batches


async def test_results_come_in_the_order_of_the_inputs(batcher: Batcher) -> None:
    rows = await batcher.submit([text(7), text(1), text(3)])
    assert [row.tolist() for row in rows] == [[7.0], [1.0], [3.0]]


async def test_what_waits_during_a_batch_is_the_next_batch(
    batcher: Batcher, compute: Compute
) -> None:
    compute.gate.clear()
    requests = [asyncio.create_task(batcher.submit([text(2)])) for _ in range(5)]
    await asyncio.sleep(0.1)
    compute.gate.set()
    await asyncio.gather(*requests)
    assert [len(batch) for batch in compute.batches] in ([1, 4], [4, 1])


async def test_one_bad_item_does_not_fail_its_neighbours(batcher: Batcher) -> None:
    results = await asyncio.gather(
        batcher.submit([text(2)]), batcher.submit([[13, 13]]), return_exceptions=True
    )
    assert isinstance(results[1], Unavailable)
    assert not isinstance(results[0], BaseException)
    assert await batcher.submit([text(1)])


async def test_what_nobody_waits_for_is_not_computed(batcher: Batcher, compute: Compute) -> None:
    compute.gate.clear()
    first = asyncio.create_task(batcher.submit([text(1)]))
    await compute.wait_until_running()
    given_up = asyncio.create_task(batcher.submit([text(9)]))
    await asyncio.sleep(0.05)
    given_up.cancel()
    await asyncio.sleep(0)
    compute.gate.set()
    await first
    await batcher.submit([text(2)])
    assert [9] not in compute.batches


async def test_stop_fails_what_waits(compute: Compute) -> None:
    batcher = Batcher(compute, max_tokens=20, max_texts=4)
    compute.gate.clear()
    running = asyncio.create_task(batcher.submit([text(1)]))
    await compute.wait_until_running()
    waiting = asyncio.create_task(batcher.submit([text(2)]))
    await asyncio.sleep(0.05)
    stopping = asyncio.create_task(asyncio.to_thread(batcher.stop))
    await asyncio.sleep(0.05)
    compute.gate.set()
    assert await running
    with pytest.raises(Unavailable):
        await waiting
    await stopping
    assert not batcher.alive
