"""serving/ is the template's: its folders import downwards only, and it is the same everywhere."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from infer_scaffold.project import generate, template
from infer_scaffold.project.questions import PRESETS

LAYERS = [["batches"], ["chat", "embeddings", "files"], ["engine"], ["models"], ["http"]]
SHARED = ["metrics", "threads", "background", "deadline"]
"""Modules beside the folders of serving/"""
READ_SETTINGS = ["chat", "embeddings"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("layers") / "full"
    generate.render({"project_name": "full-server", **PRESETS["full"]}, project)
    return project / "src" / "full_server"


def imports(module: Path, package: Path) -> set[str]:
    """The full names of what a module imports, wherever in it."""
    found = set()
    parents = module.relative_to(package.parent).parent.parts
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) + 1 - node.level] if node.level else ()
            name = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{name}.{alias.name}" for alias in node.names}
    return found


def test_imports_point_down(package: Path) -> None:
    serving = f"{package.name}.serving"
    found = []
    for module in sorted((package / "serving").rglob("*.py")):
        part = module.relative_to(package / "serving").parts[0].removesuffix(".py")
        depth = next((d for d, layer in enumerate(LAYERS) if part in layer), len(LAYERS))
        below = [part, *(name for layer in LAYERS[depth + 1 :] for name in layer)]
        allowed = [f"{serving}.{each}." for each in below + SHARED]
        if part in READ_SETTINGS:
            allowed.append(f"{package.name}.settings.")
        for name in sorted(imports(module, package)):
            if name.startswith(f"{package.name}.") and not f"{name}.".startswith(tuple(allowed)):
                found.append(f"{module.relative_to(package)} imports {name}")
    assert found == []


def test_one_module_touches_the_insides_of_transformers(package: Path) -> None:
    inside = "transformers.generation.continuous_batching"
    modules = {m.stem for m in package.rglob("*.py") if inside in "\n".join(imports(m, package))}
    assert modules == {"transformers_private"}


def test_one_module_reads_private_attributes(package: Path) -> None:
    """Of objects of libraries: those of its own it reads on `self` and `cls`."""
    found = []
    for module in (package / "serving").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            # torch registers operators under names that may begin with an underscore.
            if (
                isinstance(node, ast.Attribute)
                and re.match("_(?!replace)[a-z]", node.attr)
                and not re.match(r"(self|cls)\b|torch\.ops\.", ast.unparse(node.value))
            ):
                found.append(f"{module.stem}: {ast.unparse(node)}")
    assert found
    assert [each for each in found if not each.startswith("transformers_private: ")] == []


def test_serving_is_the_same_in_every_service(package: Path, tmp_path: Path) -> None:
    common = 0
    for preset in PRESETS:
        generate.render({"project_name": f"x-{preset}", **PRESETS[preset]}, tmp_path / preset)
        serving = tmp_path / preset / "src" / f"x_{preset}" / "serving"
        for file in serving.rglob("*.*"):
            ours = package / "serving" / file.relative_to(serving)
            assert file.read_bytes() == ours.read_bytes(), ours
            common += 1
    assert common > 100


def test_names_are_unique(package: Path) -> None:
    found = [m for m in package.rglob("*.py") if m.stem != "__init__"]
    # A router and the schemas of its requests have the name of their endpoint.
    modules = Counter(m.stem for m in found if m.parent.name != "schemas")
    definitions = Counter(
        node.name
        for module in found
        for node in ast.parse(module.read_text()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name != "main"  # of the programs
    )
    for names in (modules, definitions):
        assert [name for name, count in names.items() if count > 1] == []


def test_the_map_names_every_module_and_no_class_that_does_not_exist(package: Path) -> None:
    serving = package / "serving"
    text = (serving / "README.md").read_text()
    tree = text.partition("```\n")[2].partition("```")[0]
    listed = re.findall(r"^(?:  )?([a-z_]+)(?=  )", tree, re.M)
    assert sorted(listed) == sorted(m.stem for m in serving.rglob("*.py") if m.stem != "__init__")

    code = "\n".join(module.read_text() for module in package.rglob("*.py"))
    classes = set(re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", text))
    assert {name for name in classes if f"class {name}" not in code} == set()


def test_docstrings_name_the_thing_first(package: Path) -> None:
    texts = {module: module.read_text() for module in package.rglob("*.py")}
    begin = re.compile(r'"""(?:What|How|Which|Whether|Who|Where)\b.*')
    found = [f"{m.name}: {line}" for m, text in texts.items() for line in begin.findall(text)]
    assert found == []


def test_few_files_have_a_condition() -> None:
    entries = yaml.safe_load((template.root() / "copier.yml").read_text())["_exclude"]
    lines = [line for entry in entries if "{%" in entry for line in entry.splitlines()]
    assert 0 < len([line for line in lines if not line.strip().startswith("{%")]) < 50
