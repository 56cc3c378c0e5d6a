"""The released versions of the template: a git bundle that the package carries.

The bundle has one commit for each released version, tagged like the release and holding
copier.yml, reserved.jinja and template/ only. Projects are updated from it without a network;
the tags of the public repository name the same files.
"""

import shutil
import tempfile
from pathlib import Path

from packaging.version import Version

from infer_scaffold import git
from infer_scaffold.errors import UserError

BUNDLE = Path(__file__).with_name("_history.bundle")
TEMPLATE_PARTS = ("copier.yml", "reserved.jinja", "template")

_TAG = "refs/tags/v"
_DATE = "2000-01-01T00:00:00+0000"
# Fixed, so that the same versions make the same bytes on every machine.
_IDENTITY = {
    "GIT_AUTHOR_NAME": "infer-scaffold",
    "GIT_AUTHOR_EMAIL": "infer-scaffold@localhost",
    "GIT_AUTHOR_DATE": _DATE,
    "GIT_COMMITTER_NAME": "infer-scaffold",
    "GIT_COMMITTER_EMAIL": "infer-scaffold@localhost",
    "GIT_COMMITTER_DATE": _DATE,
}
_SETTINGS = {**git.AS_RENDERED, "core.fileMode": "true", "pack.threads": "1"}


def versions(bundle: Path | None = None) -> list[Version]:
    """Return the released versions, oldest first. Needs no git."""
    bundle = bundle or BUNDLE
    found = []
    with bundle.open("rb") as file:
        # A line of text for each reference, and an empty line before the packed objects.
        for line in iter(file.readline, b"\n"):
            if not line:
                raise UserError(f"{bundle} is cut short; install infer-scaffold again.")
            reference = line.decode().rstrip("\n").rpartition(" ")[2]
            if reference.startswith(_TAG):
                found.append(Version(reference.removeprefix(_TAG)))
    return sorted(found)


def holds(version: str) -> bool:
    """Say whether a version is released, so that a project of it can be updated later."""
    return Version(version) in versions()


def tag(version: Version) -> str:
    """Return the tag of a released version."""
    return f"v{version}"


def unpack(version: Version, folder: Path, bundle: Path | None = None) -> Path:
    """Write the template of a released version into `folder`, which is made."""
    arguments = ("clone", "--quiet", "--config=advice.detachedHead=false")
    source = str(bundle or BUNDLE)
    git.output(
        folder.parent,
        *arguments,
        f"--branch={tag(version)}",
        source,
        str(folder),
        settings=git.AS_RENDERED,
    )
    return folder


def add(bundle: Path, version: Version, source: Path) -> None:
    """Add a version to `bundle`, which is made if it does not exist.

    `source` is a folder with the template as released and without anything else below
    template/. The same versions from the same sources make the same bytes.
    """
    parent: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        tree, repository = Path(temporary, "tree"), Path(temporary, "repository.git")
        copy_template(source, tree)
        _git(tree, "init", "--quiet", "--bare", str(repository))
        here = f"--git-dir={repository}"
        if bundle.exists():
            _git(tree, here, "fetch", "--quiet", str(bundle), "refs/*:refs/*")
            latest = versions(bundle)[-1]
            if version <= latest:
                raise UserError(f"{version} is not newer than {latest}; choose a newer version.")
            parent = ["-p", _git(tree, here, "rev-parse", tag(latest))]
        _git(tree, here, "--work-tree=.", "add", "--all", "--force")
        files = _git(tree, here, "write-tree")
        commit = _git(tree, here, "commit-tree", files, *parent, "-m", f"Template of {version}")
        _git(tree, here, "update-ref", f"{_TAG}{version}", commit)
        made = Path(temporary, "made.bundle")
        _git(tree, here, "bundle", "create", "--quiet", str(made), "--all")
        shutil.copyfile(made, bundle)


def copy_template(source: Path, destination: Path) -> None:
    """Copy the template out of `source`, without what Python and the tools leave in it."""
    destination.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.py[co]", ".*_cache", ".DS_Store")
    for part in TEMPLATE_PARTS:
        path = source / part
        if path.is_dir():
            shutil.copytree(path, destination / part, ignore=ignored)
        else:
            shutil.copy(path, destination / part)


def _git(folder: Path, *arguments: str) -> str:
    return git.output(folder, *arguments, settings=_SETTINGS, variables=_IDENTITY).rstrip("\n")
