"""The version of a service is that of its files, whatever its answers file says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from infer_scaffold import git
from infer_scaffold.fleet import survey
from infer_scaffold.fleet.verdicts import Verdict
from infer_scaffold.project import history, updating
from tests.conftest import Run
from tests.update.conftest import LATER, NEWEST, NEXT, OLDEST, RELEASED, Render, commit
from tests.update.edits import (
    EDITS,
    PACKAGE,
    Edit,
    change,
    changed_settings,
    everything,
    own_code_in_a_router,
)

Look = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the patterns of the checklist aside: they take most of the time, and are not asked."""
    monkeypatch.setattr(survey.verdicts, "judge", lambda *_: Verdict((), ""))


@pytest.fixture
def look(run: Run) -> Look:
    def look(project: Path) -> dict[str, Any]:
        (service,) = json.loads(run("status", str(project), "--format", "json").out)["services"]
        return dict(service)

    return look


def claim(project: Path, version: Version | str) -> None:
    """Change the version in the answers file alone, as a bad resolution of a conflict does."""
    file = project / ".copier-answers.yml"
    lines = file.read_text().splitlines()
    lines = [f"_commit: v{version}" if each.startswith("_commit:") else each for each in lines]
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_honest_edits_change_no_version(
    edit: Edit, render: Render, look: Look, tmp_path: Path
) -> None:
    for version in (NEXT, RELEASED[0]):
        project = render(tmp_path / str(version), version)
        edit(project)
        if version == NEXT and edit.__name__ == "everything":
            for file in (project / "src").rglob("*.py"):
                file.write_text(
                    "# Copyright Example Ltd.\n" + file.read_text().replace("    ", "\t")
                )

        service = look(project)

        assert (service["version"], service["claims"]) == (str(version), str(version))
        assert (
            (service["error"] is None)
            or "nested" in service["error"]
            or "cannot" in service["error"]
        )
        assert service["older"] == []


CLAIMED = {
    "none": [],
    "settings": [changed_settings],
    "router": [own_code_in_a_router],
    "everything": [everything],
}


@pytest.mark.parametrize(
    ("version", "edits"),
    [
        pytest.param(version, edits, id=f"{version}-{name}")
        for version in RELEASED
        for name, edits in CLAIMED.items()
        if version in (OLDEST, NEWEST) or name == "everything"
    ],
)
def test_a_version_that_is_claimed_only(
    version: Version, edits: list[Edit], render: Render, look: Look, run: Run, tmp_path: Path
) -> None:
    project = render(tmp_path / "service", version)
    for edit in edits:
        edit(project)
    before = look(project)
    claim(project, NEXT)

    service = look(project)

    assert (service["version"], service["claims"]) == (str(version), str(NEXT))
    for what in ("behind", "missing", "edited", "deleted"):
        assert service[what] == before[what]
    assert f" {version} (claims {NEXT}) " in run("status", str(project)).out


@pytest.mark.parametrize("claimed", ["99.1", "99.2"])
def test_versions_that_changed_nothing_are_passed_over(
    claimed: str,
    render: Render,
    look: Look,
    templates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two more versions with the files of the newest one."""
    bundle = tmp_path / "bundle"
    shutil.copy(templates / "bundle", bundle)
    for same in ("99.1", "99.2"):
        history.add(bundle, Version(same), templates / str(NEXT))
    monkeypatch.setattr(history, "BUNDLE", bundle)
    old, new = render(tmp_path / "old", RELEASED[0]), render(tmp_path / "new")
    for project in (old, new):
        claim(project, Version(claimed))
    change(new / "src" / PACKAGE / "settings.py", "Field(8000,", "Field(9000,")

    assert look(old)["version"] == str(RELEASED[0])
    assert look(new)["version"] == claimed
    claim(new, RELEASED[0])
    assert look(new)["version"] == str(NEXT)


def test_a_version_that_is_not_claimed(render: Render, look: Look, tmp_path: Path) -> None:
    project = render(tmp_path / "service")
    change(project / "src" / PACKAGE / "settings.py", "Field(8000,", "Field(9000,")
    claim(project, RELEASED[0])

    service = look(project)

    assert (service["version"], service["claims"]) == (str(NEXT), str(RELEASED[0]))
    assert (service["behind"], service["missing"]) == (0, [])


def test_a_version_that_is_not_claimed_and_has_moved_its_files(
    moved_render: Render, look: Look, tmp_path: Path
) -> None:
    project = moved_render(tmp_path / "service", LATER)
    change(project / "src" / PACKAGE / "settings.py", "Field(8000,", "Field(9000,")
    claim(project, RELEASED[0])

    service = look(project)

    assert (service["version"], service["claims"]) == (str(LATER), str(RELEASED[0]))
    assert (service["behind"], service["deleted"]) == (0, [])
    assert service["edited"] == [f"src/{PACKAGE}/settings.py"]


def test_some_files_that_are_older(render: Render, look: Look, run: Run, tmp_path: Path) -> None:
    old, project = render(tmp_path / "old", RELEASED[-1]), render(tmp_path / "service")
    name = next(
        path.relative_to(old)
        for path in sorted((old / "src").rglob("*.py"))
        if (project / path.relative_to(old)).exists()
        and path.read_bytes() != (project / path.relative_to(old)).read_bytes()
    )
    shutil.copy(old / name, project / name)

    service = look(project)

    assert (service["version"], service["older"]) == (str(NEXT), [name.as_posix()])
    assert f"1 file as before {NEXT}" in run("status", str(project)).out


@pytest.mark.parametrize(
    ("place", "newest"),
    [
        ("src/acme", NEXT),
        ("acme", NEXT),
        ("services/api/src/acme", NEXT),
        ("acme", LATER),
    ],
    ids=str,
)
def test_a_package_that_was_moved(
    place: str, newest: Version, moved_render: Render, look: Look, tmp_path: Path
) -> None:
    render = moved_render
    for version in (newest, RELEASED[0]):
        project = render(tmp_path / str(version), version)
        (project / place).parent.mkdir(parents=True, exist_ok=True)
        (project / "src" / PACKAGE).rename(project / place)

        service = look(project)

        assert (service["version"], service["package"]) == (str(version), place)
        assert not [name for name in service["deleted"] if name.startswith(("src/", place))]
        # What an update brings to the old place is not what the service runs.
        claim(project, newest)
        old = render(tmp_path / f"old{version}", version)
        new = render(tmp_path / f"new{version}", newest)
        for file in sorted(new.rglob(f"src/{PACKAGE}/**/*.py")):
            name = file.relative_to(new)
            if not (old / name).exists():
                (project / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, project / name)
        assert look(project)["version"] == str(version)


def test_a_package_that_is_gone(render: Render, look: Look, tmp_path: Path) -> None:
    project = render(tmp_path / "service")
    shutil.rmtree(project / "src")

    service = look(project)

    assert service["version"] is None
    assert "its package src/myserver is gone" in service["error"]


def test_an_update_that_follows_the_package(project: Path, render: Render, look: Look) -> None:
    git.output(project, "mv", f"src/{PACKAGE}", "src/acme")
    commit(project)
    with updating.prepare(project, [], {}) as prepared:
        assert prepared is not None
        prepared.apply()
    gets_fixes = (project / "src" / "acme" / "models" / "hub.py").exists() or (
        "src/acme" in git.output(project, "status", "--porcelain")
    )

    service = look(project)

    assert service["package"] == "src/acme"
    assert service["version"] == (str(NEXT) if gets_fixes else "0.1.0")
