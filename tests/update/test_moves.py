"""Updates to a template that has moved most of its modules: every edit comes along."""

import difflib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version

from infer_scaffold import git
from infer_scaffold.project import history, moves, updating
from infer_scaffold.project.merge import Clash
from infer_scaffold.project.updating import Kind
from tests.conftest import Run
from tests.update.conftest import LATER, NEXT, Render, commit, files, render_wanted
from tests.update.edits import PACKAGE, Edit, own_router
from tests.update.test_hostile import conflicts, make, run_update
from tests.update.test_law import assert_same
from tests.update.test_update import state

# Before the template divided the package.
RELEASED = [version for version in history.versions() if version < Version("0.4.0")]
LAST = RELEASED[-1]
SRC = f"src/{PACKAGE}"
BATCHING, CONTINUOUS = f"{SRC}/models/batching.py", f"{SRC}/serving/engine/continuous.py"


@pytest.fixture(autouse=True)
def _known(moved_render: Render) -> None:
    """Know the versions that move files."""


Places = Callable[[Path, Version], dict[str, str]]


@pytest.fixture
def places(moved_bundle: Path) -> Places:
    """Where a version has the files of an older rendering."""

    def places(project: Path, version: Version) -> dict[str, str]:
        found = {path: path for path in files(project)}
        for row in moves.load(moved_bundle.parent / str(version)):
            found = {old: row.place(new) or new for old, new in found.items()}
        return {old: new for old, new in found.items() if old != new}

    return places


def middle(old: str, new: str) -> tuple[int, int] | None:
    """The line nearest to the middle of a file around which a newer version changes nothing."""
    lines = old.splitlines(), new.splitlines()
    blocks = difflib.SequenceMatcher(None, *lines, autojunk=False).get_matching_blocks()
    found = [
        (start + number, there + number)
        for start, there, size in blocks
        for number in range(3, size - 2)
    ]
    return min(found, key=lambda each: abs(2 * each[0] - len(lines[0])), default=None)


def insert(file: Path, number: int, line: str) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:number], f"{line}\n", *lines[number:]]))


def edit_all(project: Path, wanted: Path, places: dict[str, str]) -> list[str]:
    """Add a line in the middle of each file that moves, and in what is wanted of it."""
    edited = []
    for old, new in places.items():
        if (wanted / new).exists():
            found = middle((project / old).read_text(), (wanted / new).read_text())
            if found is not None:
                insert(project / old, found[0], f"# Ours, of {old}")
                insert(wanted / new, found[1], f"# Ours, of {old}")
                edited.append(old)
    return edited


@pytest.mark.parametrize(
    ("version", "to"),
    [(RELEASED[0], LATER), *((version, NEXT) for version in RELEASED[1:])],
    ids=str,
)
def test_the_law_for_every_file_that_moves(
    version: Version, to: Version, render: Render, tmp_path: Path, places: Places
) -> None:
    project = make(render, tmp_path / "project", version=version)
    wanted = render_wanted(render, tmp_path / "wanted", version, to)
    going = places(project, to)
    edited = edit_all(project, wanted, going)
    assert len(edited) > 0.6 * len(going) > 25
    commit(project)

    prepared = run_update(project, to)

    assert conflicts(prepared) == set()
    assert_same(project, wanted, line_ends=version < Version("0.2.0"))
    told = {change.source: change.path for change in prepared.changes if change.source}
    assert told == {old: new for old, new in going.items() if (wanted / new).exists()}


def test_a_dry_run_tells_what_moves(render: Render, tmp_path: Path, run: Run) -> None:
    project = make(render, tmp_path / "project", version=LAST)
    insert(project / BATCHING, 40, "# Ours")
    commit(project)

    outcome = run("update", str(project), "--to", str(NEXT), "--dry-run")

    *shown, summary = outcome.out.splitlines()
    assert outcome.code == 0
    assert f"moved     {BATCHING} -> {CONTINUOUS}" in shown
    assert f"moved     {SRC}/files/store.py -> {SRC}/serving/files/store.py" in shown
    assert f"changed   {BATCHING}" in shown  # what is left there is a re-export
    assert "moved     tests/test_text.py -> tests/serving/chat/test_text.py" in shown
    assert not [line for line in shown if line.startswith("deleted")]
    assert f" {sum(line.startswith('moved') for line in shown)} moved" in summary

    outcome = run("update", str(project), "--to", str(NEXT))
    assert outcome.code == 0
    assert outcome.out.splitlines()[0] == summary.removesuffix(" Nothing was written.")
    letters = {"added": {"??"}, "changed": {" M"}, "moved": {"??"}}
    listed = git.output(project, "status", "--porcelain", "--untracked-files=all").splitlines()
    found = {line[3:]: line[:2] for line in listed}
    for line in shown:
        kind, _, path = line.partition(" ")
        source, arrow, path = path.strip().rpartition(" -> ")
        assert found.pop(path) in letters[kind], line
        if arrow and not (project / source).exists():
            assert found.pop(source) == " D"
    assert found == {}


