"""The configuration of `check`: `[tool.infer-scaffold]` in the pyproject.toml of a project."""

import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from infer_scaffold.check.judgement import Profile
from infer_scaffold.checklist import BY_CODE, Severity, matching
from infer_scaffold.errors import UserError
from infer_scaffold.reading import Unreadable, content, reason

SETTINGS = ("profile", "select", "ignore", "exclude", "fail-on")


class FailOn(StrEnum):
    """The least severity of an unmet pattern that makes a check fail."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"

    def concerns(self, severity: Severity) -> bool:
        """Return whether a pattern of a severity makes a check fail."""
        order = list(FailOn)
        return order.index(FailOn(severity.lower())) <= order.index(self)


@dataclass(frozen=True)
class Config:
    """The configuration: `codes` of patterns to check, `exclude` patterns as in a .gitignore."""

    profile: Profile = Profile.DEFAULT
    codes: frozenset[str] = frozenset(BY_CODE)
    exclude: tuple[str, ...] = ()
    fail_on: FailOn = FailOn.LOW


def load(
    path: Path,
    *,
    profile: Profile | None = None,
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    fail_on: FailOn | None = None,
) -> Config:
    """Read the configuration for a folder; arguments override the file.

    The nearest pyproject.toml counts, in the folder or above it. Raises UserError if its table
    cannot be used, or for a code that is no beginning of a pattern's.
    """
    file = _nearest(path)
    table = _table(file) if file else {}
    where = f"{file} [tool.infer-scaffold]"
    unknown = table.keys() - SETTINGS
    if unknown:
        raise UserError(
            f"{where}: there is no setting {min(unknown)!r}; choose from {', '.join(SETTINGS)}."
        )
    if profile is None:
        profile = Profile(_choice(table, "profile", Profile.DEFAULT, where))
    if fail_on is None:
        fail_on = FailOn(_choice(table, "fail-on", FailOn.LOW, where))
    codes = matching(
        _texts(table, "select", where) if select is None else select,
        _texts(table, "ignore", where) if ignore is None else ignore,
        names=(
            f"{where} select" if select is None else "--select",
            f"{where} ignore" if ignore is None else "--ignore",
        ),
    )
    return Config(profile, codes, tuple(_texts(table, "exclude", where)), fail_on)


def _choice(table: dict[str, object], setting: str, default: StrEnum, where: str) -> str:
    named = table.get(setting, default)
    if not isinstance(named, str) or named not in list(type(default)):
        raise UserError(f"{where} {setting}: choose from {', '.join(type(default))}.")
    return named


def _nearest(path: Path) -> Path | None:
    try:
        folder = Path(os.path.realpath(path))
    except OSError as error:
        raise UserError(f"{path} cannot be found ({reason(error)}); give a folder.") from None
    found = (each / "pyproject.toml" for each in (folder, *folder.parents))
    return next((file for file in found if os.path.lexists(file)), None)


def _table(file: Path) -> dict[str, object]:
    try:
        document = tomllib.loads(content(file).decode())
    except (Unreadable, ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{file} cannot be read ({problem}); correct it.") from error
    tool = document.get("tool")
    table = tool.get("infer-scaffold", {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        raise UserError(f"{file}: tool.infer-scaffold is no table; write [tool.infer-scaffold].")
    return table


def _texts(table: dict[str, object], setting: str, where: str) -> list[str]:
    value = table.get(setting, [])
    if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise UserError(f'{where} {setting}: write a list of texts, such as ["IS402"].')
    return value
