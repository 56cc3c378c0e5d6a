"""The command line: options in, lines out. The other modules implement the commands."""

import datetime
import inspect
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from infer_scaffold import __version__, checklist, history, questions, template
from infer_scaffold.check.model import Profile
from infer_scaffold.errors import UserError
from infer_scaffold.visible import visible

if TYPE_CHECKING:
    from infer_scaffold.generate import Project
    from infer_scaffold.update import Change

QUESTIONS = questions.load(template.root())
# Another name would move every file, and an update loses edits in files that move.
CHANGEABLE = [question for question in QUESTIONS if question.name != "project_name"]

app = typer.Typer(
    # Plain text: Rich takes "[default: ...]" in a help text for markup and drops it.
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


Command = Callable[..., None]


def _with_question_options(
    asked: list[questions.Question], *, defaults: bool
) -> Callable[[Command], Command]:
    """Replace a command's `**flags` by one option per question."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters = [*own, *questions.options(asked, defaults=defaults)]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


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
@_with_question_options(QUESTIONS, defaults=True)
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
    with _reporting(f"created {project.path}"):
        for line in _report(project, repository=not no_git):
            typer.echo(line)
    if not history.keeps_current():
        typer.echo(
            "Note: this checkout's template has changes that are not committed; "
            "unless they are, this project cannot be updated later.",
            err=True,
        )


@app.command()
@_with_question_options(CHANGEABLE, defaults=False)
def update(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of the project.", show_default=False)
    ] = Path(),
    *,
    to: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Version to update to. [default: newest]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would happen to each file.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Delete without asking what is to be deleted.")
    ] = False,
    **flags: Any,
) -> None:
    """Bring fixes to a project, or change its answers.

    Takes it to a newer version of the template. Needs no network. Your own changes stay, and
    nothing is committed. A question's flag changes the answer: --endpoints chat,files adds or
    removes endpoints.
    """
    from infer_scaffold import merge
    from infer_scaffold import update as updating

    answers = questions.answers_from_flags(CHANGEABLE, flags)
    with updating.prepare(path, CHANGEABLE, answers, to=to) as update:
        if update is None:
            typer.echo("Nothing to do: the project is up to date.")
            return
        step = f"{update.project.version} -> {update.target}"
        conflicts = update.of(updating.Kind.CONFLICT)
        if dry_run:
            for change in update.changes:
                place = f"{change.source} -> {change.path}" if change.source else change.path
                typer.echo(f"{change.kind:<8}  {visible(place)}")
            typer.echo(f"{step}: {_count(update.changes)}. Nothing was written.")
            raise typer.Exit(1 if conflicts else 0)
        deleted = update.of(updating.Kind.DELETED)
        if deleted:
            typer.echo(f"{step} deletes:")
            for file in deleted:
                typer.echo(f"  {visible(file)}")
            if not yes and sys.stdin.isatty() and sys.stdout.isatty():
                typer.confirm("Go on?", default=True, abort=True)
        update.apply()
        with _reporting(f"{step} is done"):
            typer.echo(f"{step}: {_count(update.changes)}.")
            skipped = [
                visible(change.source or change.path)
                for change in update.changes
                if change.kind is updating.Kind.SKIPPED
            ]
            if skipped:
                files = ", ".join(skipped)
                typer.echo(f"You deleted or moved these, so their changes are left out: {files}")
            if conflicts:
                for clash in merge.Clash:
                    files = ", ".join(
                        visible(each.path) for each in update.changes if each.clash is clash
                    )
                    if files:
                        typer.echo(clash.format(files=files), err=True)
                raise typer.Exit(1)
            typer.echo("Look at it with `git diff`, run the tests, and commit it.")


class Format(StrEnum):
    """The output formats of `status`."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"


@app.command()
def status(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Folders of services, or folders of such folders."),
    ],
    *,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.TEXT,
) -> None:
    """Show how services stand: version, missing fixes, edited files.

    Exits with 1 when a service lacks a fix of High severity, or cannot be read.
    """
    from infer_scaffold import fleet, report

    services = fleet.survey(paths)
    newest = history.versions()[-1]
    match format:
        case Format.TEXT:
            typer.echo(report.to_text(services, newest))
        case Format.JSON:
            typer.echo(report.to_json(services, newest))
        case Format.HTML:
            typer.echo(report.to_html(services, newest, datetime.date.today()))
    if any(service.needs_attention for service in services):
        raise typer.Exit(1)


