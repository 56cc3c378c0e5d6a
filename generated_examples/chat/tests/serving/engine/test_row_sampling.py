"""Sampling with nothing but tensors: the tokens of the ordinary way, and fit for a CUDA graph."""

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from chat_server.serving.engine.row_sampling import (
    CANDIDATES,
    PARAMETERS,
    RowNumbers,
    StepKind,
    kind_of,
    least_share,
    pack_rows,
    sample_captured,
    sample_filtered,
    unpack_rows,
)
from chat_server.serving.engine.sampling import SamplingState, sample_into_logits, sample_rows
from chat_server.serving.engine.sampling_params import SamplingParams

VOCABULARY = 4000

COMBINATIONS = [
    RowNumbers(temperature, top_k, top_p, min_p)
    for temperature, top_k, top_p, min_p in itertools.product(
        (0.0, 0.7, 5.0), (0, 1, 7, CANDIDATES + 500, 10_000), (1.0, 0.9, 0.3, 0.0), (0.0, 0.05, 1.0)
    )
]
"""Temperature 5 makes some of them wider than the candidates."""


def make_batches(count: int = 40) -> Iterator[tuple[Tensor, list[RowNumbers]]]:
    """Logits and rows of batches that change from step to step, with a broken row now and then."""
    draw = random.Random(1)
    noise = torch.Generator().manual_seed(1)
    order = COMBINATIONS * 2
    draw.shuffle(order)
    for _ in range(count):
        rows = [
            order.pop()._replace(uniform=draw.random())
            for _ in range(min(draw.choice((1, 2, 3, 16)), len(order)))
        ]
        if not rows:
            return
        logits = torch.randn(len(rows), VOCABULARY, generator=noise) * draw.choice((0.5, 3.0))
        if draw.random() < 0.3:
            logits[draw.randrange(len(rows))] = torch.nan
        yield logits, rows


def tokens_of(sample: Callable[[Tensor], None], logits: Tensor) -> list[int]:
    scores = logits.clone()
    sample(scores)
    tokens: list[int] = scores.argmax(dim=-1).tolist()
    return tokens


def captured(logits: Tensor, rows: list[RowNumbers]) -> list[int]:
    params = unpack_rows(pack_rows(rows))
    return tokens_of(lambda scores: sample_captured(scores, params, kind_of(rows)), logits)


def ordinary(logits: Tensor, rows: list[RowNumbers]) -> list[int]:
    def sample(scores: Tensor) -> None:
        if any(row.sampled for row in rows):
            sample_rows(scores, rows, unpack_rows(pack_rows(rows)))

    return tokens_of(sample, logits)


