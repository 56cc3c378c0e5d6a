"""`infer-scaffold update`."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer_scaffold.cli.shared import QUESTIONS, reporting, with_question_options
from infer_scaffold.project import questions
from infer_scaffold.visible import visible

if TYPE_CHECKING:
    from infer_scaffold.project.updating import Change

# Another name would move every file, and an update loses edits in files that move.
CHANGEABLE = [question for question in QUESTIONS if question.name != "project_name"]


@with_question_options(CHANGEABLE, defaults=False)
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
    from infer_scaffold.project import merge, updating

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
        with reporting(f"{step} is done"):
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


def _count(changes: "list[Change]") -> str:
    """Say how many files were added, changed and so on."""
    kinds = Counter(change.kind for change in changes)
    return ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())) or "no change"
