"""The address under which projects remember their template."""

from pathlib import Path

import pytest
import yaml

from infer_scaffold.errors import UserError
from infer_scaffold.project import template
from tests.conftest import Run

FORK = "https://git.example/platform/infer-scaffold.git"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a user's config.toml on this system."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "machine"))
    file = template.config_files()[0]
    file.parent.mkdir(parents=True)
    return file


def test_the_public_address_unless_a_team_has_its_own(config: Path) -> None:
    assert template.address() == template.ADDRESS


def test_a_teams_fork(
    config: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, run: Run
) -> None:
    machine = template.config_files()[1]
    machine.parent.mkdir(parents=True)
    machine.write_text(f'template = "{FORK}"\n')
    assert template.address() == FORK
    config.write_text('template = "gh:person/fork"\n')
    assert template.address() == "gh:person/fork"
    monkeypatch.setenv(template.VARIABLE, FORK)
    assert run("new", "server", "--yes", "--no-git").code == 0
    answers = yaml.safe_load((folder / "server" / ".copier-answers.yml").read_text())
    assert answers["_src_path"] == FORK


@pytest.mark.parametrize("address", ["../template", "/srv/template", "gh:a b", "1"])
def test_what_is_no_address(address: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(template.VARIABLE, address)
    with pytest.raises(UserError, match=r"is no address of a git repository; give one like"):
        template.address()


@pytest.mark.parametrize("text", ["template = 1\n", "template", "\xff"])
def test_a_config_file_that_is_broken(text: str, config: Path) -> None:
    config.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.toml"):
        template.address()
