"""The few things that the tool asks of git."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from infer_scaffold.errors import UserError

# What git says of a person. Everything else in GIT_* describes another repository (a hook of
# which may be running us) and would put our commit there.
_KEPT_ENVIRONMENT = {
    "GIT_AUTHOR_NAME",
    "GIT_AUTHOR_EMAIL",
    "GIT_COMMITTER_NAME",
    "GIT_COMMITTER_EMAIL",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
}

# Nothing may depend on how a machine is set up: no signing key, no hooks, no housekeeping.
_SETTINGS = {
    "init.defaultBranch": "main",
    "commit.gpgSign": "false",
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "maintenance.auto": "false",
    "gc.auto": "0",
}
# Files as they were rendered. A person's own work tree keeps the line ends of their choice.
AS_RENDERED = {"core.autocrlf": "false", "core.eol": "lf"}
FALLBACK_IDENTITY = {"user.name": "infer-scaffold", "user.email": "infer-scaffold@localhost"}


def require(remedy: str) -> None:
    """Raise a UserError that ends in `remedy` if git is not installed."""
    if shutil.which("git") is None:
        raise UserError(f"git was not found; {remedy}")


def enclosing_work_tree(folder: Path) -> Path | None:
    """Return the root of the git work tree that `folder` is in, if it is in one."""
    result = _run(folder, "rev-parse", "--show-toplevel")
    top = result.stdout.rstrip("\n")
    return Path(top) if result.returncode == 0 and top else None


def make_repository(folder: Path, message: str) -> None:
    """Make `folder` a git repository whose first commit, on main, holds every file in it."""
    remedy = "put that right, or use --no-git."
    output(folder, "init", "--quiet", remedy=remedy)
    # --force: a person's global ignore file must not decide what the project consists of.
    output(folder, "add", "--all", "--force", settings=AS_RENDERED, remedy=remedy)
    output(
        folder,
        "commit",
        "--quiet",
        f"--message={message}",
        settings=AS_RENDERED | missing_identity(folder),
        remedy=remedy,
    )


def output(
    folder: Path,
    *arguments: str,
    settings: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
    input: str = "",
    remedy: str = "put that right and try again.",
) -> str:
    """Return what a git command prints; raise a UserError that ends in `remedy` if it fails.

    `settings` are added to those that keep a machine's own out, `variables` to the environment.
    """
    result = _run(folder, *arguments, settings=settings, variables=variables, input=input)
    if result.returncode != 0:
        said = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        # Advice may come after the error.
        reason = next((line for line in said if line.startswith(("fatal:", "error:"))), said[-1])
        command = next(word for word in arguments if not word.startswith("-"))
        raise UserError(f"git {command} failed ({reason}); {remedy}")
    return result.stdout


def missing_identity(folder: Path) -> dict[str, str]:
    """Return settings for the parts of an author that this machine's git does not know."""
    lines = _run(folder, "config", "--get-regexp", r"^user\.(name|email)$").stdout.splitlines()
    known = {key for key, _, value in (line.partition(" ") for line in lines) if value.strip()}
    return {key: value for key, value in FALLBACK_IDENTITY.items() if key not in known}


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a git that no other repository and no machine gets in the way of.

    `settings` are added to those that keep a machine's own out.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name in _KEPT_ENVIRONMENT
    }
    settings = {**_SETTINGS, **settings}
    kept["GIT_CONFIG_COUNT"] = str(len(settings))
    for number, (key, value) in enumerate(settings.items()):
        kept[f"GIT_CONFIG_KEY_{number}"] = key
        kept[f"GIT_CONFIG_VALUE_{number}"] = value
    return kept


def _run(
    folder: Path,
    *arguments: str,
    settings: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
    input: str = "",
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=environment(settings or {}) | dict(variables or {}),
        input=input,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
    )
