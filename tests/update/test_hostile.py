"""Updates in surroundings that lose lines: settings of git, encodings, moves, deletions, names."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.version import Version

from infer_scaffold import git
from infer_scaffold.errors import UserError
from infer_scaffold.project import generate, history, updating
from infer_scaffold.project.merge import Clash
from infer_scaffold.project.updating import Kind
from tests.conftest import Run
from tests.update.conftest import (
    NEWEST,
    NEXT,
    OLDEST,
    OWNED,
    RELEASED,
    Render,
    commit,
    files,
    render_wanted,
)
from tests.update.edits import PACKAGE, Edit, change, changed_settings, everything, own_router
from tests.update.test_law import assert_same
from tests.update.test_update import state

OLD = OLDEST
LAST = Version("100.0")
CLASHING = "app.py"


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set what a person may have in their git configuration."""

    def configure(text: str) -> None:
        file = tmp_path / "person.gitconfig"
        file.write_text(text)
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(file))

    return configure


@pytest.fixture
def next_release(templates: Path, tmp_path: Path) -> Iterator[Callable[[Edit], None]]:
    """Release the template once more, after a change of it."""
    with pytest.MonkeyPatch.context() as patched:

        def release(edit: Edit) -> None:
            source, bundle = tmp_path / "next-template", tmp_path / "next.bundle"
            history.copy_template(templates / str(NEXT), source)
            edit(source / "template")
            shutil.copy(templates / "bundle", bundle)
            history.add(bundle, LAST, source)
            patched.setattr(history, "BUNDLE", bundle)

        yield release


def make(
    render: Render, destination: Path, edit: Edit | None = None, version: Version = OLD
) -> Path:
    """Make a committed project with an owner's edits, also committed."""
    project = render(destination, version)
    git.make_repository(project, "Generate")
    if edit is not None:
        edit(project)
        commit(project)
    return project


def run_update(project: Path, to: Version | None = None) -> updating.Update:
    """Update a project; what is announced for its files is what happens to them."""
    before = files(project)
    with updating.prepare(project, [], {}, to=str(to) if to else None) as prepared:
        assert prepared is not None
        prepared.apply()
    after = files(project)
    moved = {change.path for change in prepared.changes if change.kind is Kind.MOVED}
    left = {change.source for change in prepared.changes if change.source}
    new = after.keys() - before.keys() - conflicts(prepared)
    assert (set(prepared.of(Kind.ADDED)), moved) == (new - moved, new & moved)
    assert set(prepared.of(Kind.DELETED)) == before.keys() - after.keys() - left
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert set(prepared.of(Kind.CHANGED)) == changed - conflicts(prepared)
    assert not set(prepared.of(Kind.SKIPPED)) & after.keys()
    unmerged = git.output(project, "ls-files", "--unmerged", "-z").split("\0")[:-1]
    assert {line.partition("\t")[2] for line in unmerged} == conflicts(prepared)
    return prepared


def conflicts(prepared: updating.Update) -> set[str]:
    return set(prepared.of(Kind.CONFLICT))


def clash(prepared: updating.Update, path: str) -> Clash | None:
    (found,) = [each for each in prepared.changes if each.path == path]
    return found.clash


# Settings of a person's git.


def trailing_blanks(project: Path) -> None:
    everything(project)
    (project / "docs").mkdir(exist_ok=True)
    (project / "docs" / "notes.md").write_text("A hard break  \nhere\t\n\n\n")
    readme = project / "README.md"
    readme.write_bytes(readme.read_bytes() + b"\r\nTwo blanks  \r\nend here \t\r\n\r\n")


@pytest.mark.parametrize(
    "text",
    [
        "[apply]\nwhitespace = error\n[core]\nwhitespace = trailing-space,space-before-tab\n",
        "[apply]\nwhitespace = error-all\nignoreWhitespace = change\n",
        "[apply]\nwhitespace = fix\n[core]\nwhitespace = cr-at-eol,indent-with-non-tab\n",
        "[core]\nquotePath = false\nsafecrlf = true\nsplitIndex = true\nuntrackedCache = true\n"
        "[index]\nversion = 4\n[feature]\nmanyFiles = true\n[status]\nshowUntrackedFiles = no\n",
        "[merge]\nconflictStyle = zdiff3\nrenames = false\ndirectoryRenames = false\n"
        "renormalize = true\nrenameLimit = 1\n[diff]\nrenames = false\nnoprefix = true\n"
        "external = false\nalgorithm = patience\n[init]\ndefaultObjectFormat = sha256\n",
        "[core]\nexcludesFile = EXCLUDES\nhooksPath = HOOKS\n[commit]\ngpgSign = true\n"
        "[protocol]\nallow = never\n[transfer]\nfsckObjects = true\n[user]\nuseConfigOnly = true\n",
    ],
    ids=["error", "error-all", "fix", "index", "merge", "files"],
)
def test_settings_of_a_person_change_nothing(
    text: str, render: Render, tmp_path: Path, configured: Callable[[str], None]
) -> None:
    (tmp_path / "excludes").write_text("*.py\n*.md\n.*\n")
    (tmp_path / "hooks").mkdir()
    for hook in ("pre-commit", "post-checkout", "post-index-change", "reference-transaction"):
        (tmp_path / "hooks" / hook).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "hooks" / hook).chmod(0o755)
    project = make(render, tmp_path / "project", trailing_blanks)
    places = {"EXCLUDES": tmp_path / "excludes", "HOOKS": tmp_path / "hooks"}
    for name, place in places.items():
        text = text.replace(name, str(place))
    configured(text)

    prepared = run_update(project)

    assert conflicts(prepared) == set()
    wanted = render_wanted(render, tmp_path / "wanted", OLD)
    trailing_blanks(wanted)
    assert_same(project, wanted)


