"""The inner names of transformers exist and behave as the engine takes them to."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from full_server.serving.engine import transformers_private
from full_server.serving.engine.transformers_private import (
    ContinuousBatchingManager,
    Row,
    StepSampler,
)

from ...tiny_chat import build_chat_model

PROMPT = [5, 6, 7]


class Steps:
    """Records what the sampler is told, and always samples token 9."""

    kind = (1,)

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.widths: list[int] = []
        self.numbers: list[list[int]] = []

    def begin(self, rows: Sequence[Row]) -> Tensor:
        self.rows += rows
        return torch.tensor([[len(rows)] * len(rows), [7] * len(rows)], dtype=torch.int32)

    def sample(self, logits: Tensor, numbers: Tensor) -> None:
        self.widths.append(logits.size(0))
        self.numbers.append(numbers[:, 0].tolist())
        logits[:, 9] = torch.inf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    folder = build_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
def manager(model: LlamaForCausalLM, steps: Steps) -> Iterator[ContinuousBatchingManager]:
    config = ContinuousBatchingConfig(
        page_size=64,
        num_blocks=8,
        max_batch_tokens=64,
        max_requests_per_batch=4,
        use_cuda_graph=False,
        use_async_batching=False,
    )
    manager = transformers_private.make_manager(
        model,
        GenerationConfig(do_sample=False, eos_token_id=[0]),
        config,
        StepSampler(steps, 2),
    )
    transformers_private.allocate_cache(manager)
    yield manager
    manager.stop(block=True, hard_stop=True)
    manager.destroy()


def complete(manager: ContinuousBatchingManager, tokens: int = 4) -> list[int]:
    manager.add_request(PROMPT, request_id="a", max_new_tokens=tokens, eos_token_id=-1)
    for _ in range(100):
        if (output := manager.get_result(timeout=0.1)) is not None:
            assert output.error is None
            return list(output.generated_tokens)
    raise AssertionError("no result")


def test_the_sampler_sees_each_step_and_decides(
    manager: ContinuousBatchingManager, steps: Steps
) -> None:
    manager.start()
    assert complete(manager) == [9, 9, 9, 9]
    assert steps.rows == [("a", [9] * n, 0) for n in range(4)]
    assert all(width >= 1 for width in steps.widths)
    assert steps.numbers == [[1, 7]] * 4


def test_the_cache_holds_what_it_says(manager: ContinuousBatchingManager) -> None:
    assert transformers_private.longest_sequence(manager) == 8 * 64


def test_limits_are_set_between_steps(manager: ContinuousBatchingManager, steps: Steps) -> None:
    assert transformers_private.step_limits(manager) == (4, 64)
    transformers_private.set_step_limits(manager, 2, 32)
    assert transformers_private.step_limits(manager) == (2, 32)
    transformers_private.set_step_limits(manager, tokens=2)
    assert transformers_private.step_limits(manager) == (2, 2)
    manager.start()
    assert complete(manager, 1) == [9]
    assert len(steps.widths) > 1  # a prompt of three tokens takes two steps


def test_steps_are_wrapped_and_their_requests_known(
    manager: ContinuousBatchingManager,
) -> None:
    seen: list[tuple[str, int]] = []

    def wrapper(step: Callable[[], None]) -> None:
        for request in transformers_private.step_requests(manager):
            seen.append((request.state.request_id, request.query_length))
        step()

    transformers_private.wrap_step(manager, wrapper)
    manager.start()
    complete(manager, 2)
    assert seen == [("a", 3), ("a", 1)]


def test_requests_are_requeued_with_their_tokens(
    manager: ContinuousBatchingManager, steps: Steps
) -> None:
    runs = 0

    def wrapper(step: Callable[[], None]) -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            transformers_private.requeue(manager, transformers_private.step_requests(manager))
            transformers_private.discard_step(manager)
        else:
            step()

    transformers_private.wrap_step(manager, wrapper)
    manager.start()
    assert complete(manager) == [9, 9, 9, 9]
    assert steps.rows[-1] == ("a", [9, 9, 9], 0)


def test_one_request_fails_alone(manager: ContinuousBatchingManager) -> None:
    def wrapper(step: Callable[[], None]) -> None:
        (request,) = transformers_private.step_requests(manager)
        transformers_private.fail_request(manager, request, RuntimeError("too large"))
        transformers_private.discard_step(manager)

    transformers_private.wrap_step(manager, wrapper)
    manager.start()
    manager.add_request(PROMPT, request_id="a", max_new_tokens=2)
    output = next(filter(None, (manager.get_result(timeout=0.1) for _ in range(100))))
    assert "too large" in str(output.error)
    assert not transformers_private.has_failed(manager)


def test_the_thread_is_known_and_its_end_is_seen(
    manager: ContinuousBatchingManager, caplog: pytest.LogCaptureFixture
) -> None:
    assert transformers_private.thread_of(manager) is None
    assert transformers_private.has_failed(manager)  # before the start

    def wrapper(step: Callable[[], None]) -> None:
        raise ValueError("the end")

    transformers_private.wrap_step(manager, wrapper)
    manager.start()
    thread = transformers_private.thread_of(manager)
    assert isinstance(thread, threading.Thread)
    assert not transformers_private.has_failed(manager)
    with transformers_private.manager_log_muted(thread), caplog.at_level(logging.DEBUG):
        manager.add_request(PROMPT, request_id="a", max_new_tokens=2)
        thread.join(10)
    assert transformers_private.has_failed(manager)
    assert not [record for record in caplog.records if record.thread == thread.ident]


def test_prefixes_are_shared_within_a_group(manager: ContinuousBatchingManager) -> None:
    lengths: list[int] = []

    def wrapper(step: Callable[[], None]) -> None:
        requests = transformers_private.step_requests(manager)
        lengths.append(sum(request.query_length for request in requests))
        step()

    transformers_private.separate_prefixes(manager, lambda request_id: int(request_id[0]))
    transformers_private.wrap_step(manager, wrapper)
    manager.start()
    work = []
    for request_id in ("0a", "1a", "2a", "0b", "1b"):
        lengths.clear()
        manager.add_request([7] * 100, request_id=request_id, max_new_tokens=2, eos_token_id=-1)
        output = manager.get_result(timeout=30)
        assert output is not None
        assert output.error is None
        work.append(sum(lengths))
    assert work == [101, 101, 101, 101 - 64, 101 - 64]


def test_a_group_marks_the_first_token() -> None:
    tokens = [3, 4, 5]
    groups = [transformers_private.marked(tokens, group) for group in range(1023)]
    assert groups[0] == tokens
    assert len({each[0] for each in groups}) == len(groups)
    assert min(each[0] for each in groups) >= -(2**31)


def test_the_attention_of_a_model(model: LlamaForCausalLM) -> None:
    before = transformers_private.attention_of(model)
    assert not before.startswith("paged")
    try:
        model.set_attn_implementation("eager")
        assert transformers_private.attention_of(model) == "eager"
    finally:
        model.set_attn_implementation(before)


def test_keys_and_values_of_any_shape_share_rows() -> None:
    key, value = torch.rand(1, 2, 5, 3), torch.rand(1, 1, 5, 4)
    halves = transformers_private.pack(key, value, 6)
    assert [each.shape for each in halves] == [(1, 1, 5, 6)] * 2
    back = transformers_private.unpack(*halves, key.shape, value.shape)
    assert all(map(torch.equal, back, (key, value)))
    with pytest.raises(ValueError, match="10 numbers instead of 8"):
        transformers_private.pack(key, value, 4)


@pytest.mark.parametrize(("changed", "width"), [({}, None), ({"head_dim": 16}, 16)])
def test_the_width_of_keys_and_values(
    model: LlamaForCausalLM, changed: dict[str, int], width: int | None
) -> None:
    output = model(torch.tensor([PROMPT]), use_cache=True)
    config = LlamaConfig(**{**model.config.to_dict(), **changed})  # two heads of 8 numbers in fact
    cache = transformers_private.cache_of(output)
    assert transformers_private.key_value_width(config, cache) == width
    assert transformers_private.key_value_width(config, None) is None


def test_logits_of_the_wanted_positions(model: LlamaForCausalLM) -> None:
    assert transformers_private.makes_wanted_logits(model)
    wanted = torch.tensor([0, 2])
    logits = model(torch.tensor([PROMPT]), logits_to_keep=wanted).logits
    torch.testing.assert_close(logits, model(torch.tensor([PROMPT])).logits[:, wanted])


@pytest.mark.anyio
@pytest.mark.parametrize("forgotten", [False, True])
async def test_handlers_are_forgotten(manager: ContinuousBatchingManager, forgotten: bool) -> None:
    outputs: list[Any] = []
    manager.register_result_handler("a", outputs.append)
    if forgotten:
        transformers_private.remove_handler(manager, "a")
        transformers_private.remove_handler(manager, "unknown")
    manager.start()
    manager.add_request(PROMPT, request_id="a", max_new_tokens=1)
    manager.add_request(PROMPT, request_id="b", max_new_tokens=1)
    output = await asyncio.to_thread(manager.get_result, timeout=30)
    await asyncio.sleep(0)
    assert output is not None
    assert bool(outputs) is not forgotten
