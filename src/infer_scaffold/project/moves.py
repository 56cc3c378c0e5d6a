"""Moves by the template: an update follows them before it merges, so that edits come along.

moves.toml says which version moved what. The old rendering and the owner's files are put where the
new template has them, and git then merges each file with itself, however little is left in common.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path, PurePosixPath

from packaging.version import InvalidVersion, Version
from pathspec import GitIgnoreSpec

from infer_scaffold.errors import UserError
from infer_scaffold.project.merge import Clash, Outcome, merge, place
from infer_scaffold.project.template import MOVES
from infer_scaffold.project.trees import Entries, Store, is_taken


@dataclass(frozen=True)
class Move:
    """One row: from which path to which, since a version. A folder ends in a slash."""

    since: Version
    source: str
    target: str

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        pattern = "([^/]*)".join(re.escape(part) for part in self.source.split("*"))
        return re.compile(pattern + ("(.+)" if self.source.endswith("/") else ""))

    def place(self, path: str) -> str | None:
        """Return where a file goes, or None if the row is not about it."""
        match = self._pattern.fullmatch(path)
        if match is None:
            return None
        found = iter(match.groups())
        target = re.sub(r"\*", lambda _: next(found), self.target)
        return target + next(found, "")


def load(folder: Path) -> list[Move]:
    """Read the moves of the template in a folder, oldest first; an old template has no such file.

    Raises UserError for a row that cannot be followed.
    """
    file = folder / MOVES
    if not file.exists():
        return []
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _fault(f"it is no TOML ({error})") from error
    moves = []
    for name, table in tables.items():
        since = _version(name)
        moves += [Move(since, source, target) for source, target in _rows(name, table)]
    moves.sort(key=lambda move: move.since)
    _check_paths(moves)
    return moves


def _version(name: str) -> Version:
    try:
        version = Version(name)
    except InvalidVersion:
        raise _fault(f"{name!r} is no version") from None
    if version.is_prerelease or str(version) != name:
        raise _fault(f"{name!r} is no version of a release")
    return version


def _rows(name: str, table: object) -> Iterator[tuple[str, str]]:
    if not isinstance(table, dict):
        raise _fault(f"{name!r} is no table")
    for source, target in table.items():
        if not isinstance(target, str):
            raise _fault(f"{source!r} goes to no path")
        for path in (source, target):
            parts = path.removesuffix("/").split("/")
            if {"", ".", "..", "**"} & {*parts} or "\\" in path:
                raise _fault(f"{path!r} is no path in a project")
        if source.endswith("/") != target.endswith("/"):
            raise _fault(f"{source!r} and {target!r} are not both files or both folders")
        if source.count("*") != target.count("*"):
            raise _fault(f"{source!r} and {target!r} have not as many *")
        yield source, target


def _check_paths(moves: list[Move]) -> None:
    """Refuse rows that meet at one path, and paths that are used again after a file has left."""
    left: set[str] = set()
    for since, rows in _versions(moves):
        targets = [move.target for move in rows]
        left |= {move.source for move in rows}
        for target in targets:
            if targets.count(target) > 1:
                raise _fault(f"{target!r} is the new path of two in {since}")
            if target in left:
                raise _fault(f"{target!r} was left, and cannot be used again in {since}")


def _fault(problem: str) -> UserError:
    return UserError(f"{MOVES}: {problem}; put that right.")


def _versions(moves: Sequence[Move]) -> list[tuple[Version, list[Move]]]:
    return [(since, list(rows)) for since, rows in groupby(moves, key=lambda move: move.since)]


def steps(moves: Sequence[Move], path: str) -> Iterator[str]:
    """Yield the paths that a file gets, one for each version that moves it."""
    for _, rows in _versions(moves):
        # A row for a file comes before one for the folder that it is in.
        for move in sorted(rows, key=lambda move: -len(move.source)):
            following = move.place(path)
            if following is not None:
                path = following
                yield path
                break


def due(
    moves: list[Move], old: Version, new: Version, base: Entries, theirs: Entries
) -> dict[str, str]:
    """Return the files of `base` that an update moves, and where `theirs` has them."""
    moves = [move for move in moves if old < move.since <= new]
    found: dict[str, str] = {}
    for path in base:
        places = list(steps(moves, path))
        # A development version may have moved it: what is at the old path is a re-export then.
        if places and places[-1] in theirs and not base.keys() & {*places}:
            found[path] = places[-1]
    return found


@dataclass(frozen=True)
class Moved:
    """A file that the template moves from `old` to `new`.

    The owner has it at `now`, or has deleted it. It belongs at `place`, where something else of
    the owner's may stand.
    """

    old: str
    new: str
    now: str | None
    place: str
    is_taken: bool

    @property
    def goes(self) -> bool:
        """Say whether the owner's file gets another path."""
        return self.now not in (None, self.place) and not self.is_taken

    @property
    def home(self) -> str | None:
        """The owner's path of the file after the update."""
        return self.place if self.goes else self.now


