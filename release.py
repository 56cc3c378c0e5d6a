"""Release a version: `make release VERSION=x.y.z`.

Checks, then two commits on main: the release, which is tagged, and the start of the next version.
The template goes into the package's history, the unreleased fixes and changes get the version.
Whatever fails puts everything back. Nothing is pushed.
"""

import datetime
import re
import subprocess
import sys
from pathlib import Path

from packaging.version import InvalidVersion, Version

from infer_scaffold import git
from infer_scaffold.errors import UserError
from infer_scaffold.fleet import fixes
from infer_scaffold.project import history, moves

ROOT = Path(__file__).parent
INIT = ROOT / "src" / "infer_scaffold" / "__init__.py"
CHANGELOG = ROOT / "CHANGELOG.md"
HEADING = "## [Unreleased]\n"


def main() -> None:
    """Release the version that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("error: say which version: make release VERSION=x.y.z.")
    try:
        release(sys.argv[1])
    except UserError as error:
        sys.exit(f"error: {error}")


def release(text: str) -> None:
    """Make the commits and the tag. Raises UserError, with everything as it was."""
    version = _check(text)
    start = git.output(ROOT, "rev-parse", "HEAD").strip()
    try:
        _set_version(str(version))
        changelog = CHANGELOG.read_text(encoding="utf-8")
        CHANGELOG.write_text(
            with_release(changelog, version, datetime.date.today(), fixes.load()),
            encoding="utf-8",
        )
        recorded = fixes.FILE.read_text(encoding="utf-8")
        fixes.FILE.write_text(
            recorded.replace(f'version = "{fixes.UNRELEASED}"', f'version = "{version}"'),
            encoding="utf-8",
        )
        history.add(history.BUNDLE, version, ROOT)
        _render_examples()
        _commit(f"Release {version}")
        arguments = ("tag", "--annotate", f"--message={version}", history.tag(version))
        git.output(ROOT, *arguments, settings=git.missing_identity(ROOT))
        following = f"{version.major}.{version.minor + 1}.0.dev0"
        _set_version(following)
        _render_examples()
        _commit(f"Start {following.removesuffix('.dev0')}")
    except BaseException:
        git.output(ROOT, "reset", "--quiet", "--hard", start)
        if git.output(ROOT, "tag", "--list", history.tag(version)):
            git.output(ROOT, "tag", "--delete", history.tag(version))
        raise
    print(f"Released {version}. To publish it: git push origin main {history.tag(version)}")


def with_release(
    changelog: str, version: Version, day: datetime.date, known: list[fixes.Fix]
) -> str:
    """Return the changelog with a section for the version, in the place of what is unreleased."""
    before, heading, after = changelog.partition(HEADING)
    changes, separator, older = after.partition("\n## [")
    if not heading or not changes.strip():
        raise UserError(f"CHANGELOG.md has nothing under {HEADING.strip()}; write what changed.")
    fixed = [
        f"- **{fix.pattern.title}** ({fix.pattern.code}, {fix.severity}): {fix.title}. "
        f"*To do:* {fix.action}"
        for fix in known
        if fix.version is None
    ]
    generated = ["### Fixed in generated services", "", *fixed, ""] if fixed else []
    section = "\n".join([f"## [{version}] - {day}", "", *generated, changes.strip(), ""])
    return f"{before}{HEADING}\n{section}{separator}{older}"


def _check(text: str) -> Version:
    try:
        version = Version(text)
    except InvalidVersion:
        raise UserError(f"{text!r} is no version; give one like 1.2.0.") from None
    if str(version) != text or len(version.release) != 3 or version.is_prerelease:
        raise UserError(f"{text!r} is no release; give three numbers, like 1.2.0.")
    newest = history.versions()[-1]
    if version <= newest:
        raise UserError(f"{version} is not newer than {newest}; choose a newer version.")
    if git.output(ROOT, "status", "--porcelain"):
        raise UserError("there are changes that are not committed; commit or stash them.")
    if git.output(ROOT, "branch", "--show-current").strip() != "main":
        raise UserError("this is not main; releases are made from main.")
    later = [str(move.since) for move in moves.load(ROOT) if move.since > version]
    if later:
        raise UserError(f"moves.toml says {later[0]}, which is newer than {version}; change one.")
    if git.output(ROOT, "tag", "--list", history.tag(version)):
        raise UserError(f"there is a tag {history.tag(version)} already; choose another version.")
    return version


def _set_version(version: str) -> None:
    text = INIT.read_text(encoding="utf-8")
    text = re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', text)
    INIT.write_text(text, encoding="utf-8")


def _render_examples() -> None:
    # A process of its own, because this one has imported the version that was.
    command = [sys.executable, "-m", "tests.examples"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise UserError("the examples cannot be rendered; see above.")


def _commit(message: str) -> None:
    git.output(ROOT, "add", "--all")
    git.output(
        ROOT, "commit", "--quiet", f"--message={message}", settings=git.missing_identity(ROOT)
    )


if __name__ == "__main__":
    main()
