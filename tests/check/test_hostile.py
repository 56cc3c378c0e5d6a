"""`infer-scaffold check` on odd repositories: a bad file is a row, a bad setting exits with 2."""

import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path, PurePath

import pytest
from pathspec import GitIgnoreSpec

from infer_scaffold.check import checker
from infer_scaffold.check.exclude import Excluded
from tests.check.test_check import SERVICE
from tests.check.test_formats import sarif
from tests.conftest import Outcome, Run
from tests.hostile import run_bounded

Make = Callable[[Path], object]


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(path.parent)  # the address of a socket has at most 108 bytes
        listening.bind(path.name)
        os.chdir(here)


def unreadable(path: Path) -> None:
    path.write_text("x = 1\n")
    path.chmod(0)


NO_FILES: dict[str, Make] = {
    "lock of Emacs": lambda path: (path.parent / ".#main.py").symlink_to("me@host.1:2"),
    "link to nothing": lambda path: path.symlink_to("nowhere.py"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a folder": lambda path: path.symlink_to("/usr", target_is_directory=True),
    "pipe": os.mkfifo,
    "link to a pipe": lambda path: (os.mkfifo(path.with_suffix("")), path.symlink_to("bad")),
    "socket": a_socket,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "random device": lambda path: path.symlink_to("/dev/urandom"),
    "memory of a process": lambda path: path.symlink_to("/proc/self/mem"),
    "unreadable": unreadable,
}
HARD_TO_PARSE: dict[str, Make] = {
    "huge": lambda path: path.write_text("x = [" + "1, " * 2_000_000 + "]\n"),
    "huge and empty": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40),
    "minus signs": lambda path: path.write_text("x = " + "-" * 50_000 + "1\n"),
    "nots": lambda path: path.write_text("x = " + "not " * 50_000 + "1\n"),
    "attributes": lambda path: path.write_text("fastapi = a" + ".b" * 30_000 + "\n"),
    "attributes that parse": lambda path: path.write_text("fastapi = a" + ".b" * 900 + "\n"),
    "calls": lambda path: path.write_text("import fastapi\nx = a" + "()" * 2_000 + "\n"),
    "sums": lambda path: path.write_text("import fastapi\nx = " + "a + " * 1_500 + "a\n"),
    "lambdas": lambda path: path.write_text("import fastapi\nx = " + "lambda: " * 800 + "a\n"),
    "branches": lambda path: path.write_text(
        "import fastapi\nif a: pass\n" + "elif b: pass\n" * 2_000
    ),
    "brackets": lambda path: path.write_text("x = " + "[" * 90_000),
}
NO_PYTHON: dict[str, Make] = {
    "null": lambda path: path.write_bytes(b"x = 1\0\n"),
    "not in UTF-8": lambda path: path.write_bytes(b"x = '\xe4'\n"),
    "UTF-16": lambda path: path.write_bytes("x = 1\n".encode("utf-16")),
    "no encoding": lambda path: path.write_bytes(b"# coding: klingon\nx = 1\n"),
    "not a text encoding": lambda path: path.write_bytes(b"# coding: zip\nx = 1\n"),
    "slow encoding": lambda path: path.write_bytes(b"# coding: punycode\n" + b"a" * 900_000),
    "binary": lambda path: path.write_bytes(random.Random(1).randbytes(50_000)),
}


