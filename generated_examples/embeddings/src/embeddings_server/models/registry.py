"""Which models there are, which are loaded, and who uses them."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from .base import Model, ModelSpec
from .device import Device
from .errors import LoadFailed, Unavailable, UnknownModel

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Model)


@dataclass
class Entry:
    """A configured model and, while it is loaded, the model itself."""

    spec: ModelSpec
    model: Model | None = None
    users: int = 0
    last_used: float = 0.0
    loading: asyncio.Task[Model] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the model is loaded or unloaded, so that the two never overlap."""


class ModelRegistry:
    """Loads a model on its first use, counts its users, unloads it when nobody needs it.

    Everything here runs on the event loop; only `ModelSpec.load` and `Model.unload` run in a
    thread. What is not awaited is therefore atomic.
    """

    def __init__(self, specs: Iterable[ModelSpec], device: Device) -> None:
        self.device = device
        self.created = int(time.time())
        self.wanted: set[str] = set()
        """Ids of the models without which the service is not ready, not loaded so far"""
        self._entries = {spec.id: Entry(spec) for spec in specs}
        self._closed = False

    @property
    def specs(self) -> list[ModelSpec]:
        return [entry.spec for entry in self._entries.values()]

    @property
    def loaded(self) -> list[ModelSpec]:
        return [entry.spec for entry in self._entries.values() if entry.model is not None]

    @property
    def dead(self) -> list[str]:
        """Ids of the loaded models that can no longer answer."""
        return [
            id_ for id_, entry in self._entries.items() if entry.model and not entry.model.alive
        ]

    def spec(self, name: str) -> ModelSpec:
        """The model with this id or alias. Raises UnknownModel."""
        return self._find(name).spec

    @asynccontextmanager
    async def use(self, name: str, model_class: type[M]) -> AsyncIterator[M]:
        """The model, loaded, and kept loaded until the block ends.

        Raises UnknownModel, LoadFailed, or Unavailable while the service shuts down.
        """
        entry = self._find(name)
        if not issubclass(entry.spec.model_class, model_class):
            raise UnknownModel(f"The model {name!r} does not serve this endpoint.")
        if self._closed:
            raise Unavailable("The service is shutting down.")
        entry.users += 1  # before any await: from here on, it is not idle
        try:
            model = entry.model if entry.model is not None else await self._load(entry)
            assert isinstance(model, model_class)
            yield model
        finally:
            entry.users -= 1
            entry.last_used = time.monotonic()

    def want_all(self) -> None:
        """From now on the service is not ready before every model has been loaded once."""
        self.wanted = set(self._entries)

    async def load_wanted(self) -> None:
        """Loads what is wanted, one after the other. What fails stays wanted, and is logged."""
        for id_ in sorted(self.wanted):
            with suppress(LoadFailed):
                await self._load(self._entries[id_])

    async def revive(self) -> None:
        """Loads the models anew whose thread died. What fails is wanted from then on."""
        for entry in self._entries.values():
            if entry.model and not entry.model.alive:
                with suppress(LoadFailed):
                    await self._load(entry)

    async def unload_idle(self, after_seconds: float) -> None:
        """Unloads what nobody uses and nobody has used for `after_seconds`."""
        for entry in self._entries.values():
            async with entry.lock:  # a load that is under way is no idle time
                idle = time.monotonic() - entry.last_used
                if entry.users == 0 and idle >= after_seconds:
                    await self._unload(entry)

    async def close(self) -> None:
        """Unloads every model, used or not. Nothing can be loaded afterwards."""
        self._closed = True
        for entry in self._entries.values():
            if entry.loading is not None:
                await asyncio.wait([entry.loading])
            async with entry.lock:
                await self._unload(entry)

    def _find(self, name: str) -> Entry:
        for entry in self._entries.values():
            if name == entry.spec.id or name in entry.spec.aliases:
                return entry
        raise UnknownModel(f"The model {name!r} does not exist. GET /v1/models lists what does.")

    async def _load(self, entry: Entry) -> Model:
        # One task for all who wait: a client that goes away must not stop the load of the others.
        if entry.loading is None:
            entry.loading = asyncio.create_task(self._load_in_thread(entry))
        return await asyncio.shield(entry.loading)

    async def _load_in_thread(self, entry: Entry) -> Model:
        try:
            async with entry.lock:
                started = time.monotonic()
                if entry.model is not None:
                    if entry.model.alive:  # loaded while this waited for the lock
                        return entry.model
                    dead, entry.model = entry.model, None
                    self.wanted.add(entry.spec.id)  # not ready before it is back
                    await asyncio.to_thread(dead.unload)
                logger.info("loading %s", entry.spec.id)
                entry.model = await asyncio.to_thread(entry.spec.load, self.device)
                entry.last_used = time.monotonic()
                self.wanted.discard(entry.spec.id)
                seconds = entry.last_used - started
                logger.info("loaded %s in %.1f s", entry.spec.id, seconds)
                return entry.model
        except Exception as error:
            logger.exception("loading %s failed", entry.spec.id)
            raise LoadFailed(f"The model {entry.spec.id!r} could not be loaded.") from error
        finally:
            entry.loading = None

    async def _unload(self, entry: Entry) -> None:
        """Needs the lock."""
        if entry.model is None:
            return
        model, entry.model = entry.model, None  # who comes now waits for the lock and loads anew
        try:
            await asyncio.to_thread(model.unload)
            logger.info("unloaded %s", entry.spec.id)
        except Exception:
            logger.exception("unloading %s failed", entry.spec.id)
