"""moves.toml, and what follows from it for paths."""

from pathlib import Path

import pytest
from packaging.version import Version

from infer_scaffold import __version__
from infer_scaffold.errors import UserError
from infer_scaffold.project import generate, history, moves, template
from infer_scaffold.project.moves import Move, Moved, due, load, locate, without_reexports

V1, V2, V3, V4 = (Version(f"0.{number}.0") for number in range(1, 5))


def entries(*paths: str) -> dict[str, str]:
    return {path: f"100644 {number:040}" for number, path in enumerate(paths)}


def write(folder: Path, text: str) -> Path:
    (folder / "moves.toml").write_text(text)
    return folder


def test_the_template_s_own() -> None:
    table = load(template.root())
    # `make release` refuses rows of a later version.
    assert all(row.since <= Version(__version__.removesuffix(".dev0")) for row in table)


def test_nothing_stands_at_an_old_path_in_a_new_project(tmp_path: Path) -> None:
    table = load(template.root())
    new = generate.preview(tmp_path / "new", [], {"project_name": "myserver"})

    assert not [path for path in new if any(row.place(path) for row in table)]


def test_every_file_that_moved_leaves_something_for_plain_copier(tmp_path: Path) -> None:
    table = load(template.root())
    answers = {"project_name": "myserver"}
    for name, version in (("last", history.versions()[-1]), ("now", history.current())):
        source = history.unpack(version, tmp_path / f"{name}-template")
        generate.render(answers, tmp_path / name, source=source, updating=True)
    last, now = (set(generate.list_files(tmp_path / name)) for name in ("last", "now"))

    assert {path for path in last if any(row.place(path) for row in table)} <= now


def test_a_template_without_the_file(tmp_path: Path) -> None:
    assert load(tmp_path) == []


