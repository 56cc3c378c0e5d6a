"""The metrics of one service, in the format of Prometheus.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, TypeVar, cast

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder

G = TypeVar("G")


class Metrics:
    """The metrics of one service, in groups that are created when they are first used.

    Metrics of prometheus_client's own registry are shown with them: those of the process, and
    yours, where you create one with `Counter("name", "description")`.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._groups: dict[object, object] = {}

    def group(self, kind: Callable[[CollectorRegistry], G]) -> G:
        """The one group of this kind. `kind` is a class that registers its metrics when created."""
        if kind not in self._groups:
            self._groups[kind] = kind(self.registry)
        return cast(G, self._groups[kind])

    def collect(self) -> Iterator[Metric]:
        return chain(self.registry.collect(), REGISTRY.collect())

    def render(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type. accept: the header of the request"""
        encode, content_type = choose_encoder(accept)
        return encode(cast(Any, self)), content_type
