"""How the services of a team stand: versions, fixes that they lack, files that were edited."""

import gc
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from packaging.version import Version

from infer_scaffold import fixes, history
from infer_scaffold.check import config, runner
from infer_scaffold.checklist import Pattern, Severity
from infer_scaffold.errors import UserError
from infer_scaffold.project import ANSWERS_FILE, read
from infer_scaffold.rendering import Renderer

_DEPTH = 3
_CHUNK = 8


@dataclass(frozen=True)
class Service:
    """One service of the fleet. With `error`, nothing else is known of it."""

    path: Path
    name: str
    version: Version | None = None
    behind: int = 0
    missing: list[fixes.Fix] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    failing: list[Pattern] = field(default_factory=list)
    error: str = ""

    @property
    def severe(self) -> list[fixes.Fix]:
        """The missing fixes of High severity."""
        return [fix for fix in self.missing if fix.severity is Severity.HIGH]

    @property
    def needs_attention(self) -> bool:
        """Say whether somebody should look at it soon."""
        return bool(self.severe or self.failing or self.error)


def survey(paths: Iterable[Path]) -> list[Service]:
    """Look at the services in folders, or in folders of folders, in the order of their paths.

    Raises UserError for a path that holds no service.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        found = list(_services(path, _DEPTH))
        if not found:
            raise UserError(f"{path} holds no project of infer-scaffold; give a folder that does.")
        folders.update(dict.fromkeys(found))
    with tempfile.TemporaryDirectory(prefix="infer-scaffold-") as temporary:
        for version in history.versions():
            history.unpack(version, Path(temporary, str(version)))
        jobs = [(folder, Path(temporary), history.versions()) for folder in folders]
        if len(jobs) <= _CHUNK:
            return [_look(*job) for job in jobs]
        # Syntax trees are large and hold no cycles: the collector would only walk them.
        with ProcessPoolExecutor(os.cpu_count(), initializer=gc.disable) as pool:
            return list(pool.map(_look, *zip(*jobs, strict=True), chunksize=_CHUNK))


def _services(path: Path, depth: int) -> Iterator[Path]:
    if (path / ANSWERS_FILE).is_file():
        yield path
    elif depth and path.is_dir():
        for child in sorted(path.iterdir()):
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from _services(child, depth - 1)


def _look(path: Path, templates: Path, released: list[Version]) -> Service:
    name = path.resolve().name
    try:
        project = read(path)
    except UserError as error:
        return Service(path, name, error=str(error))
    if project.version not in released:
        return Service(path, name, error=f"this infer-scaffold knows no release {project.version}")
    try:
        rendered = _renderer(templates / str(project.version)).render(project.answers)
    except Exception as error:
        # Answers that no version of the template gives: one service must not hide the others.
        return Service(path, name, error=f"its answers cannot be rendered ({error})")
    edited, deleted = _compare(path, rendered)
    try:
        report = runner.check(path, config.load(path))
    except UserError as error:
        return Service(path, name, error=str(error))
    for file, line, reason in report.unparsed:
        return Service(path, name, error=f"{file}:{line} cannot be read ({reason})")
    return Service(
        path,
        project.answers.get("project_name", name),
        project.version,
        behind=sum(version > project.version for version in released),
        missing=fixes.missing(project.version, released[-1]),
        edited=edited,
        deleted=deleted,
        failing=[each.pattern for each in report.failing],
    )


@lru_cache
def _renderer(root: Path) -> Renderer:
    return Renderer(root)


def _compare(path: Path, rendered: dict[str, bytes]) -> tuple[list[str], list[str]]:
    """Return which managed files were edited, and which were deleted or moved."""
    edited, deleted = [], []
    for name, content in rendered.items():
        try:
            found = (path / name).read_bytes()
        except OSError:
            deleted.append(name)
            continue
        if found != content and found.replace(b"\r\n", b"\n") != content:
            edited.append(name)
    return sorted(edited), sorted(deleted)