@pytest.fixture
def service(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text(SERVICE)
    return tmp_path


@pytest.mark.parametrize(
    "kinds", [NO_FILES, HARD_TO_PARSE, NO_PYTHON], ids=["no files", "hard to parse", "no Python"]
)
def test_a_bad_file_is_told_and_the_rest_is_judged(kinds: dict[str, Make], service: Path) -> None:
    for kind, make in kinds.items():
        folder = service / kind.replace(" ", "_")
        folder.mkdir()
        make(folder / "bad.py")

    outcome = run_bounded("check", ".", cwd=service)

    assert outcome.code == 1
    assert "main.py:10:5: IS201" in outcome.out
    told = outcome.err.splitlines()
    assert [line.split("/")[0] for line in told] == sorted(kind.replace(" ", "_") for kind in kinds)
    assert all("could not be read, and is not judged: " in line for line in told)


def test_an_unreadable_folder_is_told(service: Path) -> None:
    (service / "closed").mkdir(mode=0)

    outcome = run_bounded("check", ".", cwd=service)

    assert "main.py:10:5: IS201" in outcome.out
    assert outcome.err == "closed:1 could not be read, and is not judged: Permission denied\n"


def test_folders_as_deep_as_they_get(service: Path) -> None:
    here = os.open(service, os.O_RDONLY)
    for _ in range(3_000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)

    try:
        outcome = run_bounded("check", ".", cwd=service)
    finally:  # pytest's own removal recurses
        subprocess.run(["rm", "-rf", service / "d"], check=True)

    assert "main.py:10:5: IS201" in outcome.out
    assert "File name too long" in outcome.err


@pytest.mark.parametrize(
    "text",
    [
        "DATA = [" + "1," * 490_000 + "]\n",
        "from fastapi import APIRouter\nDATA = {" + "1:2," * 240_000 + "}\n",
        "import fastapi\n\n\nasync def f():\n    return '''" + "a\n" * 490_000 + "'''\n",
        "from fastapi import APIRouter\nr = APIRouter()\n" + "x = b()\n" * 60_000
        + "@r.get('/')\nasync def f(): pass\n" * 9_000,
    ],
    ids=["numbers", "pairs", "lines", "assignments"],
)  # fmt: skip
def test_large_files_take_bounded_time_and_memory(text: str, service: Path) -> None:
    assert len(text.encode()) + 150_000 > 900_000
    (service / "data.py").write_text(text)

    outcome = run_bounded("check", ".", cwd=service)

    assert (outcome.code, outcome.err) == (1, "")


def test_rules_that_do_not_end(service: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "_LONGEST", 1)
    streams = "    r = StreamingResponse(g(), media_type='text/event-stream')\n" * 8_000
    (service / "streams.py").write_text(f"async def f():\n{streams}")

    outcome = run("check", str(service))

    assert (outcome.code, outcome.out) == (2, "")
    assert "takes more than 1 s of processor time to judge; exclude what is gen" in outcome.err


def test_a_wait_for_the_processor_is_no_time_of_the_check(
    service: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = checker.read

    def waited(*arguments: object) -> object:
        time.sleep(1.5)
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checker, "read", waited)
    monkeypatch.setattr(checker, "_LONGEST", 1)

    assert run("check", str(service)).err == ""


@pytest.mark.parametrize(
    "setting",
    [
        'exclude = [["a"]]',
        f"exclude = {['a'] * 2000}",
        f'exclude = ["{"*a" * 2000}"]',
        f"profile{'.a' * 5000} = 1",
        f"exclude = {'[' * 5000}",
        f"exclude = {'{a=' * 5000}",
        f"exclude = {'1' * 5000}",
        "exclude = 'größe'",
        "x = '\0'",
        f"x = '{'a' * 1_000_000}'",
    ],
    ids=lambda setting: setting[:24],
)
def test_bad_settings(setting: str, service: Path, run: Run) -> None:
    (service / "pyproject.toml").write_bytes(
        f"[tool.infer-scaffold]\n{setting}\n".encode("latin-1")
    )

    outcome = run("check", str(service))

    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


SETTINGS = ["pyproject.toml", ".infer-scaffold-baseline.json"]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        (SETTINGS[0], os.mkfifo),
        (SETTINGS[0], lambda path: path.symlink_to("/dev/zero")),
        (SETTINGS[0], unreadable),
        (SETTINGS[1], os.mkfifo),
        (SETTINGS[1], lambda path: path.symlink_to("/dev/zero")),
    ],
)
def test_a_setting_that_cannot_be_read(name: str, make: Make, service: Path) -> None:
    make(service / name)

    _require_refused(run_bounded("check", ".", cwd=service), name)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    "make",
    [
        os.mkdir,
        lambda path: path.symlink_to(path.name),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text('{"findings": ' + "[" * 100_000),
        lambda path: path.write_text('{"findings": [{"code": ' + "9" * 5000 + "}]}"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(" " * 1_000_001),
    ],
)
def test_a_setting_that_is_none(name: str, make: Make, service: Path, run: Run) -> None:
    make(service / name)

    _require_refused(run("check", str(service)), name)


def _require_refused(outcome: Outcome, name: str) -> None:
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert name in outcome.err


PATTERNS = [
    "*a*a*a" * 40,
    "a**/[z-a]",
    "[",
    "a[!]b",
    "**/a" * 200,
    "\\",
    "!",
    "/",
    "//",
    "[^a]\\*",
    " ",
]


def test_odd_patterns_take_no_time(service: Path) -> None:
    deep = service.joinpath(*["a" * 10] * 20)
    deep.mkdir(parents=True)
    for folder in (service, deep):
        (folder / f"{'a' * 200}.py").write_text("x = 1\n")
    (service / "pyproject.toml").write_text(
        f"[tool.infer-scaffold]\nexclude = {json.dumps(PATTERNS)}\n"
    )

    outcome = run_bounded("check", ".", cwd=service, seconds=60)

    assert (outcome.code, outcome.err) == (1, "")


