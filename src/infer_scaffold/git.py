"""The few things that the tool asks of git."""

import os
import shutil
import subprocess
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

# The first commit must not depend on how a machine is set up: no signing key, no hooks, no
# housekeeping, and files as they were rendered.
_SETTINGS = {
    "init.defaultBranch": "main",
    "commit.gpgSign": "false",
    "core.hooksPath": os.devnull,
    "core.autocrlf": "false",
    "core.fsmonitor": "false",
    "maintenance.auto": "false",
    "gc.auto": "0",
}
_FALLBACK_IDENTITY = {"user.name": "infer-scaffold", "user.email": "infer-scaffold@localhost"}


def require() -> None:
    """Raise a UserError if git is not installed."""
    if shutil.which("git") is None:
        raise UserError("git was not found; install it, or leave the repository out with --no-git.")


def enclosing_work_tree(folder: Path) -> Path | None:
    """Return the root of the git work tree that `folder` is in, if it is in one."""
    result = _run(folder, "rev-parse", "--show-toplevel")
    top = result.stdout.rstrip("\n")
    return Path(top) if result.returncode == 0 and top else None


def make_repository(folder: Path, message: str) -> None:
    """Make `folder` a git repository whose first commit, on main, holds every file in it."""
    _check(folder, "init", "--quiet")
    # --force: a person's global ignore file must not decide what the project consists of.
    _check(folder, "add", "--all", "--force")
    _check(
        folder,
        "commit",
        "--quiet",
        f"--message={message}",
        settings=_SETTINGS | _missing_identity(folder),
    )


def _missing_identity(folder: Path) -> dict[str, str]:
    lines = _run(folder, "config", "--get-regexp", r"^user\.(name|email)$").stdout.splitlines()
    known = {key for key, _, value in (line.partition(" ") for line in lines) if value.strip()}
    return {key: value for key, value in _FALLBACK_IDENTITY.items() if key not in known}


def _check(folder: Path, *arguments: str, settings: dict[str, str] = _SETTINGS) -> None:
    result = _run(folder, *arguments, settings=settings)
    if result.returncode != 0:
        reason = (result.stderr.strip() or f"exit status {result.returncode}").splitlines()[-1]
        raise UserError(f"git {arguments[0]} failed ({reason}); put that right, or use --no-git.")


def _run(
    folder: Path, *arguments: str, settings: dict[str, str] = _SETTINGS
) -> subprocess.CompletedProcess[str]:
    command = ["git"]
    for key, value in settings.items():
        command += ["-c", f"{key}={value}"]
    return subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name in _KEPT_ENVIRONMENT
    }
