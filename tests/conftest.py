"""What several test modules need."""

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infer_scaffold.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a run of the command line left on the terminal."""

    code: object
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _no_personal_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test depend on the git settings, or the repository, of whoever runs it."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{role}_NAME", raising=False)
        monkeypatch.delenv(f"GIT_{role}_EMAIL", raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run the command line in this process, which saves the import of copier."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["infer-scaffold", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return Outcome(stopped.value.code or 0, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)
