"""The batching engine: every request is answered, and as if it were alone."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from full_server.serving.chat.chat_model import ChatModel
from full_server.serving.chat.options import ChatOptions
from full_server.serving.chat.prompt import ChatPrompt
from full_server.serving.deadline import Deadline
from full_server.serving.engine import transformers_private
from full_server.serving.engine.acceleration import Acceleration
from full_server.serving.engine.base_engine import TokenStream
from full_server.serving.engine.continuous import PLAIN, ContinuousBatchingEngine
from full_server.serving.engine.sampling_params import SamplingParams
from full_server.serving.engine.transformers_private import VARLEN, step_limits
from full_server.serving.models.device import Device
from full_server.serving.models.model_errors import InvalidInput, Unavailable
from full_server.settings import Settings

from ...tiny_chat import build_chat_model, build_recurrent_model
from .flash_stand_in import lengths_attention

pytestmark = pytest.mark.anyio

PROMPTS = [[5, 6, 7], [10] * 40, [20, 21], list(range(30, 230)), [99]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    folder = build_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def start(model: LlamaForCausalLM, **changes: Any) -> ContinuousBatchingEngine:
    options = {"kv_cache_tokens": 4096, "max_batch_tokens": 64, "max_batch_requests": 8}
    return ContinuousBatchingEngine(model, eos_token_ids=[0], **options | changes)


@pytest.fixture(scope="module")
def engine(model: LlamaForCausalLM) -> Iterator[ContinuousBatchingEngine]:
    engine = start(model)
    yield engine
    engine.stop()


def greedy(max_tokens: int = 20) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0)


async def collect(stream: TokenStream) -> list[int]:
    return [token async for arrival in stream for token in arrival.tokens]


def submit(
    engine: ContinuousBatchingEngine, prompt: list[int], params: SamplingParams
) -> TokenStream:
    return engine.submit(prompt, [params])


@pytest.mark.parametrize(
    "options", [{}, {"prefix_caching": False}, {"kv_width": 16}, {"kv_width": 21}]
)
async def test_greedy_equals_generate_alone_and_in_a_batch(
    model: LlamaForCausalLM, options: dict[str, Any]
) -> None:
    engine = start(model, **options)
    common = list(range(100, 230))  # two blocks of the cache that these prompts have in common
    prompts = [*PROMPTS, [*common, 7], [*common, 8], common]
    try:
        alone = [await collect(submit(engine, prompt, greedy())) for prompt in prompts]
        together = await asyncio.gather(*(collect(submit(engine, p, greedy())) for p in prompts))
    finally:
        engine.stop()
    assert together == alone
    for prompt, tokens in zip(prompts, alone, strict=True):
        ids = torch.tensor([prompt])
        reference = model.generate(ids, do_sample=False, max_new_tokens=20, eos_token_id=0)
        assert tokens == reference[0, len(prompt) :].tolist()


async def test_same_seed_same_tokens_whatever_else_runs(engine: ContinuousBatchingEngine) -> None:
    def sampled(seed: int) -> SamplingParams:
        return SamplingParams(max_tokens=30, temperature=1.0, seed=seed)

    alone = await collect(submit(engine, PROMPTS[0], sampled(1)))
    beside = await asyncio.gather(
        collect(submit(engine, PROMPTS[0], sampled(1))),
        collect(submit(engine, PROMPTS[0], sampled(2))),
        *(collect(submit(engine, prompt, greedy())) for prompt in PROMPTS),
    )
    assert beside[0] == alone
    assert beside[1] != alone


async def test_sampling_goes_on_while_another_prompt_is_read_in_pieces(
    model: LlamaForCausalLM,
) -> None:
    engine = start(model, prefix_caching=False)  # or the prompt would be read only once
    params = [SamplingParams(max_tokens=20, temperature=1.0, seed=seed) for seed in range(5)]
    requests = list(zip(PROMPTS, params, strict=True))
    try:
        alone = [await collect(submit(engine, *each)) for each in requests]
        together = await asyncio.gather(*(collect(submit(engine, *each)) for each in requests))
    finally:
        engine.stop()
    assert together == alone


async def test_a_client_with_few_requests_does_not_wait_for_one_with_many(
    engine: ContinuousBatchingEngine,
) -> None:
    params = [SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)]
    done: list[str] = []

    async def ask_as(client: str) -> None:
        await collect(engine.submit(PROMPTS[0], params, client))
        done.append(client)

    large = [asyncio.create_task(ask_as("large")) for _ in range(24)]
    await asyncio.sleep(0.05)
    await asyncio.gather(ask_as("small"), ask_as("other"))
    # Eight slots: the first answers of the large client pause, and go on.
    assert done.index("small") <= 8
    assert done.index("other") <= 8
    await asyncio.gather(*large)


async def test_one_token_is_never_lost(engine: ContinuousBatchingEngine) -> None:
    for _ in range(20):
        assert len(await collect(submit(engine, PROMPTS[0], greedy(max_tokens=1)))) == 1


async def test_cancelling_leaves_nothing_behind(engine: ContinuousBatchingEngine) -> None:
    streams = [submit(engine, PROMPTS[0], greedy(1500)) for _ in range(10)]  # more than fit
    engine.cancel(streams.pop())
    assert len(await collect(submit(engine, PROMPTS[2], greedy(5)))) == 5
    for stream in streams:
        engine.cancel(stream)
        assert stream.closed
    assert engine._running == {}
    assert engine._states == {}
    assert engine._manager.output_router.result_handlers == {}


async def test_sequences_of_one_prompt_end_one_by_one(engine: ContinuousBatchingEngine) -> None:
    stream = engine.submit(PROMPTS[0], [greedy(3), greedy(1900), greedy(7)])
    finished: list[int] = []
    async for arrival in stream:
        finished += [arrival.sequence] * arrival.finished
        if len(finished) == 2:
            engine.cancel(stream, 1)
    assert finished == [0, 2, 1]
    assert [stream.counts[0], stream.counts[2]] == [3, 7]


async def test_end_of_turn_and_its_limits(engine: ContinuousBatchingEngine) -> None:
    def biased(**params: Any) -> SamplingParams:
        end = {0: 100.0}  # the model wants nothing but the end
        return SamplingParams(max_tokens=9, temperature=0.0, logit_bias=end, **params)

    assert await collect(submit(engine, PROMPTS[0], biased())) == [0]
    assert await collect(submit(engine, PROMPTS[0], biased(ignore_eos=True))) == [0] * 9
    late = await collect(submit(engine, PROMPTS[0], biased(min_tokens=4)))
    assert len(late) == 5
    assert late.index(0) == 4


async def test_penalties_and_logprobs_equal_a_plain_recomputation(
    model: LlamaForCausalLM, engine: ContinuousBatchingEngine
) -> None:
    """Token by token, from the whole text each time, while others run in the batch."""
    params = SamplingParams(
        max_tokens=25,
        temperature=0.0,
        repetition_penalty=1.3,
        frequency_penalty=0.4,
        presence_penalty=0.3,
        logit_bias={50: 1.5, 60: -2.0},
        top_logprobs=4,
    )
    prompt = PROMPTS[3]
    stream = engine.submit(prompt, [params])
    tokens, *_ = await asyncio.gather(
        collect(stream), *(collect(submit(engine, each, greedy())) for each in PROMPTS)
    )
    assert len(stream.logprobs[0]) == len(tokens) == 25
    for position, (token, entry) in enumerate(zip(tokens, stream.logprobs[0], strict=True)):
        text = prompt + tokens[:position]
        with torch.no_grad():
            logits = model(torch.tensor([text])).logits[0, -1]
        logprobs = logits.log_softmax(-1)
        assert entry.token == token
        assert entry.logprob == pytest.approx(logprobs[token].item(), abs=1e-4)
        expected = logprobs.topk(4)
        assert [each for each, _ in entry.top] == expected.indices.tolist()
        assert [each for _, each in entry.top] == pytest.approx(expected.values.tolist(), abs=1e-4)
        for each in set(text):
            logits[each] *= 1.3 if logits[each] < 0 else 1 / 1.3
        for each in set(tokens[:position]):
            logits[each] -= 0.4 * tokens[:position].count(each) + 0.3
        logits[50] += 1.5
        logits[60] -= 2.0
        assert token == logits.argmax().item()


async def test_a_preempted_request_goes_on_as_if_nothing_had_happened(
    model: LlamaForCausalLM,
) -> None:
    """More context than the cache holds: requests lose their place and come back."""
    engine = start(model, kv_cache_tokens=512)
    params = SamplingParams(
        max_tokens=200, temperature=1.0, seed=3, frequency_penalty=1.0, top_logprobs=0
    )
    try:
        alone = await collect(submit(engine, PROMPTS[0], params))
        streams = [submit(engine, PROMPTS[0], params) for _ in range(4)]
        together = await asyncio.gather(*(collect(stream) for stream in streams))
    finally:
        engine.stop()
    assert together == [alone] * 4
    assert [entry.token for entry in streams[-1].logprobs[0]] == alone


async def test_a_batch_that_does_not_fit_into_memory_is_split(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(model)
    expected = [await collect(submit(engine, prompt, greedy())) for prompt in PROMPTS]
    forward = model.forward
    failures = 0

    def small_memory(*args: Any, **kwargs: Any) -> Any:
        nonlocal failures
        if kwargs["input_ids"].size(-1) > 20:
            failures += 1
            raise torch.OutOfMemoryError("too many tokens")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", small_memory)
    together = await asyncio.gather(*(collect(submit(engine, p, greedy())) for p in PROMPTS))
    assert together == expected
    assert failures
    assert engine.alive
    engine.stop()


async def test_what_never_fits_into_memory_fails_alone(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(model)
    forward = model.forward

    def no_memory_for_298_and_299(*args: Any, **kwargs: Any) -> Any:
        if {298, 299} <= set(kwargs["input_ids"].flatten().tolist()):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", no_memory_for_298_and_299)
    prompts = [*PROMPTS, [298, 299]]
    *others, unlucky = await asyncio.gather(
        *(collect(submit(engine, p, greedy())) for p in prompts), return_exceptions=True
    )
    assert isinstance(unlucky, Unavailable)
    assert all(isinstance(other, list) for other in others)
    assert engine.alive
    assert step_limits(engine._manager)[0] == 8
    engine.stop()


async def test_a_slow_reader_gets_what_has_piled_up(engine: ContinuousBatchingEngine) -> None:
    stream = submit(engine, PROMPTS[0], greedy(50))
    async with asyncio.timeout(30):
        while not stream.closed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    pieces = [arrival.tokens async for arrival in stream]
    assert sum(len(tokens) for tokens in pieces) == 50
    assert len(pieces) == 1


async def test_when_the_thread_dies_everybody_hears_of_it(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(model)
    stream = submit(engine, PROMPTS[0], greedy(1900))
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
        submit(engine, PROMPTS[0], greedy())
    engine.stop()


async def test_longest_request_is_known(engine: ContinuousBatchingEngine) -> None:
    assert engine.max_length == 2048  # the model's; the cache holds more


@pytest.mark.parametrize("build", [build_chat_model, build_recurrent_model])
async def test_a_token_that_the_model_lacks_fails_its_request_alone(
    build: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Tokenizers may have more tokens than the model has embeddings."""
    folder = build(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra_{number}>" for number in range(100)])
    tokenizer.save_pretrained(folder)
    settings = Settings(_env_file=None, kv_cache_tokens=4096)
    model = ChatModel.load(str(folder), Device("cpu", "float32"), settings)

    async def ask(text: str, max_tokens: int = 5) -> int:
        conversation = ChatPrompt([{"role": "user", "content": text}])
        async with AsyncExitStack() as resources:
            options = ChatOptions(max_tokens=max_tokens)
            answer = await model.answer(conversation, options, resources, Deadline(60))
            return [chunk async for chunk in answer][-1].completion_tokens

    try:
        other = asyncio.create_task(ask("hello", 100))
        with pytest.raises(InvalidInput, match="<extra_99>") as refused:
            await ask("say <extra_99>")
        assert refused.value.param == "prompt"
        assert await other > 0
        assert model.alive
    finally:
        model.unload()


@pytest.mark.parametrize("sliding_window", [None, 24])
async def test_flash_attention_is_asked_for_the_same_as_any_other(
    sliding_window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch has it on GPUs alone; here another function with the same parameters stands in."""
    monkeypatch.setattr(transformers_private, "varlen_attn", lengths_attention)
    torch.manual_seed(1)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=sliding_window,
        )
    ).eval()
    expected, actual = [], []
    for answers, acceleration in (
        (expected, PLAIN),
        (actual, Acceleration("flash", "of this test", VARLEN)),
    ):
        engine = start(model, acceleration=acceleration)
        try:
            streams = [submit(engine, prompt, greedy()) for prompt in PROMPTS]
            answers += await asyncio.gather(*map(collect, streams))
        finally:
            engine.stop()
    assert engine.attention == "flash"
    assert actual == expected
