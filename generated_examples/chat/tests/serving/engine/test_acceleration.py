"""The attention and the steps that a device and a model get: decided without either."""

from typing import Any

import pytest
import torch

from chat_server.serving.engine.acceleration import (
    Acceleration,
    DeviceFacts,
    ModelFacts,
    facts_of_device,
    resolve,
)
from chat_server.serving.engine.continuous import batching_config
from chat_server.serving.models.model_errors import SourceError

HOPPER = DeviceFacts("cuda", (9, 0), torch_flash=True)
TURING = DeviceFacts("cuda", (7, 5), torch_flash=True)


def decide(
    attention: Any = "auto",
    cuda_graphs: bool = False,
    device: DeviceFacts = HOPPER,
    **model: Any,
) -> Acceleration:
    facts = ModelFacts(**({"dtype": torch.bfloat16, "head_size": 128} | model))
    return resolve(attention, cuda_graphs, device, facts)


def test_flash_where_device_and_model_have_it() -> None:
    assert decide() == Acceleration("flash", "torch has it", "torch_varlen")
    packaged = DeviceFacts("cuda", (8, 0), package="flash_attention_2")
    assert decide(device=packaged).implementation == "flash_attention_2"
    assert decide("flash", cuda_graphs=True).cuda_graphs
    assert decide("sdpa") == Acceleration("sdpa", "INFER_ATTENTION is sdpa")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"device": DeviceFacts("cpu")}, "cpu has no flash attention"),
        ({"device": DeviceFacts("mps")}, "mps has no flash attention"),
        ({"device": TURING}, "8.0 or later, and the GPU has 7.5"),
        ({"device": DeviceFacts("cuda", (9, 0))}, "torch has been built without flash attention"),
        ({"dtype": torch.float32}, "in 16 bits, and the model is in float32"),
        ({"supports_flash": False}, "has not been made for flash attention"),
        ({"caps_scores": True}, "caps its attention scores"),
        ({"head_size": 320}, "no heads of 320 numbers"),
        ({"head_size": 20}, "no heads of 20 numbers"),
    ],
)
def test_auto_says_why_there_is_no_flash_and_flash_is_refused(
    facts: dict[str, Any], reason: str
) -> None:
    decided = decide(**facts)
    assert decided.attention == "sdpa"
    assert decided.implementation is None
    assert reason in decided.reason
    with pytest.raises(SourceError, match="INFER_ATTENTION=flash does not work") as refused:
        decide("flash", **facts)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"device": DeviceFacts("cpu")}, "cpu has no CUDA graphs"),
        ({"device": DeviceFacts("mps"), "attention": "sdpa"}, "mps has no CUDA graphs"),
        ({"device": TURING}, "without flash attention: .* 7.5"),
        ({"attention": "sdpa"}, "without flash attention: INFER_ATTENTION is sdpa"),
        ({"adapters": True}, "with adapters"),
    ],
)
def test_graphs_are_refused_where_they_cannot_work(facts: dict[str, Any], reason: str) -> None:
    with pytest.raises(SourceError, match=f"INFER_CUDA_GRAPHS=true does not work.*{reason}"):
        decide(cuda_graphs=True, **facts)


@pytest.mark.parametrize("graphs", [False, True])
def test_the_configuration_of_the_batch(graphs: bool) -> None:
    config = batching_config(
        decide(cuda_graphs=graphs),
        kv_cache_tokens=1000,
        max_batch_tokens=64,
        max_batch_requests=8,
        packed=not graphs,
    )
    assert (config.use_cuda_graph, config.use_async_batching) == (graphs, graphs)
    assert config.num_blocks == 16
    assert config.max_blocks_per_request == (None if graphs else 0)
    assert not config.auto_switch_to_flash  # decided above, not by what happens to be installed


def test_the_facts_of_a_processor() -> None:
    assert facts_of_device(torch.device("cpu")) == DeviceFacts("cpu")


def test_the_facts_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert facts_of_device(torch.device("cuda:1")) == HOPPER
