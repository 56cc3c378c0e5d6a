"""OpenTelemetry: a span for each request, and spans for what a model does for it.

The attributes are those of OpenTelemetry's conventions for HTTP and generative AI. None is a
prompt, an answer, a query or a key.
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

import asyncio
import time
from contextlib import suppress

from opentelemetry.context import attach, detach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    SpanKind,
    StatusCode,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace import Tracer as SpanFactory
from starlette.datastructures import Headers
from starlette.types import Scope

from ..threads import run_in_thread
from .http_metrics import METHODS
from .tracing import ModelWork

FLUSH_SECONDS = 5.0
"""Time that the last spans get to be sent at the end of the process"""


class Tracer:
    """Starts a trace for each request, or continues the one that its headers name."""

    def __init__(self, service: str) -> None:
        """The OTEL_* variables say where and how spans are sent, and how many of them."""
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        # Its own, not the global one: every service in a process has its own spans.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._factory = self._provider.get_tracer("infer_scaffold")

    def request(self, scope: Scope, request_id: str) -> "RequestTrace":
        return RequestTrace(self._factory, scope, request_id)

    async def close(self) -> None:
        """Sends what has not been sent, unless the collector does not take it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await run_in_thread(self._provider.shutdown)


class RequestTrace:
    """The span of one request, and those below it."""

    def __init__(self, factory: SpanFactory, scope: Scope, request_id: str) -> None:
        self._factory = factory
        self._clock = time.time_ns() - time.perf_counter_ns()
        """Difference between nanoseconds since 1970 and those of the performance counter"""
        given = scope.get("method", "GET")
        self._method = given if given in METHODS else "HTTP"
        parent = extract(dict(Headers(scope=scope)))
        self._span = factory.start_span(
            self._method,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": given if given in METHODS else "_OTHER",
                "url.scheme": scope.get("scheme", "http"),
                "url.path": scope["path"],
                "infer.request_id": request_id,
            },
        )
        self._context = set_span_in_context(self._span, parent)
        self._token = attach(self._context)
        self.id = format_trace_id(self._span.get_span_context().trace_id)
        """The id of the whole trace, in hexadecimal digits"""

    def end(self, *, handler: str | None, status: int, reason: str | None) -> None:
        """The answer has been sent. Call it in the context that created the trace.

        handler: path of the route; reason: code of the error that answered it.
        """
        detach(self._token)
        span = self._span
        span.set_attribute("http.response.status_code", status)
        if handler is not None:
            span.set_attribute("http.route", handler)
            span.update_name(f"{self._method} {handler}")
        if status >= 500:
            span.set_attribute("error.type", reason or str(status))
            span.set_status(StatusCode.ERROR)
        span.end()

    def add(self, work: ModelWork) -> None:
        """Adds a span for the work of a model, and below it its wait, its prompt, its answer."""
        span = self._factory.start_span(
            f"{work.operation} {work.model}",
            context=self._context,
            start_time=self._time(work.arrived),
            attributes={
                "gen_ai.operation.name": work.operation,
                "gen_ai.provider.name": "infer_scaffold",
                "gen_ai.request.model": work.model,
                "gen_ai.response.model": work.model,
                "gen_ai.response.finish_reasons": work.finish_reasons,
                "gen_ai.usage.input_tokens": work.prompt_tokens,
                "gen_ai.usage.output_tokens": work.completion_tokens,
            },
        )
        if len(work.finish_reasons) > 1:
            span.set_attribute("gen_ai.request.choice.count", len(work.finish_reasons))
        if work.first_token is not None:
            waited = work.first_token - work.arrived
            span.set_attribute("gen_ai.response.time_to_first_chunk", waited)
        if "error" in work.finish_reasons:
            span.set_attribute("error.type", "error")
            span.set_status(StatusCode.ERROR)
        context = set_span_in_context(span, self._context)
        for name, start, end in phases(work):
            phase = self._factory.start_span(name, context, start_time=self._time(start))
            phase.end(self._time(end))
        span.end(self._time(work.ended))

    def _time(self, seconds: float) -> int:
        return self._clock + int(seconds * 1e9)


def phases(work: ModelWork) -> list[tuple[str, float, float]]:
    """Name, start and end of each part of the work that took place."""
    if work.queue_seconds is None:
        return []
    begun = min(work.submitted + work.queue_seconds, work.ended)
    first = work.first_token if work.first_token is not None else work.ended
    found = [("queue", work.submitted, begun), ("prefill", begun, max(begun, first))]
    if work.first_token is not None:
        found.append(("decode", max(begun, first), work.ended))
    return found