# What owners do to the files that move.


def renamed_package(project: Path) -> None:
    (project / SRC).rename(project / "src" / "chat_service")


def flat_layout(project: Path) -> None:
    (project / SRC).rename(project / PACKAGE)


def deep_layout(project: Path) -> None:
    (project / "services" / "api" / "src").mkdir(parents=True)
    (project / SRC).rename(project / "services" / "api" / SRC)


def licence_headers(project: Path) -> None:
    licence = "".join(f"# Copyright Example Ltd., clause {number}.\n" for number in range(30))
    for file in project.rglob("*.py"):
        file.write_text(f"{licence}\n{file.read_text()}")


def renamed_with_licence_headers(project: Path) -> None:
    licence_headers(project)  # small modules have little else, and git sees no renames
    renamed_package(project)


def ruff(*arguments: str) -> Edit:
    def edit(project: Path) -> None:
        command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "--quiet", "src"]
        subprocess.run(command, cwd=project, check=True)

    return edit


def line_length_88(project: Path) -> None:
    ruff("format", "--line-length=88")(project)


def imports_sorted_otherwise(project: Path) -> None:
    isort = "lint.isort.force-sort-within-sections=true"
    ruff("check", "--select=I", "--fix", "--config", isort)(project)


def split_module(project: Path) -> None:
    lines = (project / BATCHING).read_text().splitlines(keepends=True)
    half = next(number for number, line in enumerate(lines) if line.startswith("class "))
    (project / BATCHING).write_text("".join([*lines[:half], "from .batch_parts import *\n"]))
    (project / SRC / "models" / "batch_parts.py").write_text("".join(lines[half:]))


def at_home(path: str, edit: Edit) -> str:
    """Where an owner's layout has a file."""
    if edit in (renamed_package, renamed_with_licence_headers):
        return path.replace(f"{SRC}/", "src/chat_service/")
    if edit is deep_layout:
        return path.replace(f"{SRC}/", f"services/api/{SRC}/")
    return path.replace(f"{SRC}/", f"{PACKAGE}/") if edit is flat_layout else path


@pytest.mark.parametrize(
    ("version", "edit"),
    [(RELEASED[0], renamed_package), (LAST, flat_layout), (LAST, deep_layout)],
)
def test_the_law_in_another_layout(
    version: Version, edit: Edit, render: Render, tmp_path: Path, places: Places
) -> None:
    project = make(render, tmp_path / "project", version=version)
    wanted = render_wanted(render, tmp_path / "wanted", version, NEXT)
    edit_all(project, wanted, places(project, NEXT))
    edit(project)
    edit(wanted)
    commit(project)

    assert conflicts(run_update(project, NEXT)) == set()

    assert_same(project, wanted, line_ends=version < Version("0.2.0"))


@pytest.mark.parametrize(
    "edit",
    [
        licence_headers,
        renamed_with_licence_headers,
        line_length_88,
        imports_sorted_otherwise,
        split_module,
    ],
)
def test_no_line_is_lost_and_conflicts_are_where_the_file_belongs(
    edit: Edit, render: Render, tmp_path: Path, places: Places
) -> None:
    base = render(tmp_path / "base", LAST)
    new = render_wanted(render, tmp_path / "new", LAST, NEXT)
    project = make(render, tmp_path / "project", edit, LAST)
    ours = {name: set(text.splitlines()) for name, (_, text) in files(project).items()}
    going = places(base, NEXT)

    prepared = run_update(project, NEXT)

    assert conflicts(prepared) <= {at_home(each, edit) for each in files(new)}
    assert {change.clash for change in prepared.changes} <= {Clash.LINES, None}
    assert prepared.of(Kind.SKIPPED) == prepared.of(Kind.DELETED) == []
    for old, goal in going.items():
        was = set((base / old).read_bytes().splitlines())
        found = set((project / at_home(goal, edit)).read_bytes().splitlines())
        for side in (ours[at_home(old, edit)], set((new / goal).read_bytes().splitlines())):
            assert side - was <= found, old
        left = project / at_home(old, edit)
        assert not left.exists() or left.read_bytes() == (new / old).read_bytes()


