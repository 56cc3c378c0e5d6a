"""Metrics of engines: their batch, their queue and their KV cache.

Names and labels are those of vLLM where it has the metric.
"""

from typing import TYPE_CHECKING
from weakref import WeakMethod

from prometheus_client import CollectorRegistry, Counter, Gauge

from ..metrics import TokenHistogram

if TYPE_CHECKING:
    from .base_engine import Engine

LABELS = ("model_name",)
BATCH = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class EngineMetrics:
    """The engines of all models of a service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, LABELS, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, (*LABELS, *labels), registry=registry)

        self.cache_usage = gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1")
        self.info = gauge("infer_engine_info", "1 for the engine in use", "engine", "engine_reason")
        self.prefix_queries = counter(
            "vllm:prefix_cache_queries", "Tokens of prompts that were looked up in the prefix cache"
        )
        self.prefix_hits = counter(
            "vllm:prefix_cache_hits", "Tokens of prompts that the prefix cache had"
        )
        self.preemptions = counter(
            "vllm:num_preemptions", "Sequences that lost their slot and are computed again"
        )
        self.oom_splits = counter(
            "infer_out_of_memory_splits", "Steps that were halved because memory ran out"
        )
        self.batch = TokenHistogram(
            "infer_batch_sequences",
            "Sequences that got a token in a step",
            LABELS,
            buckets=BATCH,
            registry=registry,
        )

    def of(self, model: str, engine: "Engine") -> "EngineMeter":
        """The meter of an engine, whose KV cache is shown until nothing else refers to it."""
        reference = WeakMethod(engine.cache_usage)

        def cache_usage() -> float:
            method = reference()
            return method() if method else 0.0

        self.cache_usage.labels(model).set_function(cache_usage)
        name = "sequential" if engine.reason else "continuous"
        self.info.remove_by_labels({"model_name": model})
        self.info.labels(model, name, engine.reason or "").set(1)
        return EngineMeter(self, model)


class EngineMeter:
    """The series of one engine. The inference thread counts."""

    def __init__(self, metrics: EngineMetrics, model: str) -> None:
        self.prefix_queries = metrics.prefix_queries.labels(model)
        self.prefix_hits = metrics.prefix_hits.labels(model)
        self.preemptions = metrics.preemptions.labels(model)
        self.oom_splits = metrics.oom_splits.labels(model)
        self.batch = metrics.batch.labels(model)
