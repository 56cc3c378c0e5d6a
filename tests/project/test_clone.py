"""`new` into a fresh clone: its repository gets the commit, and its files are kept."""

import subprocess
from pathlib import Path

import pytest

from infer_scaffold.errors import UserError
from infer_scaffold.project import clone
from tests.conftest import Run

NEW = ("--yes", "--preset", "minimal")
THEIRS = {
    "README.md": b"# Ours\n\xff\n",
    "LICENSE": b"Ours\n",
    ".gitignore": b"/own/\r\nlib/",
    "README.old.md": b"older\n",
}


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    command = ["git", *identity, *arguments]
    result = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return result.stdout.strip()


@pytest.fixture
def svc(folder: Path) -> Path:
    """A clone of an empty repository with another branch than main."""
    git(folder, "init", "--quiet", "--bare", "--initial-branch=trunk", "origin.git")
    git(folder, "clone", "--quiet", "origin.git", "svc")
    return folder / "svc"


def add_theirs(svc: Path) -> None:
    for name, content in THEIRS.items():
        (svc / name).write_bytes(content)


def state(svc: Path) -> tuple[dict[str, bytes], str, str]:
    """The files of a folder, what git says of them, and its commits."""
    files = {p.name: p.read_bytes() for p in svc.iterdir() if p.is_file()}
    return files, git(svc, "status", "--porcelain"), git(svc, "log", "--all", "--oneline")


def test_an_empty_clone_gets_its_first_commit_on_its_branch(svc: Path, run: Run) -> None:
    outcome = run("new", "svc", *NEW)

    assert outcome.code == 0, outcome.err
    assert "committed on trunk)" in outcome.out
    assert git(svc, "log", "--format=%s %D") == "Generate svc HEAD -> trunk"
    assert git(svc, "status", "--porcelain", "--ignored") == ""
    assert "pyproject.toml" in git(svc, "ls-files")
    git(svc, "push", "--quiet", "origin", "trunk")


@pytest.mark.parametrize("committed", ["committed", "staged", "untracked"])
def test_what_the_clone_holds_is_kept(committed: str, svc: Path, run: Run) -> None:
    add_theirs(svc)
    if committed != "untracked":
        git(svc, "add", "--all")
    if committed == "committed":
        git(svc, "commit", "--quiet", "--message=Initial commit")

    outcome = run("new", "svc", *NEW)

    assert outcome.code == 0, outcome.err
    assert "Kept: your lines of .gitignore stand above the template's; your README.md is" in (
        outcome.out
    )
    assert (svc / "README.md").read_text().startswith("# svc\n")
    assert (svc / "README.old2.md").read_bytes() == THEIRS["README.md"]
    assert (svc / "README.old.md").read_bytes() == THEIRS["README.old.md"]
    assert (svc / "LICENSE").read_bytes() == THEIRS["LICENSE"]
    assert (svc / ".gitignore").read_bytes().startswith(THEIRS[".gitignore"] + b"\n\n__pycache__/")
    assert git(svc, "status", "--porcelain") == ""
    assert not list(svc.glob(f"{clone.STAGING_PREFIX}*"))


def test_without_git_the_files_come_and_no_commit(svc: Path, run: Run) -> None:
    add_theirs(svc)

    outcome = run("new", "svc", *NEW, "--no-git")

    assert outcome.code == 0, outcome.err
    assert "nothing was committed" in outcome.out
    assert (svc / "README.old2.md").read_bytes() == THEIRS["README.md"]
    assert git(svc, "log", "--all", "--oneline") == ""


@pytest.mark.parametrize("kind", ["worktree", "submodule"])
def test_where_git_is_a_file(kind: str, svc: Path, folder: Path, run: Run) -> None:
    (svc / "LICENSE").write_text("Ours\n")
    git(svc, "add", "--all")
    git(svc, "commit", "--quiet", "--message=Initial commit")
    git(svc, "push", "--quiet", "origin", "trunk")
    if kind == "worktree":
        git(svc, "worktree", "add", "--quiet", "../other", "-b", "other")
        target = folder / "other"
    else:
        git(folder, "init", "--quiet", "top")
        add = ("-c", "protocol.file.allow=always", "submodule", "add", "--quiet")
        git(folder / "top", *add, "../origin.git", "svc")
        target = folder / "top" / "svc"
    assert (target / ".git").is_file()

    outcome = run("new", str(target), *NEW)

    assert outcome.code == 0, outcome.err
    assert git(target, "log", "--format=%s", "-1").startswith("Generate")
    assert git(target, "status", "--porcelain") == ""
    assert (target / ".git").is_file()


@pytest.mark.parametrize("more", ["main.py", "README/", "docs/", ".github/", "LICENSES"])
def test_anything_else_is_refused(more: str, svc: Path, run: Run) -> None:
    if more.endswith("/"):
        (svc / more).mkdir()
    else:
        (svc / more).touch()

    outcome = run("new", "svc", *NEW)

    assert outcome.code == 2
    assert "is not empty; choose a new or an empty folder." in outcome.err
    assert sorted(p.name for p in svc.iterdir()) == sorted([".git", more.rstrip("/")])


def test_a_repository_that_is_not_checked_out_is_refused(svc: Path, folder: Path, run: Run) -> None:
    (svc / "main.py").touch()
    git(svc, "add", "--all")
    git(svc, "commit", "--quiet", "--message=Code")
    git(folder, "clone", "--quiet", "--no-checkout", "svc", "bare")

    outcome = run("new", "bare", *NEW)

    assert outcome.code == 2
    assert "holds files that are not checked out" in outcome.err
    assert [p.name for p in (folder / "bare").iterdir()] == [".git"]


@pytest.mark.parametrize("where", ["alone", "in a repository"])
def test_a_broken_repository_is_refused(where: str, folder: Path, run: Run) -> None:
    if where == "in a repository":
        git(folder, "init", "--quiet")
    (folder / "svc" / ".git").mkdir(parents=True)

    outcome = run("new", "svc", *NEW)

    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert [p.name for p in (folder / "svc").iterdir()] == [".git"]


@pytest.mark.parametrize("step", ["keep_theirs", "commit"])
@pytest.mark.parametrize("staged", [True, False])
def test_a_failure_leaves_the_clone_as_it_was(
    step: str, staged: bool, svc: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_theirs(svc)
    if staged:
        git(svc, "add", "--all")
    before = state(svc)
    working = getattr(clone, step)

    def fail(*arguments: object) -> None:
        working(*arguments)
        raise UserError("the disk broke")

    monkeypatch.setattr(clone, step, fail)
    if step == "commit":  # all but the commit itself, which cannot be taken back
        output = clone.git.output
        monkeypatch.setattr(
            clone.git, "output", lambda *a, **k: "" if a[1] == "commit" else output(*a, **k)
        )
    outcome = run("new", "svc", *NEW)

    assert (outcome.code, outcome.err) == (2, "error: the disk broke\n")
    assert state(svc) == before
