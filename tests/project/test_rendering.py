"""The quick renderings are copier's."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from infer_scaffold.project import generate, questions, template
from infer_scaffold.project.answers_file import ANSWERS_FILE
from infer_scaffold.project.rendering import Renderer

ANSWERS: dict[str, dict[str, Any]] = {
    **questions.PRESETS,
    "quoted": {"description": 'Says "hello" - é \\o/ {{ x }}', "devices": ["cpu"]},
    "no streams": {"endpoints": ["chat"], "streaming": "none", "devices": ["mps"]},
    "a name as of a file": {"project_name": "my-batches", "endpoints": ["health"]},
    "a name as of a folder": {"project_name": "deploy", "devices": ["mps"]},
    "own models": {"chat_model": "/models/chat", "heartbeat_seconds": 0},
}
THEIRS = {"custom.py", "custom_settings.py", "docker-setup.sh", ".gitattributes", ANSWERS_FILE}


@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS)
def test_as_copier_renders(answers: dict[str, Any], tmp_path: Path) -> None:
    project = tmp_path / "project"
    generate.render({"project_name": "my-server", **answers}, project)
    recorded = yaml.safe_load((project / ANSWERS_FILE).read_text())

    rendered = Renderer(template.root()).render(
        {name: answer for name, answer in recorded.items() if not name.startswith("_")}
    )

    assert rendered == {
        name: (project / name).read_bytes()
        for name in generate.list_files(project)
        if Path(name).name not in THEIRS
    }
