"""Traces: a collector in this process gets the spans of the service."""

import io
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from starlette.testclient import TestClient

from minimal_server.serving.http.logs import JSONFormatter, RequestIdFilter, TextFormatter
from minimal_server.serving.http.tracing import make_tracer

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from minimal_server.serving.http import otel

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
ERROR = 2
"""Status code of a span"""


class Collector(ThreadingHTTPServer):
    """Receives spans as a collector does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.bodies: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def resources(self) -> list[Any]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [each for request in requests for each in request.resource_spans]

    @property
    def spans(self) -> dict[str, Span]:
        """The spans by name."""
        scopes = [scope for each in self.resources for scope in each.scope_spans]
        return {span.name: span for scope in scopes for span in scope.spans}


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def attributes(span: Any) -> dict[str, Any]:
    """The attributes of a span or a resource; lists are of strings."""
    found = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        found[each.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector
        collector.shutdown()


def test_a_request_continues_the_trace(
    collector: Collector, make_client: Callable[..., TestClient]
) -> None:
    with make_client(api_keys="secret-key") as client:
        headers = {"authorization": "Bearer secret-key", **TRACEPARENT, "x-request-id": "mine"}
        client.get("/v1/models/unknown?secret-query", headers=headers)
        client.get("/metrics")
        client.get("/health/live")
        client.request("BREW", "/no/such/route", headers=headers)
    assert set(collector.spans) == {"GET /v1/models/{model_id:path}", "HTTP"}
    span = collector.spans["GET /v1/models/{model_id:path}"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.kind == Span.SPAN_KIND_SERVER
    assert attributes(span) == {
        "http.request.method": "GET",
        "http.response.status_code": 404,
        "http.route": "/v1/models/{model_id:path}",
        "infer.request_id": "mine",
        "url.path": "/v1/models/unknown",
        "url.scheme": "http",
    }
    assert span.status.code != ERROR
    assert attributes(collector.resources[0].resource)["service.name"] == "minimal-server"
    assert not any(b"secret" in body for body in collector.bodies)


@pytest.mark.parametrize("formatter", [TextFormatter("%(message)s"), JSONFormatter()])
def test_every_line_of_a_request_has_the_trace(
    collector: Collector, make_client: Callable[..., TestClient], formatter: logging.Formatter
) -> None:
    handler = logging.StreamHandler(lines := io.StringIO())
    handler.setFormatter(formatter)
    handler.addFilter(RequestIdFilter())
    logger = logging.getLogger("access")
    logger.addHandler(handler)
    try:
        logger.setLevel(logging.INFO)
        with make_client() as client:
            client.get("/v1/models", headers=TRACEPARENT)
            logger.info("no request")
    finally:
        logger.removeHandler(handler)
    first, second = lines.getvalue().splitlines()
    if isinstance(formatter, JSONFormatter):
        assert json.loads(first)["trace_id"] == TRACE
    else:
        assert f" trace_id={TRACE}" in first
    assert "trace_id" not in second


def test_a_collector_that_is_away_delays_nothing(
    make_client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(otel, "FLUSH_SECONDS", 0.2)
    with make_client() as client:
        assert client.get("/v1/models").status_code == 200
        started = time.monotonic()
    assert time.monotonic() - started < 4.5


NOTHING = """
import sys
from minimal_server.app import create_app
create_app()
# The API alone is there anyway: FastAPI imports it.
sdk = ("opentelemetry.sdk", "opentelemetry.exporter", "minimal_server.serving.http.otel")
assert not [name for name in sys.modules if name.startswith(sdk)]
"""


def test_the_sdk_is_not_imported_without_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    subprocess.run([sys.executable, "-c", NOTHING], check=True)


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
        ({"OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_TRACES_EXPORTER": "console"}, "otlp over http/protobuf only"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp over http/protobuf only"),
    ],
)
def test_variables_that_ask_for_no_traces(
    variables: dict[str, str],
    line: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **variables}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert make_tracer("service") is None
    assert (line in caplog.text) if line else (caplog.text == "")


def test_without_the_extra_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "minimal_server.serving.http.otel", None)
    assert make_tracer("service") is None
    assert "pip install '.[otel]'" in caplog.text
