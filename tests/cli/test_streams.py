"""Streams and disks of every kind: one line and 2, never a traceback or half a project."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infer_scaffold import git
from infer_scaffold.project import generate, history

CLI = f"{sys.executable} -m infer_scaffold"
NEW = f"{CLI} new svc --yes --preset minimal"
COMMANDS = {
    "new": NEW,
    "new to be listed": f"{NEW} --dry-run",
    "update": f"{CLI} update .",
    "status": f"{CLI} status .",
    "check": f"{CLI} check .",
    "explain": f"{CLI} explain",
    "help": f"{CLI} --help",
}

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's devices")


def shell(command: str, folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def is_one_line(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1 and text.endswith(".\n")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_closed_output_is_refused_before_anything_is_done(command: str, tmp_path: Path) -> None:
    outcome = shell(f"{command} >&-", tmp_path)

    assert outcome.returncode == 2
    assert outcome.stderr == (
        "error: the standard output is closed; open it, or send it to /dev/null.\n"
    )
    assert names(tmp_path) == []


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_folder_that_is_gone(command: str, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()

    outcome = shell(f"cd gone && rmdir ../gone && {command}", tmp_path)

    assert outcome.returncode == 2
    assert outcome.stderr == "error: the current folder is gone; change to another one.\n"
    assert names(tmp_path) == []


@pytest.mark.parametrize("command", ["new to be listed", "explain", "help"])
def test_a_full_output(command: str, tmp_path: Path) -> None:
    outcome = shell(f"{COMMANDS[command]} > /dev/full", tmp_path)

    assert outcome.returncode == 2
    assert is_one_line(outcome.stderr), outcome.stderr
    assert "No space left on device" in outcome.stderr


def test_a_project_whose_report_cannot_be_printed_is_there_and_whole(tmp_path: Path) -> None:
    outcome = shell(f"{NEW} > /dev/full", tmp_path)

    assert outcome.returncode == 2
    assert is_one_line(outcome.stderr), outcome.stderr
    assert f"created {tmp_path}/svc, but the rest cannot be printed" in outcome.stderr
    assert shell("git -C svc status --porcelain", tmp_path).stdout == ""


@pytest.mark.parametrize("streams", ["<&-", "2>&-", "<&- 2>&-", "2>/dev/full"])
def test_what_needs_no_such_stream_works(streams: str, tmp_path: Path) -> None:
    outcome = shell(f"{NEW} {streams}", tmp_path)

    assert outcome.returncode in (0, 2)
    assert "Traceback" not in outcome.stdout + outcome.stderr
    assert names(tmp_path) == ["svc"]
    assert shell("git -C svc status --porcelain", tmp_path).stdout == ""


def test_an_error_without_a_stream_to_say_it(tmp_path: Path) -> None:
    for streams in ("2>&-", "2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-"):
        outcome = shell(f"{CLI} new Bad --yes {streams}", tmp_path)
        assert (outcome.returncode, outcome.stdout, outcome.stderr) == (2, "", "")
    assert names(tmp_path) == []


@pytest.mark.parametrize("command", ["explain", "new to be listed"])
def test_a_reader_that_leaves_is_no_fault(command: str, tmp_path: Path) -> None:
    outcome = shell(f"{COMMANDS[command]} | head -1", tmp_path)

    assert outcome.stdout.count("\n") == 1
    assert outcome.stderr == ""


@pytest.mark.parametrize("size", [0, 1000, 8000])
def test_a_disk_that_is_full_keeps_nothing(size: int, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    outcome = shell(NEW, tmp_path, preexec_fn=limit)

    assert outcome.returncode == 2
    assert is_one_line(outcome.stderr), outcome.stderr
    assert names(tmp_path) == []


@contextmanager
def small_disk(parent: Path, size: str) -> Iterator[Path]:
    disk = parent / "disk"
    disk.mkdir()
    if shell(f"mount -t tmpfs -o size={size} tmpfs disk", parent).returncode != 0:
        pytest.skip("may not mount")
    try:
        yield disk
    finally:
        shell("umount disk", parent)


def make_service(folder: Path, tmp_path: Path) -> Path:
    """A committed service of the first version."""
    version = history.versions()[0]
    source = history.unpack(version, tmp_path / f"template-of-{folder.name}")
    answers = {"project_name": "svc", "endpoints": ["health"]}
    generate.render(answers, folder, source=source, tag=history.tag(version))
    git.make_repository(folder, "Generate")
    return folder


def state(service: Path) -> str:
    changes = git.output(service, "status", "--porcelain", "--untracked-files=all")
    return changes + git.output(service, "diff")


def test_a_small_disk_keeps_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path, "100k") as disk:
        outcome = shell(NEW, disk)
        left = names(disk)

    assert outcome.returncode == 2
    assert is_one_line(outcome.stderr), outcome.stderr
    assert left == []


@pytest.mark.parametrize("command", ["status .", "status . --format json", "update . --dry-run"])
def test_a_report_of_a_service_on_a_full_output(command: str, tmp_path: Path) -> None:
    service = make_service(tmp_path / "svc", tmp_path)

    outcome = shell(f"{CLI} {command} > /dev/full", service)

    assert outcome.returncode == 2
    assert is_one_line(outcome.stderr), outcome.stderr
    assert "No space left on device" in outcome.stderr
    assert state(service) == ""


def test_an_update_whose_report_cannot_be_printed_is_whole(tmp_path: Path) -> None:
    service, other = (make_service(tmp_path / name, tmp_path) for name in ("svc", "other"))

    outcome = shell(f"{CLI} update . > /dev/full", service)
    assert shell(f"{CLI} update .", other).returncode == 0

    assert outcome.returncode == 2
    assert is_one_line(outcome.stderr), outcome.stderr
    assert " is done, but the rest cannot be printed" in outcome.stderr
    assert state(service) == state(other)


def test_a_read_only_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path, "20m") as disk:
        service = make_service(disk / "svc", tmp_path)
        assert shell("mount -o remount,ro disk", tmp_path).returncode == 0

        assert shell(f"{CLI} status .", service).returncode == 1  # an older version
        assert shell(f"{CLI} update . --dry-run", service).returncode == 0
        for outcome in (shell(f"{CLI} update .", service), shell(NEW, disk)):
            assert outcome.returncode == 2
            assert is_one_line(outcome.stderr), outcome.stderr
        assert state(service) == ""


def test_an_update_on_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path, "1m") as disk:
        service = make_service(disk / "svc", tmp_path)
        shell("cat /dev/zero > filling", disk)

        outcome = shell(f"{CLI} update .", service)
        (disk / "filling").unlink()

        assert outcome.returncode == 2
        assert is_one_line(outcome.stderr), outcome.stderr
        assert state(service) == ""