def test_rows_are_read_by_version(tmp_path: Path) -> None:
    folder = write(tmp_path, '["0.10.0"]\n"b" = "c"\n["0.4.0"]\n"a" = "b"\n"x/" = "y/"\n')

    assert load(folder) == [
        Move(Version("0.4.0"), "a", "b"),
        Move(Version("0.4.0"), "x/", "y/"),
        Move(Version("0.10.0"), "b", "c"),
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('a = "b"', "'a' is no version"),
        ('["1.0.0.dev0"]\n', "'1.0.0.dev0' is no version of a release"),
        ('["v1.0.0"]\n', "'v1.0.0' is no version of a release"),
        ('"1.0.0" = "a"', "'1.0.0' is no table"),
        ('["1.0.0"]\na = 1', "'a' goes to no path"),
        ('["1.0.0"]\na = ["b"]', "'a' goes to no path"),
        ('["1.0.0"]\n"/a" = "b"', "'/a' is no path in a project"),
        ('["1.0.0"]\na = "../b"', "'../b' is no path in a project"),
        ('["1.0.0"]\na = ""', "'' is no path in a project"),
        ('["1.0.0"]\n"src/**/a" = "b"', "'src/**/a' is no path in a project"),
        ("[\"1.0.0\"]\na = 'b\\c'", "'b\\\\c' is no path in a project"),
        ('["1.0.0"]\n"a/" = "b"', "'a/' and 'b' are not both files or both folders"),
        ('["1.0.0"]\n"*/a" = "b"', "'*/a' and 'b' have not as many *"),
        ('["1.0.0"]\na = "c"\nb = "c"', "'c' is the new path of two in 1.0.0"),
        ('["1.0.0"]\na = "a"', "'a' was left, and cannot be used again in 1.0.0"),
        (
            '["1.0.0"]\na = "b"\n["2.0.0"]\nb = "a"',
            "'a' was left, and cannot be used again in 2.0.0",
        ),
    ],
)
def test_wrong_rows(text: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load(write(tmp_path, text))

    assert str(raised.value) == f"moves.toml: {fault}; put that right."


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^moves\.toml: it is no TOML \(.*\); put that right\.$"):
        load(write(tmp_path, "a = "))


@pytest.mark.parametrize(
    ("source", "target", "path", "place"),
    [
        ("src/*/a.py", "src/*/b/c.py", "src/x-1/a.py", "src/x-1/b/c.py"),
        ("src/*/a.py", "src/*/b/c.py", "src/x/y/a.py", None),
        ("src/*/a.py", "src/*/b/c.py", "src/x/a.pyi", None),
        ("src/*/a.py", "src/*/b/c.py", "src/x/aXpy", None),
        ("src/*/f/", "src/*/s/f/", "src/x/f/g/h.py", "src/x/s/f/g/h.py"),
        ("src/*/f/", "src/*/s/f/", "src/x/f", None),
        ("src/*/f/", "src/*/s/f/", "src/x/ff/a", None),
        ("t/test_a*.py", "t/s/test_a*.py", "t/test_a.py", "t/s/test_a.py"),
        ("t/test_a*.py", "t/s/test_a*.py", "t/test_a_b.py", "t/s/test_a_b.py"),
        ("*/a*", "a*/*", "x/ay", "ax/y"),
        ("a", r"\1", "a", r"\1"),
    ],
)
def test_patterns(source: str, target: str, path: str, place: str | None) -> None:
    assert Move(V1, source, target).place(path) == place


TABLE = [
    Move(V2, "a", "b"),
    Move(V2, "f/", "g/"),
    Move(V2, "f/x", "y"),
    Move(V3, "b", "c"),
]


class TestDue:
    """Which files an update moves."""

    def test_steps_of_several_versions_are_taken_at_once(self) -> None:
        base, theirs = entries("a", "f/x", "f/z", "k"), entries("c", "y", "g/z", "k")
        assert due(TABLE, V1, V3, base, theirs) == {"a": "c", "f/x": "y", "f/z": "g/z"}

    def test_versions_before_and_after_are_left_out(self) -> None:
        assert due(TABLE, V1, V2, entries("a"), entries("a", "b")) == {"a": "b"}
        assert due(TABLE, V2, V4, entries("b"), entries("c")) == {"b": "c"}
        assert due(TABLE, V2, V2, entries("a"), entries("b")) == {}
        assert due(TABLE, V3, V4, entries("a"), entries("c")) == {}

    def test_a_development_version_before_and_after_the_move(self) -> None:
        old = Version("0.2.0.dev0+t123")
        assert due(TABLE, old, V2, entries("a"), entries("a", "b")) == {"a": "b"}
        assert due(TABLE, old, V2, entries("a", "b"), entries("a", "b")) == {}
        assert due(TABLE, old, V3, entries("a", "b"), entries("a", "b", "c")) == {"b": "c"}

    def test_what_the_new_version_does_not_have(self) -> None:
        assert due(TABLE, V1, V3, entries("a"), entries("k")) == {}


BASE = entries("s/m/app", "s/m/cli", "s/m/models/a", "s/m/models/b", "s/m/models/c", "top")
DUE = {"s/m/models/a": "s/m/serving/x/a"}


class TestLocate:
    """Where the owner has the files that move, and where they belong."""

    def locate(self, renamed: dict[str, str], *added: str, gone: tuple[str, ...] = ()) -> Moved:
        ours = {renamed.get(path, path): entry for path, entry in BASE.items()}
        ours = {path: entry for path, entry in ours.items() if path not in gone}
        (found,) = locate(DUE, BASE, ours | entries(*added), renamed)
        return found

    def renamed(self, old: str, new: str) -> dict[str, str]:
        return {path: path.replace(old, new) for path in BASE if path.startswith(old)}

    def test_as_rendered(self) -> None:
        found = self.locate({})
        assert (found.now, found.home, found.goes) == ("s/m/models/a", "s/m/serving/x/a", True)

    def test_with_the_package(self) -> None:
        found = self.locate(self.renamed("s/m/", "acme/"))
        assert (found.now, found.home) == ("acme/models/a", "acme/serving/x/a")

    def test_with_the_package_and_nothing_in_common(self) -> None:
        renamed = self.renamed("s/m/", "acme/")
        del renamed["s/m/models/a"]
        for guess in ({}, {"s/m/models/a": "acme/other/a"}):
            added = ("acme/models/a", *guess.values())
            found = self.locate(renamed | guess, *added, gone=("s/m/models/a",))
            assert (found.now, found.home) == ("acme/models/a", "acme/serving/x/a")

    def test_two_files_are_never_found_at_one_path(self) -> None:
        due = {"s/m/models/a": "s/m/x/a", "s/m/models/b": "s/m/x/b"}
        ours = {path: BASE[path] for path in BASE if path not in due} | entries("own")
        found = locate(due, BASE, ours, dict.fromkeys(due, "own"))
        assert [file.now for file in found] == ["own", None]

    def test_by_the_owner_to_where_the_template_has_it_with_nothing_in_common(self) -> None:
        found = self.locate({}, "s/m/serving/x/a", gone=("s/m/models/a",))
        assert (found.now, found.home, found.is_taken) == (found.new, found.new, False)

    def test_with_its_folder(self) -> None:
        found = self.locate(self.renamed("s/m/models/", "s/m/engines/"))
        assert (found.now, found.home) == ("s/m/engines/a", "s/m/serving/x/a")

    def test_by_itself(self) -> None:
        found = self.locate({"s/m/models/a": "s/m/own/a"})
        assert (found.now, found.home, found.goes) == ("s/m/own/a", "s/m/own/a", False)

    def test_by_itself_to_where_the_template_has_it(self) -> None:
        found = self.locate({"s/m/models/a": "s/m/serving/x/a"})
        assert (found.now, found.home, found.is_taken) == (found.new, found.new, False)

    def test_deleted(self) -> None:
        found = self.locate({}, gone=("s/m/models/a",))
        assert (found.now, found.home, found.goes) == (None, None, False)

    def test_its_new_path_is_taken(self) -> None:
        found = self.locate({}, "s/m/serving/x/a")
        assert (found.place, found.is_taken) == ("s/m/serving/x/a", True)
        assert (found.home, found.goes) == ("s/m/models/a", False)

    def test_what_stays_is_in_the_way_of_others(self) -> None:
        due = {"s/m/models/a": "own", "s/m/models/b": "x/b", "s/m/models/c": "s/m/models/a"}
        ours = {path: BASE[path] for path in BASE if path != "s/m/models/b"} | entries("own")
        a, b, c = locate(due, BASE, ours, {"s/m/models/b": "own"})
        assert (b.now, b.home) == ("own", "own")
        assert (a.is_taken, a.home, c.is_taken, c.home) == (True, a.old, True, c.old)

    def test_a_file_goes_where_another_one_leaves(self) -> None:
        due = {"s/m/models/a": "x/a", "s/m/models/c": "s/m/models/a"}
        a, c = locate(due, BASE, BASE, {})
        assert (a.home, c.home) == ("x/a", a.old)

    def test_two_files_that_would_meet_stay(self) -> None:
        due = {"s/m/models/a": "s/m/models/x", "s/m/cli": "s/m/x"}
        renamed = {path: f"all/{path.rpartition('/')[2]}" for path in BASE}
        ours = {place: BASE[path] for path, place in renamed.items()}
        assert locate(due, BASE, ours, renamed) == []

    @pytest.mark.parametrize("path", ["s/m/serving", "s/m/serving/x/a/b"])
    def test_a_file_where_a_folder_is_needed_is_left_to_git(self, path: str) -> None:
        assert locate(DUE, BASE, BASE | entries(path), {}) == []


REEXPORTED = [Move(V2, f"{each}.py", f"s/{each}.py") for each in ("a", "b", "test_c")]
NEW = entries("a.py", "b.py", "test_c.py", "s/a.py", "s/b.py", "s/test_c.py")


class TestReexports:
    """Which of them a project keeps or gets."""

    def kept(self, base: dict[str, str], *ours: str) -> tuple[set[str], set[str]]:
        sides = without_reexports(REEXPORTED, base, entries(*ours), NEW, {"b.py": "x/b.py"})
        base, theirs = ({path for path in side if "s/" not in path} for side in sides)
        return base, theirs

    def test_an_older_project(self) -> None:
        old = entries("a.py", "b.py", "test_c.py")
        # What moves gets its re-export; a test is imported by nobody.
        assert self.kept(old, *old) == ({*old}, {"a.py", "b.py"})

    def test_a_newer_project_has_none_and_gets_none(self) -> None:
        assert self.kept(NEW, "s/a.py", "s/b.py") == ({"b.py"}, {"b.py"})

    def test_a_project_keeps_those_that_it_has(self) -> None:
        assert self.kept(NEW, "a.py", "test_c.py") == (
            {"a.py", "b.py", "test_c.py"},
            {"a.py", "b.py"},
        )


@pytest.mark.parametrize(
    ("version", "mark"), [("0.1.0", "0f18c461750c"), ("0.2.0", "816f4cfc6b77")]
)
def test_versions_that_moved_nothing_keep_their_fingerprints(
    version: str, mark: str, tmp_path: Path
) -> None:
    folder = history.unpack(Version(version), tmp_path / "template")

    assert moves.load(folder) == []
    assert history.fingerprint(folder) == mark
