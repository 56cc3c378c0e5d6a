"""`infer-scaffold new`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer_scaffold.cli.shared import QUESTIONS, reporting, with_question_options
from infer_scaffold.project import history, questions

if TYPE_CHECKING:
    from infer_scaffold.project.generate import Project


@with_question_options(QUESTIONS, defaults=True)
def new(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="Folder of the new project: new, empty, or a fresh clone."
        ),
    ],
    *,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: use the defaults.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(questions.PRESETS),
            help="Choose the endpoints; other flags refine it. "
            f"[default: {questions.DEFAULT_PRESET}]",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and write nothing.")
    ] = False,
    no_git: Annotated[
        bool, typer.Option("--no-git", help="Make no git repository with a first commit.")
    ] = False,
    **flags: Any,
) -> None:
    """Make a new project.

    Every question is a flag. The questions without one are asked on a terminal; elsewhere, or
    with --yes, they get their defaults.
    """
    from infer_scaffold.project import generate

    chosen = questions.preset_answers(preset) if preset is not None else {}
    answers = chosen | questions.answers_from_flags(QUESTIONS, flags)
    if dry_run:
        for file in generate.preview(path, QUESTIONS, answers):
            typer.echo(file)
        return
    ask = not yes and sys.stdin.isatty() and sys.stdout.isatty()
    if not (ask or yes):
        typer.echo("Not a terminal: the defaults answer what no flag does.", err=True)
    project = generate.new(path, QUESTIONS, answers, ask=ask, repository=not no_git)
    with reporting(f"created {project.path}"):
        for line in _report(project, repository=not no_git):
            typer.echo(line)
    if not history.keeps_current():
        typer.echo(
            "Note: this checkout's template has changes that are not committed; "
            "unless they are, this project cannot be updated later.",
            err=True,
        )


def _report(project: "Project", *, repository: bool) -> list[str]:
    """Say what was made, and what to type next."""
    if project.committed:
        history = f", {'committed' if project.work_tree else 'first commit'} on {project.branch}"
    elif repository:
        history = (
            f"; no repository of its own, as it is inside {project.work_tree}: commit it there"
        )
    elif (project.path / ".git").exists():
        history = "; nothing was committed"
    else:
        history = "; no git repository, which `copier update` will need"
    here = Path.cwd()
    path = project.path.relative_to(here) if here in project.path.parents else project.path
    return [
        f"Created {path} ({len(project.files)} files{history}).",
        *([f"Kept: {project.kept}."] if project.kept else []),
        "",
        "Next:",
        *([] if path == here else [f"  cd {shlex.quote(str(path))}"]),
        # --upgrade-deps: the pip that comes with Python 3.11 does not know --group.
        "  python3 -m venv --upgrade-deps .venv && . .venv/bin/activate",
        "  pip install -e . --group dev",
        "  pytest",
        f"  python -m {project.package}",
    ]