def test_a_person_s_attributes_decide_about_the_work_tree_alone(
    render: Render, tmp_path: Path, configured: Callable[[str], None]
) -> None:
    project = make(render, tmp_path / "project", own_router)
    (tmp_path / "attributes").write_text("* text eol=crlf\n")
    text = f"[core]\nattributesFile = {tmp_path / 'attributes'}\nsafecrlf = true\n"
    configured(text)

    assert conflicts(run_update(project)) == set()

    configured("")
    commit(project)
    wanted = render_wanted(render, tmp_path / "wanted", OLD)
    own_router(wanted)
    git.make_repository(wanted, "Wanted")
    found = [git.output(each, "rev-parse", "HEAD^{tree}") for each in (project, wanted)]
    assert found[0] == found[1]


def test_new_with_a_person_s_attributes(
    tmp_path: Path, configured: Callable[[str], None], run: Run
) -> None:
    (tmp_path / "attributes").write_text("* text eol=crlf\n")
    configured(f"[core]\nattributesFile = {tmp_path / 'attributes'}\nsafecrlf = true\n")

    outcome = run("new", str(tmp_path / "server"), "--yes", "--preset", "minimal")

    assert outcome.code == 0, outcome.err
    configured("")
    assert git.output(tmp_path / "server", "status", "--porcelain") == ""


# Bytes.


def append(name: str, content: bytes) -> Edit:
    def edit(project: Path) -> None:
        file = project / name
        file.write_bytes(file.read_bytes() + content)

    return edit


SETTINGS = f"src/{PACKAGE}/settings.py"
SSE = f"src/{PACKAGE}/serving/http/sse.py"
# The template changes it, and leaves its end alone.
BASE = f"src/{PACKAGE}/schemas/base.py"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", b"\n## Zust\xe4ndig: J\xfcrgen M\xfcller, Stra\xdfe 5\n"),
        (BASE, b"\n# SJIS: \x83e\x83X\x83g\n"),
        (BASE, b"\n# \xff\xfe\xfa no text at all\n"),
        ("Dockerfile.cpu", b"\n# f\xfcr alle\r\nMIXED=1\r\n"),
        ("README.md", b"\nline\x0bseparators \x0c \x1c \xc2\x85 \xe2\x80\xa8 and a lone \r here\n"),
        ("pyproject.toml", b"\n# no line break at the end"),
        ("README.md", b"\n<<<<<<< not a conflict\n=======\n>>>>>>> of ours\n"),
    ],
    ids=["latin-1", "shift-jis", "odd", "mixed-ends", "separators", "no-end", "marks"],
)
@pytest.mark.parametrize("version", [OLDEST, NEWEST], ids=str)
def test_bytes_stay_as_they_are(
    version: Version, name: str, content: bytes, render: Render, tmp_path: Path
) -> None:
    project = make(render, tmp_path / "project", append(name, content), version)

    assert conflicts(run_update(project)) == set()

    wanted = render_wanted(render, tmp_path / "wanted", version)
    append(name, content)(wanted)
    # Later projects say that git decides about the line ends of the work tree.
    assert_same(project, wanted, line_ends=version < Version("0.2.0"))


def as_utf16(name: str) -> Edit:
    def edit(project: Path) -> None:
        file = project / name
        file.write_bytes(file.read_bytes().decode().encode("utf-16"))

    return edit


@pytest.mark.parametrize("name", ["README.md", ".env.example", SETTINGS])
def test_a_file_that_became_binary_is_a_conflict_and_stays(
    name: str, render: Render, tmp_path: Path, run: Run
) -> None:
    project = make(render, tmp_path / "project", as_utf16(name))
    ours = (project / name).read_bytes()
    changed_settings_elsewhere = project / "pyproject.toml"
    change(changed_settings_elsewhere, 'version = "0.1.0"', 'version = "7.0"')
    commit(project)

    outcome = run("update", str(project))

    assert outcome.code == 1
    assert f"changed {name}, which cannot be merged by lines" in outcome.err
    assert (project / name).read_bytes() == ours
    assert 'version = "7.0"' in changed_settings_elsewhere.read_text()
    theirs = git.output(project, "show", f":3:{name}")
    wanted = render_wanted(render, tmp_path / "wanted", OLD)
    assert theirs == (wanted / name).read_text()


