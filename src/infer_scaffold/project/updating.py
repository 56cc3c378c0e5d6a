"""Updates of a project to another version of the template, or to other answers.

The rendering of the old version is the base of a three-way merge; the project as committed and
the rendering of the new version are its sides. The project is touched once, when everything is
known: an error or a kill before that leaves it as it was.
"""

import os
import secrets
import shlex
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

import yaml
from packaging.version import InvalidVersion, Version
from pathspec import GitIgnoreSpec

from infer_scaffold import git
from infer_scaffold.errors import UserError
from infer_scaffold.project import generate, history, moves, template
from infer_scaffold.project.answers_file import ANSWERS_FILE, Project, read
from infer_scaffold.project.merge import Clash, Outcome
from infer_scaffold.project.questions import Answers, Question
from infer_scaffold.project.trees import Entries, Store, quoted

_OLDEST_GIT = Version("2.38")
# Files of git's during an unfinished merge, rebase or the like.
_IN_PROGRESS = {
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "BISECT_LOG": "bisect",
}


class Kind(StrEnum):
    """The effect of an update on a file."""

    ADDED = "added"
    CHANGED = "changed"
    MOVED = "moved"
    DELETED = "deleted"
    CONFLICT = "conflict"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Change:
    """One file that an update touches; its path is relative to the project's folder.

    If the template has moved it there, `source` is where it was.
    """

    kind: Kind
    path: str
    clash: Clash | None = None
    source: str | None = None


