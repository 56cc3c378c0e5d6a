"""`infer-scaffold check` in pipelines: thresholds, changes, groups, the action, old Pythons."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infer_scaffold.check import newer_syntax
from infer_scaffold.checklist import BY_CODE, Severity
from tests.conftest import Run

ROOT = Path(__file__).parents[2]
SERVICE = """\
import time

from fastapi import FastAPI

app = FastAPI()


@app.get("/v1/models")
async def models():
    time.sleep(1)
    return {"object": "list", "data": []}
"""


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=T", "-c", "user.email=t@localhost"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def service(folder: Path) -> Path:
    (folder / "app").mkdir()
    (folder / "app" / "main.py").write_text(SERVICE)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Begin")
    return folder


@pytest.mark.parametrize(
    ("select", "fail_on", "code"),
    [
        ("IS601", "high", 0),
        ("IS601", "medium", 0),
        ("IS601", "low", 1),
        ("IS203", "high", 0),
        ("IS203", "medium", 1),
        ("IS203", "low", 1),
        ("IS201", "high", 1),
        ("IS201", "low", 1),
    ],
)
def test_the_severity_that_fails(
    select: str, fail_on: str, code: int, service: Path, run: Run
) -> None:
    given = run("check", "app", "--select", select, "--fail-on", fail_on)
    (service / "pyproject.toml").write_text(f'[tool.infer-scaffold]\nfail-on = "{fail_on}"\n')
    set_ = run("check", "app", "--select", select)

    assert (given.code, set_.code) == (code, code)
    assert f": {select} " in given.out


def test_the_cases_have_each_severity() -> None:
    assert [BY_CODE[code].severity for code in ("IS201", "IS203", "IS601")] == list(Severity)


def test_a_severity_that_there_is_not(service: Path, run: Run) -> None:
    (service / "pyproject.toml").write_text('[tool.infer-scaffold]\nfail-on = "severe"\n')

    outcome = run("check", "app")

    assert outcome.code == 2
    assert "fail-on: choose from high, medium, low." in outcome.err


def test_a_file_that_cannot_be_read_fails_at_any_severity(service: Path, run: Run) -> None:
    (service / "app" / "broken.py").write_text("import fastapi\nx = = 1\n")

    assert run("check", "app", "--select", "IS702", "--fail-on", "high").code == 1


def test_equal_findings_are_shown_once(service: Path, run: Run) -> None:
    body = "".join(
        f"\n@app.get('/x{n}')\nasync def x{n}():\n    time.sleep({n})\n" for n in range(3)
    )
    (service / "app" / "main.py").write_text(SERVICE + body)
    (service / "app" / "other.py").write_text(SERVICE)

    lines = run("check", "app", "--select", "IS201").out.splitlines()

    assert lines[:5] == [
        "app/main.py:10:5: IS201 `time.sleep` sleeps on the event loop.",
        "    | time.sleep(1)",
        "    Give it to a thread with `await asyncio.to_thread(...)`, or use an async library.",
        "    The same at 4 further places:",
        "      app/main.py:15, 19, 23",
    ]
    assert lines[5] == "      app/other.py:10"


def test_paths_are_those_of_the_repository(
    service: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(service / "app")

    github = run("check", "--format", "github", "--select", "IS201").out
    sarif = json.loads(run("check", "--format", "sarif", "--select", "IS201").out)
    text = run("check", "--select", "IS201").out

    assert github.startswith("::error file=app/main.py,line=10,")
    (result,) = sarif["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]["artifactLocation"]
    assert place == {"uri": "app/main.py"}
    assert text.startswith("main.py:10:5: ")


def test_only_what_has_changed(service: Path, run: Run) -> None:
    git(service, "switch", "-qc", "change")
    file = service / "app" / "main.py"
    file.write_text(SERVICE + '\n@app.get("/x")\nasync def x():\n    time.sleep(2)\n')

    before = run("check", "app", "--diff", "HEAD", "--select", "IS2", "--format", "json")
    git(service, "commit", "-qam", "Change")
    (service / "app" / "größe.py").write_text(SERVICE)
    after = run("check", "app", "--diff", "main", "--select", "IS2", "--format", "json")
    text = run("check", "app", "--diff", "main", "--select", "IS201").out

    def places(out: str) -> set[tuple[str, int]]:
        patterns = json.loads(out)["patterns"]
        return {(each["path"], each["line"]) for found in patterns for each in found["findings"]}

    assert places(before.out) == {("main.py", 15)}
    assert places(after.out) == {("main.py", 15), ("größe.py", 10)}
    assert "1 findings are on lines that have not changed." in text


def test_nothing_has_changed(service: Path, run: Run) -> None:
    outcome = run("check", "app", "--diff", "main")

    assert outcome.code == 0
    assert ": IS" not in outcome.out


@pytest.mark.parametrize("base", ["missing", "--output=x", "HEAD..", ""])
def test_a_base_that_there_is_not(base: str, service: Path, run: Run) -> None:
    outcome = run("check", "app", "--diff", base)

    assert (outcome.code, outcome.out) == (2, "")
    assert "give --diff a branch or a commit that is there" in outcome.err
    assert not (service / "app" / "x").exists()


def test_the_action_passes_its_inputs_on(service: Path, tmp_path: Path) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    check = action["runs"]["steps"][-1]
    tool = tmp_path / "infer-scaffold" / "bin" / "infer-scaffold"
    tool.parent.mkdir(parents=True)
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m infer_scaffold "$@"\n')
    tool.chmod(0o755)
    inputs = {name: each["default"] for name, each in action["inputs"].items()}

    def run(**given: str) -> subprocess.CompletedProcess[str]:
        values = inputs | {name.replace("_", "-"): value for name, value in given.items()}
        variables = {
            name: values[reference.removeprefix("${{ inputs.").removesuffix(" }}")]
            for name, reference in check["env"].items()
        }
        environment = os.environ | variables | {"RUNNER_TEMP": str(tmp_path)}
        environment["PYTHONPATH"] = str(ROOT / "src")
        command = ["bash", "-eo", "pipefail", "-c", check["run"]]
        return subprocess.run(
            command, cwd=service, env=environment, capture_output=True, text=True, check=False
        )

    found = run(path="app", select="IS201")
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout.startswith("::error file=app/main.py,line=10,")
    assert run(path="app", select="IS601,IS203", fail_on="high").returncode == 0
    assert run(path="app", diff="main", profile="strict", ignore="IS1").returncode == 0
    assert run(path="app", format="sarif", output="check.sarif").returncode == 1
    assert json.loads((service / "check.sarif").read_text())["version"] == "2.1.0"
    assert set(check["env"]) == {f"CHECK_{name.upper().replace('-', '_')}" for name in inputs}


NEWER = """
import time
from fastapi import FastAPI
app = FastAPI()
type Pair[T] = tuple[T, T]
type Name = str
class Box[T: (int, str) = int]:
    def get[
        K,  # the key
        V: str,
    ](self, key: K) -> V: ...