def test_a_nul_byte_is_no_reason_to_lose_a_file(render: Render, tmp_path: Path) -> None:
    project = make(render, tmp_path / "project", append("pyproject.toml", b"\n# \0 \n"))
    ours = (project / "pyproject.toml").read_bytes()

    prepared = run_update(project)

    assert clash(prepared, "pyproject.toml") is Clash.BYTES
    assert (project / "pyproject.toml").read_bytes() == ours


# Deletions and moves by the template.


def test_an_edited_file_that_the_template_deletes_stays(
    render: Render, tmp_path: Path, next_release: Callable[[Edit], None], run: Run
) -> None:
    def delete(source: Path) -> None:
        for name in ("test_openapi.py.jinja", "test_health.py.jinja"):
            (source / "tests" / name).unlink()

    project = make(
        render, tmp_path / "project", append("tests/test_openapi.py", b"\n# ours\n"), NEXT
    )
    ours = (project / "tests" / "test_openapi.py").read_bytes()
    next_release(delete)

    outcome = run("update", str(project))

    assert outcome.code == 1
    assert outcome.err == (
        "The template deletes tests/test_openapi.py, which you have changed; "
        "`git add` or `git rm` it.\n"
    )
    assert (project / "tests" / "test_openapi.py").read_bytes() == ours
    assert not (project / "tests" / "test_health.py").exists()
    assert "UD tests/test_openapi.py" in git.output(project, "status", "--porcelain")


def test_an_edit_follows_a_file_that_the_template_moves(
    render: Render, tmp_path: Path, next_release: Callable[[Edit], None]
) -> None:
    def move(source: Path) -> None:
        package = source / "src" / "{{package_name}}"
        (package / "serving" / "http" / "sse.py").rename(package / "serving" / "streams.py")

    project = make(render, tmp_path / "project", append(SSE, b"\n# ours\n"), NEXT)
    next_release(move)

    run_update(project)

    moved = project / "src" / PACKAGE / "serving" / "streams.py"
    assert moved.read_text().endswith("\n# ours\n")


def test_files_of_the_team_never_follow_a_folder_that_the_template_empties(
    render: Render, tmp_path: Path, next_release: Callable[[Edit], None]
) -> None:
    def move(source: Path) -> None:
        serving = source / "src" / "{{package_name}}" / "serving"
        (serving / "files").rename(serving / "storage")

    def own_file(project: Path) -> None:
        (project / serving / "files" / "ours.py").write_text("OURS = 1\n")

    serving = Path("src", PACKAGE, "serving")
    project = make(render, tmp_path / "project", own_file, NEXT)
    next_release(move)

    run_update(project)

    assert (project / serving / "files" / "ours.py").read_text() == "OURS = 1\n"
    assert (project / serving / "storage" / "store.py").exists()


def test_an_endpoint_that_is_switched_off_leaves_edited_files(
    render: Render, tmp_path: Path, run: Run
) -> None:
    router = f"src/{PACKAGE}/routers/files.py"
    project = make(render, tmp_path / "project", append(router, b"\n# ours\n"))
    own = project / "src" / PACKAGE / "files" / "ours.py"
    own.write_text("OURS = 1\n")
    commit(project)

    outcome = run("update", str(project), "--endpoints", "chat,health")

    assert outcome.code == 1
    assert f"The template deletes {router}, which you have changed" in outcome.err
    assert (project / router).read_text().endswith("\n# ours\n")
    assert own.exists()
    assert not (project / "src" / PACKAGE / "files" / "store.py").exists()


# Files of the owner from the first day on.


@pytest.mark.parametrize("fate", ["deleted", "moved"])
def test_files_of_the_owner_that_are_gone_stay_gone(
    fate: str, render: Render, tmp_path: Path
) -> None:
    version = history.versions()[1]

    def take_away(project: Path) -> None:
        (project / "ours").mkdir()
        for name in OWNED:
            if fate == "deleted":
                (project / name).unlink()
            else:
                (project / name).rename(project / "ours" / Path(name).name)

    project = make(render, tmp_path / "project", take_away, version)

    prepared = run_update(project)

    assert conflicts(prepared) == set()
    assert not [name for name in OWNED if (project / name).exists()]
    assert not [change for change in prepared.changes if change.path.startswith("ours/")]


def test_files_of_the_owner_are_never_touched(render: Render, tmp_path: Path) -> None:
    def rewrite(project: Path) -> None:
        for name in OWNED:
            (project / name).write_bytes(b"# all of it \xff ours\r\n")

    project = make(render, tmp_path / "project", rewrite)  # two of them are newer than this

    assert conflicts(run_update(project)) == set()

    for name in OWNED:
        assert (project / name).read_bytes() == b"# all of it \xff ours\r\n"


# Moves by the owner.


def renamed_package(project: Path) -> None:
    (project / "src" / PACKAGE).rename(project / "src" / "acme")


def flat_layout(project: Path) -> None:
    (project / "src" / PACKAGE).rename(project / PACKAGE)


def renamed_folders(project: Path) -> None:
    (project / "tests").rename(project / "checks")
    (project / "deploy").rename(project / "ops")
    if (deployment := project / "ops" / "kubernetes" / "base" / "deployment.yaml").exists():
        # It stays where the owner has put it, as every file that both sides move.
        deployment.rename(project / "ops" / "kubernetes.yaml")
    (project / "src" / PACKAGE / "models").rename(project / "src" / PACKAGE / "engines")