def test_a_service_in_a_folder_of_a_larger_repository(
    render: Render, tmp_path: Path, places: Places
) -> None:
    mono = tmp_path / "mono"
    project, other = (render(mono / "services" / name, LAST) for name in ("größe", "other"))
    wanted = render_wanted(render, tmp_path / "wanted", LAST, NEXT)
    edit_all(project, wanted, places(project, NEXT))
    git.make_repository(mono, "Everything")
    untouched = files(other)

    with updating.prepare(project, [], {}, to=str(NEXT)) as prepared:
        assert prepared is not None
        prepared.apply()

    assert prepared.of(Kind.CONFLICT) == []
    assert_same(project, wanted)
    assert files(other) == untouched


def test_what_the_owner_has_moved_or_deleted_or_added(
    render: Render, tmp_path: Path, run: Run
) -> None:
    def edit(project: Path) -> None:
        package = project / SRC
        (package / "own").mkdir()
        (package / "models" / "batching.py").rename(package / "own" / "batches.py")
        (package / "models" / "pooling.py").unlink()
        (package / "models" / "reranker.py").write_text("OURS = 1\n")
        (package / "files" / "ours.py").write_text("OURS = 2\n")
        (package / "models" / "registry.py").write_text("OURS = 3\n")  # nothing in common

    project = make(render, tmp_path / "project", edit, LAST)
    package = project / SRC
    batches = (package / "own" / "batches.py").read_text()

    shown = run("update", str(project), "--to", str(NEXT), "--dry-run").out.splitlines()
    told = run("update", str(project), "--to", str(NEXT))

    assert f"changed   {SRC}/own/batches.py" in shown
    assert f"skipped   {SRC}/models/pooling.py -> {SRC}/serving/embeddings/pooling.py" in shown
    assert f"their changes are left out: {SRC}/models/pooling.py\n" in told.out
    registry = f"{SRC}/serving/models/registry.py"
    assert f"conflict  {SRC}/models/registry.py -> {registry}" in shown
    assert "OURS = 3\n" in (project / registry).read_text()
    new = render(tmp_path / "new", NEXT)
    added = set((new / CONTINUOUS).read_text().splitlines()) - set(batches.splitlines())
    assert added <= set((package / "own" / "batches.py").read_text().splitlines())
    for gone in (BATCHING, CONTINUOUS, f"{SRC}/serving/embeddings/pooling.py"):
        assert not (project / gone).exists()
    assert not (package / "models" / "pooling.py").exists()
    assert (package / "models" / "reranker.py").read_text() == "OURS = 1\n"
    assert (package / "files" / "ours.py").read_text() == "OURS = 2\n"


@pytest.mark.parametrize("layout", [lambda project: None, renamed_package], ids=["", "renamed"])
def test_something_of_the_owner_s_at_a_new_path(
    layout: Edit, render: Render, tmp_path: Path, run: Run
) -> None:
    def edit(project: Path) -> None:
        insert(project / BATCHING, 40, "# Ours")
        (project / CONTINUOUS).parent.mkdir(parents=True)
        (project / CONTINUOUS).write_text("OURS = 1\n")
        layout(project)

    project = make(render, tmp_path / "project", edit, LAST)
    new = (render(tmp_path / "new", NEXT) / CONTINUOUS).read_text()
    old, place = (at_home(each, layout) for each in (BATCHING, CONTINUOUS))

    prepared = run_update(project, NEXT)

    (change_,) = [each for each in prepared.changes if each.kind is Kind.CONFLICT]
    assert (change_.path, change_.source, change_.clash) == (place, old, Clash.PLACE)
    assert (project / place).read_text() == "OURS = 1\n"
    # What the template has made of the file is in it, where it was.
    assert (project / old).read_text().replace("# Ours\n", "") == new
    assert "# Ours\n" in (project / old).read_text()
    assert git.output(project, "show", f":2:{place}") == "OURS = 1\n"
    assert git.output(project, "show", f":3:{place}") == new