def test_a_captured_step_gives_the_tokens_of_an_ordinary_one_and_of_each_row_alone() -> None:
    seen = 0
    for logits, rows in make_batches():
        in_batch = ordinary(logits, rows)
        alone = [ordinary(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
        for row, *tokens in zip(logits, captured(logits, rows), in_batch, alone, strict=True):
            if row.isnan().any():  # any token will do
                assert all(0 <= token < VOCABULARY for token in tokens)
            else:
                assert len(set(tokens)) == 1
                seen += 1
    assert seen > len(COMBINATIONS)


def test_a_graph_reads_new_parameters_and_logits_from_the_same_memory() -> None:
    """As a CUDA graph does, a traced function repeats its operations and none of its Python."""
    rows, vocabulary = 6, 2500
    logits = torch.zeros(rows, vocabulary)
    numbers = torch.zeros(PARAMETERS, rows, dtype=torch.int32)
    kind = StepKind(plain=True, width=CANDIDATES, open=True)

    def step(unused: Tensor) -> Tensor:
        scores = logits.clone()
        sample_captured(scores, unpack_rows(numbers), kind)
        return scores.argmax(dim=-1)

    graph = make_fx(step)(torch.zeros(()))
    draw = random.Random(2)
    for number in range(30):
        chosen = [
            each._replace(uniform=draw.random(), top_k=min(each.top_k, 7))
            for each in draw.choices(COMBINATIONS, k=rows)
        ]
        noise = torch.Generator().manual_seed(number)
        logits.copy_(torch.randn(rows, vocabulary, generator=noise) * draw.choice((0.5, 3.0)))
        numbers.copy_(pack_rows(chosen))
        assert graph(torch.zeros(())).tolist() == ordinary(logits, chosen)


@pytest.mark.parametrize(
    "kind",
    [
        StepKind(),
        StepKind(plain=True),
        StepKind(width=64),
        StepKind(plain=True, width=CANDIDATES, open=True),
    ],
)
def test_a_captured_step_asks_the_device_for_nothing(kind: StepKind) -> None:
    """Tensors without numbers refuse what a capture would refuse: to be read on the host."""
    logits = torch.empty(5, VOCABULARY, device="meta")
    numbers = torch.empty(PARAMETERS, 5, dtype=torch.int32, device="meta")
    sample_captured(logits, unpack_rows(numbers), kind)
    if kind.open:
        with pytest.raises(RuntimeError, match="meta tensors"):  # the ordinary way looks
            sample_filtered(logits, unpack_rows(numbers), kind)


def test_numbers_survive_their_transfer() -> None:
    rows = [
        RowNumbers(0.7, 5, 0.9, 0.1, 0.25),
        RowNumbers(),
        RowNumbers(1.5, 2**30, 1.0, 0.0, 0.75),
    ]
    params = unpack_rows(pack_rows(rows))
    assert params.top_k.tolist() == [5, 0, 2**30]
    for name, expected in (("temperature", [0.7, 0.0, 1.5]), ("uniforms", [0.25, 0.0, 0.75])):
        assert getattr(params, name).tolist() == pytest.approx(expected)
    assert pack_rows([]).shape == (PARAMETERS, 0)


def test_few_kinds_of_steps_and_none_that_computes_in_vain() -> None:
    greedy, plain = RowNumbers(), RowNumbers(1.0)
    assert kind_of([greedy, greedy]) == StepKind()
    assert kind_of([greedy, plain]) == StepKind(plain=True)
    assert kind_of([RowNumbers(1.0, top_k=40), greedy]) == StepKind(width=64)
    both = kind_of([plain, RowNumbers(1.0, top_k=3), RowNumbers(1.0, top_p=0.9)])
    assert both == StepKind(plain=True, width=CANDIDATES, open=True)
    assert kind_of([RowNumbers(0.0, top_k=40)]) == StepKind()


@pytest.mark.parametrize("mass", [0.0, 1e-6, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_the_least_share_of_a_nucleus(mass: float, spread: float) -> None:
    shares = (
        torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(3)) * spread
    ).softmax(-1)
    least = least_share(shares, torch.full((3, 1), mass))
    for row, share in zip(shares.double(), least.double(), strict=True):
        within, beyond = row[row >= share].sum().item(), row[row > share].sum().item()
        assert within >= mass - 1e-6
        assert beyond < mass or beyond == 0


def test_tokens_as_likely_as_the_least_likely_one_are_all_in_a_nucleus() -> None:
    logits = torch.zeros(1, VOCABULARY)
    drawn = {
        ordinary(logits, [RowNumbers(1.0, top_p=0.5, uniform=number / 97)])[0]
        for number in range(97)
    }
    assert max(drawn) > 0.9 * VOCABULARY
    assert len(drawn) == 97


def test_seeds_give_the_tokens_that_they_have_always_given() -> None:
    logits = torch.tensor([[(i * 7919 % 4001) / 400 for i in range(VOCABULARY)]])
    cases = {
        "plain": {"temperature": 0.8},
        "nucleus": {"temperature": 0.8, "top_p": 0.9},
        "few": {"temperature": 1.2, "top_k": 50, "top_p": 0.7, "min_p": 0.02},
        "biased": {"temperature": 1.0, "logit_bias": {17: 4.0}, "min_tokens": 3},
    }
    for name, params in cases.items():
        state = SamplingState(SamplingParams(max_tokens=9, seed=11, **params), [], [0], [])  # type: ignore[arg-type]
        tokens = []
        for _ in range(5):
            tokens.append(int(sample_into_logits(logits.clone(), [state]).argmax()))
            state.advance(tokens)
        assert tokens == EXPECTED[name]


EXPECTED = {
    "plain": [774, 1689, 3762, 1117, 1786],
    "nucleus": [531, 1448, 634, 2556, 2],
    "few": [1157, 193, 3905, 2796, 2073],
    "biased": [772, 1688, 3763, 1113, 1785],
}
"""Of version 0.4.0"""
