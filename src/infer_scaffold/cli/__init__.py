"""The command line: options in, lines out. Each command has a module here, and no logic in it."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from infer_scaffold import __version__
from infer_scaffold.cli import check, explain, new, probe, status, update
from infer_scaffold.errors import UserError
from infer_scaffold.visible import visible

app = typer.Typer(
    # Plain text: Rich takes "[default: ...]" in a help text for markup and drops it.
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
# In the order of the help.
for _command in (new.new, update.update, status.status, check.check, probe.probe, explain.explain):
    app.command()(_command)


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
        code = error.exit_code
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