def service_in_a_folder(project: Path) -> None:
    files = [path for path in project.iterdir() if path.name != ".git"]
    (project / "services").mkdir()
    (project / "services" / "größe").mkdir()
    for path in files:
        path.rename(project / "services" / "größe" / path.name)


def module_to_package(project: Path) -> None:
    settings = project / "src" / PACKAGE / "settings"
    settings.mkdir()
    settings.with_suffix(".py").rename(settings / "__init__.py")


def moved_and_edited(project: Path) -> None:
    changed_settings(project)
    own_router(project)
    renamed_package(project)


MOVES = [renamed_package, flat_layout, renamed_folders, module_to_package, moved_and_edited]


@pytest.mark.parametrize(
    ("version", "move"),
    [
        (version, move)
        for version in RELEASED
        for move in MOVES
        if version in (OLDEST, NEWEST) or move is moved_and_edited
    ],
)
def test_fixes_arrive_where_the_owner_has_moved_the_code(
    version: Version, move: Edit, render: Render, tmp_path: Path
) -> None:
    project = make(render, tmp_path / "project", move, version)

    assert conflicts(run_update(project)) == set()

    wanted = render_wanted(render, tmp_path / "wanted", version)
    move(wanted)
    assert_same(project, wanted)


def test_a_service_that_moved_into_a_folder_of_its_repository(
    render: Render, tmp_path: Path
) -> None:
    project = make(render, tmp_path / "project", service_in_a_folder)
    (project / "README.md").write_text("All services\n")
    commit(project)

    with updating.prepare(project / "services" / "größe", [], {}) as prepared:
        assert prepared is not None
        prepared.apply()

    assert prepared.of(Kind.CONFLICT) == []
    wanted = render_wanted(render, tmp_path / "wanted", OLD)
    assert_same(project / "services" / "größe", wanted)
    assert (project / "README.md").read_text() == "All services\n"


def package_with_a_shim(project: Path) -> None:
    renamed_package(project)
    (project / "src" / PACKAGE).mkdir()
    (project / "src" / PACKAGE / "__init__.py").write_text("from acme import *\n")


def split_package(project: Path) -> None:
    modules = sorted((project / "src" / PACKAGE).iterdir())
    for folder, some in (("acme", modules[::3]), ("core", modules[1::3] + modules[2::3])):
        (project / "src" / folder).mkdir()
        for module in some:
            module.rename(project / "src" / folder / module.name)
    (project / "src" / PACKAGE).rmdir()


@pytest.mark.parametrize(("move", "home"), [(package_with_a_shim, "acme"), (split_package, "core")])
def test_new_files_go_with_their_neighbours(
    move: Edit, home: str, render: Render, tmp_path: Path
) -> None:
    project = make(render, tmp_path / "project", move)

    assert conflicts(run_update(project)) == set()

    new = {"http/body.py", "http/protocol.py", "threads.py"}
    serving = project / "src" / home / "serving"
    assert new <= {path.relative_to(serving).as_posix() for path in serving.rglob("*.py")}
    half = project / "src" / PACKAGE
    assert not half.exists() or [path.name for path in half.iterdir()] == ["__init__.py"]


def renamed_and_extended(project: Path) -> None:
    own_router(project)
    renamed_package(project)


def test_an_endpoint_that_is_switched_off_in_a_renamed_package(
    render: Render, tmp_path: Path, run: Run
) -> None:
    project = make(render, tmp_path / "project", renamed_and_extended)

    outcome = run("update", str(project), "--endpoints", "chat,health")

    assert (outcome.code, outcome.err) == (0, "")
    wanted = render_wanted(render, tmp_path / "wanted", OLD, endpoints=["chat", "health"])
    renamed_and_extended(wanted)
    assert_same(project, wanted)


def test_a_new_file_whose_place_is_taken_in_a_renamed_package(
    render: Render, tmp_path: Path
) -> None:
    def edit(project: Path) -> None:
        renamed_package(project)
        body = project / "src" / "acme" / "serving" / "http" / "body.py"
        body.parent.mkdir(parents=True)
        body.write_text("OURS = 1\n")
        (project / "src" / "acme" / "custom_settings.py").write_text("OURS = 2\n")

    project = make(render, tmp_path / "project", edit)

    prepared = run_update(project)

    assert conflicts(prepared) == {f"src/{PACKAGE}/serving/http/body.py"}
    assert (project / "src" / "acme" / "serving" / "http" / "body.py").read_text() == "OURS = 1\n"
    assert (project / "src" / "acme" / "custom_settings.py").read_text() == "OURS = 2\n"


def test_a_file_that_became_a_link(render: Render, tmp_path: Path) -> None:
    def link(project: Path) -> None:
        (project / "docs").mkdir(exist_ok=True)
        (project / "README.md").rename(project / "docs" / "README.md")
        (project / "README.md").symlink_to("docs/README.md")

    project = make(render, tmp_path / "project", link)
    ours = (project / "docs" / "README.md").read_bytes()

    prepared = run_update(project)

    assert "README.md" in conflicts(prepared)
    assert (project / "README.md").is_symlink()
    assert (project / "docs" / "README.md").read_bytes() == ours