@pytest.mark.parametrize(("old", "name"), [("batching", "base_engine"), ("chat", "__init__")])
def test_a_file_that_the_owner_has_put_where_another_one_comes(
    old: str, name: str, render: Render, tmp_path: Path
) -> None:
    taken = f"{SRC}/serving/engine/{name}.py"

    def edit(project: Path) -> None:
        file = project / SRC / "models" / f"{old}.py"
        insert(file, 40, "# Ours")
        (project / taken).parent.mkdir(parents=True)
        file.rename(project / taken)

    project = make(render, tmp_path / "project", edit, LAST)

    prepared = run_update(project, NEXT)

    assert conflicts(prepared) == {taken}
    assert "# Ours\n" in (project / taken).read_text()


def test_a_link_where_a_folder_was(render: Render, tmp_path: Path) -> None:
    def edit(project: Path) -> None:
        insert(project / "tests" / "test_text.py", 9, "# Ours")
        (project / "tests").rename(project / "checks")
        (project / "tests").symlink_to("checks")

    project = make(render, tmp_path / "project", edit, LAST)

    assert conflicts(run_update(project, NEXT)) == set()

    assert (project / "tests").is_symlink()
    assert "# Ours\n" in (project / "checks" / "serving" / "chat" / "test_text.py").read_text()


@pytest.mark.parametrize("path", ["serving", "serving/engine/continuous.py/ours"])
def test_something_of_the_owner_s_in_the_way(path: str, render: Render, tmp_path: Path) -> None:
    def edit(project: Path) -> None:
        insert(project / BATCHING, 40, "# Ours")
        (project / SRC / path).parent.mkdir(parents=True, exist_ok=True)
        (project / SRC / path).write_text("OURS = 1\n")

    project = make(render, tmp_path / "project", edit, LAST)

    prepared = run_update(project, NEXT)

    assert conflicts(prepared)
    texts = [text for _, text in files(project).values()]
    assert b"OURS = 1\n" in texts
    assert [text for text in texts if b"\n# Ours\n" in text]


def test_an_endpoint_that_is_switched_off_over_the_move(
    render: Render, tmp_path: Path, run: Run
) -> None:
    project = make(render, tmp_path / "project", version=LAST)
    insert(project / BATCHING, 40, "# Ours")
    commit(project)

    outcome = run("update", str(project), "--to", str(NEXT), "--endpoints", "files,health")

    assert outcome.code == 1
    assert f"The template deletes {BATCHING}, which you have changed" in outcome.err
    assert "\n# Ours\n" in (project / BATCHING).read_text()
    assert not (project / CONTINUOUS).exists()
    assert not (project / SRC / "models" / "generate.py").exists()
    assert (project / SRC / "serving" / "files" / "store.py").exists()


def test_the_line_ends_of_windows(render: Render, tmp_path: Path, places: Places) -> None:
    project = make(render, tmp_path / "project", version=RELEASED[0])
    wanted = render_wanted(render, tmp_path / "wanted", RELEASED[0], NEXT)
    going = places(project, NEXT)
    edit_all(project, wanted, going)
    for path in (BATCHING, f"{SRC}/models/errors.py"):
        text = (project / path).read_bytes()
        (project / path).write_bytes(text.replace(b"\n", b"\r\n"))
    for each in (project, wanted):
        renamed_package(each)
    commit(project)

    assert conflicts(run_update(project, NEXT)) == set()

    assert_same(project, wanted, line_ends=False)
    for path in (BATCHING, f"{SRC}/models/errors.py"):
        text = (project / at_home(going[path], renamed_package)).read_bytes()
        assert text.count(b"\n") == text.count(b"\r\n") > 0


def test_a_failure_while_files_are_written_puts_what_moved_back(
    render: Render, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make(render, tmp_path / "project", own_router, LAST)
    before = state(project)
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\n"
        f'{shutil.which("git")} "$@" || exit $?\n'
        'case "$*" in "read-tree -m -u"*) exit 1;; esac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")

    assert run("update", str(project), "--to", str(NEXT)).code == 2

    assert state(project) == before
