"""A template that has moved one of its modules once more."""

from collections.abc import Mapping
from pathlib import Path

from tests.update.edits import change

FOLDER = "src/{{package_name}}"  # in paths
# To be moved from where an earlier version has moved it.
LATER = {"serving/engine/continuous": "serving/engine/batch"}
LEFT = (
    "{% from 'moved.jinja' import left with context %}"
    "{% yield file from left %}{{ file.path }}{% endyield %}.jinja"
)


def move(source: Path, version: str, modules: Mapping[str, str]) -> None:
    """Move modules of the template in `source` within their folders, and leave re-exports there."""
    package = source / "template" / FOLDER
    for old, new in modules.items():
        (package / f"{old}.py").rename(package / f"{new}.py")
        old_name, new_name = (Path(each).name for each in (old, new))
        dotted_old, dotted_new = (each.replace("/", ".") for each in (old, new))
        for file in (source / "template").rglob("*.py*"):
            text = file.read_text()
            text = text.replace(f"from .{old_name} import", f"from .{new_name} import")
            file.write_text(text.replace(dotted_old, dotted_new))
        row = f'  (chat, "{old}.py", ["{dotted_new}"], {{}}),\n'
        change(source / "moved.jinja", "set modules = [\n", f"set modules = [\n{row}")
        with (source / "moves.toml").open("a") as table:
            table.write(f'\n["{version}"]\n"src/*/{old}.py" = "src/*/{new}.py"\n')