def test_a_renamed_project(render: Render, tmp_path: Path) -> None:
    """The answers name the new package, and the folder is renamed."""

    def rename(project: Path) -> None:
        renamed_package(project)
        change(project / ".copier-answers.yml", "project_name: myserver", "project_name: acme")

    project = make(render, tmp_path / "project", rename)

    run_update(project)

    assert not (project / "src" / PACKAGE).exists()
    fixed = render(tmp_path / "wanted") / "src" / PACKAGE / "serving" / "http" / "body.py"
    assert (
        project / "src" / "acme" / "serving" / "http" / "body.py"
    ).read_bytes() == fixed.read_bytes()


# Names and places.

# Each with several things that git, a shell or a path could take for something else.
NAMES = ["größe 日本語 a b", "-dash tab\tbreak\nbell\a", ":(top)x [glob]* co:lon;semi"]
NAMES += ["\\back\\slash quo\"te $(touch x)`'", os.fsdecode(b"latin-\xe4")]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_conflicts_below_odd_names(name: str, render: Render, tmp_path: Path, run: Run) -> None:
    mono = tmp_path / "mono"
    project = render(mono / name / "svc", OLD)
    other = render(mono / name / "svc2", OLD)
    git.make_repository(mono, "Everything")
    newer = project / "src" / PACKAGE / CLASHING
    change(newer, "from .drain import Drain", "from .drain import Drain  # ours")
    commit(mono)
    untouched = files(other)

    shown = run("update", str(project), "--dry-run")
    outcome = run("update", str(project))

    assert (shown.code, outcome.code) == (1, 1)
    assert f"conflict  src/{PACKAGE}/{CLASHING}" in shown.out.splitlines()
    assert f"the same lines of src/{PACKAGE}/{CLASHING};" in outcome.err
    assert "<<<<<<< before updating\n" in newer.read_text()
    assert ">>>>>>> after updating\n" in newer.read_text()
    listed = git.output(mono, "status", "--porcelain", "-z").split("\0")
    assert f"UU {name}/svc/src/{PACKAGE}/{CLASHING}" in listed
    assert files(other) == untouched


def test_a_file_name_that_is_no_text(render: Render, tmp_path: Path) -> None:
    def odd(project: Path) -> None:
        (project / os.fsdecode(b"caf\xe9 \n.txt")).write_bytes(b"\xe9")
        (project / "link").symlink_to("nowhere")

    project = make(render, tmp_path / "project", odd)

    assert conflicts(run_update(project)) == set()

    wanted = render_wanted(render, tmp_path / "wanted", OLD)
    odd(wanted)
    assert_same(project, wanted)


def test_names_are_printed_as_text(render: Render, tmp_path: Path, run: Run) -> None:
    def odd(project: Path) -> None:
        (project / "tests").rename(project / "tests\x1b[31m\nadded")

    project = make(render, tmp_path / "project", odd)

    shown = run("update", str(project), "--dry-run").out

    assert "changed   tests\\x1b[31m\\nadded/conftest.py" in shown.splitlines()
    assert "\x1b" not in shown


def test_a_folder_where_the_template_adds_a_file(render: Render, tmp_path: Path, run: Run) -> None:
    def occupy(project: Path) -> None:
        (project / "src" / PACKAGE / "serving" / "http" / "body.py").mkdir(parents=True)
        (project / "src" / PACKAGE / "serving" / "http" / "body.py" / "ours").write_text("ours\n")

    project = make(render, tmp_path / "project", occupy)

    outcome = run("update", str(project))

    assert outcome.code == 1
    assert "The template has a file where you have something else: " in outcome.err
    assert (
        project / "src" / PACKAGE / "serving" / "http" / "body.py" / "ours"
    ).read_text() == "ours\n"


@pytest.mark.parametrize("kind", ["sha256", "reftable-free worktree", "submodule"])
def test_repositories_of_rare_kinds(
    kind: str, render: Render, tmp_path: Path, run: Run, configured: Callable[[str], None]
) -> None:
    if kind == "sha256":
        project = render(tmp_path / "project", OLD)
        git.output(project, "init", "--quiet", "--object-format=sha256")
        commit(project)
    else:
        project = make(render, tmp_path / "project")
    if kind == "submodule":
        configured('[protocol "file"]\nallow = always\n')
        whole = tmp_path / "whole"
        whole.mkdir()
        git.output(whole, "init", "--quiet")
        git.output(whole, "submodule", "--quiet", "add", str(project), "svc")
        project = whole / "svc"
    if kind == "reftable-free worktree":
        git.output(project, "worktree", "add", "--quiet", "-b", "w", str(tmp_path / "a:b"))
        project = tmp_path / "a:b"
    change(
        project / "src" / PACKAGE / CLASHING,
        "from .drain import Drain",
        "from .drain import Drain  # ours",
    )
    commit(project)

    assert run("update", str(project), "--endpoints", "chat,health").code == 1

    unmerged = git.output(project, "diff", "--name-only", "--diff-filter=U").splitlines()
    assert unmerged == [f"src/{PACKAGE}/{CLASHING}"]
    assert "src/myserver/serving/" in git.output(project, "status", "--porcelain")


