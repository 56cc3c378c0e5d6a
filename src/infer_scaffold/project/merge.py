"""The three-way merge of an update: the old rendering, the owner's files and the new rendering.

git merges; this module applies the rules of an update. Files that the owner has deleted
stay deleted, new files go to where the owner has moved their neighbours, and the owner's own files
are left alone.
"""

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath

from pathspec import GitIgnoreSpec

from infer_scaffold.project.trees import OURS, Entries, Merged, Store, is_taken


class Clash(StrEnum):
    """The kind of a conflict that the owner has to resolve."""

    LINES = (
        "Both you and the template changed the same lines of {files}; "
        "settle what is marked there, then commit."
    )
    BYTES = (
        "Both you and the template changed {files}, which cannot be merged by lines; "
        "yours stays, and `git show :3:PATH` shows the template's. `git add` what is right."
    )
    DELETED = "The template deletes {files}, which you have changed; `git add` or `git rm` it."
    PLACE = (
        "The template has a file where you have something else: {files}; "
        "move one of them, then `git add` both."
    )


@dataclass(frozen=True)
class Outcome:
    """The files after an update, and what there is to tell about it.

    `stages` has the sides of each conflict, by path and stage of git's index. The changes of
    `skipped` files are left out. `sources` tells from where the template has moved files.
    """

    files: Entries
    clashes: dict[str, Clash]
    stages: dict[str, dict[int, str]]
    skipped: set[str]
    sources: dict[str, str] = field(default_factory=dict)


def merge(
    store: Store,
    base: Entries,
    ours: Entries,
    theirs: Entries,
    owned: GitIgnoreSpec,
    *,
    known: Mapping[str, str] | None = None,
    apart: Set[str] = frozenset(),
    gone: Entries | None = None,
    stood: Mapping[str, str] | None = None,
) -> Outcome:
    """Merge what the owner and the template have made of `base`.

    `owned` matches the files that are the owner's from the first day on. `known` tells where the
    owner has files of `base`, however little they have in common; git finds out about the others.
    Those that are `apart` say nothing about where the files beside them belong. `gone` are those
    that the owner has deleted where the template had them: nothing new comes beside them alone.
    `stood` tells where the owner had files before the template moved them out of their folders.
    """
    windows = store.with_crlf(ours)
    compared = ours | _with_line_ends(store, ours, windows, (b"\r\n", b"\n"))
    base, theirs = _without_owned(base, compared, theirs, owned)
    merged = store.merge(base, compared, theirs, known or {})
    outcome = Outcome(dict(merged.entries), {}, {}, set())
    _settle(outcome, merged, base, ours)
    beside = {path: entry for path, entry in base.items() if path not in apart} | (gone or {})
    _place_new(outcome, merged, beside, ours, owned, stood or {})
    _restore_names(outcome)
    _restore_line_ends(outcome, merged, store, ours, compared, windows)
    return outcome


def _settle(outcome: Outcome, merged: Merged, base: Entries, ours: Entries) -> None:
    """Decide the conflicts in which the owner or the template has deleted a file."""
    deleted = {base[path] for path in base.keys() - ours.keys() - merged.moved.keys()}
    for path, sides in merged.stages.items():
        if sides.keys() == {1, 3} and sides[1] in deleted:
            outcome.skipped.add(path)  # the owner has deleted it, the template changes it
        elif 3 in sides or sides.get(1) != sides.get(2) is not None:
            outcome.stages[path] = sides
            outcome.clashes[path] = _clash(sides, marked=path in merged.marked)
            continue
        # Without a third side: the template deletes what the owner has at most moved.
        outcome.files.pop(path, None)


def _clash(sides: Mapping[int, str], *, marked: bool) -> Clash:
    if marked:
        return Clash.LINES
    if 2 in sides and 3 in sides:
        return Clash.BYTES
    return Clash.DELETED if sides.keys() == {1, 2} else Clash.PLACE


