"""The command line: what it accepts, what it says, and how it refuses."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infer_scaffold import __version__, git
from infer_scaffold.cli.shared import QUESTIONS
from infer_scaffold.project.questions import PRESETS
from tests.conftest import Run

COMMANDS = ("new", "update", "status", "check", "probe", "explain")


def test_help_names_every_flag_with_its_default(run: Run) -> None:
    outcome = run("new", "--help")

    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    for question in QUESTIONS:
        assert question.flag in text
    assert "[default: OpenAI-compatible inference service]" in text
    assert "[default: chat,embeddings,files,health]" in text
    assert "|".join(PRESETS) in text


@pytest.mark.parametrize("arguments", [["--help"], ["new", "--help"], ["--version"]])
def test_help_does_not_wait_for_copier(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from infer_scaffold.cli import main\n"
        f"sys.argv = ['infer-scaffold', *{arguments}]\n"
        "try: main()\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        "slow = {'copier', 'jinja2', 'questionary', 'rich'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("columns", ["80", "100"])
def test_help_cuts_no_command_s_sentence(
    columns: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = run("--help").out.partition("Commands:")[2]

    assert text.count(".\n") == len(text.strip().splitlines()) == len(COMMANDS)
    assert "..." not in text


def test_version(run: Run) -> None:
    outcome = run("--version")

    assert (outcome.code, outcome.out) == (0, f"infer-scaffold {__version__}\n")


def test_no_command_shows_the_help(run: Run) -> None:
    outcome = run()

    assert outcome.code == 2
    assert outcome.out.startswith("Usage: infer-scaffold")


def test_new_ends_with_the_next_steps(folder: Path, run: Run) -> None:
    outcome = run("new", "my-server", "--yes")

    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].startswith("Created my-server (")
    assert lines[0].endswith(" files, first commit on main).")
    assert "  cd my-server" in lines
    assert lines[-1] == "  python -m my_server"
    # A checkout whose template has changes that are not committed gets a note.
    assert outcome.err == "" or outcome.err.startswith("Note: this checkout's template")


def test_off_a_terminal_the_defaults_are_used_and_it_says_so(folder: Path, run: Run) -> None:
    outcome = run("new", "server")

    assert outcome.code == 0
    assert outcome.err.startswith("Not a terminal: the defaults answer what no flag does.\n")
    assert (folder / "server" / "pyproject.toml").is_file()


def test_dry_run_lists_what_new_writes_and_writes_nothing(folder: Path, run: Run) -> None:
    listed = run("new", "server", "--preset", "minimal", "--dry-run")
    assert listed.code == 0
    assert not list(folder.iterdir())

    run("new", "server", "--preset", "minimal", "--yes", "--no-git")
    root = folder / "server"
    written = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    assert listed.out.splitlines() == written
    assert listed.err == ""


def test_a_preset_gives_answers_that_flags_override(folder: Path, run: Run) -> None:
    run("new", "a", "--preset", "minimal", "--yes", "--no-git")
    run("new", "b", "--preset", "minimal", "--endpoints", "files", "--yes", "--no-git")

    assert "endpoints:\n- health\n" in (folder / "a" / ".copier-answers.yml").read_text()
    assert "endpoints:\n- files\n" in (folder / "b" / ".copier-answers.yml").read_text()


def test_inside_a_repository_no_other_is_made(folder: Path, run: Run) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)

    outcome = run("new", "services/server", "--yes")

    assert outcome.code == 0
    assert f"no repository of its own, as it is inside {folder}" in outcome.out
    assert not (folder / "services" / "server" / ".git").exists()


def test_no_git_makes_no_repository(folder: Path, run: Run) -> None:
    outcome = run("new", "server", "--yes", "--no-git")

    assert "no git repository, which `copier update` will need" in outcome.out
    assert not (folder / "server" / ".git").exists()


BAD_INPUT = {
    "no path": (["new", "--yes"], "Missing argument"),
    "unknown command": (["create"], "create"),
    "unknown flag": (["new", "x1", "--yes", "--colour", "red"], "--colour"),
    "unknown preset": (["new", "x1", "--yes", "--preset", "everything"], "full, chat, embedd"),
    "unknown endpoint": (["new", "x1", "--yes", "--endpoints", "chat,audio"], "'audio'"),
    "no endpoint": (["new", "x1", "--yes", "--endpoints", ""], "at least one endpoint"),
    "unknown device": (["new", "x1", "--yes", "--devices", "tpu"], "cpu, cuda, mps"),
    "no device": (["new", "x1", "--yes", "--devices", ","], "at least one device"),
    "unknown streaming": (["new", "x1", "--yes", "--streaming", "ws"], "sse, none"),
    "no number": (["new", "x1", "--yes", "--heartbeat-seconds", "often"], "--heartbeat-seconds"),
    "wrong number": (["new", "x1", "--yes", "--heartbeat-seconds", "-1"], "from 0 to 3600"),
    "keyword": (["new", "class", "--yes"], '"class" is a Python keyword'),
    "soft keyword": (["new", "match", "--yes"], '"match" is a Python keyword'),
    "stdlib module": (["new", "json", "--yes"], '"json" is a module of Python\'s standard'),
    "dependency": (["new", "pydantic-settings", "--yes"], '"pydantic_settings" is a package'),
    "folder name": (["new", "tests", "--yes"], "choose another name"),
    "upper case": (["new", "MyServer", "--yes"], "lower-case letter"),
    "space": (["new", "my server", "--yes"], "lower-case letter"),
    "digit first": (["new", "1server", "--yes"], "lower-case letter"),
    "accent": (["new", "sérver", "--yes"], "lower-case letter"),
    "bytes that are no text": (["new", "s\udcff", "--yes"], "lower-case letter"),
    "newline in the name": (["new", "x1", "--yes", "--project-name", "x1\n"], "lower-case letter"),
    "empty name": (["new", "x1", "--yes", "--project-name", ""], "lower-case letter"),
    "long name": (["new", "x1", "--yes", "--project-name", "x" * 31], "at most 30 characters"),
    "traversal": (["new", "x1", "--yes", "--project-name", "../../x1"], "lower-case letter"),
    "newline": (["new", "x1", "--yes", "--description", "two\nlines"], "one line of plain text"),
    "escape": (["new", "x1", "--yes", "--description", "\x1b[31m"], "one line of plain text"),
    "delete": (["new", "x1", "--yes", "--description", "a\x7f"], "one line of plain text"),
    "next line": (["new", "x1", "--yes", "--description", "a\x85b"], "one line of plain text"),
    "separator": (["new", "x1", "--yes", "--description", "a\u2028b"], "one line of plain text"),
    "surrogate": (["new", "x1", "--yes", "--description", "a\udcffb"], "one line of plain text"),
    "long description": (["new", "x1", "--yes", "--description", "x" * 201], "at most 200"),
    "empty description": (["new", "x1", "--yes", "--description", " "], "in a few words"),
    "model name": (["new", "x1", "--yes", "--chat-model", "a b"], "hub id"),
    "model quotes": (["new", "x1", "--yes", "--embeddings-model", 'a"b'], "hub id"),
    "unused flag": (
        ["new", "x1", "--yes", "--endpoints", "files", "--chat-model", "o/m"],
        "--chat-model only applies when 'chat' in endpoints",
    ),
    "unused flag of a flag": (
        ["new", "x1", "--yes", "--streaming", "none", "--heartbeat-seconds", "5"],
        "--heartbeat-seconds only applies when",
    ),
    "unused flag of a preset": (
        ["new", "x1", "--dry-run", "--preset", "chat", "--embeddings-model", "o/m"],
        "--embeddings-model only applies when",
    ),
}


@pytest.mark.parametrize(("arguments", "words"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_clear_line(
    arguments: list[str], words: str, folder: Path, run: Run
) -> None:
    outcome = run(*arguments)

    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert words in outcome.err
    assert not list(folder.iterdir())


def test_a_folder_that_is_not_empty_is_left_alone(folder: Path, run: Run) -> None:
    (folder / "server").mkdir()
    (folder / "server" / "mine.txt").write_text("mine")

    outcome = run("new", "server", "--yes")

    assert outcome.code == 2
    assert outcome.err == (
        f"error: {folder}/server is not empty; choose a new or an empty folder.\n"
    )
    assert [p.name for p in folder.rglob("*")] == ["server", "mine.txt"]


def test_a_file_in_the_way_is_left_alone(folder: Path, run: Run) -> None:
    (folder / "file").write_text("mine")
    (folder / "dangling").symlink_to("nowhere")

    for path in ("file", "file/server", "file/a/server", "dangling"):
        outcome = run("new", path, "--yes")
        assert outcome.code == 2
        assert "is not a folder; choose another path." in outcome.err
        assert outcome.err.count("\n") == 1
    assert sorted(p.name for p in folder.rglob("*")) == ["dangling", "file"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that root cannot write")
def test_a_read_only_folder_is_refused(run: Run) -> None:
    outcome = run("new", "/proc/infer-scaffold-test", "--yes")

    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert "/proc" in outcome.err
    assert outcome.err.endswith("choose another folder.\n")
    assert outcome.err.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_write_permission_is_refused(folder: Path, run: Run) -> None:
    (folder / "locked").mkdir(mode=0o555)

    outcome = run("new", "locked/server", "--yes")

    assert outcome.code == 2
    assert outcome.err == f"error: {folder}/locked is not writable; choose another folder.\n"


def test_without_git_it_says_so_before_anything_is_written(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))

    outcome = run("new", "a/server", "--yes")
    assert outcome.code == 2
    assert outcome.err == (
        "error: git was not found; install it, or leave the repository out with --no-git.\n"
    )
    assert not list(folder.iterdir())

    assert run("new", "a/server", "--yes", "--no-git").code == 0


def test_a_path_that_is_no_text_on_an_ascii_terminal(folder: Path) -> None:
    command = [sys.executable, "-m", "infer_scaffold", "new", b"\xff\xc3\xa9"]
    outcome = subprocess.run(
        [*command, "--yes", "--no-git", "--project-name", "server"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )

    assert outcome.returncode == 0, outcome.stderr
    assert (folder / os.fsdecode(b"\xff\xc3\xa9") / ".copier-answers.yml").is_file()


def test_being_stopped_leaves_nothing_behind(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        assert list(folder.iterdir())
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(git, "make_repository", stop)

    assert run("new", "server", "--yes").code == 128 + signal.SIGTERM
    assert not list(folder.iterdir())


def test_a_closed_pipe_is_no_traceback(folder: Path) -> None:
    command = f"{sys.executable} -m infer_scaffold new server --dry-run | head -1"
    outcome = subprocess.run(command, shell=True, capture_output=True, check=False)  # noqa: S602

    assert outcome.stderr == b""
