"""Projects of released versions, and a version to update them to: the template as it is now."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from infer_scaffold import git
from infer_scaffold.project import generate, history, template, updating
from infer_scaffold.project.moves import is_imported
from tests.conftest import made_once
from tests.update import moving
from tests.update.edits import PACKAGE, change

NEXT = Version("99.0")
# A later version, which moves a module that NEXT has moved already.
LATER = Version("101.0")
RELEASED = history.versions()
# Each thing that an owner may do is tried on these two; on those between them, all at once.
OLDEST, NEWEST = RELEASED[0], RELEASED[-1]
# The default model has changed since; a project keeps what it was made with.
MADE_WITH = {"project_name": PACKAGE, "chat_model": "google/gemma-3-270m-it"}
Render = Callable[..., Path]


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the template of each version, and the bundle of all of them."""
    folder = tmp_path_factory.mktemp("templates")
    bundle = folder / "bundle"
    shutil.copy(history.BUNDLE, bundle)
    # Right after a release the template is that of the release.
    following = folder / "following"
    history.copy_template(template.root(), following)
    for name in ("serving/http/drain.py", "serving/threads.py", "serving/models/device.py"):
        module = following / "template" / "src" / "{{package_name}}" / name
        module.write_text(f"{module.read_text()}\n# The version after all releases.\n")
    history.add(bundle, NEXT, following)
    for version in history.versions(bundle):
        history.unpack(version, folder / str(version), bundle)
    return folder


@pytest.fixture(scope="session")
def moved_bundle(templates: Path) -> Path:
    """The bundle with the later version as well."""
    bundle = templates / "moved.bundle"
    shutil.copy(templates / "bundle", bundle)
    source = templates / str(LATER)
    history.copy_template(templates / str(NEXT), source)
    moving.move(source, str(LATER), moving.LATER)
    edit_what_has_moved(source / "template")
    history.add(bundle, LATER, source)
    return bundle


def edit_what_has_moved(folder: Path) -> None:
    """The changes that the later version makes in what was moved, and in the re-exports."""
    package = folder / moving.FOLDER
    for name, line in {
        "serving/engine/batch.py": "from threading import Thread\n",
        "serving/models/model.py": "class ModelSpec:\n",
    }.items():
        change(package / name, line, f"{line}# Later.\n")
    with (folder / moving.LEFT).open("a") as reexport:
        reexport.write("# Later.\n")


@pytest.fixture
def render(templates: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Render]:
    """Render a project of a version; `infer-scaffold` knows all of them."""
    monkeypatch.setattr(history, "BUNDLE", templates / "bundle")

    def render(
        destination: Path, version: Version = NEXT, *, updating: bool = False, **answers: Any
    ) -> Path:
        make = partial(
            generate.render,
            {**MADE_WITH, **answers},
            source=templates / str(version),
            tag=history.tag(version),
            updating=updating,
        )
        kept = made_once(shared, ("of a version", version, updating, sorted(answers.items())), make)
        shutil.copytree(kept, destination)
        return destination

    yield render


@pytest.fixture(autouse=True)
def _rendered_once(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all tests share the templates of the versions, and all updates what is rendered."""

    def known(bundle: Path) -> tuple[object, ...]:
        return hashlib.sha256(bundle.read_bytes()).hexdigest(), template.root()

    def unpack_once(version: Version, folder: Path, bundle: Path | None = None) -> Path:
        bundle = bundle or history.BUNDLE
        make = partial(unpack, version, bundle=bundle)
        kept = made_once(shared, ("template", *known(bundle), version), make)
        folder.symlink_to(kept, target_is_directory=True)
        return folder

    def render_once(version: Version, answers: Any, temporary: Path, name: str) -> None:
        def make(folder: Path) -> None:
            folder.mkdir()
            render_version(version, answers, folder, "one")

        what = ("of an update", *known(history.BUNDLE), version, sorted(answers.items()))
        kept = made_once(shared, what, make)
        for part in ("-template", ""):
            (temporary / f"{name}{part}").symlink_to(kept / f"one{part}", target_is_directory=True)

    unpack, render_version = history.unpack, updating._render
    monkeypatch.setattr(history, "unpack", unpack_once)
    monkeypatch.setattr(updating, "_render", render_once)


@pytest.fixture
def moved_render(render: Render, moved_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Render:
    """Render a project; `infer-scaffold` knows the later version as well."""
    monkeypatch.setattr(history, "BUNDLE", moved_bundle)
    return render


# Written once: no update touches them, whatever the template makes of them later.
OWNED = [
    f"src/{PACKAGE}/custom.py",
    f"src/{PACKAGE}/custom_settings.py",
    "docker-setup.sh",
    ".gitattributes",
]


def render_wanted(
    render: Render,
    destination: Path,
    version: Version,
    to: Version = NEXT,
    *,
    made_with: dict[str, Any] | None = None,
    **answers: Any,
) -> Path:
    """Render what a project of `version` is after an update.

    Its owner's files are older, and re-exports stand where modules have been. `made_with` are the
    answers that the update has changed.
    """
    wanted = render(destination, to, **answers)
    old_answers = answers if made_with is None else made_with
    old = render(destination.with_name(f"{destination.name}-old"), version, **old_answers)
    for name in OWNED:
        if (old / name).exists():
            shutil.copy(old / name, wanted / name)
    updated = render(
        destination.with_name(f"{destination.name}-updated"), to, updating=True, **answers
    )
    for name in files(updated).keys() - files(wanted).keys():
        if (old / name).exists() and is_imported(name):
            (wanted / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(updated / name, wanted / name)
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
