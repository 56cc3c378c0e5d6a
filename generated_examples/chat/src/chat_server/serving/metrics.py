"""The metrics of one service, in the format of Prometheus.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, TypeVar, cast

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

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

    def render(self) -> tuple[bytes, str]:
        """All metrics in the text format, and its content type.

        Whatever the client prefers: prometheus_client's OpenMetrics has vllm_ for vllm:.
        https://github.com/prometheus/client_python/issues/1177
        """
        return generate_latest(cast(Any, self)), CONTENT_TYPE_PLAIN_0_0_4


class TokenHistogram(Collector):
    """A histogram for values that are observed at each token, without a lock.

    Only one thread may observe a series; any thread may read it.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._documentation, self._labelnames = name, documentation, labelnames
        self._bounds = (*buckets, math.inf)
        self._series: dict[tuple[str, ...], TokenSeries] = {}
        registry.register(self)

    def labels(self, *values: str) -> "TokenSeries":
        return self._series.setdefault(values, TokenSeries(self._bounds))

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)
        names = [*(repr(float(bound)) for bound in self._bounds[:-1]), "+Inf"]
        for values, series in list(self._series.items()):
            buckets = list(zip(names, accumulate(series.counts), strict=True))
            family.add_metric(values, buckets, series.sum)
        yield family


class TokenSeries:
    """The values of a TokenHistogram with the same labels."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * len(bounds)
        """Values up to each bound and above the one before"""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value
