"""Render the template into a new project: all of it, or nothing."""

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from infer_scaffold import git
from infer_scaffold.errors import UserError
from infer_scaffold.project import clone, history, template
from infer_scaffold.project.questions import Answers, Question

_REFUSAL = re.compile(r"Validation error for question '(\w+)': (.*)", re.DOTALL)


@dataclass(frozen=True)
class Rendered:
    """The answers of a rendering, and the names of those that had no effect on it."""

    answers: Mapping[str, Any]
    unused: frozenset[str]


@dataclass(frozen=True)
class Project:
    """A project that was just made."""

    path: Path
    package: str
    files: list[str]
    committed: bool
    work_tree: Path | None
    branch: str = "main"
    kept: str = ""
    """Sentence on what became of the files that were there before"""


def render(
    answers: Answers,
    destination: Path,
    *,
    ask: bool = False,
    defaults: Answers | None = None,
    pretend: bool = False,
    source: Path | None = None,
    tag: str | None = None,
    updating: bool = False,
) -> Rendered:
    """Render the template into `destination`.

    Questions without an answer get their default, or are asked on the terminal with `ask`;
    `defaults` overrides defaults of the template. `source` and `tag` are those of another version.
    With `updating` it has also what the template keeps for older projects alone.
    """
    # Here, because it takes several times as long as everything that `--help` needs.
    import copier
    from copier.errors import CopierError, InteractiveSessionError
    from plumbum import local

    hidden = {"_src_path": template.address(), "_commit": tag or history.tag(history.current())}
    if updating:
        # For _exclude in copier.yml: to copier, what is rendered here is always a copy.
        hidden["_updating"] = "yes"
    try:
        # Without git on its PATH copier takes a checkout of this repository as the plain folder
        # that it is in a wheel, and spawns no git for each file that it writes. Its settings
        # file is left out: the defaults are those that the help shows.
        with local.env(PATH=os.devnull), _bare_reasons():
            worker = copier.run_copy(
                str(source or template.root()),
                destination,
                data={**answers, **hidden},
                user_defaults=defaults,
                defaults=not ask,
                settings=copier.Settings(),
                pretend=pretend,
                quiet=True,
            )
    except KeyboardInterrupt:  # Before its subclass below, which is a CopierError as well.
        raise
    except InteractiveSessionError as error:
        raise KeyboardInterrupt from error  # Ctrl-D says what Ctrl-C says.
    except (CopierError, TypeError, ValueError) as error:
        raise UserError(_explain(str(error))) from error
    return Rendered(worker.answers.combined, frozenset(worker.answers.hidden))


def new(
    path: Path,
    questions: list[Question],
    answers: Answers,
    *,
    ask: bool = False,
    repository: bool = True,
) -> Project:
    """Make the project at `path`; on any error all is as it was.

    A folder that holds a git repository and hardly more, a fresh clone, gets its commit there.
    """
    path = Path(os.path.abspath(path))
    with _clear_os_errors(path):
        parent = _existing_parent(path)
        if repository:
            git.require("install it, or leave the repository out with --no-git.")
        work_tree = git.enclosing_work_tree(parent) if repository else None
        in_clone = repository and clone.has_git(path)
        branch = clone.check(path, work_tree) if in_clone else "main"
        if work_tree is not None and not in_clone and git.is_ignored(parent, path):
            work_tree = None  # what a repository ignores is not part of it
        commit = repository and work_tree is None
        defaults = _defaults(path)
        if ask:
            # Wrong flags are better told before the questions than after them.
            _check_used(questions, answers, render(answers, path, defaults=defaults, pretend=True))
        index = clone.index_kept(path) if in_clone else nullcontext()
        with index, _staging(path) as staging:
            rendered = render(answers, staging.folder, ask=ask, defaults=defaults)
            _check_used(questions, answers, rendered)
            files = list_files(staging.folder)
            kept = clone.keep_theirs(path, staging.folder) if path.is_dir() else ""
            message = f"Generate {rendered.answers['project_name']}"
            if commit:
                git.make_repository(staging.folder, message)
            elif in_clone:
                staging.finish = partial(clone.commit, path, message)
    package = rendered.answers["package_name"]
    return Project(path, package, files, commit or in_clone, work_tree, branch, kept)


