"""Attention by sequence is that of a plain pass, and reads no more keys than it must."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_utils import PreTrainedModel

from full_server.serving.engine.batch_attention import (
    FREE_PADDING,
    NAME,
    PADDING_SHARE,
    StepLayout,
    group_by_length,
)
from full_server.serving.engine.continuous import CheckSequence, ContinuousBatchingEngine

SIZE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
SLIDING = ["sliding_attention", "full_attention"] * 2
MODELS = {
    "all heads have keys": lambda: LlamaForCausalLM(LlamaConfig(num_key_value_heads=4, **SIZE)),
    "heads share keys": lambda: Qwen3ForCausalLM(Qwen3Config(num_key_value_heads=2, **SIZE)),
    "sliding attention": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(num_key_value_heads=1, sliding_window=24, layer_types=SLIDING, **SIZE)
    ),
}
LENGTHS = [1, 3, 23, 24, 25, 63, 64, 65, 128, 700]
ANSWER = 30


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    torch.manual_seed(0)
    yield MODELS[request.param]().eval()


def check_sequences(lengths: Sequence[int]) -> list[CheckSequence]:
    rng = random.Random(0)
    texts = [[rng.randrange(1, 300) for _ in range(length + ANSWER)] for length in lengths]
    return [CheckSequence(text[:-ANSWER], text[-ANSWER:]) for text in texts]


@torch.inference_mode()
def plain_logits(model: PreTrainedModel, sequence: CheckSequence) -> Tensor:
    ids = torch.tensor([sequence.prompt + sequence.answer])
    logits: Tensor = model(ids).logits[0, len(sequence.prompt) - 1 : -1]
    return logits


@pytest.mark.parametrize("chunk", [40, 512])
def test_batches_of_unequal_lengths_give_the_logits_of_plain_passes(
    model: PreTrainedModel, chunk: int
) -> None:
    sequences = check_sequences(LENGTHS)
    engine = ContinuousBatchingEngine(
        model,
        eos_token_ids=[0],
        kv_cache_tokens=4096,
        max_batch_tokens=512,
        max_batch_requests=len(LENGTHS),
    )
    try:
        assert model.config.get_text_config()._attn_implementation == NAME
        engine.run_check([(each.prompt, each) for each in sequences], chunk, seconds=60)
    finally:
        engine.stop()
    for sequence in sequences:
        torch.testing.assert_close(
            sequence.logits(), plain_logits(model, sequence), atol=1e-5, rtol=1e-4
        )


@torch.inference_mode()
def test_a_plain_pass_is_as_before_the_batch(model: PreTrainedModel) -> None:
    ids = torch.randint(1, 300, (2, 40))
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    logits = {}
    for name in ("sdpa", NAME):
        model.set_attn_implementation(name)
        logits[name] = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[NAME], logits["sdpa"])


@pytest.mark.parametrize("seed", range(5))
def test_groups_have_every_sequence_once_and_little_padding(seed: int) -> None:
    rng = random.Random(seed)
    queries = [rng.choice([1, 1, 1, 17]) for _ in range(20)]
    keys = [count + rng.choice([0, 5, 60, 900, 8000]) for count in queries]
    groups = group_by_length(queries, keys)
    assert sorted(number for group in groups for number in group.sequences) == list(range(20))
    for group in groups:
        assert list(group.keys) == [keys[number] for number in group.sequences]
        assert {queries[number] for number in group.sequences} == {group.queries}
        assert group.queries == 1 or len(group.sequences) == 1
        padding = group.padded - sum(group.keys)
        assert padding <= max(FREE_PADDING, PADDING_SHARE * group.padded)


def test_sequences_of_like_length_are_one_group_in_their_order() -> None:
    (group,) = group_by_length([1] * 8, [1500, 1490, 1503, 1400, 1501, 1502, 1470, 1500])
    assert list(group.sequences) == list(range(8))


def test_a_short_sequence_does_not_pay_for_a_long_one() -> None:
    groups = group_by_length([1, 1, 1, 1], [8000, 64, 7900, 70])
    assert sorted(group.longest for group in groups) == [70, 8000]


def test_places_are_arranged_by_group() -> None:
    queries, keys = [1, 1, 1], [3, 900, 2]
    layout = StepLayout(group_by_length(queries, keys), queries)
    places = torch.arange(100, 100 + sum(keys))
    arranged = layout.arrange(places, padding=-1).tolist()
    # The two short ones, padded to three, then the long one.
    assert arranged == [1003, 1004, -1, 100, 101, 102, *range(103, 1003)]
    assert layout.order is not None
    assert layout.order.tolist() == [2, 0, 1]
