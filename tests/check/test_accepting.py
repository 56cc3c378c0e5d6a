"""Accepted findings: settings in pyproject.toml, comments, and the baseline."""

import json
from pathlib import Path

import pytest

from infer_scaffold.check.accepted import BASELINE_FILE
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
ONLY = ("--select", "IS201")


@pytest.fixture
def service(folder: Path) -> Path:
    (folder / "main.py").write_text(SERVICE)
    return folder


def sleeping(service: Path, comment: str) -> None:
    (service / "main.py").write_text(SERVICE.replace("time.sleep(1)", f"time.sleep(1)  {comment}"))


def test_a_comment_accepts_a_finding(service: Path, run: Run) -> None:
    sleeping(service, "# infer-scaffold: ignore[IS201] a test double")

    outcome = run("check", *ONLY)

    assert outcome.code == 0
    assert outcome.out.endswith(
        "1 of 1 patterns are followed. Accepted findings: 1 ignored by a comment.\n"
    )


def test_a_comment_alone_accepts_the_line_below(service: Path, run: Run) -> None:
    comment = "    # infer-scaffold: ignore[IS702, is201] a test double\n    time.sleep(1)"
    (service / "main.py").write_text(SERVICE.replace("    time.sleep(1)", comment))

    assert run("check", *ONLY).code == 0


@pytest.mark.parametrize(
    "comment",
    [
        "# infer-scaffold: ignore[IS101] another pattern",
        "# noqa",
        "; note = '# infer-scaffold: ignore[IS201] no comment'",
    ],
)
def test_what_accepts_nothing(comment: str, service: Path, run: Run) -> None:
    sleeping(service, comment)

    assert run("check", *ONLY).code == 1


def test_a_pattern_stays_unmet_while_a_finding_is_left(service: Path, run: Run) -> None:
    sleeping(service, "# infer-scaffold: ignore[IS201] this one\n    time.sleep(2)")

    (pattern,) = json.loads(run("check", *ONLY, "--format", "json").out)["patterns"]

    assert pattern["verdict"] == "fail"
    assert [each["line"] for each in pattern["findings"]] == [11]


def test_a_baseline_leaves_what_is_new(service: Path, run: Run) -> None:
    written = run("check", "--write-baseline")
    assert (written.code, written.err) == (0, "")
    assert written.out == f"Wrote 5 findings to {BASELINE_FILE}; commit it.\n"
    assert run("check").code == 0

    moved = (service / "main.py").read_text().replace("import time\n", "import time\n\nLIMIT = 1\n")
    (service / "main.py").write_text(moved)
    assert run("check").code == 0, "what moves is not new"

    (service / "main.py").write_text(moved.replace("time.sleep(1)", "time.sleep(1)\n    open('x')"))
    outcome = run("check", "--format", "json")
    (pattern,) = (each for each in json.loads(outcome.out)["patterns"] if each["verdict"] == "fail")
    assert outcome.code == 1
    assert [each["message"] for each in pattern["findings"]] == [
        "`open` reads or writes a file on the event loop."
    ]


def test_the_same_line_again_is_new(service: Path, run: Run) -> None:
    run("check", "--write-baseline")
    sleeping(service, "\n    time.sleep(1)")

    assert run("check", *ONLY).code == 1


def test_a_baseline_tells_when_it_is_stale(service: Path, run: Run) -> None:
    run("check", "--write-baseline")
    (service / "main.py").write_text(SERVICE.replace("    time.sleep(1)\n", ""))

    outcome = run("check")

    assert outcome.code == 0
    assert outcome.err == (
        "1 findings of the baseline are gone: write it anew with --write-baseline.\n"
    )
    assert run("check", "--select", "IS702").err == "", "not asked for, so not stale"


@pytest.mark.parametrize("content", ["", "[]", '{"findings": [{"code": "IS201"}]}', "\udcff"])
def test_a_broken_baseline(content: str, service: Path, run: Run) -> None:
    (service / BASELINE_FILE).write_text(content, errors="surrogateescape")

    outcome = run("check")

    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.endswith(
        f"{BASELINE_FILE} cannot be used; write it again with --write-baseline.\n"
    )
    assert run("check", "--write-baseline").code == 0
    assert run("check").code == 0


def test_settings(service: Path, run: Run) -> None:
    (service / "old").mkdir()
    (service / "old" / "broken.py").write_text("def f(:\n")
    (service / "pyproject.toml").write_text(
        '[tool.infer-scaffold]\nselect = ["IS2", "IS7"]\nignore = ["IS203", "IS701"]\n'
        'exclude = ["/old/"]\nprofile = "strict"\n'
    )

    outcome = run("check", "--format", "json")
    assert [each["code"] for each in json.loads(outcome.out)["patterns"]] == [
        "IS201",
        "IS202",
        "IS702",
    ]
    assert json.loads(outcome.out)["unparsed"] == []
    # A flag takes the place of its setting.
    flagged = run("check", "--format", "json", "--ignore", "IS201,IS202")
    assert [each["code"] for each in json.loads(flagged.out)["patterns"]] == [
        "IS203",
        "IS701",
        "IS702",
    ]


def test_the_settings_above_count(service: Path, run: Run) -> None:
    (service / "pyproject.toml").write_text('[tool.infer-scaffold]\nselect = ["IS702"]\n')
    inner = service / "inner"
    inner.mkdir()
    (service / "main.py").rename(inner / "main.py")

    assert run("check", "inner").code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.infer-scaffold]\nselekt = []", "there is no setting 'selekt'; choose from profile"),
        ('[tool.infer-scaffold]\nselect = "IS1"', "select: write a list of texts"),
        ('[tool.infer-scaffold]\nignore = ["XX"]', "ignore: there is no 'XX'; choose from IS101"),
        ('[tool.infer-scaffold]\nprofile = "hard"', "profile: choose from default, strict."),
        ("[tool]\ninfer-scaffold = 1", "is no table; write [tool.infer-scaffold]."),
        ("[tool", "cannot be read"),
    ],
)
def test_settings_that_are_refused(text: str, message: str, service: Path, run: Run) -> None:
    (service / "pyproject.toml").write_text(text)

    outcome = run("check")

    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
