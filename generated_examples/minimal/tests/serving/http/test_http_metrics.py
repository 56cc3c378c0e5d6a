"""GET /metrics, and what it counts of any request."""

import re
import socket
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter
from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from minimal_server import custom
from minimal_server.__main__ import serve_metrics
from minimal_server.serving.metrics import Metrics, TokenHistogram
from minimal_server.settings import Settings

from ...conftest import Server

router = APIRouter()


@router.get("/own/{name}")
async def get_own(name: str) -> str:
    return name


def read(client: TestClient) -> dict[str, float]:
    """Each sample of the page as `name{label="value"}`."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for each in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(each.labels.items()))
            found[each.name + "{" + labels + "}"] = each.value
    return found


@pytest.fixture
def own(make_client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr(custom, "ROUTERS", [router])
    return make_client()


def test_requests_are_counted_by_route_method_and_status(own: TestClient) -> None:
    with own as client:
        for name in ("a", "b"):
            client.get(f"/own/{name}")
        client.post("/own/a")
        client.get("/v1/models/unknown")
        client.request("BREW", "/no/such/route")
        found = read(client)
    assert found['http_requests_total{handler="/own/{name}",method="GET",status="2xx"}'] == 2
    assert found['http_requests_total{handler="/own/{name}",method="POST",status="4xx"}'] == 1
    assert found['http_requests_total{handler="none",method="other",status="4xx"}'] == 1
    assert found['http_request_duration_seconds_count{handler="/own/{name}",method="GET"}'] == 2
    assert found['http_response_size_bytes_sum{handler="/own/{name}"}'] > 2 * len('"a"')
    assert found['infer_rejections_total{reason="model_not_found"}'] == 1
    assert not any("unknown" in name or "/no/such" in name for name in found)


def test_bodies_are_measured(own: TestClient) -> None:
    with own as client:
        client.post("/v1/models", content=b"x" * 1000)
        assert read(client)['http_request_size_bytes_sum{handler="/v1/models"}'] == 1000


def test_services_in_one_process_count_apart(make_client: Callable[..., TestClient]) -> None:
    counted = 'http_requests_total{handler="/v1/models",method="GET",status="2xx"}'
    with make_client() as one, make_client() as other:
        one.get("/v1/models")
        assert read(one)[counted] == 1
        assert counted not in read(other)


def test_a_metric_of_one_s_own(client: TestClient) -> None:
    counter = Counter("own_answers", "Answers of this test", registry=REGISTRY)
    try:
        counter.inc(3)
        assert read(client)["own_answers_total{}"] == 3
    finally:
        REGISTRY.unregister(counter)


def test_a_token_histogram_is_shown_like_any_other() -> None:
    def page(kind: Any) -> list[str]:
        metrics = Metrics()
        buckets = (0.01, 0.25, 1, 2.5, 10, 256)
        histogram = kind("h", "Some", ("model",), buckets=buckets, registry=metrics.registry)
        for value in (0, 0.01, 0.011, 1, 3, 256, 257, 1e9):
            histogram.labels("a").observe(value)
        histogram.labels("b")
        lines = metrics.render()[0].decode().splitlines()
        return [line for line in lines if re.search(r"\bh(_bucket|_sum|_count)?\b", line)]

    assert page(TokenHistogram) == page(Histogram)
    assert len(page(TokenHistogram)) > 15


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
"""The Accept header of Prometheus. It prefers OpenMetrics, in which prometheus_client replaces the
colons of names by underscores.
"""


def test_prometheus_gets_the_names_as_they_are(client: TestClient) -> None:
    app: Any = client.app
    gauge = Gauge("vllm:of_this_test", "A gauge", registry=app.state.metrics.registry)
    try:
        answer = client.get("/metrics", headers={"accept": PROMETHEUS})
    finally:
        app.state.metrics.registry.unregister(gauge)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "\nvllm:of_this_test 0.0\n" in answer.text


@pytest.mark.parametrize(
    ("metrics", "without_key", "with_key"),
    [("open", 200, 200), ("key", 401, 200), ("off", 401, 404)],
)
def test_who_may_read_them(
    metrics: str, without_key: int, with_key: int, make_client: Callable[..., TestClient]
) -> None:
    settings: dict[str, Any] = {"metrics": metrics, "api_keys": "secret"}
    with make_client(**settings) as client:
        assert client.get("/metrics").status_code == without_key
        key = {"authorization": "Bearer secret"}
        assert client.get("/metrics", headers=key).status_code == with_key


def test_they_are_there_for_probes_by_address_and_during_the_drain(
    make_client: Callable[..., TestClient],
) -> None:
    with make_client(trusted_hosts="example.com") as client:
        app: Any = client.app
        app.state.drain.draining = True
        assert client.get("/v1/models").status_code == 400
        assert read(client)["infer_draining{}"] == 1


def test_probes_leave_no_access_line_unless_asked_for(
    make_client: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "access")
    for log_probes in (False, True):
        caplog.clear()
        with make_client(log_probes=log_probes) as client:
            for path in ("/metrics", "/health/live", "/v1/models"):
                client.get(path)
        logged = [vars(record)["path"] for record in caplog.records if record.name == "access"]
        assert ("/metrics" in logged) == log_probes
        assert "/v1/models" in logged


def test_a_port_of_their_own(make_server: Callable[..., Server]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = make_server(metrics_port=port, metrics="off")
    assert httpx2.get(f"{server.url}/metrics").status_code == 404
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics", headers={"accept": PROMETHEUS}).text
    assert re.search(r'^http_requests_total\{handler="none",.*status="4xx"\} 1.0$', text, re.M)


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(_env_file=None, metrics_port=taken.getsockname()[1])
        with pytest.raises(SystemExit) as ended:
            serve_metrics(settings, Metrics())
    assert ended.value.code == 2
    assert re.fullmatch(r"INFER_METRICS_PORT: \d+: .*in use\n", capsys.readouterr().err)
