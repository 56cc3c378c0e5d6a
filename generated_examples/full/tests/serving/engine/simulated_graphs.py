"""CUDA graphs and asynchronous steps on a machine without a GPU.

A step is traced once for each kind and size, and what was traced is run from then on: operations on
the same memory, and none of the Python around them. Streams and events do nothing, as the CPU computes
in order; but each step is prepared before the tokens of the one before it are read.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from transformers.generation.continuous_batching import (
    continuous_api,
    initialization,
    input_outputs,
    model_runner,
    offloading_manager,
)


class Idle:
    """A stream or an event of a device that computes in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    record_event = wait_event = lambda self, event: None


class Graph:
    """A step that was traced."""

    replays = 0

    def __init__(self, step: Callable[[], None]) -> None:
        def traced(unused: Tensor) -> Tensor:
            step()
            return unused.clone()

        self._step = make_fx(traced)(torch.zeros(()))

    def replay(self) -> None:
        Graph.replays += 1
        self._step(torch.zeros(()))

    def reset(self) -> None:
        pass


def simulate(patch: pytest.MonkeyPatch) -> None:
    """Lets managers of models on the CPU have graphs and asynchronous steps."""

    def capture(runner: Any, forward: Callable[..., None], stream: Idle, *args: Any) -> None:
        forward(*args)
        runner.inputs_and_outputs.set_graph(Graph(lambda: forward(*args)))

    patch.setattr(Graph, "replays", 0)
    patch.setattr(torch, "Event", Idle)
    patch.setattr(input_outputs, "create_device_stream", Idle)
    for module in (input_outputs, model_runner, continuous_api, offloading_manager):
        patch.setattr(module, "stream_context", nullcontext)
    patch.setattr(input_outputs.ContinuousBatchingAsyncIOs, "_supported_device_types", ("cpu",))
    patch.setattr(initialization, "get_accelerator_graph_name", lambda: "Graph")
    patch.setattr(model_runner, "get_memory_pools", lambda: (None, 0))
    patch.setattr(model_runner.ModelRunner, "_capture_graph", capture)
