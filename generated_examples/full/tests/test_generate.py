"""The engine for models that cannot be batched."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from full_server.models.chat import ChatModel
from full_server.models.device import Device
from full_server.models.errors import Overloaded
from full_server.models.generate import GenerateEngine
from full_server.models.params import SamplingParams
from full_server.models.tokens import TokenStream
from full_server.settings import Settings

from .tiny_chat import build_recurrent_model

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def model(tmp_path: Path) -> Iterator[ChatModel]:
    folder = build_recurrent_model(tmp_path / "recurrent")
    settings = Settings(_env_file=None, max_queue=1, kv_cache_tokens=256)
    model = ChatModel.load(str(folder), Device("cpu", "float32"), settings)
    yield model
    model.unload()


async def collect(stream: TokenStream) -> list[int]:
    return [token async for tokens in stream for token in tokens]


async def test_a_recurrent_model_chats(model: ChatModel) -> None:
    assert isinstance(model._engine, GenerateEngine)
    prompt = await model.encode(MESSAGES)
    params = model.sampling(prompt, max_tokens=12, temperature=1.0, seed=3)
    first = await model.complete(prompt, params)
    assert first.completion_tokens <= 12
    assert first == await model.complete(prompt, params)


async def test_one_after_the_other_and_a_bounded_queue(model: ChatModel) -> None:
    prompt = await model.encode(MESSAGES)
    params = SamplingParams(max_tokens=200, temperature=0.0)
    running, waiting = (model._engine.submit(prompt, params) for _ in range(2))
    with pytest.raises(Overloaded):
        model._engine.submit(prompt, params)
    model._engine.cancel(running)
    model._engine.cancel(waiting)
    short = model._engine.submit(prompt, SamplingParams(max_tokens=3, temperature=0.0))
    assert 1 <= len(await asyncio.wait_for(collect(short), 20)) <= 3
