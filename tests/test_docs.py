"""A flag, a preset or a make target that the README does not name fails here."""

import re
from pathlib import Path

import pytest
import typer.main

from infer_scaffold import cli, generate
from infer_scaffold.questions import PRESETS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


def flags() -> set[str]:
    parameters = [parameter for command in COMMANDS.values() for parameter in command.params]
    return {option for each in parameters for option in each.opts if option[:2] == "--"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(command: str) -> None:
    assert f"    infer-scaffold {command} " in README


@pytest.mark.parametrize("flag", sorted(flags()))
def test_every_flag(flag: str) -> None:
    assert re.search(rf"`{flag}[` ]", README)


def test_how_many_files_the_transcript_counts(tmp_path: Path) -> None:
    files = generate.preview(tmp_path / "myserver", cli.QUESTIONS, {"devices": ["cpu"]})

    assert f"    Created .demo/myserver ({len(files)} files, first commit on main)." in README


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
