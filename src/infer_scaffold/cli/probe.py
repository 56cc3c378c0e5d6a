"""`infer-scaffold probe`."""

from enum import StrEnum
from typing import Annotated

import typer

from infer_scaffold import checklist


class Format(StrEnum):
    """The output formats of `probe`."""

    TEXT = "text"
    JSON = "json"
    JUNIT = "junit"


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

    from infer_scaffold.probe import prober, results
    from infer_scaffold.probe.outcomes import Verdict

    options = prober.Options(
        api_key, timeout, chat_model, embeddings_model, pid, destructive, max_seconds
    )
    codes = checklist.matching(
        select.split(",") if select else (), ignore.split(",") if ignore else ()
    )
    tell = (lambda answer: typer.echo(results.to_text(answer))) if format is Format.TEXT else None
    answers = asyncio.run(prober.probe(url, options, codes, tell or (lambda answer: None)))
    match format:
        case Format.TEXT:
            typer.echo(f"\n{results.score(answers)}")
        case Format.JSON:
            typer.echo(results.to_json(url, answers))
        case Format.JUNIT:
            typer.echo(results.to_junit(url, answers))
    if any(answer.verdict is Verdict.FAIL for answer in answers):
        raise typer.Exit(1)
