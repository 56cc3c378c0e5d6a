"""The checklist, its pages, and `infer-scaffold explain`."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from infer_scaffold.check.rules import RULES
from infer_scaffold.checklist import PAGES, PATTERNS, Pattern, folder, parse
from tests.conftest import Run
from tests.reference import pattern_page

ROOT = Path(__file__).parents[1]
REPOSITORY = PAGES.removesuffix("docs/patterns/")
SECTIONS = [
    "What it asks for",
    "Why",
    "Wrong",
    "Right",
    "What the rule does not see",
    "Default and strict",
    "Accept a finding",
    "See also",
]

every_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.code)


def test_every_pattern_has_a_rule_and_every_rule_a_pattern() -> None:
    assert list(RULES) == [pattern.code for pattern in PATTERNS]


@every_pattern
def test_head_and_questions_of_a_page_are_those_of_the_data(pattern: Pattern) -> None:
    written = (folder() / f"{pattern.code}.md").read_text("utf-8")
    assert written == pattern_page(pattern, written)


@every_pattern
def test_a_page_has_all_sections(pattern: Pattern) -> None:
    sections = re.findall(r"^## (.+)$", pattern.page, re.MULTILINE)

    assert [each for each in sections if each != "What a running service is asked"] == SECTIONS
    assert pattern.page.startswith(f"# {pattern.code}: {pattern.title}\n")


@every_pattern
def test_the_excerpts_are_python(pattern: Pattern) -> None:
    for excerpt in (pattern.wrong, pattern.right):
        # What stands alone in an excerpt may be the inside of a function.
        body = "".join(f"    {line}" for line in excerpt.splitlines(keepends=True))
        ast.parse(f"async def excerpt():\n{body}")


@every_pattern
def test_what_others_show_as_plain_text_is_a_sentence_without_links(pattern: Pattern) -> None:
    for text in (pattern.title, pattern.why, pattern.fix, *pattern.criteria):
        assert text
        assert not re.search(r"\]\(|\n|^#|```", text)
    assert pattern.why.endswith(".")
    assert pattern.fix.endswith(".")


@every_pattern
def test_a_page_says_how_to_accept_a_finding_of_its_own(pattern: Pattern) -> None:
    accept = pattern.page.partition("## Accept a finding\n")[2].partition("\n## ")[0]

    assert f"  # infer-scaffold: ignore[{pattern.code}] " in accept
    assert f'`ignore = ["{pattern.code}"]`' in accept
    assert set(re.findall(r"IS\d{3}", accept)) == {pattern.code}


@every_pattern
def test_a_page_says_whether_the_profiles_differ(pattern: Pattern) -> None:
    text = pattern.page.partition("## Default and strict\n")[2].partition("\n## ")[0].strip()
    rule = inspect.getsource(RULES[pattern.code])
    reads_the_profile = len(re.findall(r"\bprofile\b", rule)) > 1

    assert (text == "Both profiles ask for the same.") is not reads_the_profile


@every_pattern
def test_links_into_the_repository_lead_somewhere(pattern: Pattern) -> None:
    links = re.findall(r"\]\(([^)]+)\)", pattern.page)
    inside = [link.removeprefix(REPOSITORY) for link in links if link.startswith(REPOSITORY)]
    ours = [link.partition("#")[0] for link in inside]

    assert [link for link in ours if not (ROOT / link).is_file()] == []
    assert [link for link in links if not link.startswith("https://")] == []
    assert [link for link in ours if link.startswith("generated_examples/full/")]


@pytest.mark.parametrize("missing", ["---\n", "severity: High\n", "## Why\n", "```python\n"])
def test_a_page_that_lacks_a_part_is_not_read(missing: str) -> None:
    text = (folder() / "IS303.md").read_text("utf-8")
    assert parse(text).code == "IS303"

    with pytest.raises((ValueError, KeyError)):
        parse(text.replace(missing, ""))


def test_explain_prints_the_page_with_links_that_work_from_a_terminal(run: Run) -> None:
    outcome = run("explain", "is303")

    assert (outcome.code, outcome.err) == (0, "")
    _, _, page = (folder() / "IS303.md").read_text("utf-8").split("---\n", maxsplit=2)
    for relative, whole in (
        ("(IS201.md)", f"({PAGES}IS201.md)"),
        ("(../how-to/", f"({REPOSITORY}docs/how-to/"),
    ):
        assert relative in page
        page = page.replace(relative, whole)
    assert outcome.out == page.lstrip()


def test_explain_lists_all_patterns(run: Run) -> None:
    lines = run("explain").out.splitlines()

    assert [line.split()[0] for line in lines] == [pattern.code for pattern in PATTERNS]


def test_what_is_no_pattern(run: Run) -> None:
    outcome = run("explain", "IS999")

    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: there is no pattern 'IS999'; choose from IS101, ")
