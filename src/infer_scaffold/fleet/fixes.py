"""The fixes of each release in generated services, by pattern: fixes.toml as data."""

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from packaging.version import Version

from infer_scaffold.checklist import BY_CODE, Pattern, Severity

FILE = Path(__file__).with_name("fixes.toml")
UNRELEASED = "unreleased"


@dataclass(frozen=True)
class Fix:
    """A change of generated code that owners want to have; `version` is None before its release."""

    version: Version | None
    pattern: Pattern
    title: str
    action: str

    @property
    def severity(self) -> Severity:
        """Return the severity of the pattern that the fix belongs to."""
        return self.pattern.severity


def load(file: Path = FILE) -> list[Fix]:
    """Read the fixes of all releases. Raises KeyError for a pattern that does not exist."""
    return list(_parsed(file.read_text(encoding="utf-8")))


@lru_cache(maxsize=1)  # asked for each service of a fleet
def _parsed(text: str) -> tuple[Fix, ...]:
    return tuple(
        Fix(
            version=None if each["version"] == UNRELEASED else Version(each["version"]),
            pattern=BY_CODE[each["pattern"]],
            title=each["title"],
            action=each["action"],
        )
        for each in tomllib.loads(text)["fix"]
    )


def missing(version: Version, newest: Version) -> list[Fix]:
    """Return the fixes that an update from `version` to `newest` brings."""
    return [fix for fix in load() if fix.version is not None and version < fix.version <= newest]
