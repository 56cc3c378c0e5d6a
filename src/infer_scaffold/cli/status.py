"""`infer-scaffold status`."""

import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from infer_scaffold.project import history


class Format(StrEnum):
    """The output formats of `status`."""

    TEXT = "text"
    JSON = "json"
    HTML = "html"


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
    from infer_scaffold.fleet import report, survey

    services = survey.survey(paths)
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
