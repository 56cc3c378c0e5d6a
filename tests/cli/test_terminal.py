"""The questions on a real (pseudo-)terminal: keys in, a project out."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pexpect = pytest.importorskip("pexpect", reason="there are no pseudo-terminals here")

UP, DOWN = "\x1b[A", "\x1b[B"
ENTER, SPACE, CTRL_C, CTRL_D, CLEAR = "\r", " ", "\x03", "\x04", "\x15"


class Terminal:
    """A terminal in which `infer-scaffold` runs."""

    def __init__(self, folder: Path, *arguments: str, columns: int = 200) -> None:
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "infer_scaffold", *arguments],
            cwd=folder,
            # No terminal answers the request for the cursor's position here.
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            dimensions=(40, columns),
            encoding="utf-8",
            timeout=30,
        )

    def answer(self, question: str, *keys: str) -> None:
        """Wait for a question and press keys."""
        self.child.expect_exact(question)
        for key in keys:
            self.child.send(key)

    def end(self) -> tuple[int | None, str]:
        """Wait for the end; return the exit code and the last words."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus, self.child.before

    def close(self) -> None:
        """Stop the program if it still runs."""
        self.child.close(force=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    terminals: list[Terminal] = []

    def start(*arguments: str, columns: int = 200) -> Terminal:
        terminals.append(Terminal(tmp_path, *arguments, columns=columns))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def answers_of(project: Path) -> dict:
    return yaml.safe_load((project / ".copier-answers.yml").read_text())


def test_enter_takes_every_default(start, tmp_path: Path) -> None:
    terminal = start("new", "server")

    terminal.answer("Name of the project", ENTER)
    terminal.answer("what the service does", ENTER)
    terminal.answer("Which endpoints", ENTER)
    terminal.answer("Which devices", ENTER)
    terminal.answer("How will it be deployed", ENTER)
    terminal.answer("chat answers streamed", ENTER)
    terminal.answer("Seconds of silence", ENTER)
    terminal.answer("token usage", ENTER)
    terminal.answer("Chat model", ENTER)
    terminal.answer("Embeddings model", ENTER)

    code, words = terminal.end()
    assert code == 0, words
    assert "python -m server" in words
    answers = answers_of(tmp_path / "server")
    assert answers["project_name"] == "server"
    assert answers["endpoints"] == ["chat", "embeddings", "files", "health"]
    assert answers["heartbeat_seconds"] == 15
    assert (tmp_path / "server" / ".git").is_dir()


def test_arrow_keys_and_checkboxes_choose(start, tmp_path: Path) -> None:
    terminal = start("new", "server", "--project-name", "llm", "--description", "Chat")

    # All are ticked: take the tick off embeddings and files, and leave chat and health.
    terminal.answer("Which endpoints", DOWN, SPACE, DOWN, SPACE, ENTER)
    # cpu and cuda are ticked: one up from the first is the last.
    terminal.answer("Which devices", UP, SPACE, ENTER)
    # docker and kubernetes are ticked: none is an answer, too.
    terminal.answer("How will it be deployed", SPACE, DOWN, SPACE, ENTER)
    terminal.answer("chat answers streamed", DOWN, ENTER)
    terminal.answer("Chat model", CLEAR, "owner/model", ENTER)

    code, words = terminal.end()
    assert code == 0, words
    answers = answers_of(tmp_path / "server")
    assert answers["project_name"] == "llm"
    assert answers["endpoints"] == ["chat", "health"]
    assert answers["devices"] == ["cpu", "cuda", "mps"]
    assert answers["deploy"] == []
    assert answers["streaming"] == "none"
    assert answers["chat_model"] == "owner/model"
    assert "heartbeat_seconds" not in answers
    assert "embeddings_model" not in answers


def test_only_what_no_flag_answers_is_asked(start, tmp_path: Path) -> None:
    terminal = start("new", "server", "--preset", "minimal", "--devices", "cpu", "--deploy", "")

    terminal.answer("Name of the project", ENTER)
    terminal.answer("what the service does", CLEAR, 'Says "hello" é', ENTER)

    code, words = terminal.end()
    assert code == 0, words
    answers = answers_of(tmp_path / "server")
    assert answers["description"] == 'Says "hello" é'
    assert answers["endpoints"] == ["health"]


def test_a_wrong_answer_is_asked_again(start, tmp_path: Path) -> None:
    terminal = start("new", "server", "--preset", "minimal", "--devices", "cpu", "--deploy", "")

    terminal.answer("Name of the project", CLEAR, "json", ENTER)
    terminal.answer("standard library", CLEAR, "llm", ENTER)
    terminal.answer("what the service does", ENTER)

    code, words = terminal.end()
    assert code == 0, words
    assert answers_of(tmp_path / "server")["project_name"] == "llm"


def test_at_60_columns_every_question_and_every_reason_is_seen_whole(start) -> None:
    terminal = start("new", "clas", columns=60)

    # Keys that add one reason to a right answer: of one that follows another, the terminal is
    # sent only what differs.
    terminal.answer("Name of the project (a-z, 0-9, - and _)", "s", ENTER)
    terminal.answer('"class" is a Python keyword; choose another name.', "y", ENTER)
    terminal.answer("In one line, what the service does", CLEAR, " ", ENTER)
    terminal.answer("Say in a few words what the service does.", CLEAR, "Chat", ENTER)
    terminal.answer("Which endpoints does it serve?", ENTER)
    terminal.answer("Which devices will it run on?", ENTER)
    terminal.answer("How will it be deployed?", ENTER)
    terminal.answer("How are chat answers streamed?", ENTER)
    terminal.answer("Seconds of silence before a heartbeat (0 = never)", "999", ENTER)
    terminal.answer("Give a number of seconds from 0 to 3600.", CLEAR, "9", ENTER)
    terminal.answer("When does a stream tell token usage?", ENTER)
    terminal.answer("Chat model (hub id or local folder)", " b", ENTER)
    terminal.answer("Use a hub id or a folder: letters, digits, any of ._/+-", CLEAR, "a", ENTER)
    terminal.answer("Embeddings model (hub id or folder)", ENTER)

    code, words = terminal.end()
    assert code == 0, words


def test_a_wrong_flag_is_told_before_the_first_question(start, tmp_path: Path) -> None:
    terminal = start("new", "server", "--chat-model", "not a model")

    code, words = terminal.end()
    assert code == 2
    assert words.startswith("error: --chat-model: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keys", [CTRL_C, CTRL_D])
def test_cancelling_leaves_nothing_behind(keys: str, start, tmp_path: Path) -> None:
    terminal = start("new", "a/server")

    terminal.answer("Name of the project", ENTER)
    terminal.answer("what the service does", CLEAR, keys)

    code, words = terminal.end()
    assert code == 130
    assert words.endswith("Cancelled: nothing was written.\r\n")
    assert "Traceback" not in words
    assert not list(tmp_path.iterdir())


def test_yes_asks_nothing_on_a_terminal(start, tmp_path: Path) -> None:
    code, words = start("new", "server", "--yes").end()

    assert code == 0
    assert words.startswith("Created server (")
