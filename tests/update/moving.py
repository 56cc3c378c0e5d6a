"""A template that has moved most of its modules: the present one, as far as it has not yet."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from packaging.version import Version

from infer_scaffold.moves import Move, is_imported

SUFFIX = ".jinja"
NAME = "{{ package_name }}"  # in files
FOLDER = "src/{{package_name}}"  # in paths
IMPORT = re.compile(rf"^( *)from (\.[\w.]*|{re.escape(NAME)}[\w.]*) import (.*)$", re.MULTILINE)
DOTTED = re.compile(rf"{re.escape(NAME)}(?:\.\w+)+")
FOR_OLDER = "{{% if _copier_operation == 'copy' and _updating is not defined %}}{}{{% endif %}}"
REEXPORT = '''"""Moved to {place}: what imports it from here works until 1.0."""

import warnings

from {module} import *  # noqa: F403

warnings.warn(f"{{__name__}} has moved to {place}", DeprecationWarning, stacklevel=2)
'''
NOTE = '"""Moved to {place}."""\n'
Module = tuple[str, ...]


def row(folder: str, names: str, source: str = "src/*/models") -> dict[str, str]:
    """Rows that move modules into a folder below serving/, where some get another name."""
    pairs = [(name.split(">") * 2)[:2] for name in names.split()]
    return {f"{source}/{old}.py": f"src/*/serving/{folder}/{new}.py" for old, new in pairs}


MODULES = "tiny_chat tiny_embeddings uploads test_batching test_text test_sampling test_source"
ROWS = {
    **row("http", "errors middleware body protocol disconnect drain sse logs threads", "src/*"),
    **row("http", "background docs", "src/*"),
    **row("openai", "chat_answer chat_parts chat_stream", "src/*/routers"),
    **row("models", "__init__ base registry catalog admission device source>hub errors"),
    **row("chat", "chat>model prompt output text tools>tool_calls params"),
    **row("engine", "tokens>base batching>continuous generate>sequential batch_splitting"),
    **row("engine", "sampling grammar grammar_trial relaxing proof stall loading"),
    **row("engine", "transformers_private"),
    **row("embeddings", "embeddings>model encoder batcher>scheduler pooling"),
    "src/*/files/": "src/*/serving/files/",
    "tests/test_files*.py": "tests/serving/test_files*.py",
    **{f"tests/{name}.py": f"tests/serving/{name}.py" for name in MODULES.split()},
}
# A later version moves one of them on.
LATER = {"src/*/serving/engine/continuous.py": "src/*/serving/engine/batch.py"}


def move(source: Path, version: str, rows: Mapping[str, str]) -> None:
    """Move files of the template in `source`, and leave re-exports where they were."""
    folder = source / "template"
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    places = {}
    used = {}
    for old, new in rows.items():
        for file in files:
            place = Move(Version(version), old, new).place(file.removesuffix(SUFFIX))
            if place and not [each for each in files if each.removesuffix(SUFFIX) == place]:
                places[file] = place + SUFFIX * file.endswith(SUFFIX)
                used[old] = new
    _rewrite_imports(folder, files, places)
    for old, new in places.items():
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        (folder / old).rename(folder / new)
        (folder / old.removesuffix(SUFFIX)).write_text(_left(old, new))
    for new in places.values():
        for parent in PurePosixPath(new).parents[:-1]:
            if "serving" in parent.parts:
                (folder / parent / "__init__.py").touch()
    emptied = {str(PurePosixPath(old).parent) for old in places} - {
        str(PurePosixPath(file).parent) for file in files if file not in places
    }
    _exclude(source / "copier.yml", used, [each.replace(FOLDER, "src/*") for each in emptied])
    table = "".join(f'"{old}" = "{new}"\n' for old, new in used.items())
    with (source / "moves.toml").open("a") as moved:
        moved.write(f'\n["{version}"]\n{table}' if table else "")


def _left(old: str, new: str) -> str:
    place = new.removesuffix(SUFFIX).removeprefix(f"{FOLDER}/")
    if not is_imported(old.removesuffix(SUFFIX)) or old.endswith("__init__.py"):
        return NOTE.format(place=place)
    return REEXPORT.format(place=place, module=_relative(_module(old)[:-1], _module(new)))


def _exclude(config: Path, rows: Mapping[str, str], emptied: list[str]) -> None:
    """Hold the new paths to the conditions of the old ones, and keep re-exports for updates."""
    text = config.read_text()
    lines = [f'  - "{FOR_OLDER.format(path)}"\n' for path in (*rows, *emptied)]
    for old, new in rows.items():
        found = re.search(rf"^  - .*%}}{re.escape(old.rstrip('/'))}{{%.*\n", text, re.MULTILINE)
        if found:
            lines.append(found[0].replace(old.rstrip("/"), new.rstrip("/")))
    start = "_exclude:\n"
    config.write_text(text.replace(start, start + "".join(lines)))


def _module(file: str) -> Module:
    """The dotted name of a file of the template, in parts."""
    path = file.removesuffix(SUFFIX).replace(FOLDER, NAME).removesuffix(".py")
    return tuple(path.removesuffix("/__init__").split("/"))


def _relative(package: Module, module: Module) -> str:
    common = 0
    while package[common : common + 1] == module[common : common + 1] != ():
        common += 1
    return "." * (len(package) - common + 1) + ".".join(module[common:])


def _rewrite_imports(folder: Path, files: list[str], places: Mapping[str, str]) -> None:
    """Let every module import the others from where they are going to be."""
    moved = {_module(old): _module(new) for old, new in places.items()}
    for file in files:
        if ".py" not in file:
            continue
        before, after = (
            _module(each) if "__init__" in each else _module(each)[:-1]
            for each in (file, places.get(file, file))
        )

        def rewrite(found: re.Match[str], before: Module = before, after: Module = after) -> str:
            indent, name, names = found.groups()
            dots = len(name) - len(name.lstrip("."))
            named = tuple(part for part in name.lstrip(".").split(".") if part)
            module = before[: len(before) + 1 - dots] + named if dots else named
            lines: dict[str, list[str]] = {}
            for each in names.split(", ") if "(" not in names and "{{" not in names else [names]:
                imported, _, alias = each.partition(" as ")
                place = moved.get((*module, imported))
                if place is None:
                    home, each = moved.get(module, module), each
                else:
                    home = place[:-1]
                    alias = alias or imported
                    each = place[-1] if alias == place[-1] else f"{place[-1]} as {alias}"
                where = _relative(after, home) if dots else ".".join(home)
                lines.setdefault(where, []).append(each)
            return "\n".join(
                f"{indent}from {where} import {', '.join(each)}" for where, each in lines.items()
            )

        def replace(found: re.Match[str]) -> str:
            module = tuple(found[0].split("."))
            for end in range(len(module), 0, -1):
                if module[:end] in moved:
                    return ".".join(moved[module[:end]] + module[end:])
            return found[0]

        text = IMPORT.sub(rewrite, (folder / file).read_text())
        (folder / file).write_text(DOTTED.sub(replace, text))