def preview(path: Path, questions: list[Question], answers: Answers) -> list[str]:
    """List the files that `new` would write, relative to `path`, and write nothing there."""
    path = Path(os.path.abspath(path))
    with _clear_os_errors(path), tempfile.TemporaryDirectory() as folder:
        _existing_parent(path)
        destination = Path(folder, "project")
        _check_used(questions, answers, render(answers, destination, defaults=_defaults(path)))
        return list_files(destination)


def list_files(folder: Path) -> list[str]:
    """List the files under `folder` as sorted relative paths, without git's own."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if path.parts[0] != ".git")


def _defaults(path: Path) -> Answers:
    return {"project_name": path.name}


def _check_used(questions: list[Question], answers: Answers, rendered: Rendered) -> None:
    for question in questions:
        if question.name in answers and question.name in rendered.unused:
            raise UserError(
                f"{question.flag} only applies when {question.when}; leave it out or change that."
            )


@contextmanager
def _bare_reasons() -> Iterator[None]:
    """Let the terminal show why an answer is refused without copier's prefix.

    It has one line for that, and the prefix takes 46 columns.
    """
    import questionary
    from copier import _main

    def ask(asked: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        for question in asked:
            if validate := question.get("validate"):
                question["validate"] = lambda answer, validate=validate: _bare(validate(answer))
        return questionary.unsafe_prompt(asked, **options)

    # No public name: where copier has another one, the prefix stays.
    theirs = vars(_main).get("unsafe_prompt")
    _main.unsafe_prompt = ask  # type: ignore[attr-defined, assignment]
    try:
        yield
    finally:
        _main.unsafe_prompt = theirs  # type: ignore[attr-defined, assignment]


def _bare(verdict: str | bool) -> str | bool:
    match = _REFUSAL.match(verdict) if isinstance(verdict, str) else None
    return match[2] if match else verdict


def _explain(message: str) -> str:
    """Turn copier's words about an answer into the command line's."""
    match = _REFUSAL.match(message)
    if match is None:
        return message
    name, reason = match.groups()
    flag = "--" + name.replace("_", "-")
    if name == "project_name":
        flag += " (the last part of PATH, unless given)"
    return f"{flag}: {reason}"


def _existing_parent(path: Path) -> Path:
    """Check that a project can be made at `path`; return its nearest folder that exists."""
    if path.is_dir():
        if any(path.iterdir()) and not clone.is_fresh(path):
            raise UserError(f"{path} is not empty; choose a new or an empty folder.")
    elif os.path.lexists(path):
        raise UserError(f"{path} exists and is not a folder; choose another path.")
    existing = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise UserError(f"{existing} is not a folder; choose another path.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} is not writable; choose another folder.")
    return existing


@contextmanager
def _clear_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}; choose another folder.") from error


@dataclass
class _Staging:
    """A folder that becomes the project, and the last step, taken when it has."""

    folder: Path
    finish: Callable[[], None] = lambda: None


@contextmanager
def _staging(path: Path) -> Iterator[_Staging]:
    """Yield a folder that becomes `path` when the block succeeds, and vanishes when it fails.

    The folder does not exist yet: the first write creates it, with missing parents. What is
    at `path` under the same names comes back when the block or the last step fails.
    """
    exists = path.is_dir()
    # A folder that exists may be a mount point or a shell's working directory, so it is filled
    # and not replaced.
    name = f"{clone.STAGING_PREFIX}{secrets.token_hex(4)}"
    folder = (path if exists else path.parent) / name
    replaced = folder.with_name(f"{name}-replaced")
    missing = [parent for parent in path.parents if not parent.exists()]
    moved: list[Path] = []
    staging = _Staging(folder)
    try:
        yield staging
        if exists:
            for child in sorted(folder.iterdir()):
                target = path / child.name
                if os.path.lexists(target):
                    replaced.mkdir(exist_ok=True)
                    target.rename(replaced / child.name)
                moved.append(child.rename(target))
            folder.rmdir()
        else:
            folder.rename(path)
        staging.finish()
    except BaseException:
        for leftover in (folder, *moved):
            _remove(leftover)
        if replaced.exists():
            for child in replaced.iterdir():
                child.rename(path / child.name)
            replaced.rmdir()
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        raise
    _remove(replaced)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
