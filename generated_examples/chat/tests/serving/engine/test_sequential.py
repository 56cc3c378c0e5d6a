"""The engine for models that cannot be batched."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from chat_server.serving.chat.chat_model import ChatModel
from chat_server.serving.chat.options import ChatOptions
from chat_server.serving.chat.output_parser import Chunk
from chat_server.serving.chat.prompt import ChatPrompt
from chat_server.serving.deadline import Deadline
from chat_server.serving.engine.base_engine import TokenStream
from chat_server.serving.engine.sampling_params import (
    SamplingOptions,
    SamplingParams,
)
from chat_server.serving.engine.sequential import SequentialEngine
from chat_server.serving.models.device import Device
from chat_server.serving.models.model_errors import Unavailable
from chat_server.settings import Settings

from ...tiny_chat import build_recurrent_model

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def model(tmp_path: Path) -> Iterator[ChatModel]:
    folder = build_recurrent_model(tmp_path / "recurrent")
    settings = Settings(_env_file=None, max_queue=1, kv_cache_tokens=256)
    model = ChatModel.load(str(folder), Device("cpu", "float32"), settings)
    yield model
    model.unload()


async def ask(model: ChatModel, **sampling: Any) -> list[Chunk]:
    options = ChatOptions(max_tokens=12, sampling=SamplingOptions(**sampling), seed=3)
    async with AsyncExitStack() as resources:
        answer = await model.answer(ChatPrompt(MESSAGES), options, resources, Deadline(60))
        return [chunk async for chunk in answer]


async def collect(stream: TokenStream) -> list[int]:
    return [token async for arrival in stream for token in arrival.tokens]


async def test_a_recurrent_model_chats(model: ChatModel) -> None:
    assert isinstance(model._engine, SequentialEngine)
    first = await ask(model, temperature=1.0, top_logprobs=1)
    assert 1 <= first[-1].completion_tokens <= 12
    second = await ask(model, temperature=1.0, top_logprobs=1)
    assert "".join(chunk.text for chunk in first) == "".join(chunk.text for chunk in second)
    assert any(chunk.logprobs for chunk in first)


async def test_one_after_the_other_and_cancelled_in_any_order(model: ChatModel) -> None:
    engine = model._engine
    long = SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True)
    running, waiting = (engine.submit([1, 2], [long]) for _ in range(2))
    engine.cancel(waiting)
    engine.cancel(running)
    short = engine.submit([1, 2], [SamplingParams(max_tokens=3, temperature=0.0)] * 2)
    assert 2 <= len(await asyncio.wait_for(collect(short), 20)) <= 6


async def test_clients_take_turns(model: ChatModel) -> None:
    params = [SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)]
    done: list[str] = []

    async def ask_as(client: str) -> None:
        await collect(model._engine.submit([1, 2], params, client))
        done.append(client)

    clients = ["large"] * 4 + ["small", "other"]
    await asyncio.gather(*map(ask_as, clients))
    assert done == ["large", "small", "other", "large", "large", "large"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_when_the_thread_dies_everybody_hears_of_it(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = model._engine

    def die(job: object) -> None:
        raise SystemExit

    monkeypatch.setattr(engine, "_generate", die)
    params = [SamplingParams(max_tokens=3)]
    for _ in range(3):  # whether the thread is about to die, dying or dead
        with pytest.raises(Unavailable):
            await asyncio.wait_for(collect(engine.submit([1, 2], params)), 20)
    async with asyncio.timeout(20):
        while model.alive:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
