"""Common parts of the commands: the questions of the template as options, and printing."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from infer_scaffold.errors import UserError
from infer_scaffold.project import questions, template
from infer_scaffold.project.questions import Question

QUESTIONS = questions.load(template.root())

Command = Callable[..., None]


def with_question_options(asked: list[Question], *, defaults: bool) -> Callable[[Command], Command]:
    """Replace a command's `**flags` by one option per question."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters = [*own, *_options(asked, defaults=defaults)]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _options(asked: list[Question], *, defaults: bool) -> list[inspect.Parameter]:
    """Return one Typer option per question, as parameters of a command's signature.

    With `defaults` their help names the default.
    """
    return [
        inspect.Parameter(
            question.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                question.type | None,
                typer.Option(
                    question.flag,
                    help=_help(question) if defaults else question.help,
                    metavar=_metavar(question),
                ),
            ],
        )
        for question in asked
    ]


def _help(question: Question) -> str:
    default = question.default
    if default is None:
        return question.help
    text = ",".join(default) if isinstance(default, list) else default
    return f"{question.help} [default: {text}]"


def _metavar(question: Question) -> str:
    if question.multiselect:
        return ",".join(question.choices)
    return "|".join(question.choices) or {str: "TEXT", int: "N"}[question.type]


@contextmanager
def reporting(done: str) -> Iterator[None]:
    """Raise a UserError that says what is done when printing about it fails."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"{done}, but the rest cannot be printed: {error.strerror or error}."
        ) from error
