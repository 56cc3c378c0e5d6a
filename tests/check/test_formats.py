"""Formats for other programs: SARIF, GitHub's annotations, pre-commit's manifest."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from infer_scaffold.checklist import PATTERNS
from tests.conftest import Run

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "tests/node/node_modules/@microsoft/jest-sarif/lib/schemas"
SERVICE = """\
import time

from fastapi import FastAPI

app = FastAPI()


@app.get("/v1/models")
async def models():
    note = "größe 100%"; time.sleep(1)
    return {"object": "list", "data": []}
"""


@pytest.fixture
def service(folder: Path) -> Path:
    inner = folder / "a service"
    inner.mkdir()
    (inner / "main.py").write_text(SERVICE)
    (inner / "newer.py").write_text("x = 1\ny = x x\n")
    return folder


def sarif(run: Run, *arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run("check", *arguments, "--format", "sarif").out)
    (schema,) = SCHEMAS.glob("sarif-2.1.0*.json")
    jsonschema.Draft4Validator(json.loads(schema.read_text())).validate(document)
    (log,) = document["runs"]
    return dict(log)


def test_sarif(service: Path, run: Run) -> None:
    log = sarif(run, "a service")

    rules = log["tool"]["driver"]["rules"]
    assert [each["id"] for each in rules] == [p.code for p in PATTERNS]
    assert [each["fullDescription"]["text"] for each in rules] == [p.why for p in PATTERNS]
    assert [each["help"] for each in rules] == [
        {"text": p.fix, "markdown": p.page} for p in PATTERNS
    ]
    (blocking,) = (each for each in log["results"] if each["ruleId"] == "IS201")
    rule = log["tool"]["driver"]["rules"][blocking["ruleIndex"]]
    assert (rule["id"], blocking["level"]) == ("IS201", "error")
    (place,) = blocking["locations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "a%20service/main.py"
    assert place["physicalLocation"]["region"] == {
        "startLine": 10,
        # In characters, though the line has more bytes.
        "startColumn": 26,
        "snippet": {"text": '    note = "größe 100%"; time.sleep(1)'},
    }
    (notification,) = log["invocations"][0]["toolExecutionNotifications"]
    assert "could not be read" in notification["message"]["text"]
    assert log["properties"]["verdicts"]["IS702"] == "pass"


def test_a_result_keeps_its_fingerprint_when_it_moves(service: Path, run: Run) -> None:
    def fingerprints() -> set[str]:
        results = sarif(run, "a service")["results"]
        assert results
        found = {each["partialFingerprints"]["codePathLineText/v1"] for each in results}
        assert len(found) == len(results)
        return found

    before = fingerprints()
    file = service / "a service" / "main.py"
    file.write_text(file.read_text().replace("app =", "\nLIMIT = 3\napp ="))

    assert fingerprints() == before


def test_sarif_of_a_service_that_follows_all(run: Run) -> None:
    example = ROOT / "generated_examples" / "full"

    log = sarif(run, str(example), "--profile", "strict")

    assert log["results"] == []
    assert log["invocations"][0]["executionSuccessful"]


def test_github(service: Path, run: Run) -> None:
    outcome = run("check", "a service", "--format", "github", "--select", "IS201,IS701")

    lines = outcome.out.splitlines()
    assert outcome.code == 1
    assert lines[0].startswith(
        "::error file=a service/main.py,line=10,col=26,title=IS201 Async route handlers"
        "::`time.sleep` sleeps on the event loop."
    )
    assert lines[1].startswith("::warning file=a service/main.py,line=5,col=7,title=IS701 ")
    assert lines[2].startswith("::error file=a service/newer.py,line=2,title=Not judged::")
    assert lines[3] == "0 of 2 patterns are followed."


def test_github_escapes(folder: Path, run: Run) -> None:
    (folder / "a,b:c%").mkdir()
    (folder / "a,b:c%" / "main.py").write_text(SERVICE)

    out = run("check", "--format", "github", "--select", "IS201").out

    assert "file=a%2Cb%3Ac%25/main.py," in out


def test_the_hook_of_pre_commit(service: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    program, *arguments = hook["entry"].split()
    assert (program, hook["pass_filenames"]) == ("infer-scaffold", False)

    command = [sys.executable, "-m", "infer_scaffold", *arguments, "a service"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)

    assert outcome.returncode == 1
    assert "a service/main.py:10:26: IS201" in outcome.stdout.replace("\x1b[1m", "")
