"""A folder that holds a git repository and hardly more: where a fresh clone becomes a project."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infer_scaffold import git
from infer_scaffold.errors import UserError

# Files that a hosting service puts into a new repository.
_FILES = re.compile(r"\.gitignore|(README|LICEN[CS]E|COPYING)([-.].*)?", re.IGNORECASE)
STAGING_PREFIX = ".infer-scaffold-"


def has_git(path: Path) -> bool:
    """Tell whether `path` is a clone, a work tree or a submodule: in these two .git is a file."""
    return os.path.lexists(path / ".git")


def is_fresh(path: Path) -> bool:
    """Tell whether a project can be made in `path` beside what is there."""
    return has_git(path) and all(
        entry.name == ".git" or (_FILES.fullmatch(entry.name) and not _is_real_folder(entry))
        for entry in path.iterdir()
    )


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def check(path: Path, work_tree: Path | None) -> str:
    """Check that `path`'s own repository can take a commit; return its branch."""
    if work_tree is None or not work_tree.samefile(path):
        raise UserError(f"git does not take {path}/.git for a repository; mend or remove it.")
    if not all(map(_FILES.fullmatch, _committed(path))):
        raise UserError(
            f"the repository in {path} holds files that are not checked out; "
            "choose a new or an empty folder."
        )
    return git.output(path, "branch", "--show-current").strip() or "a detached HEAD"


def _committed(path: Path) -> list[str]:
    try:
        names = git.output(path, "ls-tree", "-z", "--name-only", "HEAD")
    except UserError:  # There is no commit so far.
        return []
    return [name for name in names.split("\0") if name]


def keep_theirs(path: Path, folder: Path) -> str:
    """Make the rendering in `folder` keep the files of `path`; return a sentence on it.

    Two .gitignore become one, with theirs first: a line that the template adds at its end merges
    in an update. Any other file that would be replaced gets another name.
    """
    said = []
    for rendered in sorted(folder.iterdir()):
        theirs = path / rendered.name
        if not os.path.lexists(theirs) or theirs.name == ".git":
            continue
        if theirs.name == ".gitignore" and theirs.is_file():
            lines = theirs.read_bytes().rstrip(b"\n")
            rendered.write_bytes(lines + b"\n\n" + rendered.read_bytes())
            said.append("your lines of .gitignore stand above the template's")
        else:
            name = _free_name(theirs)
            shutil.copy2(theirs, folder / name, follow_symlinks=False)
            said.append(f"your {theirs.name} is {name} now")
    return "; ".join(said)


def _free_name(file: Path) -> str:
    name, number = f"{file.stem}.old{file.suffix}", 1
    while os.path.lexists(file.with_name(name)):
        number += 1
        name = f"{file.stem}.old{number}{file.suffix}"
    return name


@contextmanager
def index_kept(path: Path) -> Iterator[None]:
    """Give the repository in `path` its index back when the block fails."""
    index = path / git.output(path, "rev-parse", "--git-path", "index").removesuffix("\n")
    before = index.read_bytes() if index.exists() else None
    try:
        yield
    except BaseException:
        if before is None:
            index.unlink(missing_ok=True)
        else:
            index.write_bytes(before)
        raise


def commit(path: Path, message: str) -> None:
    """Commit all files in `path` to its own repository."""
    remedy = "put that right, or use --no-git."
    # --force: as in a repository of its own, no ignore file decides what the project consists of.
    names = sorted(
        entry.name
        for entry in path.iterdir()
        if entry.name != ".git" and not entry.name.startswith(STAGING_PREFIX)
    )
    git.output(path, "add", "--force", "--", *names, settings=git.AS_RENDERED, remedy=remedy)
    settings = git.AS_RENDERED | git.missing_identity(path)
    git.output(path, "commit", "--quiet", f"--message={message}", settings=settings, remedy=remedy)
