"""The released templates that the package carries."""

from pathlib import Path

import pytest
from packaging.version import Version

from infer_scaffold import __version__, git, history, template
from infer_scaffold.errors import UserError


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What is in the template in `folder`: path, mode and content."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mode, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def make(folder: Path, text: str) -> Path:
    """A very small template."""
    (folder / "template").mkdir(parents=True)
    (folder / "copier.yml").write_text("_subdirectory: template\n")
    (folder / "reserved.jinja").touch()
    (folder / "template" / "file").write_text(text)
    return folder


def test_the_first_version_is_there_with_nothing_but_the_template(tmp_path: Path) -> None:
    assert history.versions()[0] == Version("0.1.0")
    names = {path.name for path in history.unpack(Version("0.1.0"), tmp_path / "x").iterdir()}
    assert names == {".git", *history.TEMPLATE_PARTS}


def test_a_released_version_is_the_template_that_it_says(tmp_path: Path) -> None:
    """A checkout after a release must have a development version, or its projects would lie."""
    if not history.holds(__version__):
        pytest.skip(f"{__version__} is a development version")
    history.copy_template(template.root(), tmp_path / "now")
    assert files(history.unpack(Version(__version__), tmp_path / "then")) == files(tmp_path / "now")


def test_a_new_version_follows_the_old_ones_and_leaves_them_as_they_are(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    for number, version in enumerate(["0.2.0", "0.9.0", "0.10.0"]):
        history.add(bundle, Version(version), make(tmp_path / version, str(number)))

    assert [str(version) for version in history.versions(bundle)] == ["0.2.0", "0.9.0", "0.10.0"]
    first = history.unpack(Version("0.2.0"), tmp_path / "first", bundle)
    assert (first / "template" / "file").read_text() == "0"
    log = git.output(first, "log", "--format=%s", "v0.10.0").splitlines()
    assert log == ["Template of 0.10.0", "Template of 0.9.0", "Template of 0.2.0"]


def test_the_same_versions_make_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one.bundle", tmp_path / "two.bundle"
    for bundle in (one, two):
        monkeypatch.setenv("GIT_AUTHOR_NAME", bundle.stem)
        monkeypatch.setenv("TZ", "Asia/Tokyo" if bundle is two else "UTC")
        for version in ("1.0.0", "2.0.0"):
            history.add(bundle, Version(version), make(tmp_path / bundle.stem / version, version))

    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("version", ["0.2.0", "0.1.9"])
def test_only_a_newer_version_can_be_added(version: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    source = make(tmp_path / "source", "x")
    history.add(bundle, Version("0.2.0"), source)
    before = bundle.read_bytes()

    with pytest.raises(UserError, match=rf"^{version} is not newer than 0\.2\.0; choose"):
        history.add(bundle, Version(version), source)
    assert bundle.read_bytes() == before


def test_what_tools_leave_behind_is_no_part_of_the_template(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "x")
    for name in ("__pycache__/x.pyc", ".ruff_cache/x", "y.pyc"):
        path = source / "template" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()

    history.add(tmp_path / "bundle", Version("1.0"), source)

    unpacked = history.unpack(Version("1.0"), tmp_path / "x", tmp_path / "bundle")
    assert set(files(unpacked)) == {"copier.yml", "reserved.jinja", "template/file"}


def test_a_damaged_bundle_is_told(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.write_bytes(history.BUNDLE.read_bytes()[:30])

    with pytest.raises(UserError, match=r"is cut short; install infer-scaffold again\.$"):
        history.versions(bundle)