class Layout(StrEnum):
    """The output formats of `check`."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    GITHUB = "github"


@app.command()
def check(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of the service.", show_default=False)
    ] = Path(),
    *,
    profile: Annotated[
        Profile | None,
        typer.Option(
            help="Hold it to the intent of the patterns, or to their letter. [default: default]",
        ),
    ] = None,
    format: Annotated[Layout, typer.Option(help="How to print it.")] = Layout.TEXT,
    select: Annotated[
        str | None, typer.Option(metavar="CODES", help="Only these patterns, such as IS101,IS3.")
    ] = None,
    ignore: Annotated[str | None, typer.Option(metavar="CODES", help="Not these patterns.")] = None,
    write_baseline: Annotated[
        bool,
        typer.Option(
            "--write-baseline", help="Accept what is found now, and report only what is new."
        ),
    ] = False,
) -> None:
    """Judge the source of a FastAPI service.

    Holds it, ours or not, against the checklist. Exits with 1 when a pattern is not followed.
    """
    from infer_scaffold.check import accepted, config, output, runner, sarif

    settings = config.load(
        path,
        profile=profile,
        select=select.split(",") if select else None,
        ignore=ignore.split(",") if ignore else None,
    )
    if write_baseline:
        known = runner.check_all(path, settings).known
        file = accepted.write_baseline(path, known)
        typer.echo(f"Wrote {len(known)} findings to {file}; commit it.")
        return
    report = runner.check(path, settings)
    match format:
        case Layout.TEXT:
            typer.echo(output.to_text(report, path))
        case Layout.JSON:
            typer.echo(output.to_json(report))
        case Layout.SARIF:
            typer.echo(sarif.to_sarif(report, path))
        case Layout.GITHUB:
            typer.echo(output.to_github(report, path))
    for place, line, reason in report.unparsed:
        typer.echo(output.unjudged(place, line, reason), err=True)
    if report.stale:
        typer.echo(
            f"{report.stale} findings of the baseline are gone: write it anew "
            "with --write-baseline.",
            err=True,
        )
    if report.unmet or report.unparsed:
        raise typer.Exit(1)


class Report(StrEnum):
    """The output formats of `probe`."""

    TEXT = "text"
    JSON = "json"
    JUNIT = "junit"


@app.command()
def probe(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the running service.")],
    *,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="INFER_SCAFFOLD_API_KEY", help="Key of the service."),
    ] = None,
    format: Annotated[Report, typer.Option(help="How to print it.")] = Report.TEXT,
    select: Annotated[
        str | None, typer.Option(metavar="CODES", help="Only these patterns, such as IS302,IS5.")
    ] = None,
    ignore: Annotated[str | None, typer.Option(metavar="CODES", help="Not these patterns.")] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="How long to wait for each answer.")
    ] = 60,
    max_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="How long all questions may take.")
    ] = 1800,
    chat_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model for chat. [default: the first]")
    ] = None,
    embeddings_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model for embeddings. [default: the first]")
    ] = None,
    destructive: Annotated[
        bool,
        typer.Option(
            "--destructive", help="Also try to break it, and with --pid stop it: not in production."
        ),
    ] = False,
    pid: Annotated[
        int | None,
        typer.Option(metavar="PID", min=2, help="Its process, to measure memory and to stop it."),
    ] = None,
) -> None:
    """Question a running service.

    Asks it, ours or not, what the checklist asks for. Sends a bounded number of small requests,
    and deletes the files that it uploads. Exits with 1 when an answer is not as wanted.
    """
    import asyncio

    from infer_scaffold.probe import output, runner
    from infer_scaffold.probe.model import Verdict

    options = runner.Options(
        api_key, timeout, chat_model, embeddings_model, pid, destructive, max_seconds
    )
    codes = checklist.matching(
        select.split(",") if select else (), ignore.split(",") if ignore else ()
    )
    tell = (lambda answer: typer.echo(output.to_text(answer))) if format is Report.TEXT else None
    answers = asyncio.run(runner.probe(url, options, codes, tell or (lambda answer: None)))
    match format:
        case Report.TEXT:
            typer.echo(f"\n{output.score(answers)}")
        case Report.JSON:
            typer.echo(output.to_json(url, answers))
        case Report.JUNIT:
            typer.echo(output.to_junit(url, answers))
    if any(answer.verdict is Verdict.FAIL for answer in answers):
        raise typer.Exit(1)


@app.command()
def explain(
    code: Annotated[
        str | None, typer.Argument(metavar="CODE", help="A pattern, such as IS101.")
    ] = None,
) -> None:
    """Explain a pattern of the checklist.

    Says what it asks for and why, and shows how it looks wrong and right.
    """
    if code is None:
        for pattern in checklist.PATTERNS:
            typer.echo(f"{pattern.code}  {pattern.severity:<6}  {pattern.title}")
        return
    found = checklist.BY_CODE.get(code.upper())
    if found is None:
        raise UserError(
            f"there is no pattern {code!r}; choose from {', '.join(checklist.BY_CODE)}."
        )
    typer.echo(found.page, nl=False)


def _count(changes: "list[Change]") -> str:
    """Say how many files were added, changed and so on."""
    kinds = Counter(change.kind for change in changes)
    return ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())) or "no change"


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


def main() -> NoReturn:
    """Run the command line. The only place where an error becomes a message and an exit code."""
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    code: Any = 2
    try:
        _prepare_streams()
        _check_current_folder()
        code = app(standalone_mode=False, prog_name="infer-scaffold")
    except typer.TyperException as error:
        _complain(f"error: {error.format_message()}")
    except UserError as error:
        _complain(f"error: {error}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"error: {where}{error.strerror or error}; put that right and try again.")
    if code == 130:
        _complain("Cancelled: nothing was written.")
    _drop_what_cannot_be_printed()
    sys.exit(code)


def _prepare_streams() -> None:
    """Put the null device where a stream is closed; without a standard output, refuse to begin.

    Else the next file that is opened would get the number of the closed stream, and what a
    program prints would go there.
    """
    output_is_closed = sys.stdout is None
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        # A path may hold bytes that are no text, and a terminal may know ASCII only.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if output_is_closed:
        raise UserError("the standard output is closed; open it, or send it to /dev/null.")


def _check_current_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise UserError("the current folder is gone; change to another one.") from error


@contextmanager
def _reporting(done: str) -> Iterator[None]:
    """Raise a UserError that says what is done when printing about it fails."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"{done}, but the rest cannot be printed: {error.strerror or error}."
        ) from error


def _complain(message: str) -> None:
    with suppress(OSError):  # Standard error is the last resort.
        typer.echo(visible(" ".join(message.split())), err=True)


def _drop_what_cannot_be_printed() -> None:
    """Discard unflushed output, for which Python would print a traceback at exit."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _exit_on_sigterm(*_: object) -> NoReturn:
    # An exception, so that what is half-written is removed on the way out.
    sys.exit(128 + signal.SIGTERM)
