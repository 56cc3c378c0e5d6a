"""The checklist: the patterns that an inference service follows, read from docs/patterns/.

A page holds the data of its pattern as front matter, and the prose that people read. check, probe,
status, explain and SARIF take both from here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urljoin

import yaml

from infer_scaffold.errors import UserError

# Where links between pages lead when a page is read elsewhere: on a terminal, in a SARIF viewer.
PAGES = "https://github.com/infer-scaffold/infer-scaffold/blob/main/docs/patterns/"


class Severity(StrEnum):
    """The severity of a missing pattern."""

    HIGH = "High"
    MEDIUM = "Medium"
    LOW = "Low"


@dataclass(frozen=True)
class Pattern:
    """One pattern. Its code never changes: baselines and settings of teams mention it.

    `why` and `fix` are single paragraphs without links, `wrong` and `right` excerpts of Python.
    `page` is the whole page, with links that work from anywhere.
    """

    code: str
    title: str
    severity: Severity
    category: str
    criteria: tuple[str, ...]
    why: str
    fix: str
    wrong: str
    right: str
    page: str


def folder() -> Path:
    """Return the folder of the pages: inside the wheel, or that of the checkout."""
    package = Path(__file__).parent
    packaged = package / "_patterns"
    return packaged if packaged.is_dir() else package.parents[1] / "docs" / "patterns"


def parse(text: str) -> Pattern:
    """Read a page: front matter between two lines `---`, then Markdown.

    Raises ValueError or KeyError for a page that lacks a part of it.
    """
    _, front, page = text.split("---\n", maxsplit=2)
    data = yaml.safe_load(front)
    headings = re.split(r"^## (.+)\n", page, flags=re.MULTILINE)
    sections = dict(zip(headings[1::2], headings[2::2], strict=True))
    wrong, _ = _excerpt(sections["Wrong"])
    right, after = _excerpt(sections["Right"])
    return Pattern(
        code=data["code"],
        title=data["title"],
        severity=Severity(data["severity"]),
        category=data["category"],
        criteria=tuple(data["criteria"]),
        why=_first_paragraph(sections["Why"]),
        fix=_first_paragraph(after),
        wrong=wrong,
        right=right,
        page=_with_whole_links(page.lstrip()),
    )


def _excerpt(section: str) -> tuple[str, str]:
    """Return the block of Python in a section, and what follows it."""
    _, code, after = re.split(r"^```(?:python)?\n", section, maxsplit=2, flags=re.MULTILINE)
    return code, after


def _first_paragraph(text: str) -> str:
    return " ".join(text.strip().partition("\n\n")[0].split())


def _with_whole_links(markdown: str) -> str:
    """Return Markdown with links relative to the pages made absolute."""
    return re.sub(r"(?<=\]\()[^)]+", lambda link: urljoin(PAGES, link[0]), markdown)


PATTERNS: tuple[Pattern, ...] = tuple(
    parse(file.read_text(encoding="utf-8")) for file in sorted(folder().glob("IS*.md"))
)
BY_CODE = {pattern.code: pattern for pattern in PATTERNS}


def matching(
    select: Iterable[str],
    ignore: Iterable[str],
    *,
    names: tuple[str, str] = ("--select", "--ignore"),
) -> frozenset[str]:
    """Return the codes that begin with one of `select` and with none of `ignore`.

    Without `select` all codes are taken. Raises UserError for one that no code begins with;
    `names` are those of the two for its message.
    """
    wanted = _prefixes(names[0], select) or ("",)
    unwanted = _prefixes(names[1], ignore)
    return frozenset(
        code for code in BY_CODE if code.startswith(wanted) and not code.startswith(unwanted)
    )


def _prefixes(name: str, given: Iterable[str]) -> tuple[str, ...]:
    prefixes = tuple(each.strip().upper() for each in given if each.strip())
    for prefix in prefixes:
        if not any(code.startswith(prefix) for code in BY_CODE):
            raise UserError(f"{name}: there is no {prefix!r}; choose from {', '.join(BY_CODE)}.")
    return prefixes
