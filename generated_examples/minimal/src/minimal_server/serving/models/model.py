"""The interface for models of your own: subclass `Model`, list it in a `ModelSpec`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..metrics import Metrics
from .device import Device


class Model(ABC):
    """One loaded model. Its methods for inference are its own; the registry needs only these."""

    type: ClassVar[str]
    """Its task, as `/v1/models` shows it: "chat", "embeddings", …"""

    @property
    def alive(self) -> bool:
        """False when the model can no longer answer, for example because its thread died."""
        return True

    @property
    def details(self) -> Mapping[str, str | None]:
        """Fields for `/health`, named as those of `health.LoadedModel`."""
        return {}

    def measure(self, metrics: Metrics, name: str) -> None:  # noqa: B027
        """Counts in these metrics from now on, under this name. Called once, after the load."""

    def variant(self, name: str) -> "Model":
        """The model under one of the names of `ModelSpec.variants`. Raises LoadFailed."""
        raise NotImplementedError

    @property
    def refused_variants(self) -> Mapping[str, str]:
        """Why variants could not be loaded, by name. The end of a sentence for clients."""
        return {}

    @abstractmethod
    def unload(self) -> None:
        """Frees what the model holds. Runs in a thread, so it may block."""


@dataclass(frozen=True)
class ModelSpec:
    """A model that the service can load."""

    id: str
    """The name that clients use."""
    model_class: type[Model]
    load: Callable[[Device], Model]
    """Runs in a thread, so it may read files and block. Its errors become a 503.

    It holds `hub.LOADING` while it imports transformers.
    """
    aliases: tuple[str, ...] = ()
    """Other names that clients may use, for example the folder of the weights."""
    variants: tuple[str, ...] = ()
    """Names of models that are loaded with this one, such as its adapters: see `Model.variant`."""
