"""generated_examples/ holds what the presets render now."""

from pathlib import Path

import pytest

from infer_scaffold.project import generate
from infer_scaffold.project.questions import PRESETS
from tests.examples import FOLDER, render_preset


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in generate.list_files(folder)}


def test_there_is_an_example_of_every_preset_and_no_other() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_example_is_what_the_preset_renders(preset: str, tmp_path: Path) -> None:
    render_preset(preset, tmp_path / preset)
    expected, example = contents(tmp_path / preset), contents(FOLDER / preset)

    # Names first, then one file at a time: a difference of everything is unreadable.
    hint = "run `make examples`"
    assert sorted(example) == sorted(expected), hint
    assert [name for name in expected if example[name] != expected[name]] == [], hint