@app.get("/x")
async def x[T](items: dict):
    note = f"{items["a"]} {f"{items["b"]}"} {'größe':>{items["width"]}} {{"
    text = f"{'\\n'.join(items)}"; time.sleep(1)
    try:
        return t"{items['a']}"
    except KeyError, ValueError:
        time.sleep(2)
"""


def test_newer_syntax_is_judged(service: Path, run: Run) -> None:
    (service / "app" / "newer.py").write_text(NEWER)

    outcome = run("check", "app", "--select", "IS201", "--format", "json")

    document = json.loads(outcome.out)
    assert document["unparsed"] == []
    found = [
        (each["line"], each["column"])
        for each in document["patterns"][0]["findings"]
        if each["path"] == "newer.py"
    ]
    assert found == [(15, 35), (19, 9)]


@pytest.mark.parametrize("file", sorted((ROOT / "src" / "infer_scaffold").rglob("*.py")), ids=str)
def test_older_syntax_is_left_as_it_is(file: Path) -> None:
    text = file.read_bytes()

    assert ast.dump(ast.parse(newer_syntax.rewritten(text))) == ast.dump(ast.parse(text))


def test_what_parses_of_a_broken_file_is_judged(service: Path, run: Run) -> None:
    broken = (
        SERVICE + "\ndef broken(:\n    pass\n\n\n@app.get('/y')\nasync def y():\n    open('y')\n"
    )
    (service / "app" / "main.py").write_text(broken)

    outcome = run("check", "app", "--select", "IS201", "--format", "json")

    document = json.loads(outcome.out)
    assert [each["line"] for each in document["patterns"][0]["findings"]] == [10, 19]
    assert [each["line"] for each in document["unparsed"]] == [13]
    assert outcome.err.startswith("main.py:13 could not be read")


@pytest.mark.parametrize("name", ["docs", "examples", "benchmarks", "tests"])
def test_folders_that_are_not_the_service(name: str, service: Path, run: Run) -> None:
    (service / "app" / name / "inner").mkdir(parents=True)
    (service / "app" / name / "inner" / "main.py").write_text(SERVICE)

    whole = run("check", "app", "--select", "IS201", "--format", "json")
    asked = run("check", f"app/{name}", "--select", "IS201", "--format", "json")

    def paths(out: str) -> list[str]:
        return [each["path"] for each in json.loads(out)["patterns"][0]["findings"]]

    assert paths(whole.out) == ["main.py"]
    assert paths(asked.out) == ["inner/main.py"]
