"""`make release`, on a copy of this repository."""

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from infer_scaffold import git
from infer_scaffold.checklist import BY_CODE, PATTERNS
from infer_scaffold.errors import UserError
from infer_scaffold.fleet import fixes
from infer_scaffold.project import history
from release import with_release
from tests.update.conftest import files

ROOT = Path(__file__).parents[1]
NEW = Version("90.1.0")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """This repository as it is here, committed on main and without a past."""
    folder = tmp_path / "checkout"
    listed = git.output(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in listed.split("\0")[:-1]:
        if (ROOT / name).is_file() and not name.startswith("bench/results/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    text = (folder / "CHANGELOG.md").read_text()
    if text.partition("## [Unreleased]\n")[2].lstrip().startswith("## ["):
        changes = "## [Unreleased]\n\n### Changed\n\n- A line.\n"
        (folder / "CHANGELOG.md").write_text(text.replace("## [Unreleased]\n", changes))
    git.make_repository(folder, "Everything")
    return folder


def release(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "release.py", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_release(checkout: Path, tmp_path: Path) -> None:
    result = release(checkout, str(NEW))
    assert (result.returncode, result.stderr) == (0, "")

    log = git.output(checkout, "log", "--format=%s").splitlines()
    assert log == ["Start 90.2.0", "Release 90.1.0", "Everything"]
    assert git.output(checkout, "status", "--porcelain") == ""
    assert git.output(checkout, "describe", "HEAD~1").strip() == "v90.1.0"
    init = "src/infer_scaffold/__init__.py"
    assert '__version__ = "90.1.0"' in git.output(checkout, "show", f"v90.1.0:{init}")
    assert '__version__ = "90.2.0.dev0"' in git.output(checkout, "show", f"HEAD:{init}")

    # The tag and the history in the package name the same template.
    bundle = checkout / "src" / "infer_scaffold" / "project" / "_history.bundle"
    assert history.versions(bundle) == [*history.versions(), NEW]
    carried = history.unpack(NEW, tmp_path / "carried", bundle)
    git.output(tmp_path, "clone", "--quiet", "--branch=v90.1.0", str(checkout), "tagged")
    history.copy_template(tmp_path / "tagged", tmp_path / "template")
    assert files(carried) == files(tmp_path / "template")

    answers = "generated_examples/full/.copier-answers.yml"
    assert "_commit: v90.1.0\n" in git.output(checkout, "show", f"v90.1.0:{answers}")
    recorded = git.output(checkout, "show", "v90.1.0:src/infer_scaffold/fleet/fixes.toml")
    assert fixes.UNRELEASED not in {
        line.split('"')[1] for line in recorded.split("\n") if line.startswith("version")
    }
    assert f"## [90.1.0] - {datetime.date.today()}" in (checkout / "CHANGELOG.md").read_text()


def infer_scaffold(checkout: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command of a checkout."""
    return subprocess.run(
        [sys.executable, "-m", "infer_scaffold", *arguments],
        cwd=checkout.parent,
        env=os.environ | {"PYTHONPATH": str(checkout / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_project_of_a_fresh_checkout_updates_to_the_next_release(checkout: Path) -> None:
    sse = checkout / "template" / "src" / "{{package_name}}" / "serving/http/sse.py"
    sse.write_text(f"{sse.read_text()}\n# A change that no release has.\n")
    git.output(checkout, "commit", "-qam", "Change", settings=git.FALLBACK_IDENTITY)
    project = checkout.parent / "server"
    made = infer_scaffold(checkout, "new", "server", "--yes")
    assert (made.returncode, made.stderr) == (0, "")
    assert infer_scaffold(checkout, "update", "server").stdout.startswith("Nothing to do")

    readme, router = project / "README.md", project / "src" / "server" / "routers" / "echo.py"
    readme.write_text(readme.read_text() + "\nOurs.\n")
    router.write_text("OURS = 1\n")
    git.output(project, "add", "--all")
    git.output(project, "commit", "-qm", "Ours", settings=git.FALLBACK_IDENTITY)
    for fix in ("first", "second"):
        sse.write_text(f"{sse.read_text()}\n# The {fix} fix.\n")
        git.output(checkout, "commit", "-qam", fix, settings=git.FALLBACK_IDENTITY)
    assert (
        json.loads(infer_scaffold(checkout, "status", "server", "--format", "json").stdout)[
            "services"
        ][0]["error"]
        is not None
    )  # of a template that no release has, nor this checkout any more
    assert release(checkout, str(NEW)).returncode == 0
    (service,) = json.loads(
        infer_scaffold(checkout, "status", "server", "--format", "json").stdout
    )["services"]
    assert (service["behind"], service["edited"], service["error"]) == (1, ["README.md"], None)
    updated = infer_scaffold(checkout, "update", "server")

    assert (updated.returncode, updated.stderr) == (0, "")
    assert updated.stdout.splitlines()[0].endswith(" -> 90.1.0: 2 changed.")
    assert readme.read_text().endswith("\nOurs.\n")
    assert "# The second fix." in (project / "src" / "server" / "serving/http/sse.py").read_text()
    assert "_commit: v90.1.0\n" in (project / ".copier-answers.yml").read_text()


def test_refusals_leave_everything_as_it_was(checkout: Path) -> None:
    def refused(*arguments: str) -> str:
        before = files(checkout)
        result = release(checkout, *arguments)
        assert result.returncode == 1
        assert files(checkout) == before
        assert git.output(checkout, "tag") == ""
        return result.stderr

    assert "say which version" in refused()
    assert "'next' is no version" in refused("next")
    assert "'1.0' is no release" in refused("1.0")
    assert "0.0.1 is not newer than" in refused("0.0.1")
    (checkout / "notes").touch()
    assert "changes that are not committed" in refused(str(NEW))
    (checkout / "notes").unlink()
    with (checkout / "moves.toml").open("a") as table:
        table.write('["90.2.0"]\n"src/*/a.py" = "src/*/b.py"\n')
    arguments = ("commit", "--quiet", "--all", "--message=Move")
    git.output(checkout, *arguments, settings=git.FALLBACK_IDENTITY)
    assert "moves.toml says 90.2.0, which is newer than 90.1.0" in refused(str(NEW))
    git.output(checkout, "switch", "--quiet", "--create", "other")
    assert "this is not main" in refused(str(NEW))


def test_a_release_that_fails_half_way_is_taken_back(checkout: Path) -> None:
    (checkout / "tests" / "examples.py").write_text("raise SystemExit('no room')\n")
    git.output(checkout, "add", "--all")
    arguments = ("commit", "--quiet", "--message=Break the examples")
    git.output(checkout, *arguments, settings=git.FALLBACK_IDENTITY)
    before = files(checkout)

    result = release(checkout, str(NEW))

    assert result.returncode == 1
    assert "the examples cannot be rendered" in result.stderr
    assert files(checkout) == before
    assert git.output(checkout, "tag") == ""
    assert git.output(checkout, "status", "--porcelain") == ""


def test_the_changelog_names_the_pattern_and_what_to_do() -> None:
    changelog = (
        "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- One.\n\n## [0.1.0] - old\n\n- Two.\n"
    )
    fix = fixes.Fix(None, BY_CODE["IS301"], "Streams end", "Nothing.")
    old = fixes.Fix(Version("0.1.0"), BY_CODE["IS101"], "Old", "Nothing.")

    assert with_release(changelog, Version("0.2.0"), datetime.date(2030, 1, 2), [old, fix]) == (
        "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2030-01-02\n\n"
        "### Fixed in generated services\n\n"
        "- **Server-sent events for streaming** (IS301, High): Streams end. *To do:* Nothing.\n\n"
        "### Added\n\n- One.\n\n## [0.1.0] - old\n\n- Two.\n"
    )


def test_a_release_needs_changes() -> None:
    changelog = "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - old\n"
    with pytest.raises(UserError, match=r"has nothing under ## \[Unreleased\]; write what changed"):
        with_release(changelog, Version("0.2.0"), datetime.date(2030, 1, 2), [])


def test_fixes_belong_to_releases() -> None:
    released = history.versions()
    assert fixes.load()
    assert all(fix.version is None or fix.version in released for fix in fixes.load())
    assert fixes.missing(released[-1], released[-1]) == []


def test_the_fifteen_patterns() -> None:
    assert len(BY_CODE) == len(PATTERNS) == 15