@dataclass(frozen=True)
class Update:
    """An update that is worked out and not yet made."""

    project: Project
    target: Version
    changes: list[Change]
    _new: Set[str]
    _gone: Set[str]
    _work_tree: Path
    _folder: str
    _head: str
    _tree: str
    _stages: str
    _objects: Path

    def of(self, kind: Kind) -> list[str]:
        """Return the paths that meet one fate."""
        return [change.path for change in self.changes if change.kind is kind]

    def apply(self) -> None:
        """Write the changes to the project's work tree, uncommitted.

        Raises UserError if the work tree has changed meanwhile, or a file that git does not
        know stands where one is to be added.
        """
        _require_clean(self._work_tree, self.project.path)
        if git.output(self._work_tree, "rev-parse", "HEAD").strip() != self._head:
            raise UserError(f"{self.project.path} has new commits; start the update again.")
        for path in sorted(self._new):
            if blocking := self._in_the_way(path):
                raise UserError(
                    f"{path} would be added, but {blocking} is there already, ignored by git; "
                    "commit it or move it away."
                )
        with _undisturbed(), tempfile.TemporaryDirectory() as folder:
            settings = {"core.sparseCheckout": "false", "core.splitIndex": "false"}
            git.run_script(self._work_tree, self._rehearsal(Path(folder)), settings)
            self._keep_both_sides()
            try:
                git.run_script(self._work_tree, self._script(Path(folder)), settings)
            except UserError as error:
                self._take_back()
                raise UserError(f"{error} {self.project.path} is as it was.") from error

    def _in_the_way(self, path: str) -> str | None:
        """Return what git would overwrite to add a file: the file, or what is no folder above."""
        for place in (path, *map(str, PurePosixPath(path).parents[:-1])):
            there = self.project.path / place
            is_folder = there.is_dir() and not there.is_symlink() and place != path
            if os.path.lexists(there) and not is_folder and place not in self._gone:
                return place
        return None

    def _rehearsal(self, folder: Path) -> str:
        """Return a script that writes the files elsewhere: filters may fail, and disks be full."""
        written = sorted(self._new | set(self.of(Kind.CHANGED)))
        _write_list(folder / "written", self._folder, written)
        index, objects = shlex.quote(str(folder / "rehearsal")), shlex.quote(quoted(self._objects))
        return (
            f"export GIT_INDEX_FILE={index} GIT_ALTERNATE_OBJECT_DIRECTORIES={objects}\n"
            f"git read-tree {self._tree}\n"
            f"git checkout-index --quiet -z --stdin --prefix={shlex.quote(f'{folder}/files/')} "
            f"< {shlex.quote(str(folder / 'written'))}\n"
        )

    def _script(self, folder: Path) -> str:
        """Return the script that writes the files, and tells the index of conflicts.

        All else in the index stays as it is: what changes is for the owner to look at and to add.
        Only new files that git ignores are announced, or `git add --all` would leave them out.
        """
        shutil.copyfile(_git_path(self._work_tree, "index"), folder / "index")
        (folder / "stages").write_bytes(self._stages.encode("utf-8", "surrogateescape"))
        # check-ignore knows no literal names, and takes ":" at the start for a sign.
        _write_list(folder / "new", f"./{self._folder}", sorted(self._new))
        index, objects = shlex.quote(str(folder / "index")), shlex.quote(quoted(self._objects))
        there = shlex.quote(str(folder))
        return (
            f"GIT_INDEX_FILE={index} GIT_ALTERNATE_OBJECT_DIRECTORIES={objects} "
            f"git read-tree -m -u {self._head} {self._tree}\n"
            f"git update-index -z --index-info < {there}/stages\n"
            "GIT_LITERAL_PATHSPECS=0 git check-ignore -z --stdin "
            f"< {there}/new > {there}/ignored || true\n"
            f"test ! -s {there}/ignored || git add --intent-to-add --force "
            f"--pathspec-from-file={there}/ignored --pathspec-file-nul\n"
        )

    def _keep_both_sides(self) -> None:
        """Copy what `git` shows as the sides of a conflict into the project."""
        ours = _git_path(self._work_tree, "objects")
        for line in self._stages.split("\0")[:-1]:
            name = line.split()[1]
            source, copy = (folder / name[:2] / name[2:] for folder in (self._objects, ours))
            if source.exists() and not copy.exists():
                copy.parent.mkdir(exist_ok=True)
                # Under the name of an object there must never be a part of it.
                unfinished = copy.with_name(f"tmp_obj_{secrets.token_hex(4)}")
                try:
                    shutil.copy(source, unfinished)
                    unfinished.replace(copy)
                except OSError as error:
                    unfinished.unlink(missing_ok=True)
                    raise UserError(
                        f"cannot write {copy.parent} ({error.strerror}); put that right and try "
                        "again."
                    ) from error

    def _take_back(self) -> None:
        """Put the files of the work tree back after a failure while they were written."""
        written = {Kind.CHANGED, Kind.DELETED, Kind.CONFLICT}
        paths = {change.path for change in self.changes if change.kind in written}
        paths = (paths | self._gone) - self._new
        for path in self._new:
            file = self.project.path / path
            file.unlink(missing_ok=True)
            for folder in file.relative_to(self.project.path).parents[:-1]:
                with suppress(OSError):
                    (self.project.path / folder).rmdir()
        # The index still has what was committed.
        git.output(
            self.project.path,
            *("checkout-index", "--force", "--quiet", "-z", "--stdin"),
            input="".join(f"{path}\0" for path in paths),
            remedy="put that right, and take it back with `git restore .`.",
        )


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
    git.require("install a newer one: an update needs it.", _OLDEST_GIT)
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
    if not path.is_relative_to(work_tree):
        raise UserError(f"{path} is not in the work tree of its repository, {work_tree}.")
    folder = path.relative_to(work_tree).as_posix()
    _require_whole(work_tree, path, folder)
    with tempfile.TemporaryDirectory(prefix="infer-scaffold-") as temporary:
        head = git.output(work_tree, "rev-parse", "HEAD").strip()
        format_ = git.output(work_tree, "rev-parse", "--show-object-format").strip()
        store = Store(Path(temporary, "store"), _git_path(work_tree, "objects"), format_)
        prefix = "" if folder == "." else f"{folder}/"
        below = [prefix] if prefix else []
        ours = _own_files(store.entries(head, *below), prefix)
        if ANSWERS_FILE not in ours:
            raise UserError(f"{path} is not committed to {work_tree}; commit it before an update.")
        base, theirs = _sides(store, project, target, answers, questions, Path(temporary))
        known = moves.load(Path(temporary, "new-template"))
        due = moves.due(known, project.version, target, base, theirs)
        owned = _owned(Path(temporary))
        outcome = moves.merge_moved(store, base, ours, theirs, owned, known, due)
        changed = {
            prefix + path: outcome.files.get(path, "")
            for path in ours.keys() | outcome.files.keys()
            if ours.get(path) != outcome.files.get(path)
        }
        tree = store.tree(changed, head)
        if _own_files(store.entries(tree, *below), prefix) != outcome.files:
            raise UserError(f"{path} would lose files; update it with `copier update`.")
        yield Update(
            project,
            target,
            _changes(ours, outcome),
            outcome.files.keys() - ours.keys(),
            ours.keys() - outcome.files.keys(),
            work_tree,
            folder,
            head,
            tree,
            _index_lines(prefix, outcome.stages),
            store.objects,
        )


def _target(project: Project, to: str | None) -> Version:
    address = template.address()
    if project.address != address:
        raise UserError(
            f"{project.path} comes from {project.address}, and this infer-scaffold carries the "
            f"template of {address}; use `copier update`, or set {template.VARIABLE}."
        )
    released = history.versions()
    if not history.knows(project.version):
        remedy = "make the project anew with a release and move your code over"
        if not project.version.is_devrelease:
            remedy = "install a newer one"
        raise UserError(
            f"{project.path} is of version {project.version}, which this infer-scaffold "
            f"({released[-1]}) does not know; {remedy}."
        )
    if to is None:
        # A development version may be newer than every release.
        return max(released[-1], project.version)
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
    names = [arg for name in _IN_PROGRESS for arg in ("--git-path", name)]
    places = git.output(work_tree, "rev-parse", *names).split("\n")[:-1]
    for place, operation in zip(places, _IN_PROGRESS.values(), strict=True):
        if (work_tree / place).exists():
            raise UserError(
                f"a {operation} is not finished in {work_tree}; finish or abort it before an "
                "update."
            )
    if git.output(work_tree, "status", "--porcelain", "--untracked-files=normal"):
        raise UserError(
            f"{path} has changes that are not committed; commit or stash them before an update."
        )


