"""What a generated project remembers of its making: its answers file."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from packaging.version import InvalidVersion, Version

from infer_scaffold.errors import UserError
from infer_scaffold.questions import Answers

ANSWERS_FILE = ".copier-answers.yml"


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
    file = path / ANSWERS_FILE
    try:
        recorded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} has no {ANSWERS_FILE}; give the folder of a project that infer-scaffold made."
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(_broken(file, _first_line(error))) from error
    if not isinstance(recorded, dict):
        raise UserError(_broken(file, "it holds no answers"))
    for key in ("_src_path", "_commit"):
        if not isinstance(recorded.get(key), str):
            raise UserError(_broken(file, f"{key} is missing"))
    try:
        version = Version(recorded["_commit"])
    except InvalidVersion:
        raise UserError(
            f"{file} names {recorded['_commit']!r}, which is no released version; "
            "only projects of a released version can be updated."
        ) from None
    answers = {key: value for key, value in recorded.items() if not key.startswith("_")}
    return Project(path, recorded["_src_path"], version, answers)


def _broken(file: Path, reason: str) -> str:
    return f"{file} cannot be used ({reason}); take it back from git."


def _first_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:120] or type(error).__name__