def locate(
    due: Mapping[str, str], base: Entries, ours: Entries, renamed: Mapping[str, str]
) -> list[Moved]:
    """Find the files that are due in the owner's project, and where they belong there.

    `renamed` tells where the owner has moved files of `base`. A file that went with its folder
    goes to the new path below that folder; one that the owner moved by itself stays.
    """
    files: list[Moved] = []
    for old, new in due.items():
        now = _find(old, base, ours, renamed)
        if now in {file.now for file in files}:
            now = None
        goal = now or new
        if now in (old, _beside(old, base, ours, renamed)):
            goal = place(new, base, ours, renamed) or new
        if now is None and goal in ours:
            now = goal  # moved there by the owner, and hardly to be recognised
        files.append(Moved(old, new, now, goal, is_taken=False))
    while blocked := _blocked(files, ours):
        files = [replace(file, is_taken=file.is_taken or file in blocked) for file in files]
    # A file where a folder is needed, or the reverse, is for git to tell of.
    return [file for file in files if not file.is_taken or file.place in ours]


def _blocked(files: list[Moved], ours: Entries) -> list[Moved]:
    """Return the files that cannot go where they belong, as another one stays there."""
    leaving = {file.now for file in files if file.goes}
    staying = {path: entry for path, entry in ours.items() if path not in leaving}
    goals = Counter(file.place for file in files if file.goes)
    return [
        file
        for file in files
        if file.goes and (goals[file.place] > 1 or is_taken(file.place, staying))
    ]


def _find(old: str, base: Entries, ours: Entries, renamed: Mapping[str, str]) -> str | None:
    """Return where the owner has a file of `base`: there, with its folder, or moved by itself."""
    if old in ours:
        return old
    beside = _beside(old, base, ours, renamed)
    if beside in ours and beside not in base:
        return beside  # whatever git takes for it: small files are easily confused
    return renamed.get(old)


def with_folders(base: Entries, ours: Entries, renamed: Mapping[str, str]) -> dict[str, str]:
    """Return the files that went with their folders, and have little in common with `base`."""
    gone = base.keys() - ours.keys() - renamed.keys()
    new = ours.keys() - base.keys() - set(renamed.values())
    homes = {path: _beside(path, base, ours, renamed) for path in gone}
    return {path: home for path, home in homes.items() if home in new}


def _beside(old: str, base: Entries, ours: Entries, renamed: Mapping[str, str]) -> str | None:
    """Return where a file would be if it had gone with the files beside it."""
    others = {path: entry for path, entry in base.items() if path != old}
    return place(old, others, ours, renamed)


def without_reexports(
    moves: list[Move],
    base: Entries,
    ours: Entries,
    theirs: Entries,
    renamed: Mapping[str, str],
) -> tuple[Entries, Entries]:
    """Take out of the template's sides the re-exports that the owner's project has no use for.

    It keeps those that it has, and gets new ones only for what moves. Where nothing can be
    imported they are for plain copier; what that has left is deleted again.
    """
    gone = {path for path in _reexports(moves, base) if path not in ours.keys() | renamed.keys()}
    base = {path: entry for path, entry in base.items() if path not in gone}
    gone = {path for path in _reexports(moves, theirs) if path not in base or not is_imported(path)}
    return base, {path: entry for path, entry in theirs.items() if path not in gone}


def _reexports(moves: list[Move], entries: Entries) -> set[str]:
    """Return the files that stand where the template had another one, which it has moved."""
    return {path for path in entries if any(step in entries for step in steps(moves, path))}


def is_imported(path: str) -> bool:
    """Say whether somebody's code may import a file."""
    return path.endswith(".py") and not PurePosixPath(path).name.startswith("test_")


def merge_moved(
    store: Store,
    base: Entries,
    ours: Entries,
    theirs: Entries,
    owned: GitIgnoreSpec,
    moves: list[Move],
    due: Mapping[str, str],
) -> Outcome:
    """Merge as `merge` does, with the files that are due where the template has them now."""
    renamed = store.renamed(base, ours)
    along = with_folders(base, ours, renamed)
    renamed |= along
    files = locate(due, base, ours, renamed)
    moved = {file.old: file.new for file in files}
    going = {file.now: file.place for file in files if file.goes}
    taken = {file.place: file.new for file in files if file.is_taken}
    gone = {file.old: base[file.old] for file in files if file.now is None}
    base, kept = without_reexports(moves, base, ours, theirs, renamed)
    known = {path: home for path, home in along.items() if path not in moved}
    known |= {file.new: file.home for file in files if file.home is not None}
    outcome = merge(
        store,
        {moved.get(path, path): entry for path, entry in base.items()},
        {going.get(path, path): ours[path] for path in ours.keys() - taken.keys()},
        {path: entry for path, entry in kept.items() if path not in moved},
        owned,
        known=known,
        apart={file.new for file in files if not file.goes},
        gone=gone,
        stood={file.old: file.now for file in files if file.now is not None},
    )
    for file in files:
        if file.now is None:
            outcome.skipped.add(file.new)
        elif file.goes and file.old in theirs and is_imported(file.old):
            outcome.files[file.now] = theirs[file.old]
        if file.now != file.place:
            outcome.sources[file.place] = file.now or file.old
    for path, new in taken.items():
        outcome.files[path], outcome.clashes[path] = ours[path], Clash.PLACE
        outcome.stages[path] = {2: ours[path], 3: theirs[new]}
    return outcome
