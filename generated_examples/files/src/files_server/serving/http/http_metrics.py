"""Metrics of HTTP requests, and the page that shows all metrics.

The names and labels are those of prometheus-fastapi-instrumentator, which dashboards know.
"""

import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from ..metrics import Metrics
from .drain import Drain
from .token_usage import TokenUsage

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
)

CLIENT_CLOSED_REQUEST = 499
"""nginx's status in the access log for a client that closed the connection before the answer"""

METRICS_PATH = "/metrics"
METRICS_NAME = "serving-metrics"
"""Name of its route, which tells it from a route of the owner's at the same path"""

NO_ROUTE = "none"
"""Handler of requests to unknown URLs: one series for all of them, as clients choose these"""


class HTTPMetrics:
    """Counts requests. `handler` is the path of the route, with its parameters as names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "Requests",
            ("handler", "method", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "Seconds from the head of a request to the end of its answer",
            ("handler", "method"),
            buckets=SECONDS,
            registry=registry,
        )
        self._request_bytes = Summary(
            "http_request_size_bytes",
            "Bytes of the bodies of requests that announce their length",
            ("handler",),
            registry=registry,
        )
        self._response_bytes = Summary(
            "http_response_size_bytes",
            "Bytes of the bodies of answers",
            ("handler",),
            registry=registry,
        )
        self._rejections = Counter(
            "infer_rejections",
            "Requests that were answered with an error, by its code",
            ("reason",),
            registry=registry,
        )
        self._disconnects = Counter(
            "infer_disconnects",
            "Requests whose client left before an answer",
            registry=registry,
        )
        self._in_flight = Gauge(
            "infer_requests_in_flight", "Requests that are being answered", registry=registry
        )
        self._draining = Gauge(
            "infer_draining", "1 while the service finishes its last requests", registry=registry
        )

        self._key_requests = Counter(
            "infer_key_requests",
            "Requests with an API key of this name",
            ("key_name", "status"),
            registry=registry,
        )
        self._key_tokens = Counter(
            "infer_key_tokens",
            "Tokens of these requests, by kind: prompt, completion",
            ("key_name", "kind"),
            registry=registry,
        )
        self._key_names: frozenset[str] = frozenset()

    def watch(self, drain: Drain) -> None:
        self._in_flight.set_function(lambda: drain.in_flight)
        self._draining.set_function(lambda: drain.draining)

    def answered(
        self,
        *,
        handler: str | None,
        method: str,
        status: int,
        seconds: float,
        request_bytes: int | None,
        response_bytes: int,
        reason: str | None,
    ) -> None:
        """Counts one request. reason: the code of the error that answered it"""
        handler = handler or NO_ROUTE
        method = method if method in METHODS else "other"
        self._requests.labels(handler, method, f"{status // 100}xx").inc()
        self._seconds.labels(handler, method).observe(seconds)
        self._response_bytes.labels(handler).observe(response_bytes)
        if request_bytes is not None:
            self._request_bytes.labels(handler).observe(request_bytes)
        if reason is not None:
            self._rejections.labels(reason).inc()
        if status == CLIENT_CLOSED_REQUEST:
            self._disconnects.inc()

    def keep_keys(self, names: frozenset[str]) -> None:
        """Counts for the keys with these names from now on, and drops the series of all others."""
        for name in self._key_names - names:
            self._key_requests.remove_by_labels({"key_name": name})
            self._key_tokens.remove_by_labels({"key_name": name})
        self._key_names = names

    def answered_key(self, name: str, status: int, usage: TokenUsage) -> None:
        """Counts one request for its key, if there still is one of that name."""
        if name in self._key_names:
            self._key_requests.labels(name, f"{status // 100}xx").inc()
            self.charge_key(name, usage)

    def charge_key(self, name: str, usage: TokenUsage) -> None:
        """Counts tokens for a key, if there still is one of that name."""
        if name in self._key_names:
            self._key_tokens.labels(name, "prompt").inc(usage.prompt_tokens)
            self._key_tokens.labels(name, "completion").inc(usage.completion_tokens)


def add_metrics_page(app: FastAPI, metrics: Metrics) -> None:
    """Adds GET /metrics, the page that Prometheus reads."""

    @app.get(METRICS_PATH, name=METRICS_NAME, include_in_schema=False)
    async def get_metrics() -> Response:
        body, content_type = metrics.render()
        return Response(body, headers={"Content-Type": content_type})


class MetricsServer(ThreadingHTTPServer):
    """Serves the same page on a port of its own. Raises OSError if it cannot have the port."""

    def __init__(self, host: str, port: int, metrics: Metrics) -> None:
        self.metrics = metrics
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), MetricsHandler)


class MetricsHandler(BaseHTTPRequestHandler):
    server: MetricsServer

    def do_GET(self) -> None:
        body, content_type = self.server.metrics.render()
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Probes leave no line."""
