"""The status of a team's services: versions, missing fixes, edited files."""

import dataclasses
import gc
import multiprocessing
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

from packaging.version import Version

from infer_scaffold.check.source import python_files
from infer_scaffold.checklist import BY_CODE, Pattern, Severity
from infer_scaffold.errors import UserError
from infer_scaffold.fleet import fixes, verdicts
from infer_scaffold.project import history, moves, template
from infer_scaffold.project.answers_file import ANSWERS_FILE, Project, project, recorded
from infer_scaffold.project.moves import Move
from infer_scaffold.project.questions import Answers
from infer_scaffold.project.rendering import Renderer
from infer_scaffold.reading import Unreadable, content

_CORE = "serving"  # below the package
_PACKAGE = "src/*"  # the folder of any package, as moves.toml names it
_DEPTH = 3
_FEW = 8  # services that are looked at in this process


@dataclass(frozen=True)
class Service:
    """One service of the fleet. Without `version`, `error` or `template` says why.

    `version` is the newest whose changes are in the files, `claimed` the one that the answers file
    names. `older` are the files that are nearer to the version before. `core` are the files below
    serving/ that are not as rendered, or None where the version has no such folder. `template` is
    the address of a template that is not ours, `package` the folder that the package was moved to.
    """

    path: Path
    name: str
    version: Version | None = None
    claimed: Version | None = None
    template: str = ""
    package: str | None = None
    behind: int = 0
    missing: list[fixes.Fix] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    core: list[str] | None = None
    older: list[str] = field(default_factory=list)
    failing: list[Pattern] = field(default_factory=list)
    error: str = ""

    @property
    def severe(self) -> list[fixes.Fix]:
        """The missing fixes of High severity."""
        return [fix for fix in self.missing if fix.severity is Severity.HIGH]

    @property
    def needs_attention(self) -> bool:
        """Say whether the service needs attention soon."""
        return bool(self.severe or self.failing or self.error)

    @property
    def is_moved(self) -> bool:
        """Say whether its package is elsewhere than the template has it."""
        return self.package is not None

    @property
    def urgency(self) -> int:
        """The position in a list sorted by urgency: 0 comes first."""
        return 0 if self.needs_attention else 1 if self.is_late else 2

    @property
    def is_late(self) -> bool:
        """Say whether it lacks something of the newest version, or of its own."""
        return bool(self.behind or self.older)


def survey(paths: Iterable[Path]) -> list[Service]:
    """Look at the services in folders, or in folders of folders; the most urgent come first.

    Raises UserError for a path that holds no service.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        found = list(_services(path, _DEPTH))
        if not found:
            raise UserError(f"{path} holds no project of infer-scaffold; give a folder that does.")
        folders.update(dict.fromkeys(found))
    with tempfile.TemporaryDirectory(prefix="infer-scaffold-") as temporary:
        released = history.versions()
        for version in released:
            history.unpack(version, Path(temporary, str(version)))
        fleet = _Fleet(Path(temporary), tuple(released), template.address())
        services = _look_at_all(fleet, list(folders))
    verdicts.tidy()
    return sorted(services, key=lambda each: (each.urgency, each.path))


def _services(path: Path, depth: int) -> Iterator[Path]:
    """The folders with an answers file, and those that cannot be looked into."""
    if os.path.lexists(path / ANSWERS_FILE):
        yield path
        return
    try:
        with os.scandir(path) as entries:
            below = sorted(
                entry.name
                for entry in entries
                if depth and entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            )
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:
        yield path
        return
    for name in below:
        yield from _services(path / name, depth - 1)


@dataclass(frozen=True)
class _Fleet:
    """The reference for all services: the folder with each version's template."""

    templates: Path
    released: tuple[Version, ...]
    address: str

    def template(self, at: int) -> Path:
        """Return the folder of a version's template."""
        return self.templates / str(self.released[at])