def _place_new(
    outcome: Outcome,
    merged: Merged,
    base: Entries,
    ours: Entries,
    owned: GitIgnoreSpec,
    stood: Mapping[str, str],
) -> None:
    """Put the files that are new in the template where they belong in the owner's layout."""
    files = outcome.files
    for path in files.keys() - ours.keys() - base.keys() - merged.stages.keys():
        home, entry = place(path, base, ours, merged.moved, stood), files.pop(path)
        if home is None:
            outcome.skipped.add(path)
        elif home == path or not is_taken(home, files):
            files[home] = entry
        elif files.get(home) != entry and not owned.match_file(path):
            files[path] = entry  # beside a file of the owner's that has its place
            outcome.stages[path], outcome.clashes[path] = {3: entry}, Clash.PLACE


def _restore_names(outcome: Outcome) -> None:
    """Give a file of the owner's its name again if nothing has taken its place after all.

    git renames a file or link that stands where the other side has a folder.
    """
    suffix = f"~{OURS}"
    for path in [path for path in outcome.stages if path.endswith(suffix)]:
        name = path.removesuffix(suffix)
        if outcome.stages[path].keys() == {2} and not is_taken(name, outcome.files):
            outcome.files[name] = outcome.files.pop(path)
            del outcome.stages[path], outcome.clashes[path]


def place(
    path: str,
    base: Entries,
    ours: Entries,
    moved: Mapping[str, str],
    stood: Mapping[str, str] | None = None,
) -> str | None:
    """Return where a file that is new in the template belongs in the owner's layout.

    It goes with the files beside it; None if the owner has deleted all of them. Where there are
    none, it goes where those that stood there have been.
    """
    for folder in PurePosixPath(path).parents[:-1]:
        beside = [name for name in base if _folder_of(name) == str(folder)]
        now = [moved.get(name, name) for name in beside]
        homes = Counter(str(PurePosixPath(name).parent) for name in now if name in ours)
        if not beside:
            left = [now for old, now in (stood or {}).items() if _folder_of(old) == str(folder)]
            if not left:
                continue
            homes = Counter(str(PurePosixPath(name).parent) for name in left)
        if homes:
            ((home, _),) = homes.most_common(1)
            return str(PurePosixPath(home) / PurePosixPath(path).relative_to(folder))
        return path if any(name.startswith(f"{folder}/") for name in ours) else None
    return path


def _folder_of(path: str) -> str:
    """Return the folder of a path: by the text, as an update asks for it 40,000 times."""
    return path.rpartition("/")[0]


def _with_line_ends(
    store: Store, entries: Entries, paths: list[str], change: tuple[bytes, bytes]
) -> Entries:
    contents = store.read(entries[path] for path in paths)
    names = store.write(content.replace(*change) for content in contents)
    pairs = zip(paths, names, strict=True)
    return {path: f"{entries[path].split()[0]} {name}" for path, name in pairs}


def _restore_line_ends(
    outcome: Outcome,
    merged: Merged,
    store: Store,
    ours: Entries,
    compared: Entries,
    windows: list[str],
) -> None:
    """Give files that had the line ends of Windows these again, wherever they are now."""
    files, back = outcome.files, {new: old for old, new in merged.moved.items()}
    homes = {path: merged.theirs_moved.get(back.get(path, path), path) for path in windows}
    present = {path: home for path, home in homes.items() if home in files}
    files |= {home: ours[path] for path, home in present.items() if files[home] == compared[path]}
    changed = [home for path, home in present.items() if files[home] != ours[path]]
    to_windows = (b"\n", b"\r\n")
    files |= _with_line_ends(store, files, changed, to_windows)
    for path in outcome.stages.keys() & set(windows):
        sides = {str(stage): entry for stage, entry in outcome.stages[path].items()}
        sides = _with_line_ends(store, sides, list(sides), to_windows)
        outcome.stages[path] = {int(stage): entry for stage, entry in sides.items()} | (
            {2: ours[path]} if "2" in sides else {}
        )


def _without_owned(
    base: Entries, ours: Entries, theirs: Entries, owned: GitIgnoreSpec
) -> tuple[Entries, Entries]:
    """Take out of the template's sides what is the owner's, wherever the owner has put it."""
    base, theirs = dict(base), dict(theirs)
    for path in owned.match_files(base.keys() | theirs.keys()):
        if path not in theirs and ours.get(path) == base[path]:
            continue  # unchanged, and of no use with the new answers
        if path in base or path in ours:
            base.pop(path, None)
            theirs.pop(path, None)
    return base, theirs
