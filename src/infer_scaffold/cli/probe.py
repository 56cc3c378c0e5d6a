"""`infer-scaffold probe`."""

import datetime
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from infer_scaffold import checklist

if TYPE_CHECKING:
    from infer_scaffold.probe.prober import Step


class Format(StrEnum):
    """The output formats of `probe`."""

    TEXT = "text"
    JSON = "json"
    JUNIT = "junit"
    HTML = "html"


def probe(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the running service.")],
    *,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="INFER_SCAFFOLD_API_KEY", help="Key of the service."),
    ] = None,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.TEXT,
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
    origin: Annotated[
        str | None,
        typer.Option(metavar="ORIGIN", help="Origin of a web page that may read its answers."),
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
    and deletes the files that it uploads. Exits with 1 when an answer is not as wanted, with 3
    when nothing, or not all that applies, could be asked.
    """
    import asyncio

    from infer_scaffold.probe import prober, results
    from infer_scaffold.probe.answers import Answer
    from infer_scaffold.probe.outcomes import CannotBeAsked

    options = prober.Options(
        api_key, timeout, chat_model, embeddings_model, pid, destructive, max_seconds, origin
    )
    codes = checklist.matching(
        select.split(",") if select else (), ignore.split(",") if ignore else ()
    )

    def show(answers: list[Answer], error: str | None = None) -> None:
        match format:
            case Format.TEXT:
                typer.echo(results.to_text(answers))
            case Format.JSON:
                typer.echo(results.to_json(url, answers, error))
            case Format.JUNIT:
                typer.echo(results.to_junit(url, answers, error))
            case Format.HTML:
                typer.echo(results.to_html(url, answers, datetime.date.today(), error))

    try:
        with _progress() as watch:
            answers = asyncio.run(prober.probe(url, options, codes, watch))
    except CannotBeAsked as error:
        if format is not Format.TEXT:  # A reader of documents gets one.
            show([], str(error))
        raise
    show(answers)
    if code := results.exit_code(answers):
        raise typer.Exit(code)


@contextmanager
def _progress() -> Iterator[Callable[["Step"], None]]:
    """Show on a terminal what is being asked, for as long as it is."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed}/{task.total} {task.description}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda step: progress.update(
            task, description=step.name, completed=step.done, total=step.total
        )
