"""`infer-scaffold check`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from infer_scaffold.check.config import FailOn
from infer_scaffold.check.judgement import Profile


class Format(StrEnum):
    """The output formats of `check`."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    GITHUB = "github"


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
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.TEXT,
    select: Annotated[
        str | None, typer.Option(metavar="CODES", help="Only these patterns, such as IS101,IS3.")
    ] = None,
    ignore: Annotated[str | None, typer.Option(metavar="CODES", help="Not these patterns.")] = None,
    fail_on: Annotated[
        FailOn | None,
        typer.Option(help="Exit with 1 only from this severity on. [default: low]"),
    ] = None,
    diff: Annotated[
        str | None,
        typer.Option(
            metavar="BASE", help="Only findings on lines that changed since this branch or commit."
        ),
    ] = None,
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
    from infer_scaffold.check import accepted, changed, checker, config, formats, sarif

    settings = config.load(
        path,
        profile=profile,
        select=select.split(",") if select else None,
        ignore=ignore.split(",") if ignore else None,
        fail_on=fail_on,
    )
    if write_baseline:
        known = checker.check_all(path, settings).known
        file = accepted.write_baseline(path, known)
        typer.echo(f"Wrote {len(known)} findings to {file}; commit it.")
        return
    report = checker.check(path, settings)
    if diff is not None:
        report = checker.on_lines(report, changed.Changed(path, diff))
    match format:
        case Format.TEXT:
            typer.echo(formats.to_text(report, path))
        case Format.JSON:
            typer.echo(formats.to_json(report))
        case Format.SARIF:
            typer.echo(sarif.to_sarif(report, path))
        case Format.GITHUB:
            typer.echo(formats.to_github(report, path))
    for place, line, reason in report.unparsed:
        typer.echo(formats.unjudged(place, line, reason), err=True)
    if report.stale:
        typer.echo(
            f"{report.stale} findings of the baseline are gone: write it anew "
            "with --write-baseline.",
            err=True,
        )
    failing = [each for each in report.unmet if settings.fail_on.concerns(each.pattern.severity)]
    if failing or report.unparsed:
        raise typer.Exit(1)