def _look_at_all(fleet: _Fleet, folders: list[Path]) -> list[Service]:
    if len(folders) <= _FEW:
        return [_look(fleet, folder) for folder in folders]
    found, left = _look_in_processes(fleet, folders, os.cpu_count() or 1)
    # A process ended, and took with it what the others had not finished: again, one by one.
    for folder in left:
        alone, ended = _look_in_processes(fleet, [folder], 1)
        found |= alone
        for each in ended:
            error = "the process that judged it ended, perhaps for lack of memory"
            found[each] = Service(each, _name(each), error=error)
    return [found[folder] for folder in folders]


def _look_in_processes(
    fleet: _Fleet, folders: list[Path], processes: int
) -> tuple[dict[Path, Service], list[Path]]:
    """Return the services, and the folders that were left when a process ended."""
    found: dict[Path, Service] = {}
    left: list[Path] = []
    with ProcessPoolExecutor(processes, initializer=_begin) as pool:
        jobs = {}
        for folder in folders:
            try:
                jobs[folder] = pool.submit(_look, fleet, folder)
            except BrokenProcessPool:
                left.append(folder)
        for folder, job in jobs.items():
            try:
                found[folder] = job.result()
            except BrokenProcessPool:
                left.append(folder)
    return found, left


def _begin() -> None:
    """Prepare a process of the pool."""
    # Syntax trees are large and hold no cycles: the collector would only walk them.
    gc.disable()
    # It would wait for work for good if this program were killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _look(fleet: _Fleet, path: Path) -> Service:
    try:
        return _judged(fleet, path)
    except UserError as error:
        problem = str(error)
    except Exception as error:
        # An error in one service must not hide the others.
        problem = f"it cannot be judged ({type(error).__name__}: {error})"
    return Service(path, _name(path), error=problem.replace(f"{path}{os.sep}", ""))


def _name(path: Path) -> str:
    return Path(os.path.abspath(path)).name


def _judged(fleet: _Fleet, path: Path) -> Service:
    record = recorded(path)
    service = Service(path, _name(path))
    read = cache(content)  # each file once: for the version and for the verdict
    if record["_src_path"] != fleet.address:
        service = dataclasses.replace(service, template=record["_src_path"])
    else:
        service = _versioned(fleet, service, project(path, record), read)
    name = record.get("project_name")
    if isinstance(name, str):
        service = dataclasses.replace(service, name=name)
    return _checked(service, read)


def _checked(service: Service, read: Callable[[Path], bytes]) -> Service:
    """Add which patterns it fails, and which file could not be read."""
    try:
        verdict = verdicts.judge(service.path, read)
    except UserError as error:
        problem = str(error).replace(f"{service.path}{os.sep}", "")
        return dataclasses.replace(service, error=problem)
    failing = [BY_CODE[code] for code in verdict.failing]
    return dataclasses.replace(service, failing=failing, error=verdict.unread)


def _versioned(
    fleet: _Fleet, service: Service, project: Project, read: Callable[[Path], bytes]
) -> Service:
    """Add the version, and what its files lack of the newest one and differ from their own."""
    if project.version not in fleet.released:
        return _between_releases(fleet, service, project, read)
    source = _Source(fleet, service.path, project.answers)
    claimed = fleet.released.index(project.version)
    tree = _tree(fleet, service.path, source.rendered(claimed), read)
    at, older = claimed, list[str]()
    edited, deleted = tree.compare(source.rendered(claimed))
    if edited or deleted:
        at, older = _contained(source, tree, claimed)
    if at != claimed:
        edited, deleted = tree.compare(source.rendered(at))
    version = fleet.released[at]
    return dataclasses.replace(
        service,
        version=version,
        claimed=project.version,
        package=tree.package if tree.package != tree.prefix else None,
        behind=len(fleet.released) - 1 - at,
        missing=fixes.missing(version, fleet.released[-1]),
        edited=edited,
        deleted=deleted,
        core=tree.core(source.rendered(at), edited, deleted),
        older=[name for name in older if name not in deleted],
    )


