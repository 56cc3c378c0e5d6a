"""The workflow that opens a pull request, with a real git remote and a gh that takes notes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infer_scaffold import git
from tests.update.conftest import commit
from tests.update.edits import change

# The releases that the tests invent are not in the package.
SCRIPT = (
    "import os, pathlib; from infer_scaffold import cli; "
    "from infer_scaffold.project import history; "
    "history.BUNDLE = pathlib.Path(os.environ['BUNDLE']); cli.main()"
)
FILE = Path(__file__).parents[2] / "template" / ".github" / "workflows" / "update.yml"


@pytest.fixture
def origin(project: Path, templates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The remote repository of the project."""
    monkeypatch.setenv("BUNDLE", str(templates / "bundle"))
    git.output(tmp_path, "init", "--quiet", "--bare", "origin.git")
    git.output(project, "remote", "add", "origin", str(tmp_path / "origin.git"))
    return tmp_path / "origin.git"


def run_workflow(project: Path, folder: Path) -> str:
    """Run the script as the workflow's shell does; return what gh was told."""
    (step,) = [
        step["run"]
        for step in yaml.safe_load(FILE.read_text())["jobs"]["update"]["steps"]
        if "gh pr create" in step.get("run", "")
    ]
    programs, said = folder / "bin", folder / "said"
    programs.mkdir(exist_ok=True)
    for name, line in {
        "gh": f'printf "%s\\n" "$@" >> "{said}"',
        "infer-scaffold": f'exec "{sys.executable}" -c "{SCRIPT}" "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    env = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "RUNNER_TEMP": str(folder)}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step]
    subprocess.run(command, cwd=project, env=env, check=True)
    text = said.read_text() if said.exists() else ""
    said.unlink(missing_ok=True)
    return text


def test_a_new_version_becomes_a_pull_request_once(
    project: Path, origin: Path, tmp_path: Path
) -> None:
    said = run_workflow(project, tmp_path).splitlines()
    assert said[:6] == [
        *("pr", "create", "--head", "template-update/v99.0"),
        *("--title", "Update the template to v99.0"),
    ]
    assert "--draft" not in said
    message = git.output(origin, "log", "-1", "--format=%s", "template-update/v99.0").strip()
    assert message == "Update the template from v0.1.0 to v99.0"
    assert git.output(origin, "show", "template-update/v99.0:src/myserver/serving/http/body.py")

    git.output(project, "switch", "--quiet", "main")
    assert run_workflow(project, tmp_path) == ""
    git.output(project, "reset", "--quiet", "--hard", "template-update/v99.0")
    assert run_workflow(project, tmp_path) == ""


def test_odd_names_of_conflicts_are_whole(project: Path, origin: Path, tmp_path: Path) -> None:
    name = "src/myserver/unsere größe *.py"
    (project / "src" / "myserver" / "app.py").rename(project / name)
    change(project / name, "from .drain import Drain", "from .drain import Drain  # ours")
    commit(project)

    assert run_workflow(project, tmp_path).splitlines()[-1] == "--draft"
    assert f"- `{name}`" in (tmp_path / "body.md").read_text().splitlines()


def test_conflicts_make_a_draft_that_names_them(
    project: Path, origin: Path, tmp_path: Path
) -> None:
    app = project / "src" / "myserver" / "app.py"
    change(app, "from .drain import Drain", "from .drain import Drain  # ours")
    commit(project)

    said = run_workflow(project, tmp_path).splitlines()

    assert said[-1] == "--draft"
    assert "- `src/myserver/app.py`" in (tmp_path / "body.md").read_text().splitlines()
