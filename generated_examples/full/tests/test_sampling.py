"""The choice of the next token, against a plain recomputation."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from full_server.models.params import SamplingParams
from full_server.models.sampling import Row, mark_choices

VOCABULARY = 4000


def choose(scores: Tensor, rows: list[Row]) -> list[int]:
    tokens: list[int] = mark_choices(scores.clone(), rows).argmax(dim=-1).tolist()
    return tokens


def draw_many(scores: Tensor, count: int = 3000, **params: float) -> Counter[int]:
    rows = [Row(SamplingParams(max_tokens=1, seed=7, **params), i) for i in range(count)]  # type: ignore[arg-type]
    return Counter(choose(scores.expand(count, -1), rows))


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
    row = Row(SamplingParams(max_tokens=1, temperature=0.0), 0)
    batch = scores.expand(2, -1).clone()
    assert torch.equal(mark_choices(batch, [row, row]), scores.expand(2, -1))


def test_choice_depends_on_seed_and_position_alone(scores: Tensor) -> None:
    def row(seed: int, position: int, temperature: float = 1.0, top_k: int = 0) -> Row:
        params = SamplingParams(max_tokens=9, temperature=temperature, top_k=top_k, seed=seed)
        return Row(params, position)

    alone = [choose(scores.expand(1, -1), [row(1, position)])[0] for position in range(20)]
    neighbours = [row(2, 0), row(3, 4, 0.0), row(4, 1, top_k=3)]
    beside = [
        choose(scores.expand(4, -1), [*neighbours, row(1, position)])[3] for position in range(20)
    ]
    assert alone == beside
    assert len(set(alone)) > 10
    assert alone != [choose(scores.expand(1, -1), [row(5, position)])[0] for position in range(20)]
