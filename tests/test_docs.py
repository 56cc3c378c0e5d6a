"""A flag, a preset or a make target that the README does not name fails here."""

import re
from pathlib import Path

import pytest
import typer.main

from infer_scaffold import cli
from infer_scaffold.questions import PRESETS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def flags() -> list[str]:
    command = typer.main.get_command(cli.app)
    new = command.commands["new"]  # type: ignore[attr-defined]
    return [option for parameter in new.params for option in parameter.opts if option[:2] == "--"]


@pytest.mark.parametrize("flag", flags())
def test_every_flag_of_new(flag: str) -> None:
    assert f"`{flag}`" in README


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(preset: str) -> None:
    assert f"`{preset}`" in README
    assert (ROOT / "generated_examples" / preset).is_dir()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^    make (\w+)", README, re.M))))
def test_every_make_target_that_is_promised(command: str) -> None:
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text("utf-8"), re.M)


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"^\| `([a-z_]+(?:\.py|/))`", README, re.M)))
)
def test_every_file_that_is_explained(name: str) -> None:
    assert list((ROOT / "generated_examples" / "full").rglob(name.rstrip("/")))
