"""What a step computes is fair among clients and does not hold up running answers."""

from collections import Counter
from collections.abc import Hashable
from itertools import product

import pytest

from full_server.serving.engine.step_plan import (
    FEWEST_TOKENS,
    FIRST_TOKENS,
    Candidate,
    PromptBudget,
    choose,
    fair_shares,
)


def rows(client: str, count: int, *, generates: bool = True, due: int = 0) -> list[Candidate]:
    return [Candidate(client, generates, due) for _ in range(count)]


def counted(chosen: list[int], candidates: list[Candidate]) -> Counter[Hashable]:
    return Counter(candidates[number].client for number in chosen)


@pytest.mark.parametrize("rows_take_time", [False, True])
def test_a_client_alone_gets_all_slots(rows_take_time: bool) -> None:
    candidates = rows("a", 100)
    chosen = choose(candidates, 32, rows_take_time=rows_take_time)
    assert chosen == list(range(32))  # the oldest answers


def test_ten_small_clients_get_what_they_want_beside_a_large_one() -> None:
    small = {f"client {number}": 1 for number in range(10)}
    assert fair_shares({"large": 100, **small}, 32, rows_take_time=False) == {"large": 22, **small}
    # With as many rows as theirs beside them, they take at most twice as long.
    assert fair_shares({"large": 100, **small}, 32, rows_take_time=True) == {"large": 10, **small}
    assert fair_shares({"large": 100, "small": 1}, 32, rows_take_time=True) == {
        "large": 16,
        "small": 1,
    }


@pytest.mark.parametrize(
    "wanted", list(product([1, 2, 7, 40], repeat=3)), ids=lambda wanted: "-".join(map(str, wanted))
)
def test_shares_are_max_min_fair(wanted: tuple[int, ...]) -> None:
    slots = 16
    shares = fair_shares(dict(enumerate(wanted)), slots, rows_take_time=False)
    assert sum(shares.values()) == min(slots, sum(wanted))
    for client, share in shares.items():
        assert share <= wanted[client]
        if share < wanted[client]:  # nobody who wants more has less than others, but for rounding
            assert share >= max(shares.values()) - 1


def test_more_clients_than_slots_leave_no_slot_unused() -> None:
    wanted = {number: 3 for number in range(40)}
    assert sum(fair_shares(wanted, 32, rows_take_time=True).values()) == 32


def test_answers_go_before_prompts_and_short_prompts_before_long_ones() -> None:
    candidates = [
        Candidate("a", generates=False, due=8000),
        Candidate("b", generates=False, due=500),
        Candidate("c", generates=True, due=9000),
    ]
    assert choose(candidates, 3, rows_take_time=True) == [2, 1, 0]


def test_a_long_prompt_is_overtaken_by_its_own_length_only() -> None:
    read, overtaken = 0, 0
    long = Candidate("long", generates=False, due=8000)
    while True:  # every 100 tokens comes a prompt of 100
        short = Candidate(f"short {read}", generates=False, due=read + 100)
        if choose([long, short], 1, rows_take_time=True) == [0]:
            break
        read, overtaken = read + 100, overtaken + 100
    assert overtaken <= 8000


def test_running_answers_of_a_large_client_pause_for_others() -> None:
    candidates = rows("large", 32) + rows("small", 4, generates=False, due=20)
    chosen = choose(candidates, 32, rows_take_time=True)
    assert counted(chosen, candidates) == {"large": 16, "small": 4}
    assert chosen[:16] == list(range(16))


def test_the_budget_of_prompts_follows_the_time_of_a_step() -> None:
    budget = PromptBudget(512)
    assert budget.tokens == FIRST_TOKENS

    def step(prompt_tokens: int) -> float:
        """On a processor: a step without prompts takes 50 ms, a token of a prompt 3 ms."""
        return 0.05 + 0.003 * prompt_tokens

    budget.took(step(0), 8, 0)
    for _ in range(20):
        budget.took(step(budget.tokens), 8, budget.tokens)
    assert budget.tokens == pytest.approx(25, abs=2)  # 2.5 times 50 ms
    budget.took(step(1), 8, 1)  # a rest that is smaller says nothing
    assert budget.tokens == pytest.approx(25, abs=2)

    for _ in range(40):  # now on a GPU
        budget.took(0.011, 8, budget.tokens)
        budget.took(0.010, 8, 0)
    assert budget.tokens == 512


def test_prompts_come_to_an_end_however_slow_they_are() -> None:
    budget = PromptBudget(512)
    budget.took(0.01, 1, 0)
    for _ in range(20):
        budget.took(10.0, 1, budget.tokens)
    assert budget.tokens == FEWEST_TOKENS


def test_a_step_without_answers_says_nothing() -> None:
    budget = PromptBudget(512)
    budget.took(5.0, 0, 512)
    assert budget.tokens == FIRST_TOKENS
