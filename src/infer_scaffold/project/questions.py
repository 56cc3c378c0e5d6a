"""The questions of copier.yml as data.

copier.yml is the only place where a question is written. This module must not import copier:
`--help` needs the questions and should not wait for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infer_scaffold.errors import UserError

Answers = dict[str, Any]

PRESETS: dict[str, Answers] = {
    "full": {"endpoints": ["chat", "embeddings", "files", "health"]},
    "chat": {"endpoints": ["chat", "health"]},
    "embeddings": {"endpoints": ["embeddings", "health"]},
    "files": {"endpoints": ["files", "health"]},
    "minimal": {"endpoints": ["health"]},
}
DEFAULT_PRESET = "full"


@dataclass(frozen=True)
class Question:
    """One question that a person can be asked."""

    name: str
    type: type[str] | type[int]
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    multiselect: bool = False
    when: str = ""

    @property
    def flag(self) -> str:
        """The question's option on the command line."""
        return "--" + self.name.replace("_", "-")


def load(template: Path) -> list[Question]:
    """Read the questions of a template, without the computed ones, which are not asked."""
    config = yaml.safe_load((template / "copier.yml").read_text(encoding="utf-8"))
    return [
        Question(
            name=name,
            type=int if details["type"] == "int" else str,
            help=details["help"],
            default=details.get("default"),
            choices=tuple(details.get("choices", {}).values()),
            multiselect=details.get("multiselect", False),
            when=str(details.get("when", "")).strip("{} "),
        )
        for name, details in config.items()
        if not name.startswith("_") and details.get("when") is not False
    ]


def answers_from_flags(questions: list[Question], flags: Mapping[str, Any]) -> Answers:
    """Turn the given flags into answers; a flag that was not given answers nothing."""
    return {
        question.name: _parse(question, flags[question.name])
        for question in questions
        if flags.get(question.name) is not None
    }


def preset_answers(name: str) -> Answers:
    """Return the answers that a preset gives."""
    if name not in PRESETS:
        raise UserError(f"--preset: there is no {name!r}; choose one of {', '.join(PRESETS)}.")
    return dict(PRESETS[name])


def _parse(question: Question, value: Any) -> Any:
    if question.multiselect:
        given = [part.strip() for part in value.split(",") if part.strip()]
        for part in given:
            _check_choice(question, part)
        # The order of copier.yml, so that the order of the flag makes no other project.
        return [choice for choice in question.choices if choice in given]
    if question.choices:
        _check_choice(question, value)
    return value


def _check_choice(question: Question, value: str) -> None:
    if value not in question.choices:
        choices = ", ".join(question.choices)
        raise UserError(f"{question.flag}: there is no {value!r}; choose from {choices}.")