# Refusals.


def refusal(project: Path, run: Run) -> str:
    before = state(project)
    outcome = run("update", str(project))
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert state(project) == before
    return outcome.err


@pytest.mark.parametrize("operation", ["rebase", "merge", "cherry-pick", "revert", "bisect"])
def test_an_unfinished_operation_is_refused(operation: str, project: Path, run: Run) -> None:
    git.output(project, "switch", "--quiet", "--create", "side")
    append("README.md", b"side\n")(project)
    commit(project)
    git.output(project, "switch", "--quiet", "main")
    append("README.md", b"main\n")(project)
    commit(project)
    command = {
        "rebase": ("rebase", "side"),
        "merge": ("merge", "side"),
        "cherry-pick": ("cherry-pick", "side"),
        "revert": ("revert", "--no-commit", "side"),
        "bisect": ("bisect", "start"),
    }[operation]
    person = ("-c", "user.name=x", "-c", "user.email=x@localhost")
    subprocess.run(["git", *person, *command], cwd=project, capture_output=True, check=False)
    # A stop with a clean tree is what nothing else notices.
    git.output(project, "read-tree", "--reset", "-u", "HEAD")

    assert f"a {operation} is not finished in {project}" in refusal(project, run)


def test_a_sparse_checkout_is_refused_unless_it_holds_the_project(
    render: Render, tmp_path: Path, run: Run
) -> None:
    mono = tmp_path / "mono"
    for name in ("one", "two"):
        render(mono / name, OLD)
    git.make_repository(mono, "Everything")
    git.output(mono, "sparse-checkout", "set", "two", "one/src")
    before = state(mono)
    outcome = run("update", str(mono / "one"))
    assert (outcome.code, outcome.out) == (2, "")
    assert "is not checked out in full" in outcome.err
    assert state(mono) == before

    assert run("update", str(mono / "two")).code == 0
    assert_same(mono / "two", render_wanted(render, tmp_path / "wanted", OLD))
    assert not (mono / "one" / "tests").exists()


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_hidden_changes_are_not_overwritten(flag: str, project: Path, run: Run) -> None:
    git.output(project, "update-index", flag, "README.md")
    append("README.md", b"hidden\n")(project)

    assert "README.md" in refusal(project, run)