def test_patterns_mean_what_git_says() -> None:
    chance = random.Random(7)
    names = ["a", "b", "ab", "a.py", "b.py", ".a.py"]
    pieces = ["a", "b", "*", "*.py", "a*", "?", "[ab]", "[!a]*", "**", "\\*", "a.py"]
    for _ in range(3_000):
        pattern = "/".join(chance.choices(pieces, k=chance.randint(1, 3)))
        if "**/**" in pattern or pattern.endswith("**"):
            continue  # which pathspec reads in another way than git where a slash follows
        pattern = chance.choice(["", "", "/"]) + pattern + chance.choice(["", "", "/"])
        path = "/".join(chance.choices(names, k=chance.randint(1, 4)))
        wanted = GitIgnoreSpec.from_lines([pattern]).match_file(path)
        assert (PurePath(path) in Excluded([pattern])) == wanted, (pattern, path)


@pytest.mark.parametrize(
    ("patterns", "path", "excluded"),
    [
        (["gen/", "!gen/a.py"], "gen/a.py", True),
        (["gen/*", "!gen/a.py"], "gen/a.py", False),
        (["gen/*", "!gen/a.py"], "gen/b.py", True),
        (["# gen", "", "  "], "gen/b.py", False),
        (["gen/**"], "gen/a/b.py", True),
        (["gen/**"], "gen", False),
        (["**"], "a.py", True),
        ([r"\#a.py", r"\!b.py"], "#a.py", True),
        ([r"\#a.py", r"\!b.py"], "x/!b.py", True),
    ],
)
def test_patterns_together(patterns: list[str], path: str, excluded: bool) -> None:
    assert (PurePath(path) in Excluded(patterns)) == excluded


@pytest.mark.parametrize(
    ("encoding", "line"),
    [("latin-1", "# -*- coding: latin-1 -*-"), ("cp1252", "# vim: set fileencoding=cp1252 :"),
     ("shift_jis", "# coding: shift_jis"), ("utf-8-sig", ""),
     ("koi8-r", "#!/usr/bin/python\n# coding=koi8-r")],
)  # fmt: skip
def test_other_encodings(encoding: str, line: str, service: Path, run: Run) -> None:
    word = {"shift_jis": "日本", "koi8-r": "Привет"}.get(encoding, "größe")
    text = SERVICE.replace("    time.sleep(1)", f'    x = "{word}"; time.sleep(1)  # {word}')
    (service / "main.py").write_bytes(f"{line}\n{text}".encode(encoding))

    outcome = run("check", str(service), "--select", "IS201", "--format", "json")

    (finding,) = json.loads(outcome.out)["patterns"][0]["findings"]
    assert finding["column"] == len(f'    x = "{word}"; ') + 1
    assert f'x = "{word}"; time' in run("check", str(service), "--select", "IS201").out
    (service / "main.py").write_bytes(
        f"{line}\n{text.replace(f'# {word}', '# infer-scaffold: ignore[IS201]')}".encode(encoding)
    )
    assert run("check", str(service), "--select", "IS201").code == 0


ODD_NAMES = [
    b"a\x1b]0;pwned\x07.py",
    b"a\nb.py",
    b"\xff\xe4.py",
    "\u202eyp.\u2028a.py".encode(),
    b"a\xc2\x9b2J.py",
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=repr)
def test_odd_names_and_lines_are_shown_as_text(name: bytes, service: Path, run: Run) -> None:
    escape = "x = 1; time.sleep(1)  # \x1b]0;pwned\x07 \x9b2J \u202e"
    text = SERVICE.replace("time.sleep(1)", escape)
    Path(os.fsdecode(os.fsencode(service) + b"/" + name)).write_text(text)
    Path(os.fsdecode(os.fsencode(service) + b"/bad" + name)).write_text("x = = '\x1b[2J'\n")

    for layout in ("text", "json", "github"):
        outcome = run("check", str(service), "--select", "IS201", "--format", layout)
        assert outcome.code == 1
        assert not set(outcome.out + outcome.err) & set("\x1b\x07\x9b\u202e\u2028\x00")
        if layout == "json":
            assert len(json.loads(outcome.out)["patterns"][0]["findings"]) == 2
    assert len(sarif(run, str(service))["results"]) > 2
    written = run_bounded("check", ".", "--write-baseline", "--select", "IS201", cwd=service)
    assert written.code == 0
    assert "0 of" not in run_bounded("check", ".", "--select", "IS201", cwd=service).out


def test_a_file_that_goes_while_it_is_judged(
    service: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = checker.read

    def read_and_delete(*arguments: object) -> object:
        source = read(*arguments)  # type: ignore[arg-type]
        (service / "main.py").unlink()
        return source

    monkeypatch.setattr(checker, "read", read_and_delete)

    outcome = run("check", str(service), "--select", "IS201")

    assert "| time.sleep(1)" in outcome.out


def test_a_folder_that_is_gone_or_a_loop(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    gone = tmp_path / "gone"
    gone.mkdir()

    assert run_bounded("check", "loop", cwd=tmp_path).code == 2
    script = f'cd "{gone}" && rmdir "{gone}" && exec "$@"'
    for place in (".", str(tmp_path)):
        gone.mkdir(exist_ok=True)
        outcome = run_bounded("check", place, cwd=tmp_path, script=script)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
