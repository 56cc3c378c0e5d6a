"""Files excluded from a check, by patterns as in a .gitignore.

https://git-scm.com/docs/gitignore. A pattern comes from the project that is judged, so that none
may take long: each part of a path is matched without backtracking, and `**` costs one step a part.
"""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath

from infer_scaffold.errors import UserError

_MOST = 1000  # patterns, and characters of one
_ANY_DEPTH = "**"


@dataclass(frozen=True)
class _Pattern:
    """One line: `parts` match those of a whole path, `**` any number of them."""

    parts: tuple[str, ...]
    excludes: bool
    folders_only: bool


class Excluded:
    """The paths that some patterns exclude."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        """Raises UserError for patterns that are too many or too long."""
        lines = list(lines)
        if len(lines) > _MOST or any(len(line) > _MOST for line in lines):
            raise UserError(
                f"exclude has more than {_MOST} patterns, or one of more than {_MOST} "
                "characters; name folders instead of files."
            )
        patterns = [_parse(line) for line in lines if line.strip() and not line.startswith("#")]
        # The last one that matches counts.
        self._patterns = [pattern for pattern in reversed(patterns) if pattern.parts]

    def __contains__(self, path: PurePath) -> bool:
        """Say whether a file, or a folder that it is in, is excluded."""
        parts = path.parts
        return any(
            self._excludes(parts[:end], folder=end < len(parts))
            for end in range(1, len(parts) + 1)
            if self._patterns
        )

    def _excludes(self, parts: tuple[str, ...], *, folder: bool) -> bool:
        for pattern in self._patterns:
            if (folder or not pattern.folders_only) and _matches(pattern.parts, parts):
                return pattern.excludes
        return False


def _parse(line: str) -> _Pattern:
    negated = line.startswith("!")
    text = line.removeprefix("!").rstrip(" ")
    folders_only = text.endswith("/")
    text = text.rstrip("/")
    parts = [part for part in text.split("/") if part]
    if parts and "/" not in text:
        parts = [_ANY_DEPTH, *parts]
    if parts and parts[-1] == _ANY_DEPTH:
        parts.append("*")  # what is inside, and not the folder itself
    return _Pattern(tuple(parts), not negated, folders_only)


def _matches(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Return the positions in the pattern that the path so far may have reached."""
    places = _with_skips(pattern, {0})
    for part in parts:
        reached = set()
        for place in places:
            if place == len(pattern):
                continue
            if pattern[place] == _ANY_DEPTH:
                reached.add(place)
            elif _part(pattern[place]).match(part):
                reached.add(place + 1)
        places = _with_skips(pattern, reached)
    return len(pattern) in places


def _with_skips(pattern: tuple[str, ...], places: set[int]) -> set[int]:
    """Add the positions after each `**`, which may match no part at all."""
    found = set()
    for place in places:
        found.add(place)
        while place < len(pattern) and pattern[place] == _ANY_DEPTH:
            place += 1
            found.add(place)
    return found


@lru_cache(maxsize=_MOST)
def _part(glob: str) -> re.Pattern[str]:
    """The expression for one part. Python's own translation of globs does not backtrack."""
    glob = glob.replace("[^", "[!")
    glob = re.sub(r"\\(.)", lambda found: f"[{found[1]}]" if found[1] in "*?[" else found[1], glob)
    return re.compile(fnmatch.translate(glob))
