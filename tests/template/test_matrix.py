"""Combinations of answers: each renders Python that is formatted, free of lint and compiles."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import chain, combinations
from pathlib import Path

import pytest

from infer_scaffold.project import generate, questions, template
from infer_scaffold.project.questions import Answers

CHOICES = {question.name: question.choices for question in questions.load(template.root())}


def subsets(choices: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The subsets that are not empty."""
    sizes = range(1, len(choices) + 1)
    return list(chain.from_iterable(combinations(choices, size) for size in sizes))


def variants(endpoints: tuple[str, ...]) -> Iterator[Answers]:
    """Two choices of devices, and all of them beside all endpoints, that take turns.

    With them the ways to stream and to deploy take turns: what depends on the devices, such as a
    list in the settings, does so whatever the endpoints are.
    """
    choices = subsets(CHOICES["devices"])
    first = 2 * subsets(CHOICES["endpoints"]).index(endpoints)
    streaming = CHOICES["streaming"] if "chat" in endpoints else ()
    deploy = [(), *subsets(CHOICES["deploy"])]
    count = len(choices) if endpoints == CHOICES["endpoints"] else 2
    for number in range(first, first + count):
        devices = choices[number % len(choices)]
        answers: Answers = {"endpoints": list(endpoints), "devices": list(devices)}
        if streaming:
            answers["streaming"] = streaming[number % len(streaming)]
        if set(devices) & {"cpu", "cuda"}:
            answers["deploy"] = list(deploy[number % len(deploy)])
        yield answers


def ruff(folder: Path, *arguments: str) -> str:
    """Run ruff over all projects in `folder`, each with its own settings; return its findings."""
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return "" if result.returncode == 0 else result.stdout + result.stderr


@cache
def compile_module(text: str) -> None:
    """Raise SyntaxError where ruff sees none. Most modules are those of another variant."""
    compile(text, "<module>", "exec")


@pytest.mark.parametrize("endpoints", subsets(CHOICES["endpoints"]), ids="-".join)
def test_every_variant_is_formatted_and_clean(endpoints: tuple[str, ...], tmp_path: Path) -> None:
    for answers in variants(endpoints):
        name = "-".join([*answers["devices"], answers.get("streaming", "")]).strip("-")
        generate.render({"project_name": "myserver", **answers}, tmp_path / name)

    findings = ruff(tmp_path, "format", "--check")
    assert not findings, findings
    findings = ruff(tmp_path, "check", "--output-format=concise")
    assert not findings, findings
    for module in sorted(tmp_path.rglob("*.py")):
        compile_module(module.read_text("utf-8"))


def test_ruff_reads_each_project_s_own_settings(tmp_path: Path) -> None:
    for name, length in {"short": 20, "long": 200}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "pyproject.toml").write_text(f"[tool.ruff]\nline-length = {length}\n")
        (tmp_path / name / "code.py").write_text('call("a word", "another word")\n')

    findings = ruff(tmp_path, "format", "--check")

    assert "short/code.py" in findings
    assert "long/code.py" not in findings
