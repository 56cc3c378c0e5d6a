"""The lines of a service that have changed since a commit."""

import re
from pathlib import Path

from infer_scaffold import git

_HUNK = re.compile(r"^@@ -\S+ \+(\d+)(?:,(\d+))? @@", re.M)
_REMEDY = "give --diff a branch or a commit that is there, and fetch it first."


class Changed:
    """The lines of the files below a folder that differ from where a branch began."""

    def __init__(self, folder: Path, base: str) -> None:
        """Raises UserError without git, without a repository, or for an unknown commit."""
        git.require("--diff asks it which lines have changed.")
        # Options are no commits.
        end = ("--end-of-options", base, "--", ".")
        options = ("--merge-base", "--unified=0", "--relative", "--no-color", "--no-ext-diff")
        settings = {"core.quotePath": "false"}
        text = git.output(
            folder, "diff", *options, "--no-prefix", *end, settings=settings, remedy=_REMEDY
        )
        self._lines: dict[str, set[int]] = {}
        for part in re.split(r"^diff --git .*$", text, flags=re.M)[1:]:
            name = re.search(r"^\+\+\+ (.*?)\t?$", part, re.M)
            if name:
                lines = self._lines.setdefault(name[1], set())
                for start, count in _HUNK.findall(part):
                    lines.update(range(int(start), int(start) + int(count or 1)))
        listed = git.output(folder, "ls-files", "--others", "--exclude-standard", "-z", ".")
        self._new = set(listed.split("\0"))

    def has(self, path: Path, line: int) -> bool:
        """Return whether a line of a file has changed, or its file is new."""
        name = path.as_posix()
        return name in self._new or line in self._lines.get(name, ())
