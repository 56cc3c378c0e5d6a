"""The health endpoints, for people, kubelets and load balancers."""

import os
import time
from collections.abc import Callable
from datetime import datetime

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient


def test_health_tells_device_models_time_and_pid(client: TestClient) -> None:
    body = client.get("/health").json()
    assert body["status"] == "healthy"
    assert body["device"]["requested"]
    assert [each["id"] for each in body["models"]] == body["loaded_models"]
    assert abs(datetime.fromisoformat(body["timestamp"]).timestamp() - time.time()) < 5
    assert body["pid"] == os.getpid()


def test_live_and_ready(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"status": "alive"}
    assert client.get("/health/ready").json() == {"status": "ready"}


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_a_head_is_enough(client: TestClient, path: str) -> None:
    assert client.head(path).status_code == 200


def test_health_needs_no_key(make_client: Callable[..., TestClient]) -> None:
    with make_client(api_keys="secret") as client:
        for path in ("/health", "/health/live", "/health/ready"):
            assert client.get(path).status_code == 200


def test_not_ready_while_the_service_drains(make_client: Callable[..., TestClient]) -> None:
    with make_client() as client:
        assert isinstance(client.app, FastAPI)
        client.app.state.drain.draining = True
        response = client.get("/health/ready")
        assert response.status_code == 503
        assert response.json() == {
            "status": "not ready",
            "reason": "The service is shutting down.",
        }
        assert client.get("/health").json()["status"] == "unhealthy"
        assert client.get("/health/live").status_code == 200
        refused = client.get("/v1/models")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
