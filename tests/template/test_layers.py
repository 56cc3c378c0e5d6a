"""The imports of a generated service, and the map of its modules."""

import ast
import re
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


def test_the_map_names_every_module_and_no_class_that_does_not_exist(tmp_path: Path) -> None:
    generate.render({"project_name": "svc", **PRESETS["full"]}, tmp_path / "svc")
    package = tmp_path / "svc" / "src" / "svc"
    text = (tmp_path / "svc" / "docs" / "architecture.md").read_text()
    tree = text.partition("```\n")[2].partition("```")[0]
    listed = re.findall(r"^(?:  )?([a-z_]+)(?=  )", tree, re.M)
    folders = (package, package / "models", package / "files")
    owners = {"__init__", "__main__", "app", "custom", "custom_settings", "dependencies", "settings"}
    modules = [module.stem for folder in folders for module in folder.glob("*.py")]
    assert sorted(listed) == sorted(name for name in modules if name not in owners)

    code = "\n".join(module.read_text() for module in package.rglob("*.py"))
    classes = set(re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", text))
    assert {name for name in classes if f"class {name}" not in code} == set()
