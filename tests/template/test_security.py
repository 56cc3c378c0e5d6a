"""SECURITY.md of a generated service: each threat has tests, and these exist in that service."""

import ast
import re
from pathlib import Path

import pytest

from infer_scaffold.project.questions import PRESETS, Answers
from tests.conftest import CopyRendering

VARIANTS: dict[str, Answers] = {
    **PRESETS,
    "no-streaming": {"endpoints": ["chat"], "streaming": "none"},
}


def rows_of(document: str) -> dict[str, list[str]]:
    """The tests of each threat."""
    rows = {}
    for line in document.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 3 and not cells[0].startswith(("threat", "**")):
            rows[cells[0]] = re.findall(r"`([^`]+)`", cells[2])
    return rows


def has_test(project: Path, name: str) -> bool:
    path, _, function = name.partition("::")
    file = project / path if path.startswith("tests/") else project / "tests" / "serving" / path
    if not file.is_file():
        return False
    defined = ast.walk(ast.parse(file.read_text()))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return any(isinstance(each, kinds) and each.name == function for each in defined)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_threat_has_tests_that_exist(
    tmp_path: Path, variant: str, copy_rendering: CopyRendering
) -> None:
    copy_rendering({"project_name": "tiny-server", **VARIANTS[variant]}, tmp_path)
    rows = rows_of((tmp_path / "SECURITY.md").read_text())
    assert len(rows) >= 20
    assert [threat for threat, tests in rows.items() if not tests] == []
    named = [name for tests in rows.values() for name in tests]
    assert [name for name in named if not has_test(tmp_path, name)] == []


def test_a_test_that_is_missing_is_noticed(tmp_path: Path) -> None:
    rows = rows_of(
        "| threat | x | y |\n|---|---|---|\n| A | b | `http/a.py::test_a` |\n| B | c | |\n"
    )
    assert rows == {"A": ["http/a.py::test_a"], "B": []}
    folder = tmp_path / "tests" / "serving" / "http"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("def test_b(): ...\n")
    assert not has_test(tmp_path, "http/a.py::test_a")
    assert has_test(tmp_path, "http/a.py::test_b")
    assert not has_test(tmp_path, "http/b.py::test_b")
