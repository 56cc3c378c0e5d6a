"""The presets type-check, and a variant lists the dependencies that it uses and no others."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from infer_scaffold.project import generate
from infer_scaffold.project.questions import PRESETS, Answers
from tests.examples import FOLDER
from tests.template.test_boot import name_of
from tests.template.test_matrix import CHOICES, subsets

PROVIDED = {
    "fastapi": {"fastapi", "starlette"},
    "jinja2": {"jinja2"},
    "llguidance": {"llguidance"},
    "obstore": {"obstore"},
    "openai": {"openai"},
    "prometheus-client": {"prometheus_client"},
    "pydantic": {"pydantic"},
    "pydantic-settings": {"pydantic_settings"},
    "pypdfium2": {"pypdfium2"},
    "threadpoolctl": {"threadpoolctl"},
    "torch": {"torch"},
    "transformers": {"transformers", "tokenizers", "huggingface_hub", "safetensors", "tqdm"},
    "uvicorn": {"uvicorn"},
}
"""The modules of each dependency, and those of libraries that it installs in matching versions."""

OPTIONAL = {"opentelemetry", "peft", "ray", "torchao"}
"""Modules that a setting needs, and that its refusal names where they are missing"""

BEHIND = {
    "fastapi-offline": r'"fastapi_offline"',
    "pillow": r"\.to_pil\(",
    "python-multipart": r"\bForm\(",
}
"""Dependencies that another library imports, and the code that makes it do so."""

VARIANTS: list[Answers] = [{"endpoints": list(some)} for some in subsets(CHOICES["endpoints"])]
VARIANTS += [{**some, "streaming": "none"} for some in VARIANTS if "chat" in some["endpoints"]]
VARIANTS += [{"endpoints": ["files"], "deploy": ["ray"]}]


# One test, as most of the time goes into the types of the libraries, which all presets share.
def test_the_presets_type_check(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    for preset in PRESETS:
        result = subprocess.run(
            command, cwd=FOLDER / preset, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{preset}:\n{result.stdout}{result.stderr}"


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_the_dependencies_are_what_is_imported(variant: Answers, tmp_path: Path) -> None:
    generate.render({"project_name": "myserver", **variant}, tmp_path)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    listed = {re.split(r"[\[><=~!;\s]", entry)[0] for entry in project["dependencies"]}
    assert listed <= PROVIDED.keys() | BEHIND.keys(), "what is the new dependency imported as?"

    sources = [path.read_text() for path in sorted((tmp_path / "src").rglob("*.py"))]
    imported = set().union(*map(imports, sources)) - {"myserver"} - sys.stdlib_module_names
    imported -= OPTIONAL
    used = {name for name, modules in PROVIDED.items() if modules & imported}
    used |= {name for name, code in BEHIND.items() if re.search(code, "\n".join(sources))}

    assert listed == used
    assert imported <= set().union(*PROVIDED.values()), "imported without a dependency"


@cache
def imports(source: str) -> set[str]:
    """The top-level names of the packages that a module imports, wherever it does.

    Most modules are those of another variant.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found
