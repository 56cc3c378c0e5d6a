"""The batching engine: every request as if it were alone, and nobody left waiting."""

import asyncio
from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaForCausalLM

from full_server.models.batching import BatchingEngine
from full_server.models.errors import Overloaded, Unavailable
from full_server.models.params import SamplingParams
from full_server.models.tokens import TokenStream

from .tiny_chat import build_chat_model

pytestmark = pytest.mark.anyio

PROMPTS = [[5, 6, 7], [10] * 40, [20, 21], list(range(30, 230)), [99]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    folder = build_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def start(model: LlamaForCausalLM) -> BatchingEngine:
    return BatchingEngine(
        model,
        eos_token_ids=[0],
        kv_cache_tokens=4096,
        max_batch_tokens=64,
        max_batch_requests=8,
        max_queue=2,
    )


@pytest.fixture(scope="module")
def engine(model: LlamaForCausalLM) -> Iterator[BatchingEngine]:
    engine = start(model)
    yield engine
    engine.stop()


def greedy(max_tokens: int = 20) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0)


async def collect(stream: TokenStream) -> list[int]:
    return [token async for tokens in stream for token in tokens]


async def test_greedy_equals_generate_alone_and_in_a_batch(
    model: LlamaForCausalLM, engine: BatchingEngine
) -> None:
    together = await asyncio.gather(*(collect(engine.submit(p, greedy())) for p in PROMPTS))
    alone = [await collect(engine.submit(prompt, greedy())) for prompt in PROMPTS]
    assert together == alone
    for prompt, tokens in zip(PROMPTS, alone, strict=True):
        ids = torch.tensor([prompt])
        reference = model.generate(ids, do_sample=False, max_new_tokens=20, eos_token_id=0)
        assert tokens == reference[0, len(prompt) :].tolist()


async def test_same_seed_same_tokens_whatever_else_runs(engine: BatchingEngine) -> None:
    def sampled(seed: int) -> SamplingParams:
        return SamplingParams(max_tokens=30, temperature=1.0, seed=seed)

    alone = await collect(engine.submit(PROMPTS[0], sampled(1)))
    beside = await asyncio.gather(
        collect(engine.submit(PROMPTS[0], sampled(1))),
        collect(engine.submit(PROMPTS[0], sampled(2))),
        *(collect(engine.submit(prompt, greedy())) for prompt in PROMPTS),
    )
    assert beside[0] == alone
    assert beside[1] != alone


async def test_one_token_is_never_lost(engine: BatchingEngine) -> None:
    for _ in range(20):
        assert len(await collect(engine.submit(PROMPTS[0], greedy(max_tokens=1)))) == 1


async def test_over_the_limit_is_refused_and_cancelling_frees_a_place(
    engine: BatchingEngine,
) -> None:
    streams = [engine.submit(PROMPTS[0], greedy(1500)) for _ in range(10)]
    with pytest.raises(Overloaded):
        engine.submit(PROMPTS[0], greedy())
    engine.cancel(streams.pop())
    assert len(await collect(engine.submit(PROMPTS[2], greedy(5)))) == 5
    for stream in streams:
        engine.cancel(stream)
        assert stream.closed
    assert engine._streams == {}
    assert engine._manager.output_router.result_handlers == {}


async def test_a_slow_reader_gets_what_has_piled_up(engine: BatchingEngine) -> None:
    stream = engine.submit(PROMPTS[0], greedy(50))
    async with asyncio.timeout(30):
        while not stream.closed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    pieces = [tokens async for tokens in stream]
    assert sum(len(tokens) for tokens in pieces) == 50
    assert len(pieces) == 1


async def test_when_the_thread_dies_everybody_hears_of_it(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(model)
    stream = engine.submit(PROMPTS[0], greedy(1900))
    reading = aiter(stream)
    await anext(reading)

    def out_of_order(*args: object, **kwargs: object) -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(engine._manager.batch_processor, "prepare_next_batch", out_of_order)
    with pytest.raises(Unavailable):
        async for _ in reading:
            pass
    async with asyncio.timeout(30):
        while engine.alive:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        engine.submit(PROMPTS[0], greedy())
    engine.stop()


async def test_longest_request_is_known(engine: BatchingEngine) -> None:
    assert engine.max_length == 2048  # the model's; the cache holds more
