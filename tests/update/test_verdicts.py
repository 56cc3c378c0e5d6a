"""Verdicts on services are kept, and found again as long as nothing has changed."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infer_scaffold.check import accepted, checker
from infer_scaffold.errors import UserError
from infer_scaffold.fleet import verdicts
from tests.conftest import Run

SERVICE = """\
import time

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def root() -> str:
    time.sleep(1)
    return "ok"
"""
FIXED = SERVICE.replace("    time.sleep(1)\n", "")


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "service"
    folder.mkdir()
    (folder / "main.py").write_text(SERVICE)
    return folder


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The services that were judged anew."""
    found: list[Path] = []
    check = checker.check

    def counted(path: Path, *arguments: object) -> object:
        found.append(path)
        return check(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checker, "check", counted)
    return found


def test_a_service_is_judged_once(service: Path, judged: list[Path]) -> None:
    first = verdicts.judge(service)
    assert "IS201" in first.failing
    assert verdicts.judge(service) == first
    assert len(judged) == 1


CHANGES: dict[str, Callable[[Path], object]] = {
    "code": lambda folder: (folder / "main.py").write_text(FIXED),
    "another file": lambda folder: (folder / "more.py").write_text(SERVICE),
    "a file that has moved": lambda folder: (folder / "main.py").rename(folder / "app.py"),
    "configuration": lambda folder: (folder / "pyproject.toml").write_text(
        '[tool.infer-scaffold]\nignore = ["IS201"]\n'
    ),
    "baseline": lambda folder: accepted.write_baseline(folder, checker.check_all(folder).known),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_counts_is_judged_again(
    change: Callable[[Path], object], service: Path, judged: list[Path]
) -> None:
    verdicts.judge(service)
    change(service)

    now = verdicts.judge(service)

    assert len(judged) == 2
    report = checker.check(service, verdicts.config.load(service))
    assert now.failing == tuple(each.pattern.code for each in report.failing)


def test_other_files_count_for_nothing(service: Path, judged: list[Path]) -> None:
    verdicts.judge(service)
    (service / "README.md").write_text("More.")
    (service / "test_main.py").write_text(SERVICE)
    verdicts.judge(service)
    assert len(judged) == 1


def test_another_judge_judges_again(
    service: Path, judged: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts.judge(service)
    monkeypatch.setattr(verdicts, "_judge", lambda: b"a later release")
    verdicts.judge(service)
    assert len(judged) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"failing": 3, "unread": ""}', "\xff"])
def test_what_is_kept_may_be_damaged(text: str, service: Path, judged: list[Path]) -> None:
    first = verdicts.judge(service)
    (file,) = verdicts._folder().iterdir()
    file.write_text(text, encoding="latin-1")
    assert verdicts.judge(service) == first
    assert len(judged) == 2
    assert json.loads(file.read_text())["failing"] == list(first.failing)


def test_there_may_be_no_place_for_verdicts(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(service / "main.py"))
    assert "IS201" in verdicts.judge(service).failing


def test_an_error_is_not_kept(service: Path, judged: list[Path]) -> None:
    (service / "main.py").write_text("x = 1\n")
    for _ in range(2):
        with pytest.raises(UserError, match="no FastAPI application"):
            verdicts.judge(service)
    assert len(judged) == 2


def test_old_verdicts_are_deleted(service: Path, judged: list[Path]) -> None:
    verdicts.judge(service)
    (file,) = verdicts._folder().iterdir()
    long_ago = time.time() - 20 * 86_400
    os.utime(file, (long_ago, long_ago))
    verdicts.judge(service)  # a use
    other = file.with_name("other.json")
    other.touch()
    os.utime(other, (long_ago * 0.9, long_ago * 0.9))

    verdicts.tidy()

    assert list(verdicts._folder().iterdir()) == [file]
    assert time.time() - file.stat().st_mtime < 60


def test_the_status_is_the_same_the_second_time(service: Path, run: Run) -> None:
    (service / ".copier-answers.yml").write_text("_src_path: gh:acme/other\n_commit: v1\n")
    (service / "broken.py").write_text("from fastapi import FastAPI\ndef f(:\n")
    first = run("status", str(service), "--format", "json").out
    assert list(verdicts._folder().iterdir())
    assert run("status", str(service), "--format", "json").out == first
    (found,) = json.loads(first)["services"]
    assert "broken.py:2 cannot be read" in found["error"]