@pytest.fixture
def others_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let git take every repository for another person's."""
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    real = shutil.which("git")
    fake.write_text(f'#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec {real} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")


def test_a_repository_of_another_owner(
    project: Path, run: Run, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("others_repositories")

    outcome = run("update", str(project))

    assert outcome.code == 2
    assert "dubious ownership" in outcome.err
    assert "safe.directory" in outcome.err


def test_new_makes_no_repository_inside_one_that_git_refuses(
    project: Path, run: Run, request: pytest.FixtureRequest
) -> None:
    before = state(project)
    request.getfixturevalue("others_repositories")

    outcome = run("new", str(project / "sub"), "--yes", "--preset", "minimal")

    assert outcome.code == 2
    assert "dubious ownership" in outcome.err
    assert files(project) == before[0]  # type: ignore[index]


def test_a_broken_configuration_is_told(
    project: Path, run: Run, configured: Callable[[str], None]
) -> None:
    configured("[broken\n")

    outcome = run("update", str(project))

    assert outcome.code == 2
    assert "bad config line 1 in file" in outcome.err


def test_an_old_git_is_told(
    project: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho git version 2.30.2\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent))

    outcome = run("update", str(project))

    assert outcome.code == 2
    assert "git version 2.30.2 is older than 2.38" in outcome.err


def test_a_project_that_its_repository_ignores(render: Render, tmp_path: Path, run: Run) -> None:
    (tmp_path / ".gitignore").write_text("/out/\n")
    git.make_repository(tmp_path, "Ignore")
    project = render(tmp_path / "out" / "project", OLD)

    outcome = run("update", str(project))

    assert outcome.code == 2
    assert f"is not committed to {tmp_path}" in outcome.err

    new = generate.new(tmp_path / "out" / "server", [], {"endpoints": ["health"]})
    assert new.committed
    with pytest.raises(UserError, match="is not committed to"):
        updating.prepare(project, [], {}).__enter__()


# Places that are taken.

FILES_TOO = ("--to", "0.1.0", "--endpoints", "chat,files,health")


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_an_ignored_file_where_a_folder_comes_is_not_overwritten(
    kind: str, render: Render, tmp_path: Path, run: Run
) -> None:
    project = render(tmp_path / "project", OLD, endpoints=["chat", "health"])
    with (project / ".gitignore").open("a") as ignored:
        ignored.write(f"/src/{PACKAGE}/files\n")
    git.make_repository(project, "Generate")
    git.output(project, "rm", "-q", "--cached", "--ignore-unmatch", f"src/{PACKAGE}/files")
    mine = project / "src" / PACKAGE / "files"
    if kind == "file":
        mine.write_text("precious\n")
    else:
        mine.symlink_to(tmp_path if kind == "link" else "nowhere")
    before = state(project)

    outcome = run("update", str(project), *FILES_TOO)

    assert outcome.code == 2
    assert f"src/{PACKAGE}/files is there already, ignored by git" in outcome.err
    assert state(project) == before


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a_file_of_the_owner_where_new_files_would_go(
    kind: str, render: Render, tmp_path: Path, run: Run
) -> None:
    project = render(tmp_path / "project", OLD, endpoints=["chat", "health"])
    git.make_repository(project, "Generate")
    renamed_package(project)
    package = project / "src" / "acme"
    if kind == "file":
        (package / "files").write_text("ours\n")
    elif kind == "link":
        (package / "files").symlink_to("nowhere")
    else:
        (package / "routers" / "files.py").mkdir()
        (package / "routers" / "files.py" / "ours").write_text("ours\n")
    commit(project)
    before = files(project)

    outcome = run("update", str(project), *FILES_TOO)

    assert outcome.code == 1
    assert "The template has a file where you have something else" in outcome.err
    after = files(project)
    assert {name: after.get(name) for name in before if "/files" in name} == {
        name: content for name, content in before.items() if "/files" in name
    }
    assert os.path.lexists(package / "files")


def test_a_commit_while_the_update_is_worked_out_is_not_reverted(
    render: Render, tmp_path: Path
) -> None:
    project = make(render, tmp_path / "project")
    with updating.prepare(project, [], {}) as prepared:
        assert prepared is not None
        append("README.md", b"later\n")(project)
        (project / "ours.py").touch()
        commit(project)
        before = state(project)
        with pytest.raises(UserError, match="has new commits; start the update again"):
            prepared.apply()
    assert state(project) == before


@pytest.mark.parametrize("place", ["project", "person"])
def test_new_files_that_git_ignores_are_not_forgotten(
    place: str, render: Render, tmp_path: Path, configured: Callable[[str], None]
) -> None:
    project = make(render, tmp_path / "project")
    if place == "project":
        append(".gitignore", b"models/\n")(project)
        commit(project)
    else:
        (tmp_path / "excludes").write_text("models/\n")
        configured(f"[core]\nexcludesFile = {tmp_path / 'excludes'}\n")

    run_update(project)
    for arguments in (("add", "--all"), ("commit", "-qm", "Update")):
        git.output(project, *arguments, settings=git.FALLBACK_IDENTITY)

    new = f"src/{PACKAGE}/serving/models/admission.py"
    assert new in git.output(project, "ls-tree", "-r", "--name-only", "HEAD").splitlines()


def test_a_service_inside_the_service_is_left_alone(render: Render, tmp_path: Path) -> None:
    project = render(tmp_path / "project", OLD)
    inner = render(project / "services" / "inner", OLD)
    git.make_repository(project, "Both")
    for name in ("tests/test_generate.py", "compose.yaml"):
        (project / name).unlink()
    shutil.rmtree(project / "src" / PACKAGE / "files")
    commit(project)
    before = files(inner)

    run_update(project)

    assert files(inner) == before
    assert not (project / "compose.yaml").exists()


def test_a_link_that_stays_where_a_folder_was(render: Render, tmp_path: Path) -> None:
    def move(project: Path) -> None:
        (project / "tests").rename(project / "checks")
        (project / "tests").symlink_to("checks")

    project = make(render, tmp_path / "project", move)

    prepared = run_update(project)

    assert conflicts(prepared) == set()
    assert (project / "tests").is_symlink()
    assert (project / "tests" / "serving" / "http" / "test_body.py").exists()
    assert not [each for each in project.iterdir() if "~" in each.name]


def test_a_script_where_a_folder_was(render: Render, tmp_path: Path) -> None:
    def replace(project: Path) -> None:
        shutil.rmtree(project / "tests")
        (project / "tests").write_text("#!/bin/sh\n")

    project = make(render, tmp_path / "project", replace)

    prepared = run_update(project)

    assert conflicts(prepared) == set()
    assert (project / "tests").read_text() == "#!/bin/sh\n"


def test_empty_files_are_no_moves(render: Render, tmp_path: Path) -> None:
    def edit(project: Path) -> None:
        shutil.rmtree(project / "tests")
        (project / "spec").mkdir()
        (project / "spec" / "__init__.py").touch()

    project = make(render, tmp_path / "project", edit)

    run_update(project)

    assert [path.name for path in (project / "spec").iterdir()] == ["__init__.py"]


def test_a_conflict_in_a_file_with_the_line_ends_of_windows(render: Render, tmp_path: Path) -> None:
    def edit(project: Path) -> None:
        file = project / "src" / PACKAGE / CLASHING
        change(file, "from .drain import Drain", "from .drain import Drain  # ours")
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))

    project = make(render, tmp_path / "project", edit)
    name = f"src/{PACKAGE}/{CLASHING}"
    ours = git.output(project, "show", f"HEAD:{name}")

    assert conflicts(run_update(project)) == {name}

    assert git.output(project, "show", f":2:{name}") == ours
    for text in (git.output(project, "show", f":3:{name}"), (project / name).read_bytes().decode()):
        assert text.count("\n") == text.count("\r\n") > 0
    git.output(project, "add", name)
    assert "i/crlf" in git.output(project, "ls-files", "--eol", name)


