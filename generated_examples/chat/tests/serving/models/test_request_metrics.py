"""Metrics of requests to models, of their engines and of their loads."""

import gc
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from ...conftest import wait_until


def samples(client: TestClient, model: str) -> dict[str, float]:
    """The samples of one model, by name and the labels that remain."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for each in family.samples:
            labels = dict(each.labels)
            if labels.pop("model_name", None) == model and "le" not in labels:
                found[" ".join([each.name, *labels.values()])] = each.value
    return found


MODEL = "tiny-chat"


def body(**options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": options.pop("content", "hello")}]
    return {"model": MODEL, "messages": messages, "max_tokens": 5, "temperature": 0} | options


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_chat_request(make_client: Callable[..., TestClient], stream: bool, n: int) -> None:
    with make_client() as client:
        answer = client.post("/v1/chat/completions", json=body(stream=stream, n=n, ignore_eos=True))
        assert answer.status_code == 200
        found = samples(client, MODEL)
    assert found["vllm:prompt_tokens_total"] > 1
    assert found["vllm:prompt_tokens_total"] == found["vllm:request_prompt_tokens_sum"]
    assert found["vllm:generation_tokens_total"] == 5 * n
    assert found["vllm:request_generation_tokens_sum"] == 5 * n
    assert found["vllm:request_generation_tokens_count"] == n
    assert found["vllm:request_success_total length"] == n
    assert found["vllm:request_success_total stop"] == 0
    assert found["vllm:time_to_first_token_seconds_count"] == 1
    assert found["vllm:e2e_request_latency_seconds_count"] == 1
    seconds = found["vllm:e2e_request_latency_seconds_sum"]
    assert 0 < found["vllm:time_to_first_token_seconds_sum"] <= seconds
    assert found["vllm:request_queue_time_seconds_count"] == n
    # All gaps together, of all sequences, take no longer than the request for each of them.
    assert 0 < found["vllm:inter_token_latency_seconds_sum"] <= n * seconds
    assert found["infer_batch_sequences_sum"] == 5 * n
    assert found["vllm:num_requests_running"] == found["vllm:num_requests_waiting"] == 0
    assert found["infer_engine_info continuous "] == 1
    assert found["infer_model_loads_total"] == found["infer_model_loaded"] == 1
    assert found["infer_model_load_seconds"] > 0


def test_a_request_that_is_refused_counts_nothing(make_client: Callable[..., TestClient]) -> None:
    with make_client() as client:
        assert client.post("/v1/chat/completions", json=body(max_tokens=10**6)).status_code == 400
        found = samples(client, MODEL)
    assert found["vllm:prompt_tokens_total"] == found["vllm:e2e_request_latency_seconds_count"] == 0


def test_what_runs_and_what_waits(make_client: Callable[..., TestClient]) -> None:
    with make_client(max_batch_requests=2) as client:
        client.post("/v1/chat/completions", json=body())
        threads = [
            threading.Thread(
                target=client.post,
                args=("/v1/chat/completions",),
                kwargs={"json": body(max_tokens=200, ignore_eos=True)},
            )
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        seen = wait_until(
            lambda: (now := samples(client, MODEL))["vllm:num_requests_waiting"] == 3 and now
        )
        assert seen["vllm:num_requests_running"] == 2
        assert 0 < seen["vllm:kv_cache_usage_perc"] < 1
        for thread in threads:
            thread.join()
        after = samples(client, MODEL)
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
    assert after["vllm:request_queue_time_seconds_sum"] > 0


def test_the_prefix_cache(make_client: Callable[..., TestClient]) -> None:
    long = body(content="the same words " * 20)
    with make_client() as client:
        client.post("/v1/chat/completions", json=long)
        assert samples(client, MODEL)["vllm:prefix_cache_hits_total"] == 0
        client.post("/v1/chat/completions", json=long)
        found = samples(client, MODEL)
    assert found["vllm:prefix_cache_queries_total"] == found["vllm:prompt_tokens_total"]
    assert found["vllm:prefix_cache_hits_total"] >= 64


def test_counters_go_on_after_a_reload_and_free_what_was_unloaded(
    make_client: Callable[..., TestClient],
) -> None:
    with make_client() as client:
        app: Any = client.app
        client.post("/v1/chat/completions", json=body())
        before = samples(client, MODEL)["vllm:generation_tokens_total"]

        async def unload() -> None:
            await app.state.registry.unload_idle(0)

        assert client.portal is not None
        client.portal.call(unload)
        found = samples(client, MODEL)
        assert (found["infer_model_loaded"], found["infer_model_unloads_total"]) == (0, 1)
        assert found["vllm:kv_cache_usage_perc"] == 0
        gc.collect()
        caches = [each for each in gc.get_objects() if type(each).__name__ == "PagedAttentionCache"]
        assert not caches
        client.post("/v1/chat/completions", json=body())
        assert samples(client, MODEL)["vllm:generation_tokens_total"] == 2 * before


def test_a_model_that_fails(
    make_client: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_client() as client:
        app: Any = client.app
        client.post("/v1/chat/completions", json=body())
        engine = app.state.registry.models[MODEL]._engine

        def fail(logits: torch.Tensor, numbers: torch.Tensor) -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(engine._manager.logit_processor.step, "sample", fail)
        assert client.post("/v1/chat/completions", json=body()).status_code == 503
        assert samples(client, MODEL)["vllm:request_success_total error"] == 1


def test_the_access_line_says_what_was_computed(
    make_client: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "access")
    with make_client() as client:
        client.post("/v1/chat/completions", json=body(ignore_eos=True))
    line = vars(next(each for each in caplog.records if each.name == "access"))
    assert (line["model"], line["completion_tokens"], line["finish_reason"]) == (MODEL, 5, "length")
    assert line["prompt_tokens"] > 1
    assert 0 <= line["queue_ms"] <= line["first_token_ms"] <= line["duration_ms"]
    assert not any("hello" in str(value) for value in line.values())


def test_a_load_that_fails(make_client: Callable[..., TestClient]) -> None:
    name = "chat_model"
    settings: dict[str, Any] = {name: "/no/such/folder"}
    with make_client(**settings) as client:
        client.post(
            "/v1/chat/completions",
            json={"model": "folder", "messages": [{"role": "user", "content": "a"}], "input": "a"},
        )
        found = samples(client, "folder")
    assert (found["infer_model_load_failures_total"], found["infer_model_loaded"]) == (1, 0)
