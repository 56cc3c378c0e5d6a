"""The choice of the next token, against a plain recomputation."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from full_server.serving.engine.sampling import SamplingState, sample_into_logits
from full_server.serving.engine.sampling_params import SamplingParams

VOCABULARY = 4000


def sample(scores: Tensor, states: list[SamplingState]) -> list[int]:
    tokens: list[int] = sample_into_logits(scores.clone(), states).argmax(dim=-1).tolist()
    return tokens


def state(position: int = 0, **params: Any) -> SamplingState:
    state = SamplingState(SamplingParams(max_tokens=9, **params), [], [0], [])
    state.position = position
    return state


def draw_many(scores: Tensor, count: int = 3000, **params: float) -> Counter[int]:
    states = [state(position, seed=7, **params) for position in range(count)]
    return Counter(sample(scores.expand(count, -1), states))


@pytest.fixture
def scores() -> Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3


def allowed_tokens(
    scores: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> dict[int, float]:
    """The same filters as one would write them down, token by token: token → probability."""
    probabilities = (scores / temperature).softmax(-1).tolist()
    ranked = sorted(enumerate(probabilities), key=lambda pair: -pair[1])
    ranked = ranked[: top_k or None]
    total = sum(probability for _, probability in ranked)
    kept: dict[int, float] = {}
    mass = 0.0
    for token, probability in ranked:
        if kept and (mass >= top_p or probability < min_p * ranked[0][1]):
            break
        mass += probability / total
        kept[token] = probability
    total = sum(kept.values())
    return {token: probability / total for token, probability in kept.items()}


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.5},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 5.0, "top_p": 0.9999},  # wider than the candidates
        {"temperature": 0.7, "min_p": 0.2},
        {"temperature": 2.0, "top_k": 50, "top_p": 0.8, "min_p": 0.01},
    ],
)
def test_draws_follow_the_filtered_distribution(scores: Tensor, params: dict[str, float]) -> None:
    expected = allowed_tokens(scores, **params)  # type: ignore[arg-type]
    drawn = draw_many(scores, **params)
    assert set(drawn) <= set(expected)
    likely = max(expected, key=lambda token: expected[token])
    share = drawn[likely] / drawn.total()
    deviation = math.sqrt(expected[likely] * (1 - expected[likely]) / drawn.total())
    assert share == pytest.approx(expected[likely], abs=5 * deviation + 1e-9)


def test_temperature_zero_is_greedy_and_costs_nothing(scores: Tensor) -> None:
    batch = scores.expand(2, -1).clone()
    states = [state(temperature=0.0), state(temperature=0.0)]
    assert torch.equal(sample_into_logits(batch, states), scores.expand(2, -1))


def test_choice_depends_on_seed_and_position_alone(scores: Tensor) -> None:
    alone = [sample(scores.expand(1, -1), [state(p, seed=1)])[0] for p in range(20)]
    neighbours = [
        state(seed=2),
        state(4, seed=3, temperature=0.0),
        state(1, seed=4, top_k=3),
        state(seed=5, logit_bias={7: 50.0}),
    ]
    beside = [sample(scores.expand(5, -1), [*neighbours, state(p, seed=1)])[4] for p in range(20)]
    assert alone == beside
    assert len(set(alone)) > 10
    assert alone != [sample(scores.expand(1, -1), [state(p, seed=5)])[0] for p in range(20)]


def test_a_bias_of_100_decides_and_one_of_minus_100_forbids(scores: Tensor) -> None:
    likeliest = int(scores.argmax())
    assert set(draw_many(scores, 200, logit_bias={5: 100.0})) == {5}  # type: ignore[arg-type]
    assert likeliest not in draw_many(scores, 3000, logit_bias={likeliest: -100.0})  # type: ignore[arg-type]


def test_penalties_count_the_answer_alone(scores: Tensor) -> None:
    params = SamplingParams(
        max_tokens=9, temperature=0.0, frequency_penalty=0.5, presence_penalty=0.25
    )
    penalised = SamplingState(params, [1, 1, 2], [0], [])
    penalised.advance([3, 3, 3, 4])
    batch = scores.expand(1, -1).clone()
    sample_into_logits(batch, [penalised])
    difference = (scores - batch[0]).nonzero().flatten().tolist()
    assert difference == [3, 4]
    assert (scores - batch[0])[[3, 4]].tolist() == pytest.approx([1.75, 0.75])


def test_broken_logits_harm_their_own_row_alone(scores: Tensor) -> None:
    batch = scores.repeat(2, 1)
    batch[0] = torch.nan
    tokens = sample(batch, [state(seed=1), state(seed=2)])
    assert 0 <= tokens[0] < VOCABULARY
    assert tokens[1] == sample(scores.expand(1, -1), [state(seed=2)])[0]
