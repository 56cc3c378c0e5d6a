"""Loading on first use, in use, idle, dead: what the registry promises."""

import asyncio
import threading
from typing import Any, ClassVar

import pytest

from embeddings_server.models.base import Model, ModelSpec
from embeddings_server.models.device import Device
from embeddings_server.models.errors import LoadFailed, Unavailable, UnknownModel
from embeddings_server.models.registry import ModelRegistry

pytestmark = pytest.mark.anyio


class Echo(Model):
    type: ClassVar[str] = "echo"

    def __init__(self) -> None:
        self.running = True
        self.unloaded = False

    @property
    def alive(self) -> bool:
        return self.running

    def unload(self) -> None:
        self.unloaded = True


class Other(Echo):
    type: ClassVar[str] = "other"


class Loader:
    """Loads when it is let, and counts."""

    def __init__(self) -> None:
        self.loaded: list[Echo] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, device: Device) -> Echo:
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.loaded.append(Echo())
        return self.loaded[-1]


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def registry(loader: Loader) -> ModelRegistry:
    specs = [
        ModelSpec("echo", Echo, loader, aliases=("/models/echo",)),
        ModelSpec("other", Other, lambda device: Other()),
    ]
    return ModelRegistry(specs, Device())


async def use(registry: ModelRegistry, name: str = "echo") -> Echo:
    async with registry.use(name, Echo) as model:
        return model


async def test_loaded_once_on_first_use(registry: ModelRegistry, loader: Loader) -> None:
    assert loader.loaded == []
    models = await asyncio.gather(*(use(registry) for _ in range(5)))
    assert len(loader.loaded) == 1
    assert set(models) == set(loader.loaded)
    assert [spec.id for spec in registry.loaded] == ["echo"]


async def test_known_by_its_alias(registry: ModelRegistry) -> None:
    assert await use(registry, "/models/echo") is await use(registry)


async def test_unknown_or_of_another_kind(registry: ModelRegistry) -> None:
    with pytest.raises(UnknownModel):
        await use(registry, "nope")
    with pytest.raises(UnknownModel):
        async with registry.use("echo", Other):
            pass


async def test_failed_load_is_tried_again(registry: ModelRegistry, loader: Loader) -> None:
    loader.error = OSError("corrupt file")
    results = await asyncio.gather(use(registry), use(registry), return_exceptions=True)
    assert [type(result) for result in results] == [LoadFailed, LoadFailed]
    assert isinstance(results[0], LoadFailed)
    assert isinstance(results[0].__cause__, OSError)
    loader.error = None
    assert await use(registry)


async def test_loading_leaves_the_loop_free_and_survives_a_cancelled_client(
    registry: ModelRegistry, loader: Loader
) -> None:
    loader.gate.clear()
    first = asyncio.create_task(use(registry))
    second = asyncio.create_task(use(registry))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.sleep(0.05)
    loader.gate.set()
    assert await second is loader.loaded[0]
    assert len(loader.loaded) == 1


async def test_idle_unload_spares_what_is_used(registry: ModelRegistry, loader: Loader) -> None:
    async with registry.use("echo", Echo) as model:
        await registry.unload_idle(0)
        assert not model.unloaded
    await registry.unload_idle(3600)
    assert not model.unloaded
    await registry.unload_idle(0)
    assert model.unloaded
    assert registry.loaded == []
    assert await use(registry) is not model


async def test_dead_model_is_replaced(registry: ModelRegistry, loader: Loader) -> None:
    model = await use(registry)
    model.running = False
    assert registry.dead == ["echo"]
    await registry.revive()
    assert registry.dead == []
    assert model.unloaded
    assert len(loader.loaded) == 2


async def test_preload_leaves_alone_what_a_request_has_loaded(
    registry: ModelRegistry, loader: Loader
) -> None:
    loader.gate.clear()
    registry.want_all()
    preloading = asyncio.create_task(registry.load_wanted())
    await asyncio.sleep(0.05)
    async with registry.use("other", Other) as model:
        loader.gate.set()
        await preloading
        assert not model.unloaded


async def test_a_load_is_no_idle_time(registry: ModelRegistry, loader: Loader) -> None:
    loader.gate.clear()
    registry.want_all()
    preloading = asyncio.create_task(registry.load_wanted())
    await asyncio.sleep(0.05)
    unloading = asyncio.create_task(registry.unload_idle(600))
    await asyncio.sleep(0.05)
    loader.gate.set()
    await asyncio.gather(preloading, unloading)
    assert len(registry.loaded) == 2


async def test_a_failed_revival_is_not_ready(registry: ModelRegistry, loader: Loader) -> None:
    model = await use(registry)
    model.running = False
    loader.error = OSError("corrupt file")
    await registry.revive()
    assert registry.wanted == {"echo"}
    loader.error = None
    await registry.load_wanted()
    assert registry.wanted == set()


async def test_close_unloads_everything_and_lets_nothing_in(
    registry: ModelRegistry, loader: Loader
) -> None:
    model = await use(registry)
    await registry.close()
    assert model.unloaded
    with pytest.raises(Unavailable):
        await use(registry)


async def test_close_waits_for_a_load(registry: ModelRegistry, loader: Loader) -> None:
    loader.gate.clear()
    waiting: asyncio.Task[Any] = asyncio.create_task(use(registry))
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(registry.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    loader.gate.set()
    await closing
    assert loader.loaded[0].unloaded
    await waiting


async def test_wanted_until_loaded(registry: ModelRegistry, loader: Loader) -> None:
    registry.want_all()
    loader.error = OSError("corrupt file")
    await registry.load_wanted()
    assert registry.wanted == {"echo"}
    loader.error = None
    await use(registry)
    assert registry.wanted == set()
    assert [spec.id for spec in registry.loaded] == ["echo", "other"]
