"""Re-exports where modules were: for the imports of older projects, and for plain copier."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

from infer_scaffold import git
from infer_scaffold.project import moves, template
from infer_scaffold.project.updating import Kind
from tests.conftest import Run
from tests.update.conftest import LATER, NEXT, Render, commit, files, render_wanted
from tests.update.edits import PACKAGE, change, own_router
from tests.update.test_hostile import conflicts, make, run_update
from tests.update.test_law import assert_same
from tests.update.test_moves import BATCHING, CONTINUOUS, LAST, SRC, insert
from tests.update.test_update import plain_copier, publish

BASE = f"{SRC}/models/base.py"


@pytest.fixture(autouse=True)
def _known(moved_render: Render) -> None:
    """Every test here knows the versions that move files."""


@pytest.fixture
def moved_template(moved_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the template in this checkout be that of the next release."""
    monkeypatch.setattr(template, "root", lambda: moved_bundle.parent / str(NEXT))


def python(project: Path, *arguments: str) -> str:
    """Run Python in a project; return what it printed as an error."""
    return subprocess.run(
        [sys.executable, "-W", "default", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": "src", "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stderr


def at_old_paths(project: Path, version: Path) -> list[str]:
    """The files at the old paths of what the template of a version has moved."""
    table = moves.load(version)
    return [path for path in files(project) if any(row.place(path) for row in table)]


def own_tests(project: Path, *names: str) -> None:
    """Run tests of the version itself, of modules that it has moved."""
    paths = [f"tests/serving/{name}.py" for name in names]
    python(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths)


def test_a_new_project_has_no_reexports_and_passes_its_tests(
    moved_template: None, tmp_path: Path, run: Run, moved_bundle: Path
) -> None:
    assert run("new", str(tmp_path / PACKAGE), "--yes").code == 0

    project = tmp_path / PACKAGE
    assert "_commit: v99.0\n" in (project / ".copier-answers.yml").read_text()
    assert at_old_paths(project, template.root()) == []
    own_tests(project, "chat/test_text", "files/test_files_store")

    # Nor does it get any later, not even with an endpoint that it had not.
    for answers in (["--endpoints", "files,health"], ["--endpoints", "chat,files,health"]):
        assert run("update", str(project), "--to", str(NEXT), *answers).code == 0
        commit(project)
    outcome = run("update", str(project))
    assert outcome.code == 0
    assert "left out" not in outcome.out
    assert (project / SRC / "serving" / "engine" / "batch.py").exists()
    # One for what it had where the newest version moves it.
    assert at_old_paths(project, moved_bundle.parent / str(LATER)) == [CONTINUOUS]


def test_an_older_project_keeps_its_imports(render: Render, tmp_path: Path, run: Run) -> None:
    def edit(project: Path, batching: str = BATCHING) -> None:
        change(project / batching, "PAGE_SIZE = 64", "PAGE_SIZE = 128  # ours")
        (project / SRC / "models" / "ours.py").write_text(
            "from .base import ModelSpec\nfrom .batching import PAGE_SIZE\n"
        )

    project = make(render, tmp_path / "project", edit, LAST)
    assert conflicts(run_update(project, NEXT)) == set()
    commit(project)

    assert "PAGE_SIZE = 128  # ours" in (project / CONTINUOUS).read_text()
    script = (
        "from myserver import app, custom\n"
        "from myserver.models import ours\n"
        "from myserver.serving.engine import continuous\n"
        "from myserver.serving.models import model\n"
        "assert ours.ModelSpec is model.ModelSpec is custom.ModelSpec\n"
        "assert ours.PAGE_SIZE == continuous.PAGE_SIZE == 128\n"
        "app.create_app()\n"
    )
    warned = python(project, "-c", script)
    assert f"{SRC}/custom.py:" in warned  # the line that imports, not the re-export's
    assert "DeprecationWarning: myserver.models.base has moved to serving/models/model.py" in warned
    own_tests(project, "chat/test_text")

    # The next version changes what moved, moves one of it on, and changes a re-export.
    (project / SRC / "models" / "text.py").unlink()
    commit(project)
    prepared = run_update(project)
    assert prepared.of(Kind.CONFLICT) == prepared.of(Kind.SKIPPED) == []
    wanted = render_wanted(render, tmp_path / "wanted", LAST, LATER)
    edit(wanted, f"{SRC}/serving/engine/batch.py")
    assert (wanted / BASE).read_text().endswith("# Later.\n")
    # The second move leaves a re-export for those who have come to import from there.
    left = render(tmp_path / "left", LATER, updating=True) / CONTINUOUS
    shutil.copy(left, wanted / CONTINUOUS)
    (wanted / SRC / "models" / "text.py").unlink()
    assert_same(project, wanted)
    commit(project)
    assert "Nothing to do" in run("update", str(project)).out


# What the template's own code alone used, and has under another name now, not at all, or not in
# `__all__`.
INTERNAL = {
    *("choose", "choose_filtered", "choose_plain", "mark_choices", "limit_process", "nearest"),
    *("make_rehearsals", "obstacle", "prove", "proven_engine", "sample_tokens"),
    *("collector_paused", "drop_locals", "form_of", "generated_tokens", "shutting_down"),
    *("as_list", "missing_part", "structure", "without_repetition"),
    *("plain_logits", "route_path", "column"),
    *("Pooling", "pooling_mode", "read_pooling"),
}
# The imports of the README's example, of custom.py and of routers of owners' own.
DOCUMENTED = """
from myserver.dependencies import DeadlineDep, RegistryDep, SettingsDep
from myserver.disconnect import until_disconnect
from myserver.errors import APIError, from_model_error
from myserver.models.base import Model, ModelSpec
from myserver.models.batcher import Batcher
from myserver.models.device import Device
from myserver.models.errors import InvalidInput, ModelError, Overloaded, Unavailable
from myserver.schemas.base import APIRequest
"""


def test_every_import_of_an_older_service_works(render: Render, tmp_path: Path) -> None:
    project = make(render, tmp_path / "project", version=LAST)
    imports = DOCUMENTED.splitlines()
    for file in sorted((project / SRC).rglob("*.py")):
        module = ".".join(file.relative_to(project / "src").with_suffix("").parts)
        if "__" in module or ".routers." in module:
            continue
        for node in ast.parse(file.read_text()).body:
            defined = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if defined and not node.name.startswith("_") and node.name not in INTERNAL:
                imports.append(f"from {module} import {node.name}")
    assert len(imports) > 200

    assert conflicts(run_update(project, NEXT)) == set()

    script = project / "imports.py"
    script.write_text("\n".join(imports))
    assert "DeprecationWarning: myserver.models.batcher has moved to" in python(
        project, "imports.py"
    )


def test_every_row_leaves_something_at_its_old_path() -> None:
    answers = {
        "endpoints": ["chat", "embeddings", "files"],
        "streaming": "sse",
        "devices": ["cpu"],
    }
    loader = jinja2.FileSystemLoader(template.root())
    environment = jinja2.Environment(loader=loader, autoescape=False)  # noqa: S701
    module = environment.get_template("moved.jinja").make_module(answers | {"package_name": "*"})
    left: list[dict[str, Any]] = module.left
    found = {}
    for file in left:
        place = file["targets"][0]
        if not place.startswith(("tests/", "deploy/")):
            kind = "/__init__.py" if file["path"].endswith("__init__.py") else ".py"
            place = f"src/*/{place.replace('.', '/')}{kind}"
        found[file["path"]] = place
    assert len(found) == len(left)
    assert found == {row.source: row.target for row in moves.load(template.root())}


@pytest.mark.parametrize("order", ["ours first", "plain copier first"])
def test_plain_copier_over_the_move(
    order: str,
    render: Render,
    moved_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(tmp_path, moved_bundle, monkeypatch)
    project = make(render, tmp_path / "project", own_router, LAST)

    if order == "ours first":
        run_update(project, NEXT)
        commit(project)
        plain_copier(project)
    else:
        plain_copier(project, "--vcs-ref", f"v{NEXT}")
        # It leaves something wherever a file was, and ours takes away what nobody can import.
        assert (project / "tests" / "test_text.py").read_text().startswith('"""Moved to')
        commit(project)
        prepared = run_update(project)
        assert "tests/test_text.py" in prepared.of(Kind.DELETED)

    wanted = render_wanted(render, tmp_path / "wanted", LAST, LATER)
    own_router(wanted)
    left = render(tmp_path / "left", LATER, updating=True)
    shutil.copy(left / CONTINUOUS, wanted / CONTINUOUS)
    if order == "plain copier first":
        # It leaves re-exports also of modules that the older version did not have.
        for name in files(project).keys() - files(wanted).keys():
            shutil.copy(left / name, wanted / name)
    assert_same(project, wanted)


def test_plain_copier_over_the_move_loses_no_edit(
    render: Render,
    moved_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(tmp_path, moved_bundle, monkeypatch)
    project = make(render, tmp_path / "project", version=LAST)
    edited = []
    table = moves.load(moved_bundle.parent / str(NEXT))
    for old in [path for path in files(project) if any(row.place(path) for row in table)]:
        lines = (project / old).read_text().splitlines()
        if lines:
            insert(project / old, len(lines) // 2, f"# Ours, of {old}")
            edited.append(old)
    assert len(edited) > 50
    commit(project)

    plain_copier(project, "--vcs-ref", f"v{NEXT}")

    unmerged = git.output(project, "diff", "--name-only", "--diff-filter=U").splitlines()
    for old in edited:
        assert f"# Ours, of {old}" in (project / old).read_text()
    assert {each for each in edited if not each.endswith("__init__.py")} <= {*unmerged}
