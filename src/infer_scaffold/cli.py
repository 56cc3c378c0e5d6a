"""The command line: options in, lines out. What the commands do is in the other modules."""

import inspect
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from infer_scaffold import __version__, history, questions, template
from infer_scaffold.errors import UserError

if TYPE_CHECKING:
    from infer_scaffold.generate import Project

QUESTIONS = questions.load(template.root())

app = typer.Typer(
    # Plain text: Rich takes "[default: ...]" in a help text for markup and drops it.
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _with_question_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the command's `**flags` by one option per question."""
    signature = inspect.signature(command)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters = [*own, *questions.options(QUESTIONS)]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"infer-scaffold {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Generate FastAPI + torch inference services that stay up to date."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
@_with_question_options
def new(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of the new project.")],
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
    from infer_scaffold import generate

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
    for line in _report(project, repository=not no_git):
        typer.echo(line)
    if not history.holds(__version__):
        typer.echo(
            f"Note: this project cannot be updated later: {__version__} is not a released version.",
            err=True,
        )


def _report(project: "Project", *, repository: bool) -> list[str]:
    """Say what was made, and what to type next."""
    if project.committed:
        history = ", first commit on main"
    elif repository:
        history = (
            f"; no repository of its own, as it is inside {project.work_tree}: commit it there"
        )
    else:
        history = "; no git repository, which `copier update` will need"
    here = Path.cwd()
    path = project.path.relative_to(here) if here in project.path.parents else project.path
    return [
        f"Created {path} ({len(project.files)} files{history}).",
        "",
        "Next:",
        *([] if path == here else [f"  cd {shlex.quote(str(path))}"]),
        # --upgrade-deps: the pip that comes with Python 3.11 does not know --group.
        "  python3 -m venv --upgrade-deps .venv && . .venv/bin/activate",
        "  pip install -e . --group dev",
        "  pytest",
        f"  python -m {project.package}",
    ]


def main() -> NoReturn:
    """Run the command line. The only place where an error becomes a message and an exit code."""
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    for stream in (sys.stdout, sys.stderr):
        # A path may hold bytes that are no text, and a terminal may know ASCII only.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = app(standalone_mode=False, prog_name="infer-scaffold")
    except (UserError, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        typer.echo(f"error: {' '.join(message.split())}", err=True)
        code = 2
    if code == 130:
        typer.echo("Cancelled: nothing was written.", err=True)
    sys.exit(code)


def _exit_on_sigterm(*_: object) -> NoReturn:
    # An exception, so that what is half-written is removed on the way out.
    sys.exit(128 + signal.SIGTERM)
