"""Metrics of batches."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from .batch_store import ENDED


class BatchMetrics:
    """The work of this process for batches, whichever process has made them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._running = Gauge(
            "infer_batches_running", "Batches that this process runs", registry=registry
        )
        self._ended = Counter(
            "infer_batches", "Batches that ended, by their status", ("status",), registry=registry
        )
        self._lines = Counter(
            "infer_batches_lines",
            "Lines of batches that were answered: completed or failed",
            ("result",),
            registry=registry,
        )
        self._gave_way = Counter(
            "infer_batches_lines_interrupted",
            "Lines that gave their slot to a request, and are answered again",
            registry=registry,
        )
        for status in ENDED:  # from the first scrape on
            self._ended.labels(status)
        for result in ("completed", "failed"):
            self._lines.labels(result)

    def watch(self, running: Callable[[], int]) -> None:
        self._running.set_function(running)

    def ended(self, status: str) -> None:
        self._ended.labels(status).inc()

    def answered(self, *, succeeded: bool) -> None:
        self._lines.labels("completed" if succeeded else "failed").inc()

    def interrupted(self) -> None:
        self._gave_way.inc()
