"""Bring a project to another version of the template, or to other answers.

copier does the work, in a clone: the project itself is touched once, when everything is known,
by one git command. Whatever goes wrong or is killed before that leaves it as it was.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import yaml
from packaging.version import InvalidVersion, Version

from infer_scaffold import git, history, template
from infer_scaffold.errors import UserError
from infer_scaffold.project import ANSWERS_FILE, Project, read
from infer_scaffold.questions import Answers, Question
from infer_scaffold.rendering import Renderer


class Kind(StrEnum):
    """What an update does to a file."""

    ADDED = "added"
    CHANGED = "changed"
    DELETED = "deleted"
    CONFLICT = "conflict"
    SKIPPED = "skipped"


_KINDS = {"A": Kind.ADDED, "D": Kind.DELETED}


@dataclass(frozen=True)
class Change:
    """One file that an update touches; its path is relative to the project's folder."""

    kind: Kind
    path: str


@dataclass(frozen=True)
class Update:
    """An update that is worked out and not yet made."""

    project: Project
    target: Version
    changes: list[Change]
    _work_tree: Path
    _clone: Path
    _tree: str
    _unmerged: str

    def of(self, kind: Kind) -> list[str]:
        """Return the paths that meet one fate."""
        return [change.path for change in self.changes if change.kind is kind]

    def apply(self) -> None:
        """Write the changes to the project's work tree, uncommitted.

        Raises UserError if the work tree has changed meanwhile, or a file that git does not
        know stands where one is to be added.
        """
        _require_clean(self._work_tree, self.project.path)
        for path in self.of(Kind.ADDED):
            if os.path.lexists(self.project.path / path):
                raise UserError(
                    f"{path} would be added, but is there already, ignored by git; "
                    "commit it or move it away."
                )
        with _undisturbed(), tempfile.TemporaryDirectory() as folder:
            self._keep_both_sides()
            # The index stays as it is: what changes is for the owner to look at and to add.
            index = Path(folder, "index")
            shutil.copyfile(_git_path(self._work_tree, "index"), index)
            objects = _git_path(self._clone, "objects")
            git.output(
                self._work_tree,
                "read-tree",
                "-m",
                "-u",
                "HEAD",
                self._tree,
                variables={
                    "GIT_INDEX_FILE": str(index),
                    "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects),
                },
            )
            if self._unmerged:
                lines = self._unmerged.splitlines(keepends=True)
                # Mode 0 takes away the one entry that the three sides of a conflict replace.
                settled = {f"0 {'0' * 40}\t{line.partition(chr(9))[2]}" for line in lines}
                stages = "".join([*sorted(settled), *lines])
                git.output(self._work_tree, "update-index", "--index-info", input=stages)

    def _keep_both_sides(self) -> None:
        """Copy what `git` shows as the sides of a conflict from the clone into the project."""
        ours = _git_path(self._work_tree, "objects")
        theirs = _git_path(self._clone, "objects")
        for line in self._unmerged.splitlines():
            name = line.split()[1]
            source, copy = (folder / name[:2] / name[2:] for folder in (theirs, ours))
            if source.exists() and not copy.exists():
                copy.parent.mkdir(exist_ok=True)
                shutil.copy(source, copy)


@contextmanager
def prepare(
    path: Path,
    questions: list[Question],
    answers: Answers,
    *,
    to: str | None = None,
) -> Iterator[Update | None]:
    """Work out an update of the project at `path` without touching it.

    `to` is a released version, the newest without it; `answers` replace the project's own.
    Yields None if there is nothing to do. Raises UserError for a project that cannot be updated.
    """
    git.require("install it: an update needs it.")
    path = path.resolve()
    project = read(path)
    target = _target(project, to)
    work_tree = git.enclosing_work_tree(path)
    if work_tree is None:
        raise UserError(f"{path} is in no git repository; commit it to one before an update.")
    work_tree = work_tree.resolve()
    _require_clean(work_tree, path)
    if target == project.version and not _differs(project.answers, answers):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="infer-scaffold-") as temporary:
        head = git.output(work_tree, "rev-parse", "HEAD").strip()
        clone = _clone(work_tree, head, Path(temporary, "project"))
        copy = clone / path.relative_to(work_tree)
        endings = _to_lf(clone)
        _run_copier(copy, project, target, answers, Path(temporary))
        updated = read(copy)
        _check_answers(updated, questions, answers)
        unmerged = git.output(clone, "ls-files", "--unmerged")
        _to_crlf(clone, endings)
        tree = _write_tree(clone, head, Path(temporary, "index"))
        conflicts = {line.partition("\t")[2] for line in unmerged.splitlines()}
        changes = _changes(copy, head, tree, conflicts)
        changes += _skipped(project, updated, Path(temporary))
        yield Update(project, target, changes, work_tree, clone, tree, unmerged)


def _target(project: Project, to: str | None) -> Version:
    address = template.address()
    if project.address != address:
        raise UserError(
            f"{project.path} comes from {project.address}, and this infer-scaffold carries the "
            f"template of {address}; use `copier update`, or set {template.VARIABLE}."
        )
    released = history.versions()
    if project.version.is_devrelease:
        raise UserError(
            f"{project.path} was made by development version {project.version}, which cannot be "
            "updated from; make the project anew with a release and move your code over."
        )
    if project.version not in released:
        raise UserError(
            f"{project.path} is of version {project.version}, which this infer-scaffold "
            f"({released[-1]}) does not know; install a newer one."
        )
    if to is None:
        return released[-1]
    try:
        target = Version(to)
    except InvalidVersion:
        target = None
    if target not in released:
        known = ", ".join(str(version) for version in released)
        raise UserError(f"--to: there is no version {to!r}; choose from {known}.")
    if target < project.version:
        raise UserError(
            f"--to: {project.path} is of version {project.version}, and updates do not go back; "
            "take an older commit of the project instead."
        )
    return target


