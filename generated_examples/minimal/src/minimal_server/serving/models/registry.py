"""The models of the service: configured, loaded, in use."""

import asyncio
import gc
import logging
import math
import time
import traceback
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from ..deadline import Deadline
from ..metrics import Metrics
from ..threads import gc_paused, run_in_thread
from .device import Device
from .load_metrics import LoadMetrics
from .model import Model, ModelSpec
from .model_errors import LoadFailed, SourceError, StillLoading, Unavailable, UnknownModel
from .progress import progress_told_to

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Model)


FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds between two attempts to load what fails to load: 1, 2, 4 … 60"""

UNLOAD_SECONDS = 5.0
"""Time that `close` waits for models to be unloaded. The end of the process frees the rest."""


@dataclass
class Entry:
    """A configured model and, while it is loaded, the model itself."""

    spec: ModelSpec
    model: Model | None = None
    users: int = 0
    last_used: float = 0.0
    loading: asyncio.Task[Model] | None = None
    progress: str = ""
    """Progress of the load that is under way, if it is known"""
    unloading: asyncio.Task[None] | None = None
    failures: int = 0
    """Attempts to load it that failed, since the last one that did not"""
    retry_at: float = 0.0
    """Time of the next attempt, on the monotonic clock"""
    reason: str = ""
    """The end of a sentence for clients: why the last attempt failed, if that may be told"""
    permanent: bool = False
    """The next attempt will fail as well, until the settings or the files change"""

    @property
    def dead(self) -> bool:
        return self.model is not None and not self.model.alive

    def failed(self, error: Exception) -> None:
        """Keeps the reason, and puts the next attempt off, twice as long each time."""
        known = error if isinstance(error, SourceError) else None
        self.reason = known.reason if known else ""
        self.permanent = known is not None and known.permanent
        # The exponent is bounded too: a float has no room for 2 ** 1024.
        pause = min(FIRST_PAUSE * 2 ** min(self.failures, 10), LONGEST_PAUSE)
        self.failures += 1
        self.retry_at = time.monotonic() + pause


class ModelRegistry:
    """Loads a model on its first use, counts its users, unloads it when it is not needed.

    Everything here runs on the event loop; only `ModelSpec.load` and `Model.unload` run in a
    thread. What is not awaited is therefore atomic. A model is loaded or unloaded by one task at
    a time, which `Entry` holds, so that neither a client that leaves nor the shutdown cuts it off.
    """

    def __init__(
        self,
        specs: Iterable[ModelSpec],
        device: Device,
        timeout_seconds: float = math.inf,
        metrics: Metrics | None = None,
    ) -> None:
        """
        Args:
            timeout_seconds: the deadline of callers that pass none.
            metrics: count what happens to the models; by default some of its own.
        """
        self.device = device
        self._metrics = metrics or Metrics()
        self._load_metrics = self._metrics.group(LoadMetrics)
        self._timeout_seconds = timeout_seconds
        self.created = int(time.time())
        self.wanted: set[str] = set()
        """Ids of the models without which the service is not ready, not loaded so far"""
        self._entries = {spec.id: Entry(spec) for spec in specs}
        for id_, entry in self._entries.items():
            self._load_metrics.watch(id_, partial(works, entry), partial(fails, entry))
        self._closed = False

    @property
    def specs(self) -> list[ModelSpec]:
        return [entry.spec for entry in self._entries.values()]

    @property
    def loaded(self) -> list[ModelSpec]:
        return [entry.spec for entry in self._entries.values() if entry.model is not None]

    @property
    def models(self) -> dict[str, Model]:
        """The loaded models by id."""
        return {id_: entry.model for id_, entry in self._entries.items() if entry.model is not None}

    @property
    def dead(self) -> list[str]:
        """Ids of the loaded models that can no longer answer."""
        return [id_ for id_, entry in self._entries.items() if entry.dead]

    @property
    def loading(self) -> dict[str, str]:
        """Progress of the loads that are under way, by id of the model."""
        entries = self._entries.items()
        return {id_: entry.progress or "started" for id_, entry in entries if entry.loading}

    @property
    def load_failures(self) -> dict[str, str]:
        """Why the models that could not be loaded at the last attempt could not, by id."""
        entries = self._entries.items()
        failures = {id_: entry.reason or "see the log" for id_, entry in entries if entry.failures}
        for model in self.models.values():
            failures |= model.refused_variants
        return failures

    def spec(self, name: str) -> ModelSpec:
        """The model with this id or alias, or with this variant. Raises UnknownModel."""
        return self._find(name).spec

    def has(self, name: str) -> bool:
        """True if a model has this id or alias, or a variant has this name."""
        try:
            self._find(name)
        except UnknownModel:
            return False
        return True

    @asynccontextmanager
    async def use(
        self, name: str, model_class: type[M], deadline: Deadline | None = None
    ) -> AsyncIterator[M]:
        """The model or variant, loaded, and kept loaded until the block ends.

        Raises UnknownModel, LoadFailed, StillLoading at the deadline, or Unavailable while the
        service shuts down.
        """
        entry = self._find(name)
        if not issubclass(entry.spec.model_class, model_class):
            raise UnknownModel(f"The model {name[:64]!r} does not serve this endpoint.")
        entry.users += 1  # before any await: from here on, it is not idle
        try:
            model = entry.model
            if model is None or entry.dead:
                model = await self._load_in_time(entry, deadline or Deadline(self._timeout_seconds))
            if self._closed:
                raise registry_closed()
            if name in entry.spec.variants:
                model = model.variant(name)
            assert isinstance(model, model_class)
            yield model
        finally:
            entry.users -= 1
            entry.last_used = time.monotonic()

    def require_all(self) -> None:
        """From now on the service is not ready before every model has been loaded once."""
        self.wanted = set(self._entries)

    async def reload_missing(self) -> None:
        """Loads what is wanted or has died, one after the other, if the next attempt is due.

        What fails stays wanted, and is logged.
        """
        for entry in self._entries.values():
            if entry.model is not None and entry.dead:
                # Before any load: its requests wait until it is unloaded.
                logger.error("%s stopped working", entry.spec.id)
                self.wanted.add(entry.spec.id)
                self._unload(entry, entry.model)
        for entry in self._entries.values():
            if entry.dead or entry.spec.id in self.wanted:
                with suppress(LoadFailed):
                    await self._load(entry)

    async def unload_idle(self, after_seconds: float) -> None:
        """Unloads the models that are not in use and have not been for `after_seconds`."""
        for entry in self._entries.values():
            idle = time.monotonic() - entry.last_used
            if entry.model is not None and entry.users == 0 and idle >= after_seconds:
                await asyncio.shield(self._unload(entry, entry.model))

    async def close(self) -> None:
        """Unloads every model, used or not. Nothing can be loaded afterwards.

        A load that is under way is given up. Its thread goes on, and unloads what it has loaded.
        """
        self._closed = True
        for entry in self._entries.values():
            if entry.loading is not None:
                entry.loading.cancel()
            if entry.model is not None:
                self._unload(entry, entry.model)
        entries = self._entries.values()
        tasks = [task for entry in entries for task in (entry.loading, entry.unloading) if task]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=UNLOAD_SECONDS)
            if late:
                logger.warning("leaving while %d models are still being unloaded", len(late))

    def _find(self, name: str) -> Entry:
        for entry in self._entries.values():
            spec = entry.spec
            if name == spec.id or name in spec.aliases or name in spec.variants:
                return entry
        shown = repr(name[:64])
        raise UnknownModel(f"The model {shown} does not exist. GET /v1/models lists what does.")

    async def _load_in_time(self, entry: Entry, deadline: Deadline) -> Model:
        """`_load`, which goes on when this raises StillLoading."""
        try:
            async with asyncio.timeout_at(deadline.time):
                return await self._load(entry)
        except TimeoutError as error:
            raise StillLoading(f"The model {entry.spec.id!r} is still being loaded.") from error

    async def _load(self, entry: Entry) -> Model:
        """The model, once it is loaded. Raises LoadFailed, or Unavailable while shutting down."""
        if self._closed:
            raise registry_closed()
        # One task for all requests: a client that disconnects must not stop the load of the others.
        if entry.loading is None:
            if entry.retry_at > time.monotonic():
                raise load_failed(entry)
            entry.loading = asyncio.create_task(self._attempt(entry))
        loading = entry.loading
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            if loading.cancelled():  # by `close`
                raise registry_closed() from None
            raise

    async def _attempt(self, entry: Entry) -> Model:
        spec = entry.spec
        try:
            if entry.model is not None:
                self.wanted.add(spec.id)  # not ready before it is back
                self._unload(entry, entry.model)
            if entry.unloading is not None:
                await asyncio.shield(entry.unloading)
            logger.info("loading %s", spec.id)
            started = time.monotonic()
            model = await run_in_thread(partial(self._load_blocking, spec))
        except Exception as error:
            log_failure(entry, error)
            clear_traceback_frames(error)
            entry.failed(error)
            self._load_metrics.failed(spec.id)
            raise load_failed(entry) from error
        finally:
            entry.loading, entry.progress = None, ""
        entry.model = model
        entry.last_used = time.monotonic()
        entry.failures = 0
        self.wanted.discard(spec.id)
        model.measure(self._metrics, spec.id)
        self._load_metrics.loaded(spec.id, entry.last_used - started)
        logger.info("loaded %s in %.1f s", spec.id, entry.last_used - started)
        return model

    def _load_blocking(self, spec: ModelSpec) -> Model:
        """Reads the model in the calling thread, which tells the log and `Entry` of its progress."""

        def tell(text: str) -> None:
            logger.info("loading %s: %s", spec.id, text)
            self._entries[spec.id].progress = text

        with gc_paused(), progress_told_to(tell):
            model = spec.load(self.device)
        if self._closed:
            model.unload()
        return model

    def _unload(self, entry: Entry, model: Model) -> asyncio.Task[None]:
        """Removes the model at once: a new request waits for the unload, then loads it again."""

        async def unload() -> None:
            try:
                await run_in_thread(model.unload)
                logger.info("unloaded %s", entry.spec.id)
            except Exception:
                logger.exception("unloading %s failed", entry.spec.id)
            finally:
                gc.unfreeze()
                entry.unloading = None

        self._load_metrics.unloaded(entry.spec.id, dead=entry.dead)
        entry.model = None
        entry.unloading = asyncio.create_task(unload())
        return entry.unloading


def works(entry: Entry) -> bool:
    return entry.model is not None and not entry.dead


def fails(entry: Entry) -> bool:
    return entry.failures > 0


def load_failed(entry: Entry) -> LoadFailed:
    seconds = math.ceil(max(1.0, entry.retry_at - time.monotonic()))
    name = f"{entry.spec.model_class.type} model {entry.spec.id!r}"
    why = f": {entry.reason}" if entry.reason else ""
    return LoadFailed(
        f"The {name} could not be loaded{why}.", retry_after=seconds, permanent=entry.permanent
    )


def log_failure(entry: Entry, error: Exception) -> None:
    """Logs one line, and the first time the remedy, or an unexpected error's traceback."""
    name = f"{entry.spec.model_class.type} model {entry.spec.id}"
    known = isinstance(error, SourceError)
    again = entry.failures > 0 and entry.reason == getattr(error, "reason", "")
    if again:
        logger.error("loading the %s failed again, attempt %d", name, entry.failures + 1)
    else:
        text = str(error) if known else f"{type(error).__name__}: {error}"
        line = " ".join(text.split())
        logger.error("loading the %s failed: %s", name, line, exc_info=None if known else error)
    if known or again:
        logger.debug("where it failed", exc_info=error)


def registry_closed() -> Unavailable:
    return Unavailable("The service is shutting down.")


def clear_traceback_frames(error: BaseException | None) -> None:
    """Frees the local variables of the functions that failed, such as half of a model."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
