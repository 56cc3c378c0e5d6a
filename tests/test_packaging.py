"""The distributions: the whole template in the sdist and in a wheel built from it."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from infer_scaffold import git
from infer_scaffold.checklist import BY_CODE
from infer_scaffold.project import history

ROOT = Path(__file__).parents[1]
CACHES = {"__pycache__", ".ruff_cache", ".mypy_cache", ".pytest_cache"}


def template_files() -> set[str]:
    """The files that a wheel must have, relative to the folder of the template."""
    paths = [path for path in (ROOT / "template").rglob("*") if path.is_file()]
    files = {path.relative_to(ROOT).as_posix() for path in paths if not CACHES & {*path.parts}}
    return files | {"copier.yml", "moved.jinja", "moves.toml", "reserved.jinja"}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    # Isolation would download the build backend, which is installed for the tests.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_sdist_holds_the_template(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}

    assert template_files() <= names
    assert "src/infer_scaffold/project/_history.bundle" in names
    assert {f"docs/patterns/{code}.md" for code in BY_CODE} <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= names
    assert not [name for name in names if CACHES & {*Path(name).parts}]
    assert not [name for name in names if name.startswith((".venv", ".git/"))]


def test_the_wheel_holds_the_template_and_nothing_besides_the_package(dist: Path) -> None:
    (archive,) = dist.glob("*.whl")
    prefix = "infer_scaffold/_template/"
    with zipfile.ZipFile(archive) as wheel:
        names = set(wheel.namelist())

    assert {name.removeprefix(prefix) for name in names if prefix in name} == template_files()
    assert "infer_scaffold/project/_history.bundle" in names
    assert {f"infer_scaffold/_patterns/{code}.md" for code in BY_CODE} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"infer_scaffold"}


def test_new_works_from_the_wheel_far_from_the_checkout(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    environment = tmp_path / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(wheel)], check=True)
    (installed,) = (environment / "lib").glob("*/site-packages")
    # The dependencies are lent by the environment that runs the tests; the package itself is
    # not, as an editable install is a .pth file, which is not read through another one.
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (installed / "lent.pth").write_text("\n".join(lent))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    result = subprocess.run(
        [environment / "bin" / "infer-scaffold", "new", "server", "--yes"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert (tmp_path / "server" / ".copier-answers.yml").is_file()
    assert (tmp_path / "server" / ".git").is_dir()
    script = "import infer_scaffold; print(infer_scaffold.__file__)"
    where = subprocess.check_output([python, "-c", script], env=env, cwd=tmp_path, text=True)
    assert where.startswith(str(installed))
    explain = [environment / "bin" / "infer-scaffold", "explain", "IS303"]
    page = subprocess.check_output(explain, env=env, cwd=tmp_path, text=True)
    assert page == BY_CODE["IS303"].page


def test_update_works_from_the_wheel_without_a_network(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")  # noqa: S202
    old_project = ROOT / "tests" / "update" / "project-0.1.0.bundle"
    git.output(tmp_path, "clone", "--quiet", "--branch=main", str(old_project), "project")
    # No address but a file's: git would refuse to ask a server.
    env = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "GIT_ALLOW_PROTOCOL": "file"}

    result = subprocess.run(
        [sys.executable, "-m", "infer_scaffold", "update"],
        cwd=tmp_path / "project",
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.returncode, result.stderr) == (0, "")
    newest = history.versions()[-1]
    assert result.stdout.startswith(f"0.1.0 -> {newest}: ")
    answers = (tmp_path / "project" / ".copier-answers.yml").read_text()
    assert f"_commit: {history.tag(newest)}\n" in answers
    assert str(tmp_path) not in answers