def _differs(recorded: Mapping[str, object], wanted: Answers) -> bool:
    return any(recorded.get(name) != answer for name, answer in wanted.items())


def _require_clean(work_tree: Path, path: Path) -> None:
    if git.output(work_tree, "status", "--porcelain"):
        raise UserError(
            f"{path} has changes that are not committed; commit or stash them before an update."
        )


def _clone(work_tree: Path, head: str, destination: Path) -> Path:
    """Clone what is committed, with the bytes that are committed."""
    arguments = ("clone", "--quiet", "--shared", "--no-checkout", "--no-tags")
    git.output(work_tree.parent, *arguments, str(work_tree), str(destination))
    # For copier's git, too: it must see the bytes and nothing of this machine.
    for key, value in git.AS_RENDERED.items():
        git.output(destination, "config", key, value)
    # Files in Git LFS stay pointers: they are not the template's.
    git.output(destination, "checkout", "--quiet", head, variables={"GIT_LFS_SKIP_SMUDGE": "1"})
    return destination


def _to_lf(clone: Path) -> list[str]:
    """Give files with Windows' line ends the template's, so that lines compare; return them."""
    lines = git.output(clone, "ls-files", "--eol", "-z").split("\0")
    files = [line.partition("\t")[2] for line in lines if line.startswith("i/crlf")]
    for file in files:
        path = clone / file
        path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    if files:
        _commit(clone, "Line ends of the template")
    return files


def _to_crlf(clone: Path, files: list[str]) -> None:
    for file in files:
        path = clone / file
        if path.exists():
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def _commit(clone: Path, message: str) -> None:
    git.output(clone, "add", "--all")
    arguments = ("commit", "--quiet", "--no-verify", f"--message={message}")
    git.output(clone, *arguments, settings=git.FALLBACK_IDENTITY)


def _run_copier(
    copy: Path, project: Project, target: Version, answers: Answers, temporary: Path
) -> None:
    """Run `copier update` on the clone, from the templates that the package carries."""
    bundle = temporary / "template.bundle"
    shutil.copyfile(history.BUNDLE, bundle)
    file = copy / ANSWERS_FILE
    # The public address is for others; here it would need a network.
    _replace_once(file, project.address, str(bundle))
    _commit(copy, "Address of the templates in the package")
    data = temporary / "answers.yml"
    data.write_text(yaml.safe_dump(answers), encoding="utf-8")
    settings = temporary / "settings.yml"
    settings.write_text("{}")  # not the defaults of the person who updates
    command = [sys.executable, "-m", "copier", "update", "--defaults", "--quiet"]
    command += [f"--vcs-ref={history.tag(target)}", f"--data-file={data}", str(copy)]
    # A process of its own: copier reads its environment when it is imported.
    result = subprocess.run(
        command,
        cwd=temporary,
        env=git.environment(git.AS_RENDERED | git.FALLBACK_IDENTITY)
        | {"COPIER_SETTINGS_PATH": str(settings), "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if result.returncode != 0:
        said = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise UserError(f"copier cannot update {project.path}: {said[-1]}")
    _replace_once(file, str(bundle), project.address)


def _replace_once(file: Path, old: str, new: str) -> None:
    text = file.read_bytes().decode()
    if text.count(old) != 1:
        raise UserError(f"{ANSWERS_FILE} names its template in an unusual way; take it from git.")
    file.write_bytes(text.replace(old, new).encode())


def _check_answers(updated: Project, questions: list[Question], answers: Answers) -> None:
    for question in questions:
        if question.name in answers and question.name not in updated.answers:
            raise UserError(
                f"{question.flag} does not apply to {updated.version} with these answers; "
                "leave it out or change that."
            )


def _write_tree(clone: Path, head: str, index: Path) -> str:
    """Write what is in the clone's work tree as a tree, and leave its index alone."""
    variables = {"GIT_INDEX_FILE": str(index)}
    git.output(clone, "read-tree", head, variables=variables)
    # --force: an ignore file of the owner's must not hide what the template brings.
    git.output(clone, "add", "--all", "--force", variables=variables)
    return git.output(clone, "write-tree", variables=variables).strip()


def _changes(copy: Path, head: str, tree: str, conflicts: set[str]) -> list[Change]:
    """Compare the result with what the owner committed, in the project's folder."""
    # Conflicts are told by their paths in the repository, all else by those in the project.
    prefix = git.output(copy, "rev-parse", "--show-prefix").strip()
    arguments = ("diff-tree", "-r", "-z", "--no-renames", "--name-status", "--relative")
    fields = git.output(copy, *arguments, head, tree).split("\0")[:-1]
    return [
        Change(
            Kind.CONFLICT if prefix + path in conflicts else _KINDS.get(letter, Kind.CHANGED), path
        )
        for letter, path in zip(fields[::2], fields[1::2], strict=True)
    ]


def _skipped(project: Project, updated: Project, temporary: Path) -> list[Change]:
    """Return the files that the template changes and the owner has deleted or moved."""
    before, after = (
        Renderer(history.unpack(each.version, temporary / name)).render(each.answers)
        for name, each in (("before", project), ("after", updated))
    )
    return [
        Change(Kind.SKIPPED, name)
        for name in sorted(before.keys() & after.keys())
        if before[name] != after[name] and not os.path.lexists(project.path / name)
    ]


def _git_path(folder: Path, name: str) -> Path:
    return folder / git.output(folder, "rev-parse", "--git-path", name).strip()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no signal, here or in the git that is started, stop the writing half-way."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
