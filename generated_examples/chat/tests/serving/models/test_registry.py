"""Loading on first use, in use, idle, dead: what the registry promises."""

import asyncio
import gc
import math
import sys
import threading
import weakref
from typing import Any, ClassVar

import pytest

from chat_server import custom
from chat_server.catalog import configured_models
from chat_server.serving.deadline import Deadline
from chat_server.serving.metrics import Metrics
from chat_server.serving.models.device import Device
from chat_server.serving.models.model import Model, ModelSpec
from chat_server.serving.models.model_errors import (
    LoadFailed,
    StillLoading,
    Unavailable,
    UnknownModel,
)
from chat_server.serving.models.registry import ModelRegistry
from chat_server.serving.threads import threads_left
from chat_server.settings import Settings

pytestmark = pytest.mark.anyio


class Echo(Model):
    type: ClassVar[str] = "echo"

    def __init__(self) -> None:
        self.running = True
        self.unloaded = False
        self.gate = threading.Event()
        self.gate.set()

    @property
    def alive(self) -> bool:
        return self.running

    def unload(self) -> None:
        assert self.gate.wait(10)
        self.unloaded = True


class Other(Echo):
    type: ClassVar[str] = "other"


class Clock:
    """`time` for the registry, which the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("chat_server.serving.models.registry.time", clock)
    return clock


class Loader:
    """Loads when it is let, and counts."""

    def __init__(self) -> None:
        self.attempts = 0
        self.loaded: list[Echo] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, device: Device) -> Echo:
        self.attempts += 1
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


async def test_failed_load_is_tried_again_when_the_next_attempt_is_due(
    registry: ModelRegistry, loader: Loader, clock: Clock
) -> None:
    loader.error = OSError("corrupt file")
    results = await asyncio.gather(use(registry), use(registry), return_exceptions=True)
    assert [type(result) for result in results] == [LoadFailed, LoadFailed]
    assert isinstance(results[0], LoadFailed)
    assert isinstance(results[0].__cause__, OSError)
    assert loader.attempts == 1
    loader.error = None
    with pytest.raises(LoadFailed):
        await use(registry)
    clock.now += 1
    assert await use(registry)
    assert loader.attempts == 2


async def test_attempts_back_off(registry: ModelRegistry, loader: Loader, clock: Clock) -> None:
    loader.error = OSError("corrupt file")
    registry.require_all()
    pauses = []
    for _ in range(8):
        with pytest.raises(LoadFailed) as failure:
            await use(registry)
        pauses.append(failure.value.retry_after)
        clock.now += pauses[-1] - 0.5
        await registry.reload_missing()  # nothing is due
        clock.now += 0.5
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert loader.attempts == 8
    loader.error = None
    await registry.reload_missing()
    assert registry.wanted == set()
    assert await use(registry)


class HalfLoaded:
    """Stands for the memory that a load has taken when it fails."""


async def test_a_load_that_fails_half_way_leaves_nothing_behind(loader: Loader) -> None:
    halves: list[weakref.ref[HalfLoaded]] = []

    def load(device: Device) -> Model:
        half = HalfLoaded()
        halves.append(weakref.ref(half))
        try:
            raise OSError("corrupt file")
        except OSError as error:
            raise ValueError("no weights") from error

    registry = ModelRegistry([ModelSpec("echo", Echo, load)], Device())
    gc.disable()
    try:
        with pytest.raises(LoadFailed) as failure:
            await use(registry)
        assert halves[0]() is None, failure
    finally:
        gc.enable()


async def test_a_loader_that_leaves_does_not_take_the_service_with_it() -> None:
    registry = ModelRegistry([ModelSpec("echo", Echo, lambda device: sys.exit(1))], Device())
    with pytest.raises(LoadFailed):
        await use(registry)


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


@pytest.mark.parametrize(("limit", "own"), [(math.inf, 0.2), (0.2, None)])
async def test_no_request_waits_for_a_load_without_end(
    loader: Loader, limit: float, own: float | None
) -> None:
    registry = ModelRegistry([ModelSpec("echo", Echo, loader)], Device(), limit)
    loader.gate.clear()
    with pytest.raises(StillLoading, match="still being loaded"):
        async with registry.use("echo", Echo, Deadline(own) if own else None):
            pass
    loader.gate.set()
    assert await use(registry) is loader.loaded[0]
    assert loader.attempts == 1


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


async def test_a_request_during_an_idle_unload_gets_a_new_model(
    registry: ModelRegistry, loader: Loader
) -> None:
    model = await use(registry)
    model.gate.clear()
    unloading = asyncio.create_task(registry.unload_idle(0))
    await asyncio.sleep(0.01)
    using = asyncio.create_task(use(registry))
    await asyncio.sleep(0.05)
    assert loader.attempts == 1  # the two never share the memory
    model.gate.set()
    new = await using
    assert new is not model
    assert not new.unloaded
    await unloading


async def test_dead_model_is_replaced(registry: ModelRegistry, loader: Loader) -> None:
    model = await use(registry)
    model.running = False
    assert registry.dead == ["echo"]
    await registry.reload_missing()
    assert registry.dead == []
    assert model.unloaded
    assert len(loader.loaded) == 2


async def test_deaths_are_counted_apart_from_unloads(loader: Loader) -> None:
    metrics = Metrics()
    registry = ModelRegistry([ModelSpec("echo", Echo, loader)], Device(), metrics=metrics)

    def counted(name: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"model_name": "echo"})

    await use(registry)
    await registry.unload_idle(0)
    assert (counted("infer_model_unloads_total"), counted("infer_model_deaths_total")) == (1, 0)
    model = await use(registry)
    model.running = False
    await registry.reload_missing()
    assert (counted("infer_model_unloads_total"), counted("infer_model_deaths_total")) == (2, 1)


async def test_a_request_waits_for_the_replacement_of_a_dead_model(
    registry: ModelRegistry, loader: Loader
) -> None:
    model = await use(registry)
    model.running = False
    loader.gate.clear()
    using = asyncio.create_task(use(registry))
    await asyncio.sleep(0.05)
    assert registry.wanted == {"echo"}
    loader.gate.set()
    assert await using is loader.loaded[1]
    assert registry.wanted == set()


async def test_preload_leaves_alone_what_a_request_has_loaded(
    registry: ModelRegistry, loader: Loader
) -> None:
    loader.gate.clear()
    registry.require_all()
    preloading = asyncio.create_task(registry.reload_missing())
    await asyncio.sleep(0.05)
    async with registry.use("other", Other) as model:
        loader.gate.set()
        await preloading
        assert not model.unloaded


async def test_a_load_is_no_idle_time(registry: ModelRegistry, loader: Loader) -> None:
    loader.gate.clear()
    registry.require_all()
    preloading = asyncio.create_task(registry.reload_missing())
    await asyncio.sleep(0.05)
    unloading = asyncio.create_task(registry.unload_idle(600))
    await asyncio.sleep(0.05)
    loader.gate.set()
    await asyncio.gather(preloading, unloading)
    assert len(registry.loaded) == 2


async def test_a_failed_revival_is_not_ready(
    registry: ModelRegistry, loader: Loader, clock: Clock
) -> None:
    model = await use(registry)
    model.running = False
    loader.error = OSError("corrupt file")
    await registry.reload_missing()
    assert registry.wanted == {"echo"}
    loader.error = None
    clock.now += 1
    await registry.reload_missing()
    assert registry.wanted == set()


async def test_close_unloads_everything_and_lets_nothing_in(
    registry: ModelRegistry, loader: Loader
) -> None:
    model = await use(registry)
    await registry.close()
    assert model.unloaded
    with pytest.raises(Unavailable):
        await use(registry)
    registry.require_all()
    with pytest.raises(Unavailable):
        await registry.reload_missing()
    assert loader.attempts == 1


async def test_close_gives_up_a_load_which_then_leaves_nothing(
    registry: ModelRegistry, loader: Loader
) -> None:
    loader.gate.clear()
    waiting = asyncio.create_task(use(registry))
    await asyncio.sleep(0.05)
    await asyncio.wait_for(registry.close(), 1)
    with pytest.raises(Unavailable):
        await waiting
    loader.gate.set()
    for thread in threads_left():
        thread.join(10)
    assert loader.loaded[0].unloaded


async def test_close_waits_for_an_idle_unload_that_was_cancelled(registry: ModelRegistry) -> None:
    model = await use(registry)
    model.gate.clear()
    unloading = asyncio.create_task(registry.unload_idle(0))
    await asyncio.sleep(0.01)
    unloading.cancel()
    closing = asyncio.create_task(registry.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    model.gate.set()
    await closing
    assert model.unloaded


async def test_close_leaves_a_model_behind_that_hangs(
    registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat_server.serving.models.registry.UNLOAD_SECONDS", 0.05)
    model = await use(registry)
    model.gate.clear()
    await asyncio.wait_for(registry.close(), 1)
    assert not model.unloaded
    model.gate.set()


async def test_wanted_until_loaded(registry: ModelRegistry, loader: Loader, clock: Clock) -> None:
    registry.require_all()
    loader.error = OSError("corrupt file")
    await registry.reload_missing()
    assert registry.wanted == {"echo"}
    loader.error = None
    clock.now += 1
    await use(registry)
    assert registry.wanted == set()
    assert [spec.id for spec in registry.loaded] == ["echo", "other"]


def two_models(settings: Settings) -> list[ModelSpec]:
    return [
        ModelSpec("echo", Echo, lambda device: Echo(), aliases=("same",)),
        ModelSpec("same", Echo, lambda device: Echo()),
    ]


def test_no_two_models_share_a_name(
    tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom, "models", two_models)
    with pytest.raises(ValueError, match="same"):
        configured_models(Settings(_env_file=None, **tiny_settings))
