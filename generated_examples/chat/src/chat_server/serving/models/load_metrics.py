"""Metrics of models that are loaded and unloaded."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

LABELS = ("model_name",)


class LoadMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._loaded = Gauge(
            "infer_model_loaded", "1 while the model is loaded and works", LABELS, registry=registry
        )
        self._loads = Counter("infer_model_loads", "Loads", LABELS, registry=registry)
        self._unloads = Counter("infer_model_unloads", "Unloads", LABELS, registry=registry)
        self._deaths = Counter(
            "infer_model_deaths",
            "Models that stopped working while they were loaded",
            LABELS,
            registry=registry,
        )
        self._failures = Counter(
            "infer_model_load_failures", "Loads that failed", LABELS, registry=registry
        )
        self._failing = Gauge(
            "infer_model_load_failing",
            "1 while the last load of the model is one that failed",
            LABELS,
            registry=registry,
        )
        self._seconds = Gauge(
            "infer_model_load_seconds", "Seconds of the last load", LABELS, registry=registry
        )

    def watch(
        self, model: str, is_loaded: Callable[[], bool], is_failing: Callable[[], bool]
    ) -> None:
        """Shows a model from now on."""
        self._loaded.labels(model).set_function(is_loaded)
        self._failing.labels(model).set_function(is_failing)
        for counter in (self._loads, self._unloads, self._deaths, self._failures):
            counter.labels(model)

    def loaded(self, model: str, seconds: float) -> None:
        self._loads.labels(model).inc()
        self._seconds.labels(model).set(seconds)

    def unloaded(self, model: str, *, dead: bool) -> None:
        self._unloads.labels(model).inc()
        if dead:
            self._deaths.labels(model).inc()

    def failed(self, model: str) -> None:
        self._failures.labels(model).inc()
