"""The templates that the package carries."""

import shutil
from pathlib import Path

import pytest
from packaging.version import Version

from infer_scaffold import __version__, git
from infer_scaffold.errors import UserError
from infer_scaffold.project import history, template


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The files of the template in `folder`: path, mode and content."""
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
    assert names == {".git", "copier.yml", "reserved.jinja", "template"}


def test_a_released_version_is_the_template_that_it_says(tmp_path: Path) -> None:
    """A checkout after a release must have a development version, or its projects would lie."""
    if Version(__version__).is_devrelease:
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
    git.output(tmp_path, "clone", "--quiet", "--mirror", str(bundle), "all.git")
    log = git.output(tmp_path / "all.git", "log", "--format=%s", "v0.10.0").splitlines()
    assert log == ["Template of 0.10.0", "Template of 0.9.0", "Template of 0.2.0"]


def test_what_the_template_has_moved_is_a_part_of_it(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "x")
    git.make_repository(source, "Without")
    history.add(tmp_path / "bundle", Version("1.0"), source)
    before = history.fingerprint(source)
    (source / "moves.toml").write_text('["2.0"]\n"a" = "b"\n')
    git.output(source, "add", "--all")
    git.output(source, "commit", "-qm", "Move", settings=git.FALLBACK_IDENTITY)
    state = Version(f"1.1.dev0+t{history.fingerprint(source)}")
    (source / "template" / "file").write_text("y")
    history.add(tmp_path / "bundle", Version("2.0"), source)

    assert str(state) != f"1.1.dev0+t{before}"
    for number, version in enumerate((Version("1.0"), state, Version("2.0"))):
        folder = history.unpack(version, tmp_path / str(number), tmp_path / "bundle")
        assert (folder / "moves.toml").exists() == (version > Version("1.0"))


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


class TestDevelopmentVersions:
    """Projects that are made between two releases."""

    @pytest.fixture
    def checkout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A checkout without tags whose template is newer than the last release."""
        checkout = make(tmp_path / "checkout", "released")
        monkeypatch.setattr(history, "BUNDLE", tmp_path / "bundle")
        monkeypatch.setattr(history, "__version__", "0.3.0.dev0")
        monkeypatch.setattr(template, "root", lambda: checkout)
        history.add(history.BUNDLE, Version("0.2.0"), checkout)
        git.make_repository(checkout, "Release")
        return checkout

    def change(self, checkout: Path, text: str) -> Version:
        (checkout / "template" / "file").write_text(text)
        git.output(checkout, "add", "--all")
        git.output(checkout, "commit", "-qm", text, settings=git.FALLBACK_IDENTITY)
        return history.current()

    def test_a_template_that_is_released_is_recorded_as_that_release(self, checkout: Path) -> None:
        assert history.current() == Version("0.2.0")

    def test_each_state_of_the_template_has_a_version_that_the_next_release_knows(
        self, checkout: Path, tmp_path: Path
    ) -> None:
        versions = [self.change(checkout, text) for text in ("one", "two", "three")]
        assert len({*versions}) == 3
        assert all(Version("0.2.0") < version < Version("0.3.0") for version in versions)
        assert [history.knows(version) for version in versions] == [False, False, True]
        now = history.unpack(versions[-1], tmp_path / "now")
        assert (now / "template" / "file").read_text() == "three"

        self.change(checkout, "released again")
        history.add(history.BUNDLE, Version("0.3.0"), checkout)

        assert history.versions() == [Version("0.2.0"), Version("0.3.0")]
        assert history.current() == Version("0.3.0")
        for version, text in zip(versions, ("one", "two", "three"), strict=True):
            assert history.knows(version)
            folder = history.unpack(version, tmp_path / text)
            assert (folder / "template" / "file").read_text() == text

    def test_the_bundle_needs_nothing_of_the_checkout(self, checkout: Path, tmp_path: Path) -> None:
        version = self.change(checkout, "one")
        self.change(checkout, "two")
        history.add(history.BUNDLE, Version("0.3.0"), checkout)
        shutil.rmtree(checkout / ".git")

        assert (history.unpack(version, tmp_path / "one") / "template" / "file").exists()

    def test_git_names_a_template_by_the_same_id(self, checkout: Path) -> None:
        script = checkout / "template" / "a.b" / "run"
        script.parent.mkdir()
        script.write_bytes(b"#!/bin/sh\r\n\xff")
        script.chmod(0o755)
        (checkout / "template" / "a-b").touch()
        git.output(checkout, "add", "--all", settings=git.AS_RENDERED)

        assert git.output(checkout, "write-tree").startswith(history.fingerprint(checkout))

    def test_changes_that_are_not_committed_are_told(self, checkout: Path) -> None:
        assert history.keeps_current()
        (checkout / "template" / "file").write_text("changed")
        assert not history.keeps_current()
        (checkout / "notes").touch()
        self.change(checkout, "committed")
        assert history.keeps_current()
