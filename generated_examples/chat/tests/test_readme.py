"""README and docs/ are true: their links lead somewhere, their tables are complete, and their
example works. Delete this file when you replace them by your own.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from inspect import get_annotations
from pathlib import Path

import pytest

from chat_server.custom_settings import CustomSettings
from chat_server.schemas.chat import ChatRequest
from chat_server.schemas.responses import RESPONSES_UNSUPPORTED, ResponsesRequest
from chat_server.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ENV_EXAMPLE = (ROOT / ".env.example").read_text("utf-8")

PATH = re.compile(r"`([\w.*-]+/[\w./*-]*|[\w.*-]+\.(?:py|yml|example))`")

LINK = re.compile(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)")

EXAMPLE_FILE = re.compile(r"^<!-- file: (\S+) -->\n```python\n(.*?)^```$", re.M | re.S)
SETTINGS_ROW = re.compile(r"^\| `INFER_(\w+)` \|(?: `(.*?)`)? \| (.*) \|$", re.M)
ENV_ENTRY = re.compile(r"^# (.*)\n# INFER_(\w+)=(.*)$", re.M)


def as_text(default: object) -> str:
    match default:
        case bool():
            return str(default).lower()
        case float():
            return f"{default:g}"
        case tuple():
            return ",".join(map(str, default))
        case _:
            return str(default)


# Of the template's settings alone. Your own, in custom_settings.py, may stand beside them.
DOCUMENTED = {
    name.upper(): (as_text(field.default), field.description)
    for name, field in Settings.model_fields.items()
    if name in get_annotations(Settings)
}
OWN = {name.upper() for name in CustomSettings.model_fields}


def test_paths_in_the_page_for_agents_exist() -> None:
    paths = PATH.findall((ROOT / "AGENTS.md").read_text("utf-8"))
    assert "src/chat_server/serving/" in paths
    package = ROOT / "src" / "chat_server"
    missing = [path for path in paths if not [*ROOT.glob(path), *package.glob(path)]]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, heading in LINK.findall(page.read_text("utf-8")):
        target = page.parent / path if path else page
        assert target.is_file(), path
        headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M)
        assert heading in ("", *(each.lower().replace(" ", "-") for each in headings)), heading


def test_page_lists_every_setting() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    rows = {name: (default, meaning) for name, default, meaning in SETTINGS_ROW.findall(page)}
    assert {name: row for name, row in rows.items() if name not in OWN} == DOCUMENTED


def test_page_lists_every_field_of_a_request() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    table = page.partition("## Fields of a request\n")[2]
    rows = [re.findall(r"`(\w+)`", line) for line in table.splitlines() if line.startswith("| `")]
    fields = (ChatRequest.model_fields, ChatRequest.hints, ChatRequest.unsupported)
    assert rows == [sorted(names) for names in fields]


def test_page_lists_every_field_of_responses() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    table = page.partition("## Responses\n")[2].partition("\n## ")[0]
    rows = [re.findall(r"`(\w+)`", line) for line in table.splitlines() if line.startswith("| `")]
    names = [field.alias or name for name, field in ResponsesRequest.model_fields.items()]
    fields = (names, ResponsesRequest.hints, RESPONSES_UNSUPPORTED)
    assert rows == [sorted(names) for names in fields]


def test_env_example_lists_every_setting() -> None:
    entries = ENV_ENTRY.findall(ENV_EXAMPLE)
    rows = {name: (default, meaning) for meaning, name, default in entries}
    assert {name: row for name, row in rows.items() if name not in OWN} == DOCUMENTED


def test_env_example_uncommented_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"INFER_{name}".upper(), raising=False)
    env_file = tmp_path / ".env"
    env_file.write_text(ENV_EXAMPLE.replace("# INFER_", "INFER_"), "utf-8")
    assert Settings(_env_file=env_file) == Settings(_env_file=None)


def run_python(arguments: Sequence[str], folder: Path) -> str:
    """Runs Python in a copy of the project, and returns what it wrote."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_example_of_an_own_model_works(tmp_path: Path) -> None:
    unwanted = shutil.ignore_patterns("__pycache__")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=unwanted)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    page = (ROOT / "docs" / "your-own-model.md").read_text("utf-8")
    files = dict(EXAMPLE_FILE.findall(page))
    assert "train_sentiment.py" in files
    for name, content in files.items():
        (tmp_path / name).write_text(content, "utf-8")

    pytest_of = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    assert "3 passed" in run_python([*pytest_of, "tests/test_sentiment.py"], tmp_path)
    run_python(["train_sentiment.py"], tmp_path)
    documented = [*pytest_of, "tests/test_openapi.py", "-k", "sentiment"]
    assert "1 passed" in run_python(documented, tmp_path)
    run_python(["-m", "ruff", "check", "--no-cache"], tmp_path)
    run_python(["-m", "ruff", "format", "--check", "--no-cache"], tmp_path)
