"""The folders of the tool: imports point one way, and each module has a name of its own."""

from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import infer_scaffold
from tests.template.test_layers import imports

PACKAGE = Path(infer_scaffold.__file__).parent
LAYERS = [
    ["__main__"],
    ["cli"],
    ["fleet"],
    ["project", "check", "probe"],
    ["checklist", "git", "reading", "visible"],
    ["errors"],
]
"""From the command line down to what all share. Parts in one layer do not know each other."""


def test_imports_point_down() -> None:
    layer = {part: depth for depth, parts in enumerate(LAYERS) for part in parts}
    modules = {dotted(file): file for file in PACKAGE.rglob("*.py")}
    assert {part_of(module) for module in modules} == layer.keys() | {""}
    found = []
    for module, needed in graph(modules).items():
        for each in needed:
            ours, theirs = part_of(module), part_of(each)
            if ours != theirs and theirs and not layer[ours] < layer[theirs]:
                found.append(f"{module} imports {each}")
    assert found == []


def test_no_imports_go_in_circles() -> None:
    modules = {dotted(file): file for file in PACKAGE.rglob("*.py")}
    TopologicalSorter(graph(modules)).prepare()  # raises CycleError


def test_names_are_unique() -> None:
    names = Counter(file.stem for file in PACKAGE.rglob("*.py") if file.stem != "__init__")
    assert [name for name, count in names.items() if count > 1] == []


def graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """The modules of the tool that each module imports, wherever in it."""
    found: dict[str, set[str]] = {}
    for module, file in modules.items():
        names = imports(file, PACKAGE)
        # `from package import name`: the module of that name, or a name in the package.
        near = {name if name in modules else name.rpartition(".")[0] for name in names}
        found[module] = near & modules.keys() - {module}
    return found


def dotted(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """The folder of the tool that a module is in, or the module beside the folders."""
    return module.partition(".")[2].partition(".")[0]
