"""The trace of the request at hand, if any, and the OTEL_* variables that ask for traces.

Without these variables OpenTelemetry's SDK is not imported, and a request has no trace.
"""

import logging
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .otel import RequestTrace, Tracer

logger = logging.getLogger(__name__)

trace_var: ContextVar["RequestTrace | None"] = ContextVar("trace", default=None)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"


class ModelWork(NamedTuple):
    """The work of a model for a request. Times are those of `time.perf_counter`."""

    operation: str
    """OpenTelemetry's name of it: chat, text_completion, embeddings"""
    model: str
    arrived: float
    submitted: float
    """End of the tokenising, from which on the request waits for a slot in the batch"""
    queue_seconds: float | None
    """None where nothing got a slot"""
    first_token: float | None
    ended: float
    prompt_tokens: int
    completion_tokens: int
    finish_reasons: list[str]
    """One for each sequence"""


def make_tracer(service: str) -> "Tracer | None":
    """The tracer that the OTEL_* variables ask for, which sends spans to a collector.

    service: the name of the service, if OTEL_SERVICE_NAME gives none.
    """
    if not first_of(ENDPOINTS) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    protocol = first_of(PROTOCOLS) or PROTOCOL
    if exporter == "none":
        return None
    if (exporter, protocol) != ("otlp", PROTOCOL):
        logger.warning("no traces: they are sent by otlp over %s only, see OTEL_*", PROTOCOL)
        return None
    try:
        from .otel import Tracer
    except ImportError:
        logger.warning("no traces: OpenTelemetry is missing, pip install '.[otel]' installs it")
        return None
    return Tracer(service)


def first_of(variables: tuple[str, ...]) -> str | None:
    """The value of the first of these variables that has one."""
    return next((value for name in variables if (value := os.environ.get(name))), None)