# Kills and failures.


def test_a_filter_that_cannot_run_leaves_everything_as_it_was(
    render: Render, tmp_path: Path, run: Run
) -> None:
    def use_filter(project: Path) -> None:
        append(".gitattributes", b"*.py filter=x\n")(project)

    project = make(render, tmp_path / "project", use_filter, history.versions()[1])
    git.output(project, "config", "filter.x.clean", "cat")
    git.output(project, "config", "filter.x.smudge", str(tmp_path / "no-such-program"))
    git.output(project, "config", "filter.x.required", "true")

    assert "git failed (" in refusal(project, run)


def test_a_disk_that_is_full_for_the_sides_of_a_conflict(
    render: Render, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make(render, tmp_path / "project")
    newer = project / "src" / PACKAGE / CLASHING
    change(newer, "from .drain import Drain", "from .drain import Drain  # ours")
    commit(project)

    def fill(source: Path, copy: Path) -> None:
        copy.write_bytes(source.read_bytes()[:100])
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shutil, "copy", fill)
        assert "No space left on device" in refusal(project, run)
    assert git.output(project, "fsck", "--no-dangling") == ""
    assert run("update", str(project)).code == 1


@pytest.mark.parametrize("name", ["co:lon", 'quo"te\\', "new\nline", "größe"])
def test_temporary_folders_with_odd_names(
    name: str, render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make(render, tmp_path / name, own_router)
    (tmp_path / f"{name}-tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / f"{name}-tmp"))

    assert conflicts(run_update(project)) == set()


@pytest.mark.parametrize("value", ["chat", "7", "[chat, 3]", "{a: b}", "null"])
def test_answers_that_somebody_edited_badly(value: str, project: Path, run: Run) -> None:
    answers = project / ".copier-answers.yml"
    text = answers.read_text()
    start = text.index("endpoints:")
    end = text.index("heartbeat_seconds:")
    answers.write_text(f"{text[:start]}endpoints: {value}\n{text[end:]}")
    commit(project)

    refusal(project, run)


def test_a_disk_that_fills_up_while_files_are_written(
    render: Render, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make(render, tmp_path / "project", moved_and_edited)
    before = state(project)
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\n"
        # Blocks of 512 bytes: larger files cannot be written, as on a full disk.
        'case "$*" in "read-tree -m -u"*) ulimit -f 24;; esac\n'
        f'exec {shutil.which("git")} "$@"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")

    outcome = run("update", str(project))

    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith(f" {project} is as it was.\n")
    assert state(project) == before
    assert not (project / "src" / "acme" / "serving" / "http" / "body.py").exists()


def test_an_ignored_file_in_the_way_of_a_conflict_is_not_overwritten(
    render: Render, tmp_path: Path, run: Run
) -> None:
    def edit(project: Path) -> None:
        (project / "src" / PACKAGE / "serving" / "http" / "body.py").mkdir(parents=True)
        (project / "src" / PACKAGE / "serving" / "http" / "body.py" / "ours").touch()
        with (project / ".gitignore").open("a") as ignored:
            ignored.write("*~after-updating\n")

    project = make(render, tmp_path / "project", edit)
    mine = project / "src" / PACKAGE / "serving" / "http" / "body.py~after-updating"
    mine.write_text("mine\n")

    assert "is there already, ignored by git" in refusal(project, run)


def test_a_kill_while_the_files_are_written_leaves_it_updated(
    render: Render, templates: Path, tmp_path: Path
) -> None:
    project = make(render, tmp_path / "project")
    newer = project / "src" / PACKAGE / CLASHING
    change(newer, "from .drain import Drain", "from .drain import Drain  # ours")
    commit(project)
    fake, flag = tmp_path / "bin" / "git", tmp_path / "writing"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\n"
        f'case "$*" in "read-tree -m -u"*) touch {flag}; sleep 1;; esac\n'
        f'exec {shutil.which("git")} "$@"\n'
    )
    fake.chmod(0o755)
    script = (
        "import sys, pathlib\n"
        "from infer_scaffold import cli\n"
        "from infer_scaffold.project import history\n"
        f"history.BUNDLE = pathlib.Path({str(templates / 'bundle')!r})\n"
        f"sys.argv = ['infer-scaffold', 'update', {str(project)!r}]\n"
        "cli.main()\n"
    )
    env = os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    process = subprocess.Popen([sys.executable, "-c", script], env=env, start_new_session=True)
    while not flag.exists():
        assert process.poll() is None
        time.sleep(0.01)

    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    deadline = time.monotonic() + 30
    while not git.output(project, "ls-files", "--unmerged") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (project / "src" / PACKAGE / "serving" / "http" / "body.py").exists()
    assert "<<<<<<< before updating" in newer.read_text()
    assert f"UU src/{PACKAGE}/{CLASHING}" in git.output(project, "status", "--porcelain")