def _between_releases(
    fleet: _Fleet, service: Service, project: Project, read: Callable[[Path], bytes]
) -> Service:
    """Add what is known of a service that a development version made."""
    if not history.knows(project.version):
        raise UserError(
            f"it is of version {project.version}, which this infer-scaffold does not know"
        )
    with tempfile.TemporaryDirectory(prefix="infer-scaffold-") as temporary:
        root = history.unpack(project.version, Path(temporary, "template"))
        rendered = Renderer(root).render(project.answers)
    tree = _tree(fleet, service.path, rendered, read)
    edited, deleted = tree.compare(rendered)
    return dataclasses.replace(
        service,
        version=project.version,
        claimed=project.version,
        package=tree.package if tree.package != tree.prefix else None,
        behind=sum(version > project.version for version in fleet.released),
        missing=fixes.missing(project.version, fleet.released[-1]),
        edited=edited,
        deleted=deleted,
        core=tree.core(rendered, edited, deleted),
    )


def _contained(source: "_Source", tree: "_Tree", claimed: int) -> tuple[int, list[str]]:
    """The newest version whose changes are in the files, and the files that lack them.

    A version that changed nothing of this service tells nothing, and is passed over.
    """
    at = claimed
    for number in range(claimed, 0, -1):
        newer, older = tree.votes(source.rendered(number - 1), source.rendered(number))
        if len(older) > len(newer):
            at = number - 1
        elif newer:
            break
    for number in range(claimed + 1, len(source.fleet.released) if at == claimed else 0):
        newer, older = tree.votes(source.rendered(number - 1), source.rendered(number))
        if len(newer) > len(older):
            at = number
        elif older:
            break
    _, older = tree.votes(source.rendered(at - 1), source.rendered(at)) if at else ([], [])
    return at, older


@dataclass
class _Source:
    """The renderings of each version of the template for one service."""

    fleet: _Fleet
    path: Path
    answers: Answers
    _rendered: dict[int, dict[str, bytes]] = field(default_factory=dict)

    def rendered(self, at: int) -> dict[str, bytes]:
        """Return the managed files of a version. Raises UserError for answers that give none."""
        if at not in self._rendered:
            try:
                files = _renderer(self.fleet.template(at)).render(self.answers)
            except Exception as error:
                # Edited answers may cause any error.
                raise UserError(f"its answers cannot be rendered ({error})") from error
            if any(".." in name.split("/") or name.startswith("/") for name in files):
                raise UserError("its answers cannot be rendered (they lead out of the project)")
            self._rendered[at] = files
        return self._rendered[at]


@lru_cache
def _renderer(root: Path) -> Renderer:
    return Renderer(root)


@lru_cache
def _moves(root: Path) -> list[Move]:
    return moves.load(root)


@cache
def _places(root: Path, name: str) -> list[str]:
    """Return where the versions since have had a file of the template, the newest first."""
    return [name, *moves.steps(_moves(root), name)][::-1]


