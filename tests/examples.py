"""Render the presets into generated_examples/: `python -m tests.examples`."""

import shutil
from pathlib import Path

from infer_scaffold import __version__
from infer_scaffold.project import generate, questions

FOLDER = Path(__file__).parents[1] / "generated_examples"


def render_preset(preset: str, folder: Path) -> None:
    """Render one preset as a project that is called after it."""
    answers = {"project_name": f"{preset}-server", **questions.preset_answers(preset)}
    # Without the fingerprint, which every change of the template would change.
    generate.render(answers, folder, tag=f"v{__version__}")


def main() -> None:
    """Write every example again, so that what the template no longer has is gone."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    for preset in questions.PRESETS:
        render_preset(preset, FOLDER / preset)


if __name__ == "__main__":
    main()
