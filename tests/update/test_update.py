"""`infer-scaffold update` as its users meet it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from infer_scaffold import git
from infer_scaffold.project import history, template
from tests.conftest import Run
from tests.update.conftest import Render, commit, files, render_wanted
from tests.update.edits import PACKAGE, change, own_router

ANSWERS = ".copier-answers.yml"
PUBLIC = "https://github.com/infer-scaffold/infer-scaffold.git"


def state(project: Path) -> object:
    """All that an update could touch: files, index, branches, and what git keeps of them."""
    return (
        files(project),
        git.output(project, "status", "--porcelain=v2", "--branch", "--ignored"),
        git.output(project, "worktree", "list", "--porcelain"),
        sorted(path.name for path in (project / ".git").iterdir()),
    )


def test_update_says_what_it_did_and_commits_nothing(project: Path, run: Run) -> None:
    own_router(project)
    commit(project)
    head = git.output(project, "rev-parse", "HEAD")

    outcome = run("update", str(project))

    assert (outcome.code, outcome.err) == (0, "")
    first, last = outcome.out.splitlines()
    assert first.startswith("0.1.0 -> 99.0: ")
    assert " added, " in first
    assert last == "Look at it with `git diff`, run the tests, and commit it."
    assert git.output(project, "rev-parse", "HEAD") == head
    assert git.output(project, "diff", "--cached") == ""
    assert (project / "src" / PACKAGE / "routers" / "echo.py").exists()
    answers = yaml.safe_load((project / ANSWERS).read_text())
    assert (answers["_commit"], answers["_src_path"]) == ("v99.0", template.ADDRESS)

    commit(project)
    outcome = run("update", str(project))
    assert (outcome.code, outcome.out) == (0, "Nothing to do: the project is up to date.\n")


def test_a_dry_run_shows_the_fate_of_each_file_and_touches_nothing(project: Path, run: Run) -> None:
    change(project / "pyproject.toml", 'version = "0.1.0"', 'version = "4.5.6"')
    commit(project)
    before = state(project)

    arguments = ("update", str(project), "--endpoints", "chat,health")
    outcome = run(*arguments, "--dry-run")

    assert outcome.code == 0
    assert state(project) == before
    *shown, summary = outcome.out.splitlines()
    assert "added     src/myserver/serving/http/body.py" in shown
    assert "changed   src/myserver/app.py" in shown
    assert "deleted   src/myserver/routers/files.py" in shown
    assert summary.startswith("0.1.0 -> 99.0: ")
    assert summary.endswith(" Nothing was written.")

    assert run(*arguments).code == 0
    letters = {"added": "??", "changed": " M", "deleted": " D", "moved": "??"}
    fates = {line.split()[-1]: letters[line.split()[0]] for line in shown}
    listed = git.output(project, "status", "--porcelain", "--untracked-files=all").splitlines()
    found = {line[3:]: line[:2] for line in listed}
    # A file that was moved may leave a re-export, which is listed by itself.
    gone = {line.split()[1] for line in shown if "->" in line} - fates.keys()
    assert found == fates | dict.fromkeys(gone, " D")


def test_what_is_deleted_is_listed_before(project: Path, run: Run) -> None:
    outcome = run("update", str(project), "--to", "0.1.0", "--endpoints", "chat,embeddings,health")

    lines = outcome.out.splitlines()
    assert lines[0] == "0.1.0 -> 0.1.0 deletes:"
    assert "  src/myserver/files/store.py" in lines
    assert not (project / "src" / PACKAGE / "files").exists()
    assert (project / "src" / PACKAGE / "routers" / "chat.py").exists()


def test_conflicts_are_named_and_exit_with_1(
    project: Path, run: Run, templates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = project / "src" / PACKAGE / "app.py"
    change(newer, "from .drain import Drain", "from .drain import Drain  # ours")
    commit(project)
    before = state(project)

    outcome = run("update", str(project), "--dry-run")
    assert outcome.code == 1
    assert "conflict  src/myserver/app.py" in outcome.out
    assert state(project) == before

    outcome = run("update", str(project))
    assert outcome.code == 1
    assert outcome.err == (
        "Both you and the template changed the same lines of src/myserver/app.py; "
        "settle what is marked there, then commit.\n"
    )
    assert "<<<<<<< before updating" in newer.read_text()


def test_files_that_were_moved_get_their_changes_where_they_are(
    project: Path, render: Render, tmp_path: Path, run: Run
) -> None:
    newest = render(tmp_path / "newest")
    unchanged = next(
        path
        for folder in ("src", "tests", "deploy")
        for path in sorted((project / folder).rglob("*.*"))
        if path.stat().st_size > 500
        and (newest / path.relative_to(project)).is_file()
        and (newest / path.relative_to(project)).read_bytes() == path.read_bytes()
    )
    tests = project / "tests"
    (tests / "test_health.py").rename(tests / "test_state.py")
    unchanged.rename(unchanged.with_name("moved_and_unchanged"))
    commit(project)

    shown = run("update", str(project), "--dry-run").out.splitlines()
    assert "changed   tests/test_state.py" in shown
    changed = {line.split()[1] for line in shown}
    assert not {
        path for path in changed if Path(path).name in {"test_health.py", "moved_and_unchanged"}
    }
    assert run("update", str(project)).code == 0

    assert not (tests / "test_health.py").exists()


def test_changes_of_files_that_were_deleted_are_told(project: Path, run: Run) -> None:
    (project / "tests" / "test_health.py").unlink()
    shutil.rmtree(project / ".github")  # where the newer version has two files more
    commit(project)

    shown = run("update", str(project), "--dry-run").out.splitlines()
    outcome = run("update", str(project))

    workflows = [f".github/workflows/{name}.yml" for name in ("ci", "image", "update")]
    left_out = [*workflows, "tests/test_health.py"]
    assert [line.split()[1] for line in shown if line.startswith("skipped")] == left_out
    told = f"You deleted or moved these, so their changes are left out: {', '.join(left_out)}"
    assert told in outcome.out.splitlines()
    assert outcome.code == 0
    assert not (project / ".github").exists()
    assert not (project / "tests" / "test_health.py").exists()


def test_refusals(project: Path, run: Run, tmp_path: Path) -> None:
    def refused(*arguments: str, folder: Path = project) -> str:
        before = state(project)
        outcome = run("update", str(folder), *arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.count("\n") == 1
        assert state(project) == before
        return outcome.err.removeprefix("error: ").rstrip("\n")

    known = ", ".join(map(str, history.versions()))
    assert refused("--to", "7.0") == f"--to: there is no version '7.0'; choose from {known}."
    assert "there is no version 'newest'" in refused("--to", "newest")
    assert "there is no 'video'" in refused("--endpoints", "video")
    assert refused("--endpoints", "files", "--streaming", "none").startswith(
        "--streaming does not apply to 99.0 with these answers"
    )
    (project / "notes").touch()
    assert "has changes that are not committed" in refused()
    (project / "notes").unlink()
    assert "has no .copier-answers.yml" in refused(folder=tmp_path)
    assert "has no .copier-answers.yml" in refused(folder=tmp_path / "nothing")

    recorded = (project / ANSWERS).read_text()
    for text, message in {
        "- a\n- list\n": "it holds no answers",
        "_commit: [": "cannot be used",
        "project_name: myserver\n": "_src_path is missing",
        recorded.replace("_commit: v0.1.0", "_commit: 8f3a2c1"): "names '8f3a2c1'",
        recorded.replace("v0.1.0", "v0.2.0.dev0"): "does not know; make the project anew",
        recorded.replace("v0.1.0", "v0.2.0.dev0+tffff"): "does not know; make the project anew",
        recorded.replace("_commit: v0.1.0", "_commit: v0.0.9"): "is of version 0.0.9, which this",
        recorded.replace("gh:infer-scaffold/", "gh:someone/"): "comes from gh:someone/infer",
    }.items():
        (project / ANSWERS).write_text(text)
        commit(project)
        assert message in refused(), text


def test_updates_do_not_go_back(render: Render, tmp_path: Path, run: Run) -> None:
    project = render(tmp_path / "project")
    git.make_repository(project, "Generate")

    outcome = run("update", str(project), "--to", "0.1.0")

    assert outcome.code == 2
    assert "updates do not go back" in outcome.err


def test_a_project_outside_of_git_is_refused(render: Render, tmp_path: Path, run: Run) -> None:
    outcome = run("update", str(render(tmp_path / "project")))

    assert outcome.code == 2
    assert "is in no git repository" in outcome.err


def test_a_file_that_git_ignores_is_not_overwritten(project: Path, run: Run) -> None:
    (project / ".gitignore").open("a").write("body.py\n")
    commit(project)
    mine = project / "src" / PACKAGE / "serving" / "http" / "body.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine\n")
    before = state(project)

    outcome = run("update", str(project))

    assert outcome.code == 2
    body = "src/myserver/serving/http/body.py"
    assert f"{body} would be added, but {body} is there already" in outcome.err
    assert state(project) == before


def test_a_project_in_a_folder_of_a_larger_repository(
    render: Render, tmp_path: Path, run: Run
) -> None:
    whole = tmp_path / "whole"
    project = render(whole / "services" / "chat", history.versions()[0])
    (whole / "README.md").write_text("All our services\n")
    git.make_repository(whole, "Everything")

    outcome = run("update", str(project), "--dry-run")
    assert "added     src/myserver/serving/http/body.py" in outcome.out.splitlines()
    assert run("update", str(project)).code == 0

    wanted = render_wanted(render, tmp_path / "wanted", history.versions()[0])
    assert files(project) == files(wanted)
    assert (whole / "README.md").read_text() == "All our services\n"


@pytest.mark.parametrize("kind", ["linked work tree", "shallow clone"])
def test_repositories_of_other_kinds(kind: str, project: Path, tmp_path: Path, run: Run) -> None:
    other = tmp_path / "other"
    if kind == "shallow clone":
        commit(project)
        git.output(tmp_path, "clone", "--quiet", "--depth=1", project.as_uri(), str(other))
    else:
        git.output(project, "worktree", "add", "--quiet", "--detach", str(other))

    assert run("update", str(other)).code == 0

    assert (other / "src" / PACKAGE / "serving" / "http" / "body.py").exists()
    assert git.output(project, "status", "--porcelain") == ""


def test_a_work_tree_with_windows_line_ends(project: Path, run: Run) -> None:
    git.output(project, "config", "core.autocrlf", "true")
    app = project / "src" / PACKAGE / "app.py"
    app.unlink()
    git.output(project, "checkout", "--", ".")
    assert b"\r\n" in app.read_bytes()

    assert run("update", str(project)).code == 0

    assert b"\r\n" in app.read_bytes()
    assert b"BodyMiddleware" in app.read_bytes()
    numbers = git.output(project, "diff", "--numstat", "--", "src/myserver/app.py").split()
    assert int(numbers[1]) < 40  # only what the update takes away, not every line


def start_update(project: Path, templates: Path, *, stop: str) -> "subprocess.Popen[bytes]":
    """Start an update in a process of its own that waits at a step."""
    script = (
        "import signal, sys, time, pathlib\n"
        "from infer_scaffold import cli\n"
        "from infer_scaffold.project import history, updating\n"
        # A shell starts what runs in the background with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"history.BUNDLE = pathlib.Path({str(templates / 'bundle')!r})\n"
        f"real = updating.{stop}\n"
        "def slow(*arguments):\n"
        "    print('there', flush=True)\n"
        "    time.sleep(60)\n"
        f"updating.{stop} = slow\n"
        f"sys.argv = ['infer-scaffold', 'update', {str(project)!r}]\n"
        "cli.main()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("stop", ["_render", "_changes"])
def test_an_update_that_is_killed_leaves_the_project_as_it_was(
    project: Path, render: Render, templates: Path, stop: str, number: signal.Signals
) -> None:
    before = state(project)
    process = start_update(project, templates, stop=stop)
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"

    process.send_signal(number)
    code = process.wait(10)

    assert state(project) == before
    if number is signal.SIGINT:
        assert code == 130


def test_an_update_that_is_killed_at_any_moment(
    project: Path, render: Render, templates: Path
) -> None:
    script = (
        "import sys, pathlib\n"
        "from infer_scaffold import cli\n"
        "from infer_scaffold.project import history\n"
        f"history.BUNDLE = pathlib.Path({str(templates / 'bundle')!r})\n"
        f"sys.argv = ['infer-scaffold', 'update', {str(project)!r}]\n"
        "cli.main()\n"
    )
    before = state(project)
    for seconds in (0.3, 0.8, 1.3):
        process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
        time.sleep(seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert state(project) == before


def publish(folder: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the releases at the public address, as far as git can tell."""
    git.output(folder, "clone", "--quiet", "--mirror", str(bundle), "public.git")
    config = folder / "gitconfig"
    config.write_text(f'[url "{folder / "public.git"}"]\n\tinsteadOf = {PUBLIC}\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("COPIER_CACHE_DIR", str(folder / "cache"))


def plain_copier(project: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "copier", "update", "--defaults", "--quiet", *arguments]
    subprocess.run(command, cwd=project, check=True)


@pytest.mark.parametrize("order", ["offline first", "online first"])
def test_plain_copier_and_ours_take_turns(
    order: str,
    render: Render,
    templates: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(tmp_path, templates / "bundle", monkeypatch)
    project = render(tmp_path / "project", history.versions()[0])
    git.make_repository(project, "Generate")
    own_router(project)
    commit(project)

    if order == "offline first":
        assert run("update", str(project), "--to", "0.1.0", "--endpoints", "chat,health").code == 0
        commit(project)
        plain_copier(project)
    else:
        plain_copier(project)
        commit(project)
        assert run("update", str(project), "--endpoints", "chat,health").code == 0

    first = history.versions()[0]
    wanted = render_wanted(render, tmp_path / "wanted", first, endpoints=["chat", "health"])
    own_router(wanted)
    # Plain copier leaves re-exports also of modules that the first version did not have.
    newest = files(render(tmp_path / "left", endpoints=["chat", "health"], updating=True))
    more = files(project).keys() - files(wanted).keys()
    assert files(project) == files(wanted) | {name: newest.get(name) for name in more}