@dataclass
class _Tree:
    """The files of a service. Those that the template has below `prefix` are below `package`.

    `newest` is the folder of the newest template, `content` reads a file.
    """

    path: Path
    prefix: str
    package: str
    newest: Path
    content: Callable[[Path], bytes]
    _read: dict[str, bytes | None] = field(default_factory=dict)

    def place(self, name: str) -> str:
        """Return where a file of the template is in the project."""
        inside = name.removeprefix(f"{self.prefix}/")
        if inside == name:
            return name
        return f"{self.package}/{inside}" if self.package else inside

    def read(self, name: str) -> bytes | None:
        """Return a file with the template's line ends, or None if there is none to read.

        It is looked for where a newer version has it as well.
        """
        if name not in self._read:
            self._read[name] = None
            # By what all services have in common: a row of moves.toml names no package.
            inside = name.removeprefix(f"{self.prefix}/")
            for place in _places(self.newest, name if inside == name else f"{_PACKAGE}/{inside}"):
                with suppress(Unreadable):
                    here = place.replace(_PACKAGE, self.prefix, 1)
                    found = self.content(self.path / self.place(here))
                    self._read[name] = found.replace(b"\r\n", b"\n")
                    break
        return self._read[name]

    def compare(self, rendered: Mapping[str, bytes]) -> tuple[list[str], list[str]]:
        """Return which managed files were edited, and which were deleted or moved."""
        edited: list[str] = []
        deleted: list[str] = []
        for name, wanted in rendered.items():
            found = self.read(name)
            if found == wanted.replace(b"\r\n", b"\n"):
                continue
            there = found is not None or os.path.lexists(self.path / self.place(name))
            (edited if there else deleted).append(self.place(name))
        return sorted(edited), sorted(deleted)

    def core(
        self, rendered: Iterable[str], edited: list[str], deleted: list[str]
    ) -> list[str] | None:
        """Return what is edited, gone or added in the folder that is the template's alone."""
        folder = self.place(f"{self.prefix}/{_CORE}")
        files = {self.place(name) for name in rendered if self.place(name).startswith(f"{folder}/")}
        if not files:
            return None
        found = {
            Path(below, name).relative_to(self.path).as_posix()
            for below, _, names in os.walk(self.path / folder)
            for name in names
            if name.endswith(".py")
        }
        return sorted(files.intersection([*edited, *deleted]) | found - files)

    def votes(
        self, old: Mapping[str, bytes], new: Mapping[str, bytes]
    ) -> tuple[list[str], list[str]]:
        """Return the files that have what a version changed, and those that lack it.

        The package alone is asked, where it changed: fixes are there, and README or deployment are
        more the owner's than the template's.
        """
        changed = [name for name in new if old.get(name) != new[name]]
        changed = [name for name in changed if name.startswith(f"{self.prefix}/")] or changed
        newer: list[str] = []
        older: list[str] = []
        for name in changed:
            nearness = _nearness(self.read(name), old.get(name), new[name])
            if nearness:
                (newer if nearness > 0 else older).append(self.place(name))
        return newer, sorted(older)


def _nearness(found: bytes | None, old: bytes | None, new: bytes) -> float:
    """Return the similarity of a file to its new version (above 0) or its old one (below 0).

    By lines, without blanks around them: the share of those that the new version added, less the
    share of those that it removed. A file that is missing lacks the change.
    """
    if found is None:
        return -1
    if old is None or found == new:
        return 1
    if found == old:
        return -1
    has, had, gets = (_lines(each) for each in (found, old, new))
    added, removed = gets - had, had - gets
    if not added and not removed:
        return 0
    gained = ((has - had) & added).total() / added.total() if added else None
    kept = ((has - gets) & removed).total() / removed.total() if removed else None
    if gained is None:
        gained = 1 - (kept or 0)
    return gained - (1 - gained if kept is None else kept)


def _lines(text: bytes) -> Counter[bytes]:
    return Counter(filter(None, map(bytes.strip, text.splitlines())))


def _tree(
    fleet: _Fleet, path: Path, rendered: Mapping[str, bytes], read: Callable[[Path], bytes]
) -> _Tree:
    """Find the package: where it is rendered, or in the folder with most of its files.

    The core is not asked: plain copier brings it to where the package was. Raises UserError if
    hardly any of the others is anywhere.
    """
    prefix = "/".join(min(name for name in rendered if name.startswith("src/")).split("/")[:2])
    names = {
        name.removeprefix(f"{prefix}/")
        for name in rendered
        if name.startswith(f"{prefix}/")
        and name.endswith(".py")
        and not name.startswith(f"{prefix}/{_CORE}/")
    }
    here = sum(os.path.lexists(path / prefix / name) for name in names)
    newest = fleet.template(-1)
    if 2 * here >= len(names):
        return _Tree(path, prefix, prefix, newest, read)
    folders: Counter[str] = Counter({prefix: here})
    for file, problem in python_files(path):
        parts = file.relative_to(path).parts
        if problem or parts[:2] == tuple(prefix.split("/")):
            continue
        for start in range(len(parts)):
            if "/".join(parts[start:]) in names:
                folders["/".join(parts[:start])] += 1
    (package, most), *_ = folders.most_common(1)
    if 10 * most < len(names):
        raise UserError(
            f"its package {prefix} is gone, and no folder holds the files of it: "
            "its version cannot be told"
        )
    return _Tree(path, prefix, package, newest, read)
