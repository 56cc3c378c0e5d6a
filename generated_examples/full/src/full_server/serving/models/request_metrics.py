"""Metrics of the requests to models: tokens, times, and how they ended.

Names, labels and buckets are those of vLLM, because dashboards, autoscalers and gateways read them.
https://docs.vllm.ai/en/latest/usage/metrics.html
"""

import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakMethod

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ..http.token_usage import TokenUsage, token_usage_var
from ..http.tracing import ModelWork, trace_var
from ..metrics import TokenHistogram

FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
REQUEST_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
COUNTED_AT_ONCE = 16
"""Tokens of a request that are counted together: each count takes a lock"""

TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))

LABELS = ("model_name",)


class Load(NamedTuple):
    """The work that a model has."""

    running: int
    """Sequences or texts that it computes"""
    waiting: int
    """Sequences or texts that wait"""


class RequestMetrics:
    """The requests to all models of a service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, (*LABELS, *labels), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, LABELS, buckets=buckets, registry=registry)

        self.running = Gauge(
            "vllm:num_requests_running", "Sequences in the batch", LABELS, registry=registry
        )
        self.waiting = Gauge(
            "vllm:num_requests_waiting", "Sequences that wait", LABELS, registry=registry
        )
        self.prompt_tokens = counter("vllm:prompt_tokens", "Tokens of prompts")
        self.generation_tokens = counter("vllm:generation_tokens", "Generated tokens")
        self.success = counter(
            "vllm:request_success", "Sequences by the reason of their end", "finished_reason"
        )
        self.first_token_seconds = histogram(
            "vllm:time_to_first_token_seconds",
            "Seconds from the arrival of a request to its first token",
            FIRST_TOKEN_SECONDS,
        )
        self.token_seconds = TokenHistogram(
            "vllm:inter_token_latency_seconds",
            "Seconds between two tokens of a sequence",
            LABELS,
            buckets=TOKEN_SECONDS,
            registry=registry,
        )
        self.request_seconds = histogram(
            "vllm:e2e_request_latency_seconds",
            "Seconds from the arrival of a request to its last token",
            REQUEST_SECONDS,
        )
        self.queue_seconds = histogram(
            "vllm:request_queue_time_seconds",
            "Seconds that a sequence waited for a slot in the batch",
            REQUEST_SECONDS,
        )
        self.request_prompt_tokens = histogram(
            "vllm:request_prompt_tokens", "Tokens of a prompt", TOKENS
        )
        self.request_generation_tokens = histogram(
            "vllm:request_generation_tokens", "Tokens of a generated sequence", TOKENS
        )

    def of(self, model: str) -> "ModelMeter":
        return ModelMeter(self, model)

    def watch(self, model: str, load: Callable[[], Load]) -> None:
        """Shows what this method returns, until nothing else refers to its object."""
        reference = WeakMethod(load)

        def current() -> Load:
            method = reference()
            return method() if method else Load(0, 0)

        self.running.labels(model).set_function(lambda: current().running)
        self.waiting.labels(model).set_function(lambda: current().waiting)


class ModelMeter:
    """The series of one model: what is counted for each token needs no lookup."""

    def __init__(self, metrics: RequestMetrics, model: str) -> None:
        self.model = model
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.generation_tokens = metrics.generation_tokens.labels(model)
        self.first_token_seconds = metrics.first_token_seconds.labels(model)
        self.token_seconds = metrics.token_seconds.labels(model)
        self.request_seconds = metrics.request_seconds.labels(model)
        self.queue_seconds = metrics.queue_seconds.labels(model)
        self.request_prompt_tokens = metrics.request_prompt_tokens.labels(model)
        self.request_generation_tokens = metrics.request_generation_tokens.labels(model)
        self._success = metrics.success
        for reason in ("stop", "length", "abort", "error"):  # from the first scrape on
            metrics.success.labels(model, reason)

    def ended(self, reason: str) -> None:
        self._success.labels(self.model, reason).inc()


def unregistered() -> ModelMeter:
    """The meter of a model that no service has registered, such as one in a test."""
    return RequestMetrics(CollectorRegistry()).of("")


class RequestMeter:
    """Measures one request, from its arrival to the end of its sequences."""

    def __init__(self, meter: ModelMeter, operation: str) -> None:
        """operation: OpenTelemetry's name of what the model does: chat, embeddings, …"""
        self.fields: MutableMapping[str, Any] = {"model": meter.model}
        """Fields of the request's line in the access log"""
        self._operation = operation
        self._trace = trace_var.get()
        self._arrived = time.perf_counter()
        self._submitted = self._arrived
        self._queue_seconds: float | None = None
        self._first: float | None = None
        """Time of the first token"""
        self._meter = meter
        self._usage = token_usage_var.get() or TokenUsage()
        """Tokens of the HTTP request, which may have several meters"""
        self._latest: dict[int, float] = {}
        """Time of the latest token, by sequence"""
        self._counts: dict[int, int] = {}
        self._uncounted = 0
        """Generated tokens that the counter does not have yet"""
        self._reasons: dict[int, str] = {}
        self._sequences = 0

    def write_to(self, fields: MutableMapping[str, Any]) -> None:
        """Puts what has been measured, and what will be, into these fields."""
        fields.update(self.fields)
        self.fields = fields

    @contextmanager
    def submitted(self, prompt_tokens: int, sequences: int = 1) -> Iterator[None]:
        """The prompt has been tokenised. Until the block ends, its sequences are computed.

        Those that have not ended by then failed, or their client has left.
        """
        self._submitted = time.perf_counter()
        self._meter.prompt_tokens.inc(prompt_tokens)
        self._meter.request_prompt_tokens.observe(prompt_tokens)
        self._usage.prompt_tokens += prompt_tokens
        self.fields["prompt_tokens"] = prompt_tokens
        self._sequences = sequences
        try:
            yield
        except Exception:
            self.failed()
            raise
        finally:
            for sequence in range(sequences):
                self.ended(sequence, "abort")
            self._close()

    def started(self, queue_seconds: float) -> None:
        """A sequence got its slot after so many seconds."""
        self._meter.queue_seconds.observe(queue_seconds)
        if self._queue_seconds is None:
            self._queue_seconds = queue_seconds
            self.fields["queue_ms"] = round(queue_seconds * 1000, 1)

    def tokens(self, sequence: int, count: int) -> None:
        """A sequence has got so many tokens more."""
        now = time.perf_counter()
        meter = self._meter
        self._uncounted += count
        if self._uncounted >= COUNTED_AT_ONCE:
            self._count_tokens()
        latest = self._latest.get(sequence)
        if latest is not None:
            meter.token_seconds.observe((now - latest) / count)
            self._counts[sequence] += count
        else:
            if not self._latest:
                self._first_token(now)
            self._counts[sequence] = count
        self._latest[sequence] = now

    def _count_tokens(self) -> None:
        self._meter.generation_tokens.inc(self._uncounted)
        self._uncounted = 0

    def _first_token(self, now: float) -> None:
        self._first = now
        seconds = now - self._arrived
        self._meter.first_token_seconds.observe(seconds)
        self.fields["first_token_ms"] = round(seconds * 1000, 1)

    def ended(self, sequence: int, reason: str) -> None:
        """A sequence has ended. The first reason counts."""
        if sequence not in self._reasons:
            self._reasons[sequence] = reason
            self._meter.ended(VLLM_REASONS.get(reason, reason))

    def failed(self) -> None:
        """The sequences that have not ended have failed."""
        for sequence in range(self._sequences):
            self.ended(sequence, "error")

    def _close(self) -> None:
        self._count_tokens()
        now = time.perf_counter()
        self._meter.request_seconds.observe(now - self._arrived)
        for count in self._counts.values():
            self._meter.request_generation_tokens.observe(count)
        if self._counts:
            self.fields["completion_tokens"] = completion_tokens = sum(self._counts.values())
            self._usage.completion_tokens += completion_tokens
        self.fields["finish_reason"] = ",".join(dict.fromkeys(self._reasons.values()))
        if self._trace is not None:
            self._trace.add(self._work(now))

    def _work(self, ended: float) -> ModelWork:
        return ModelWork(
            operation=self._operation,
            model=self._meter.model,
            arrived=self._arrived,
            submitted=self._submitted,
            queue_seconds=self._queue_seconds,
            first_token=self._first,
            ended=ended,
            prompt_tokens=self.fields["prompt_tokens"],
            completion_tokens=sum(self._counts.values()),
            finish_reasons=[self._reasons[each] for each in sorted(self._reasons)],
        )


VLLM_REASONS = {"tool_calls": "stop"}
"""vLLM's names of finish reasons that it calls otherwise"""
