"""The git commands that the tool runs, and their environment."""

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

from packaging.version import Version

from infer_scaffold.errors import UserError

# The identity of the author and the settings files. Everything else in GIT_* describes another
# repository, as in one of its hooks, and would put our commit there.
_KEPT_ENVIRONMENT = {
    "GIT_AUTHOR_NAME",
    "GIT_AUTHOR_EMAIL",
    "GIT_COMMITTER_NAME",
    "GIT_COMMITTER_EMAIL",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
}

# Independent of the machine's settings: no signing key, no hooks, no housekeeping.
_SETTINGS = {
    "init.defaultBranch": "main",
    "commit.gpgSign": "false",
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "maintenance.auto": "false",
    "gc.auto": "0",
}
# Files as they were rendered. A person's own work tree keeps the line ends of their choice.
AS_RENDERED = {
    "core.autocrlf": "false",
    "core.eol": "lf",
    "core.safecrlf": "false",
    "core.attributesFile": os.devnull,
    "core.excludesFile": os.devnull,
}
# For repositories of our own making: neither the settings of the machine nor those of the person.
ISOLATED = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
}
FALLBACK_IDENTITY = {"user.name": "infer-scaffold", "user.email": "infer-scaffold@localhost"}


def require(remedy: str, oldest: Version | None = None) -> None:
    """Raise a UserError that ends in `remedy` if git is not installed, or older than `oldest`."""
    if shutil.which("git") is None:
        raise UserError(f"git was not found; {remedy}")
    if oldest is not None:
        said = output(Path("/"), "version")
        found = re.search(r"\d+(\.\d+)+", said)
        if found is None or Version(found[0]) < oldest:
            raise UserError(f"{said.strip()} is older than {oldest}; {remedy}")


def enclosing_work_tree(folder: Path) -> Path | None:
    """Return the root of the git work tree that `folder` is in, if it is in one.

    Raises UserError if git refuses to say, as for a repository of another owner.
    """
    result = _run(folder, "rev-parse", "--show-toplevel")
    if result.returncode == 0:
        return Path(result.stdout.removesuffix("\n"))
    if "not a git repository" in result.stderr:
        return None
    remedy = "put that right and try again"
    if "dubious ownership" in result.stderr:
        remedy = "if it is to be trusted, run `git config --global --add safe.directory FOLDER`"
    raise UserError(f"git refuses {folder} ({_reason(result)}); {remedy}.")


def is_ignored(folder: Path, path: Path) -> bool:
    """Say whether the repository that `folder` is in leaves out `path`, which may not exist."""
    literal = {"GIT_LITERAL_PATHSPECS": "0"}  # which this command refuses
    asked = _run(folder, "check-ignore", "--quiet", "--", str(path), variables=literal)
    return asked.returncode == 0


def has_changes(folder: Path, *paths: str) -> bool:
    """Say whether something below `paths` is not committed, as far as git can tell."""
    return bool(shutil.which("git") and _run(folder, "status", "--porcelain", "--", *paths).stdout)


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
    allowed: Collection[int] = (0,),
    remedy: str = "put that right and try again.",
) -> str:
    """Return what a git command prints, byte by byte; raise a UserError if it fails.

    `settings` are added to those that keep a machine's own out, `variables` to the environment.
    `allowed` are the exit codes of success; the error's message ends in `remedy`.
    """
    result = _run(folder, *arguments, settings=settings, variables=variables, input=input)
    if result.returncode not in allowed:
        command = next(word for word in arguments if not word.startswith("-"))
        raise UserError(f"git {command} failed ({_reason(result)}); {remedy}")
    return result.stdout


def run_script(folder: Path, script: str, settings: Mapping[str, str]) -> None:
    """Run a shell script that calls git; raise a UserError if it fails.

    It has a session of its own, so that neither Ctrl-C nor a kill of our process group stops it
    half-way.
    """
    result = _run(folder, "-ec", script, settings=settings, program="sh", own_session=True)
    if result.returncode != 0:
        raise UserError(f"git failed ({_reason(result)}); put that right and try again.")


def _reason(result: subprocess.CompletedProcess[str]) -> str:
    said = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
    # Advice may come after the error.
    return next((line for line in said if line.startswith(("fatal:", "error:"))), said[-1])


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
    kept["LC_ALL"] = "C"  # its messages are read
    kept["GIT_LITERAL_PATHSPECS"] = "1"  # a folder may be called ":(top)" or "[a]*"
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
    program: str = "git",
    own_session: bool = False,
) -> subprocess.CompletedProcess[str]:
    # Bytes, decoded without a loss: text mode would change line ends.
    result = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=environment(settings or {}) | dict(variables or {}),
        input=input.encode("utf-8", "surrogateescape"),
        capture_output=True,
        check=False,
        start_new_session=own_session,
    )
    out, err = (each.decode("utf-8", "surrogateescape") for each in (result.stdout, result.stderr))
    return subprocess.CompletedProcess(result.args, result.returncode, out, err)
