"""Metrics of requests to models, of their engines and of their loads."""

from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient


def samples(client: TestClient, model: str) -> dict[str, float]:
    """The samples of one model, by name and the labels that remain."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for each in family.samples:
            labels = dict(each.labels)
            if labels.pop("model_name", None) == model and "le" not in labels:
                found[" ".join([each.name, *labels.values()])] = each.value
    return found


def test_an_embeddings_request(make_client: Callable[..., TestClient]) -> None:
    with make_client() as client:
        texts = ["a", "the quick brown fox", "b"]
        answer = client.post("/v1/embeddings", json={"model": "tiny-embeddings", "input": texts})
        found = samples(client, "tiny-embeddings")
    assert found["vllm:prompt_tokens_total"] == answer.json()["usage"]["prompt_tokens"]
    assert found["vllm:request_success_total stop"] == 1
    assert found["vllm:e2e_request_latency_seconds_count"] == 1
    assert found["infer_embeddings_batch_texts_sum"] == 3
    assert found["vllm:num_requests_waiting"] == 0
    assert found["infer_model_loaded"] == 1


def test_a_load_that_fails(make_client: Callable[..., TestClient]) -> None:
    name = "embeddings_model"
    settings: dict[str, Any] = {name: "/no/such/folder"}
    with make_client(**settings) as client:
        client.post(
            "/v1/embeddings",
            json={"model": "folder", "messages": [{"role": "user", "content": "a"}], "input": "a"},
        )
        found = samples(client, "folder")
    assert (found["infer_model_load_failures_total"], found["infer_model_loaded"]) == (1, 0)
