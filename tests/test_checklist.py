"""The checklist, its pages, and `infer-scaffold explain`."""

import ast
from pathlib import Path

import pytest

from infer_scaffold.check.rules import RULES
from infer_scaffold.checklist import PATTERNS, Pattern
from tests.conftest import Run
from tests.patterns import FOLDER, pages


def test_every_pattern_has_a_rule_and_every_rule_a_pattern() -> None:
    assert list(RULES) == [pattern.code for pattern in PATTERNS]


def test_the_pages_are_those_of_the_checklist() -> None:
    written = {path.name: path.read_text("utf-8") for path in Path(FOLDER).iterdir()}
    assert written == pages()


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.code)
def test_the_excerpts_are_python(pattern: Pattern) -> None:
    for excerpt in (pattern.wrong, pattern.right):
        # What stands alone in an excerpt may be the inside of a function.
        body = "".join(f"    {line}" for line in excerpt.splitlines(keepends=True))
        ast.parse(f"async def excerpt():\n{body}")


def test_explain_prints_the_page(run: Run) -> None:
    outcome = run("explain", "is303")

    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == pages()["IS303.md"]


def test_explain_lists_all_patterns(run: Run) -> None:
    lines = run("explain").out.splitlines()

    assert [line.split()[0] for line in lines] == [pattern.code for pattern in PATTERNS]


def test_what_is_no_pattern(run: Run) -> None:
    outcome = run("explain", "IS999")

    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: there is no pattern 'IS999'; choose from IS101, ")
