"""A project that version 0.1.0 made and a team has lived in: every release must update it.

`project-0.1.0.bundle` is its git repository. Never make it again: that it is old is what it is for.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infer_scaffold import git
from infer_scaffold.project import history, updating
from infer_scaffold.project.updating import Kind
from tests.update.conftest import LATER, NEXT, Render

BUNDLE = Path(__file__).with_name("project-0.1.0.bundle")


@pytest.fixture
def old_project(moved_render: Render, tmp_path: Path) -> Path:
    """The team's repository."""
    arguments = ("clone", "--quiet", "--branch=main", str(BUNDLE), "project")
    git.output(tmp_path, *arguments, settings=git.AS_RENDERED)
    return tmp_path / "project"


def test_it_is_of_the_first_release() -> None:
    assert str(history.versions()[0]) == "0.1.0"


@pytest.mark.parametrize("version", [*history.versions()[1:], NEXT, LATER], ids=str)
def test_the_team_loses_nothing_and_the_service_works(version: object, old_project: Path) -> None:
    own = git.output(old_project, "diff", "--name-only", "--diff-filter=A", "HEAD~1").splitlines()
    before = {name: (old_project / name).read_bytes() for name in own}
    assert "src/myserver/routers/echo.py" in before

    with updating.prepare(old_project, [], {}, to=str(version)) as prepared:
        assert prepared is not None
        prepared.apply()

    assert prepared.of(Kind.CONFLICT) == []
    assert {name: (old_project / name).read_bytes() for name in own} == before
    assert "Field(9000," in (old_project / "src" / "myserver" / "settings.py").read_text()
    assert not (old_project / "deploy").exists()
    if version not in (NEXT, LATER):
        return  # The code of what has been released stays as it is.
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_echo.py"],
        cwd=old_project,
        env=os.environ | {"PYTHONPATH": "src", "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
    )