def _require_whole(work_tree: Path, path: Path, folder: str) -> None:
    """Refuse a project with files that git skips: sparse checkout, or assume-unchanged."""
    for line in git.output(work_tree, "ls-files", "-v", "-z", "--", folder).split("\0")[:-1]:
        mark, _, name = line.partition(" ")
        if mark == "S":
            raise UserError(
                f"{path} is not checked out in full ({name} is left out); "
                "run `git sparse-checkout disable`, or add its folder, before an update."
            )
        if mark.islower():
            raise UserError(
                f"git is told to assume that {name} is unchanged; "
                "run `git update-index --no-assume-unchanged` for it before an update."
            )


def _own_files(entries: Entries, prefix: str) -> Entries:
    """Return the files of the project below `prefix`, without those of a project inside it."""
    files = {path.removeprefix(prefix): entry for path, entry in entries.items()}
    nested = tuple(
        path.removesuffix(ANSWERS_FILE) for path in files if path.endswith(f"/{ANSWERS_FILE}")
    )
    return {path: entry for path, entry in files.items() if not path.startswith(nested)}


def _sides(
    store: Store,
    project: Project,
    target: Version,
    answers: Answers,
    questions: list[Question],
    temporary: Path,
) -> tuple[Entries, Entries]:
    """Render what the project was made as, and what it would be made as now."""
    _render(project.version, project.answers, temporary, "old")
    _render(target, project.answers | answers, temporary, "new")
    now = read(temporary / "new")
    for question in questions:
        if question.name in answers and question.name not in now.answers:
            raise UserError(
                f"{question.flag} does not apply to {target} with these answers; "
                "leave it out or change that."
            )
    return store.add_folder(temporary / "old"), store.add_folder(temporary / "new")


def _render(version: Version, answers: Answers, temporary: Path, name: str) -> None:
    source = history.unpack(version, temporary / f"{name}-template")
    tag = history.tag(version)
    generate.render(answers, temporary / name, source=source, tag=tag, updating=True)


def _owned(temporary: Path) -> GitIgnoreSpec:
    """Return the patterns of files that the template writes once and never updates."""
    patterns: list[str] = []
    for name in ("old-template", "new-template"):
        config = yaml.safe_load((temporary / name / "copier.yml").read_text(encoding="utf-8"))
        patterns += config.get("_skip_if_exists", ())
    return GitIgnoreSpec.from_lines(patterns)


def _changes(ours: Entries, outcome: Outcome) -> list[Change]:
    kinds = dict.fromkeys(outcome.skipped, Kind.SKIPPED)
    for path in ours.keys() | outcome.files.keys():
        before, after = ours.get(path), outcome.files.get(path)
        if not before:
            kinds[path] = Kind.MOVED if path in outcome.sources else Kind.ADDED
        elif before != after and (after or path not in outcome.sources.values()):
            kinds[path] = Kind.CHANGED if after else Kind.DELETED
    kinds |= dict.fromkeys(outcome.clashes, Kind.CONFLICT)
    return [
        Change(kind, path, outcome.clashes.get(path), outcome.sources.get(path))
        for path, kind in sorted(kinds.items())
    ]


def _index_lines(prefix: str, stages: Mapping[str, Mapping[int, str]]) -> str:
    """Return the input of `git update-index` with which git shows the conflicts."""
    lines = []
    for path, sides in stages.items():
        # Mode 0 takes away the one entry that the sides of a conflict replace.
        zero = "0" * len(next(iter(sides.values())).split()[1])
        lines.append(f"0 {zero}\t{prefix}{path}")
        lines += [f"{entry} {stage}\t{prefix}{path}" for stage, entry in sorted(sides.items())]
    return "".join(f"{line}\0" for line in lines)


def _write_list(file: Path, folder: str, paths: list[str]) -> None:
    """Write paths of the project as paths of the repository, for git to read."""
    prefix = "" if folder == "." else f"{folder}/"
    lines = "".join(f"{prefix}{path}\0" for path in paths)
    file.write_bytes(lines.encode("utf-8", "surrogateescape"))


def _git_path(folder: Path, name: str) -> Path:
    return folder / git.output(folder, "rev-parse", "--git-path", name).removesuffix("\n")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no signal stop the writing half-way."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
