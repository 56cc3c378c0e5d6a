"""The tests of a generated project pass, and need no network."""

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from infer_scaffold.project.questions import PRESETS, Answers
from tests.conftest import CopyRendering

# Python imports a module of this name at its start, here in the tests and in the servers that
# they start. What is refused is what a machine without a network refuses, only sooner.
OFFLINE = """\
import socket
import sys


def refuse(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
        host = arguments[1][0]
    else:
        return
    if host not in ("localhost", "127.0.0.1", "::1", None):
        raise OSError(f"the network is off: {host}")


sys.addaudithook(refuse)
"""

VARIANTS: dict[str, Answers] = {
    "full": PRESETS["full"],
    "minimal": PRESETS["minimal"],
    "no-streaming": {"endpoints": ["chat"], "streaming": "none"},
}

ONLY_OTHERS = ("no-streaming",)
"""Variants of whose tests of serving/ only those run that are not those of `full`, word by word:
serving/ is the same in every service, and these tests take minutes."""

SECONDS = 1800
# A test that hangs shows where, before this process gives up.
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=200")


def run(project: Path, offline: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a project, with its sources to import and without a network."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INFER_")}
    path = os.pathsep.join([str(offline), str(project / "src")])
    try:
        return subprocess.run(
            [sys.executable, *arguments],
            env=kept | {"PYTHONPATH": path},
            cwd=project,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        pytest.fail(f"not through after {SECONDS} s:\n{(expired.stdout or b'').decode()}")


@pytest.fixture
def offline(tmp_path: Path) -> Path:
    folder = tmp_path / "offline"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(OFFLINE)
    return folder


def modules_of(project: Path) -> list[str]:
    found = (project / "tests").rglob("test_*.py")
    return sorted(path.relative_to(project).as_posix() for path in found)


def definitions(source: str) -> dict[str, tuple[str, set[str]]]:
    """The text of each definition at the top of a module, and the names that stand in it."""
    found = {}
    for node in ast.parse(source).body:
        text = ast.get_source_segment(source, node) or ""
        decorators = "".join(ast.unparse(each) for each in getattr(node, "decorator_list", []))
        used = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        used |= {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}  # fixtures
        name = getattr(node, "name", "")
        defined = [name] if name else [each for each in used if each.isupper()]
        found |= dict.fromkeys(defined, (decorators + text, used))
    return found


def other_tests(source: str, other: str) -> list[str]:
    """The tests of a module that another version of it lacks, or that use what it has otherwise."""
    here, there = definitions(source), definitions(other)
    changed = {name for name, (text, _) in here.items() if there.get(name, ("",))[0] != text}
    while more := {name for name, (_, used) in here.items() if used & changed} - changed:
        changed |= more
    return [name for name in here if name in changed and name.startswith("test_")]


def to_run(module: str, project: Path, full: Path) -> list[str]:
    """What of a module is not among the tests of another project."""
    source, other = (project / module).read_text(), full / module
    if not module.startswith("tests/serving/") or not other.exists():
        return [module]
    return [f"{module}::{test}" for test in other_tests(source, other.read_text())]


# Each in one process, as the owner runs them: models, services and libraries are loaded once.
@pytest.mark.parametrize("name", VARIANTS)
def test_the_generated_tests_pass_offline(
    name: str, offline: Path, tmp_path: Path, copy_rendering: CopyRendering
) -> None:
    project = tmp_path / "project"
    copy_rendering({"project_name": "myserver", **VARIANTS[name]}, project)
    modules = modules_of(project)
    if name in ONLY_OTHERS:
        copy_rendering({"project_name": "myserver", **VARIANTS["full"]}, tmp_path / "full")
        collected = run(project, offline, *PYTEST, "--collect-only", *modules)
        assert collected.returncode == 0, collected.stdout
        modules = [test for each in modules for test in to_run(each, project, tmp_path / "full")]

    result = run(project, offline, *PYTEST, *modules)

    assert result.returncode == 0, result.stdout


def test_tests_that_are_those_of_others_are_left_out() -> None:
    here = """
STREAMS = False
LIMIT = 3
def ask(): return STREAMS
@pytest.mark.parametrize("a", [1])
def test_same(): assert LIMIT
@pytest.mark.parametrize("a", [1])
def test_decorated(): assert LIMIT
def test_helper(): ask()
@pytest.fixture
def service(): ask()
def test_fixture(service): pass
def test_new(): pass
"""
    there = here.replace("False", "True").replace("def test_new", "def test_old")
    there = there.replace("[1])\ndef test_decorated", "[2])\ndef test_decorated")
    assert other_tests(here, there) == [
        "test_decorated",
        "test_helper",
        "test_fixture",
        "test_new",
    ]
    assert other_tests(here, here) == []


def test_settings_of_one_s_own_break_no_test(
    offline: Path, tmp_path: Path, copy_rendering: CopyRendering
) -> None:
    project = tmp_path / "project"
    copy_rendering({"project_name": "myserver", **PRESETS["minimal"]}, project)
    module = project / "src" / "myserver" / "custom_settings.py"
    example = re.search(r"^    from pydantic import.*?(?=^\"\"\")", module.read_text(), re.M | re.S)
    assert example is not None
    # What the file says, and a field without a word on it.
    module.write_text(textwrap.dedent(example[0]) + "    times: int = 3\n")

    modules = ("tests/test_settings.py", "tests/test_readme.py")
    result = run(project, offline, *PYTEST, "-k", "not own_model", *modules)
    assert result.returncode == 0, result.stdout

    script = "from myserver.settings import Settings, misspelt; s = Settings(); print("
    script += "s.greeting, s.times, list(misspelt()))"
    (project / ".env").write_text("INFER_GREETING=hi\nINFER_TIMES=4\nINFER_TIME=5\n")
    said = run(project, offline, "-c", script).stdout
    assert said == "hi 4 ['there is no setting INFER_TIME; did you mean INFER_TIMES?']\n"


def test_offline_is_offline(offline: Path, tmp_path: Path) -> None:
    for url in ("https://huggingface.co", "http://192.0.2.1"):
        script = f"import urllib.request; urllib.request.urlopen('{url}', timeout=5)"
        result = run(tmp_path, offline, "-c", script)
        assert "the network is off" in result.stdout
