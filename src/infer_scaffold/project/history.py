"""The versions of the template that projects are made from: a git bundle that the package carries.

The bundle has one commit for each released version, tagged like the release and holding
copier.yml, reserved.jinja, moved.jinja, moves.toml and template/ only, and one for each state of
the template between two releases, by its fingerprint. Projects are updated from it without a
network; the release tags of the public repository name the same files.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path

from packaging.version import Version

from infer_scaffold import __version__, git
from infer_scaffold.errors import UserError
from infer_scaffold.project import template

BUNDLE = Path(__file__).with_name("_history.bundle")
LATER_PARTS = ("moved.jinja", template.MOVES)
"""Parts that the first versions do not have"""
TEMPLATE_PARTS = ("copier.yml", "reserved.jinja", *LATER_PARTS, "template")

_TAG = "refs/tags/v"
_STATE = "refs/states/"  # no tags: `git describe` must not find them
_MARK = 12  # digits of a fingerprint
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
    names = (name for name in _references(bundle or BUNDLE) if name.startswith(_TAG))
    return sorted(Version(name.removeprefix(_TAG)) for name in names)


def current() -> Version:
    """Return the version of the template in this package, which its projects record.

    A template that no release has is told from others of the same development version by its
    fingerprint, so that a later release recognises what such a project was made from.
    """
    if not Version(__version__).is_devrelease:
        return Version(__version__)
    mark = fingerprint(template.root())
    references = _references(BUNDLE)
    made_of = references.get(_STATE + mark)
    for version in reversed(versions()):
        if made_of is not None and references[f"{_TAG}{version}"] == made_of:
            return version
    return Version(f"{__version__}+t{mark}")


def knows(version: Version) -> bool:
    """Say whether the template of a version is at hand."""
    return _reference(version) in _references(BUNDLE) or version == current()


def keeps_current() -> bool:
    """Say whether a later release will know the current template, as far as can be seen here."""
    root = template.root()
    if not (root / ".git").exists():
        return True
    return not git.has_changes(root, *TEMPLATE_PARTS)


def tag(version: Version) -> str:
    """Return a version as projects and release tags name it."""
    return f"v{version}"


def unpack(version: Version, folder: Path, bundle: Path | None = None) -> Path:
    """Write the template of a known version into `folder`, which is made."""
    bundle = bundle or BUNDLE
    reference = _reference(version)
    if reference not in _references(bundle) and version == current():
        copy_template(template.root(), folder)
        return folder
    folder.mkdir()
    _git(folder, "init", "--quiet")
    _git(folder, "fetch", "--quiet", str(bundle), reference)
    _git(folder, "checkout", "--quiet", "--detach", "FETCH_HEAD")
    return folder


def add(bundle: Path, version: Version, source: Path) -> None:
    """Add a version to `bundle`, which is made if it does not exist.

    `source` is a folder with the template as released and without anything else below
    template/. If it is a git repository, the states of the template since the newest version in
    the bundle are added as well. The same versions from the same sources make the same bytes.
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
        _add_states(repository, source)
        _git(tree, here, "--work-tree=.", "add", "--all", "--force")
        files = _git(tree, here, "write-tree")
        commit = _git(tree, here, "commit-tree", files, *parent, "-m", f"Template of {version}")
        for reference in (f"{_TAG}{version}", _STATE + files[:_MARK]):
            _git(tree, here, "update-ref", reference, commit)
        made = Path(temporary, "made.bundle")
        _git(tree, here, "bundle", "create", "--quiet", str(made), "--all")
        shutil.copyfile(made, bundle)


def _add_states(repository: Path, source: Path) -> None:
    """Add the template as each commit of `source` has it, back to the newest known one."""
    if not (source / ".git").exists():
        return
    objects = git.output(source, "rev-parse", "--path-format=absolute", "--git-path", "objects")
    alternates = repository / "objects" / "info" / "alternates"
    alternates.write_text(objects)
    known = _git(repository, "log", "--all", "--format=%T").splitlines()
    logged = git.output(source, "log", "--format=%H", "--", *TEMPLATE_PARTS)
    for number, commit in enumerate(logged.splitlines()):
        listed = git.output(source, "ls-tree", commit, "--", *TEMPLATE_PARTS)
        tree = _git(repository, "mktree", input=listed)
        if tree in known:
            break
        subject = f"State {number} of the template before the release"
        made = _git(repository, "commit-tree", tree, "-m", subject)
        _git(repository, "update-ref", _STATE + tree[:_MARK], made)
    # The objects themselves: the bundle must not need the repository that they came from.
    _git(repository, "repack", "-a", "-d", "--quiet")
    alternates.unlink()


def fingerprint(source: Path) -> str:
    """Return the first digits of the id that git gives to the template in `source`."""
    with tempfile.TemporaryDirectory() as temporary:
        copy_template(source, Path(temporary, "tree"))
        return _tree_id(Path(temporary, "tree")).hex()[:_MARK]


def _tree_id(folder: Path) -> bytes:
    """Return the id of a folder as a git tree. https://git-scm.com/book/en/v2/Git-Internals"""
    entries = []
    for path in folder.iterdir():
        name = path.name.encode()
        if path.is_dir():
            entries.append((name + b"/", b"40000 " + name + b"\0" + _tree_id(path)))
        else:
            mode = b"100755 " if path.stat().st_mode & 0o100 else b"100644 "
            entries.append((name, mode + name + b"\0" + _object_id(b"blob", path.read_bytes())))
    return _object_id(b"tree", b"".join(entry for _, entry in sorted(entries)))


def _object_id(kind: bytes, content: bytes) -> bytes:
    head = b"%s %d\0" % (kind, len(content))
    return hashlib.sha1(head + content, usedforsecurity=False).digest()


def _references(bundle: Path) -> dict[str, str]:
    """Return the commits in a bundle by the names that they have there."""
    found = {}
    with bundle.open("rb") as file:
        # A line of text for each reference, and an empty line before the packed objects.
        for line in iter(file.readline, b"\n"):
            if not line:
                raise UserError(f"{bundle} is cut short; install infer-scaffold again.")
            commit, _, name = line.decode().rstrip("\n").partition(" ")
            found[name] = commit
    return found


def _reference(version: Version) -> str:
    if version.local:
        return _STATE + version.local.removeprefix("t")
    return f"{_TAG}{version}"


def copy_template(source: Path, destination: Path) -> None:
    """Copy the template out of `source`, without what Python and the tools leave in it."""
    destination.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.py[co]", ".*_cache", ".DS_Store")
    for part in TEMPLATE_PARTS:
        path = source / part
        if path.is_dir():
            shutil.copytree(path, destination / part, ignore=ignored)
        elif part not in LATER_PARTS or path.exists():
            shutil.copy(path, destination / part)


def _git(folder: Path, *arguments: str, input: str = "") -> str:
    own = git.ISOLATED | _IDENTITY
    said = git.output(folder, *arguments, settings=_SETTINGS, variables=own, input=input)
    return said.rstrip("\n")
