"""`infer-scaffold explain`."""

from typing import Annotated

import typer

from infer_scaffold import checklist
from infer_scaffold.errors import UserError


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
