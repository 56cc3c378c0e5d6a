"""The answers file of a generated project: template, version and answers."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

from infer_scaffold.errors import UserError
from infer_scaffold.project.questions import Answers
from infer_scaffold.reading import content, reason

ANSWERS_FILE = ".copier-answers.yml"
_LIMIT = 100_000  # bytes
_DEEPEST = 10
_NO_VALUES = (dict, list, tuple, set, bytes)


@dataclass(frozen=True)
class Project:
    """A generated project: the address of its template, the version, and the answers."""

    path: Path
    address: str
    version: Version
    answers: Answers


def read(path: Path) -> Project:
    """Read the project in a folder.

    Raises UserError if there is none, or if its answers file cannot be read or updated from.
    """
    return project(path, recorded(path))


def project(path: Path, record: dict[str, Any]) -> Project:
    """Return the project whose answers file holds a record. Raises UserError as `read` does."""
    file = path / ANSWERS_FILE
    if not isinstance(record.get("_commit"), str):
        raise UserError(_broken(file, "_commit is missing"))
    try:
        version = Version(record["_commit"])
    except ValueError:  # InvalidVersion, or a number that is too long
        raise UserError(
            f"{file} names {record['_commit'][:40]!r}, which is no released version; "
            "only projects of a released version can be updated."
        ) from None
    answers = {key: value for key, value in record.items() if not key.startswith("_")}
    return Project(path, record["_src_path"], version, answers)


def recorded(path: Path) -> dict[str, Any]:
    """Return what an answers file holds: values and lists of values, an address among them.

    Raises UserError if there is none, or it holds anything else.
    """
    file = path / ANSWERS_FILE
    try:
        file.lstat()
        record = yaml.load(content(file, _LIMIT).decode(), _Loader)  # noqa: S506
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} has no {ANSWERS_FILE}; give the folder of a project that infer-scaffold made."
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}).") from error
    except Exception as error:
        # Explicit tags let yaml raise anything, such as IndexError for an empty number.
        raise UserError(_broken(file, _first_line(error))) from error
    if not isinstance(record, dict):
        raise UserError(_broken(file, "it holds no answers"))
    for key, value in record.items():
        values = value if isinstance(value, list) else [value]
        if not isinstance(key, str) or any(isinstance(each, _NO_VALUES) for each in values):
            raise UserError(_broken(file, f"{str(key)[:40]!r} is no question with an answer"))
    if not isinstance(record.get("_src_path"), str):
        raise UserError(_broken(file, "_src_path is missing"))
    return record


class _Loader(yaml.SafeLoader):
    """YAML without what grows beyond its file: no aliases, and little nesting."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse an alias, which may stand for billions of values, and a node that is too deep."""
        if self.check_event(yaml.AliasEvent) or self._depth > _DEEPEST:
            raise yaml.YAMLError("it is nested or refers to itself")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _broken(file: Path, reason: str) -> str:
    return f"{file} cannot be used ({reason}); take it back from git."


def _first_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:120] or type(error).__name__
