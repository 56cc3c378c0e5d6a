"""`infer-scaffold check` as its users meet it."""

import json
from pathlib import Path

import pytest

from tests.conftest import Run

SERVICE = """\
import time

from fastapi import FastAPI

app = FastAPI()


@app.get("/v1/models")
async def models():
    time.sleep(1)
    return {"object": "list", "data": []}
"""


@pytest.fixture
def service(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text(SERVICE)
    return tmp_path


def test_text_shows_place_line_and_fix(service: Path, run: Run) -> None:
    outcome = run("check", str(service))

    assert (outcome.code, outcome.err) == (1, "")
    lines = outcome.out.splitlines()
    place = lines.index(f"{service}/main.py:10:5: IS201 `time.sleep` sleeps on the event loop.")
    assert lines[place + 1] == "    | time.sleep(1)"
    assert "asyncio.to_thread" in lines[place + 2]
    assert "IS702  pass     Low     List of loaded models" in lines
    assert lines[-1] == "1 of 6 patterns are followed."


def test_json(service: Path, run: Run) -> None:
    patterns = json.loads(run("check", str(service), "--format", "json").out)["patterns"]

    (blocking,) = [each for each in patterns if each["code"] == "IS201"]
    assert (blocking["verdict"], blocking["severity"]) == ("fail", "High")
    assert blocking["findings"][0] | {"fix": ""} == {
        "path": "main.py",
        "line": 10,
        "column": 5,
        "severity": "High",
        "message": "`time.sleep` sleeps on the event loop.",
        "fix": "",
        "confidence": "high",
    }


@pytest.mark.parametrize(
    ("flags", "codes", "exit_code"),
    [
        (["--select", "IS702"], ["IS702"], 0),
        (["--select", "is7,IS101"], ["IS101", "IS701", "IS702"], 1),
        (["--select", "IS7", "--ignore", "IS701"], ["IS702"], 0),
    ],
)
def test_some_patterns(
    flags: list[str], codes: list[str], exit_code: int, service: Path, run: Run
) -> None:
    outcome = run("check", str(service), "--format", "json", *flags)

    assert outcome.code == exit_code
    assert [each["code"] for each in json.loads(outcome.out)["patterns"]] == codes


def test_a_file_that_does_not_parse_is_told(service: Path, run: Run) -> None:
    (service / "newer.py").write_text("def f[T](x: T) -> T:\n    return x x\n")

    outcome = run("check", str(service), "--select", "IS702")

    assert outcome.code == 1
    assert outcome.err.startswith("newer.py:")
    assert "could not be read, and is not judged" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing is no folder; give the folder of a service."),
        (["empty"], "has no FastAPI application; give the folder of a service."),
        (["--select", "XX1"], "--select: there is no 'XX1'; choose from IS101,"),
    ],
)
def test_refusals(arguments: list[str], message: str, folder: Path, run: Run) -> None:
    (folder / "empty").mkdir()
    (folder / "main.py").write_text(SERVICE)

    outcome = run("check", *arguments)

    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
