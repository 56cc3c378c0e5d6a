"""Steps in CUDA graphs, each prepared before the last one is read: the tokens stay the same."""

import asyncio
import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.generation.continuous_batching import model_runner

from chat_server.serving.engine import batch_step
from chat_server.serving.engine.acceleration import Acceleration
from chat_server.serving.engine.base_engine import TokenStream
from chat_server.serving.engine.continuous import ContinuousBatchingEngine
from chat_server.serving.engine.sampling_params import SamplingParams
from chat_server.serving.engine.self_check import check_graphs
from chat_server.serving.engine.transformers_private import on_preemption

from ...tiny_chat import build_chat_model
from .simulated_graphs import Graph, simulate

pytestmark = pytest.mark.anyio

GRAPHS = Acceleration("sdpa", "of this test", cuda_graphs=True)

ON_DEVICE: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 1.5, "top_p": 0.9, "min_p": 0.01},
]
NEED_HOST: list[dict[str, Any]] = [
    {"temperature": 1.0, "frequency_penalty": 1.0, "repetition_penalty": 1.2},
    {"temperature": 1.0, "logit_bias": {7: 5.0}},
    {"temperature": 1.0, "min_tokens": 8},
    {"temperature": 0.7, "top_k": 5, "top_logprobs": 2},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    folder = build_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    simulate(monkeypatch)
    yield


def start(model: LlamaForCausalLM, **changes: Any) -> ContinuousBatchingEngine:
    options = {"kv_cache_tokens": 2048, "max_batch_tokens": 64, "max_batch_requests": 8}
    return ContinuousBatchingEngine(model, eos_token_ids=[0], **options | changes)


async def collect(stream: TokenStream) -> list[int]:
    return [token async for arrival in stream for token in arrival.tokens]


def make_requests(
    kinds: list[dict[str, Any]], count: int
) -> list[tuple[list[int], SamplingParams]]:
    draw = random.Random(5)
    return [
        (
            [draw.randrange(5, 250) for _ in range(draw.choice((3, 20, 90)))],
            SamplingParams(max_tokens=draw.choice((1, 2, 9, 25)), seed=seed, **kind),
        )
        for seed, kind in zip(range(count), itertools.cycle(kinds), strict=False)
    ]


async def answers(
    engine: ContinuousBatchingEngine, requests: list[tuple[list[int], SamplingParams]]
) -> tuple[list[list[int]], list[TokenStream]]:
    """More requests than fit into the batch, so that they come and go."""
    streams = []
    for number, (prompt, params) in enumerate(requests):
        streams.append(engine.submit(prompt, [params]))
        if number % 3 == 2:
            await asyncio.sleep(0.05)
    async with asyncio.timeout(120):
        return await asyncio.gather(*map(collect, streams)), streams


@pytest.mark.parametrize("kinds", [ON_DEVICE, NEED_HOST, [*ON_DEVICE[:2], *NEED_HOST]])
async def test_the_same_tokens_with_graphs_and_without(
    model: LlamaForCausalLM, kinds: list[dict[str, Any]], simulated: None
) -> None:
    # The last one goes on when those that need the host have ended.
    long = SamplingParams(max_tokens=80, temperature=1.0, seed=99)
    requests = [*make_requests(kinds, 13), ([5, 6, 7], long)]
    plain = start(model)
    expected, expected_streams = await answers(plain, requests)
    plain.stop()
    engine = start(model, acceleration=GRAPHS)
    try:
        actual, streams = await answers(engine, requests)
    finally:
        engine.stop()
    assert actual == expected
    for one, other in zip(streams, expected_streams, strict=True):
        entries = zip(one.logprobs[0], other.logprobs[0], strict=True)
        assert all(mine.token == yours.token for mine, yours in entries)
    assert Graph.replays > 5


async def test_a_preempted_request_goes_on_as_if_nothing_had_happened(
    model: LlamaForCausalLM, simulated: None
) -> None:
    """More context than the cache holds: requests lose their place while their token is computed."""
    params = [
        SamplingParams(max_tokens=200, temperature=1.0, seed=seed, top_logprobs=logprobs)
        for seed, logprobs in ((1, None), (2, None), (3, 0), (4, None))
    ]
    plain = start(model)
    expected, _ = await answers(plain, [([5, 6, 7], each) for each in params])
    plain.stop()
    engine = start(model, kv_cache_tokens=512, acceleration=GRAPHS)
    preemptions: list[int] = []
    on_preemption(engine._manager, preemptions.append)
    try:
        # The request that needs the host ends first, so that the others are asynchronous as well.
        params[2] = replace(params[2], max_tokens=40)
        actual, _ = await answers(engine, [([5, 6, 7], each) for each in params])
    finally:
        engine.stop()
    assert sum(preemptions)
    assert actual == [expected[0], expected[1], expected[2][:40], expected[3]]


async def test_a_step_that_does_not_fit_into_memory_loses_no_token(
    model: LlamaForCausalLM, simulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = make_requests([{"temperature": 1.0}], 5)
    plain = start(model)
    expected, _ = await answers(plain, requests)
    plain.stop()
    engine = start(model, acceleration=GRAPHS)
    run = model_runner.ModelRunner.compute_batch
    steps = itertools.count()

    def compute(*args: Any, **kwargs: Any) -> None:
        if next(steps) in (3, 14):
            raise torch.OutOfMemoryError("too many tokens")
        run(*args, **kwargs)

    monkeypatch.setattr(model_runner.ModelRunner, "compute_batch", compute)
    try:
        actual, _ = await answers(engine, requests)
    finally:
        engine.stop()
    assert actual == expected


async def test_cancelled_requests_leave_the_others_alone(
    model: LlamaForCausalLM, simulated: None
) -> None:
    requests = make_requests([{"temperature": 1.0}], 6)
    plain = start(model)
    expected, _ = await answers(plain, requests)
    plain.stop()
    engine = start(model, acceleration=GRAPHS)
    try:
        long = SamplingParams(max_tokens=1500, temperature=1.0, min_tokens=2)
        doomed = [engine.submit([9, 9], [long]) for _ in range(3)]
        task = asyncio.create_task(answers(engine, requests))
        for stream in doomed:
            await asyncio.sleep(0.2)
            engine.cancel(stream)
        actual, _ = await task
        assert actual == expected
        assert engine._states == {}
    finally:
        engine.stop()


async def test_graphs_that_choose_other_tokens_are_noticed(
    model: LlamaForCausalLM, simulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(model, acceleration=GRAPHS)
    try:
        check_graphs(engine, [5, 6, 7, 8])
    finally:
        engine.stop()
    monkeypatch.setattr(batch_step, "sample_captured", lambda logits, *rest: logits[:, 9].fill_(99))
    engine = start(model, acceleration=GRAPHS)
    try:
        with pytest.raises(RuntimeError, match="in CUDA graphs"):
            check_graphs(engine, [5, 6, 7, 8])
    finally:
        engine.stop()
