"""Projects of released versions, and a version to update them to: the template as it is now."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from infer_scaffold import generate, git, history, template
from tests.update.edits import PACKAGE

NEXT = Version("99.0")
# The default model has changed since; a project keeps what it was made with.
MADE_WITH = {"project_name": PACKAGE, "chat_model": "google/gemma-3-270m-it"}
Render = Callable[..., Path]


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the template of each version, and the bundle of all of them."""
    folder = tmp_path_factory.mktemp("templates")
    bundle = folder / "bundle"
    shutil.copy(history.BUNDLE, bundle)
    history.add(bundle, NEXT, template.root())
    for version in history.versions(bundle):
        history.unpack(version, folder / str(version), bundle)
    return folder


@pytest.fixture
def render(templates: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Render]:
    """Render a project of a version; `infer-scaffold` knows all of them."""
    monkeypatch.setattr(history, "BUNDLE", templates / "bundle")

    def render(destination: Path, version: Version = NEXT, **answers: Any) -> Path:
        # Copies of one rendering: copier takes half a second for each.
        kept = templates / "renderings" / f"{version}-{answers}"
        if not kept.exists():
            generate.render(
                {**MADE_WITH, **answers},
                kept,
                source=templates / str(version),
                tag=history.tag(version),
            )
        shutil.copytree(kept, destination)
        return destination

    yield render


# Written once: no update touches them, whatever the template makes of them later.
OWNED = [
    f"src/{PACKAGE}/custom.py",
    f"src/{PACKAGE}/custom_settings.py",
    "docker-setup.sh",
    ".gitattributes",
]


def render_wanted(render: Render, destination: Path, version: Version, **answers: Any) -> Path:
    """Render what a project of `version` is after an update: its owner's files are older."""
    wanted = render(destination, **answers)
    old = render(destination.with_name(f"{destination.name}-old"), version, **answers)
    for name in OWNED:
        if (old / name).exists():
            shutil.copy(old / name, wanted / name)
    return wanted


@pytest.fixture
def project(render: Render, tmp_path: Path) -> Path:
    """A committed project of the first version."""
    path = render(tmp_path / "project", Version("0.1.0"))
    git.make_repository(path, "Generate")
    return path


def commit(project: Path) -> None:
    """Commit everything in the project."""
    git.output(project, "add", "--all", settings=git.AS_RENDERED)
    git.output(
        project, "commit", "--quiet", "--allow-empty", "-m", "Edit", settings=git.FALLBACK_IDENTITY
    )


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The files of a project: path, mode and content."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mode, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }
