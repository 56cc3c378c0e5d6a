"""Who may import what in a generated service."""

import ast
from pathlib import Path

from infer_scaffold import generate
from infer_scaffold.questions import PRESETS


def test_one_module_touches_the_inside_of_transformers(tmp_path: Path) -> None:
    generate.render({"project_name": "svc", **PRESETS["full"]}, tmp_path / "svc")
    found = {
        module.stem
        for module in (tmp_path / "svc" / "src").rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("transformers.generation.continuous_batching")
    }
    assert found == {"transformers_private"}
