"""`infer-scaffold status` where one service is broken: it has a row, and so have the others."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infer_scaffold.fleet import survey
from infer_scaffold.project import history
from tests.check.test_hostile import HARD_TO_PARSE, NO_FILES, NO_PYTHON
from tests.conftest import Run
from tests.hostile import run_bounded
from tests.update.conftest import Render

NEWEST = history.versions()[-1]
HEAD = f"_src_path: gh:infer-scaffold/infer-scaffold\n_commit: v{NEWEST}\nproject_name: myserver\n"
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
ANSWERS = {
    "conflict": "<<<<<<< before updating\n",
    "key that is a number": HEAD + "1: 2\n",
    "key that is a list": HEAD + "? [a]\n: 2\n",
    "key that is nothing": HEAD + "~: 2\n",
    "nested lists": HEAD + "a: " + "[" * 3_000 + "]" * 3_000,
    "nested blocks": HEAD + "a:\n" + "".join(" " * n + "a:\n" for n in range(1, 400)),
    "aliases": HEAD + BOMB,
    "merges": HEAD + MERGES,
    "itself": HEAD + "a: &a [*a]\n",
    "huge": HEAD + "a: " + "x" * 5_000_000,
    "long number": HEAD + "a: " + "9" * 50_000,
    "odd tags": HEAD + "a: !!int ''\n",
    "code": HEAD + "a: !!python/object/apply:os.system [false]\n",
    "set": HEAD + "endpoints: !!set {chat}\n",
    "name that leads out": HEAD.replace("myserver", "../../../../etc"),
    "name that is a list": HEAD.replace("myserver", "[a, b]"),
    "name that is a mapping": HEAD.replace("myserver", "{a: b}"),
    "endpoints that are a number": HEAD + "endpoints: 7\n",
    "version that is a number": HEAD.replace(f"v{NEWEST}", "7"),
    "version that is long": HEAD.replace(f"v{NEWEST}", "v" + "9" * 50_000),
    "version of a branch": HEAD.replace(f"v{NEWEST}", "main"),
    "version of a commit": HEAD.replace(f"v{NEWEST}", f"v{NEWEST}-3-gabcdef0"),
    "unknown version": HEAD.replace(f"v{NEWEST}", "v98.0"),
    "development version": HEAD.replace(f"v{NEWEST}", "v98.0.dev0"),
    "escapes": HEAD.replace(f"v{NEWEST}", '"\\e]0;pwned\\a\\n"'),
    "not in UTF-8": HEAD + "a: \udcff\n",
    "null": HEAD + "a: \0\n",
    "nothing": "",
    "a list": "[]",
}


@pytest.fixture
def good(render: Render, tmp_path: Path) -> Path:
    return render(tmp_path / "fleet" / "good", NEWEST)


def rows(outcome_text: str) -> tuple[dict[str, object], dict[str, object]]:
    """The rows of a broken service and of a good one."""
    found = by_name(outcome_text)
    good = found.pop("good")
    assert (good["error"], good["edited"], good["version"]) == (None, [], str(NEWEST))
    (bad,) = found.values()
    return bad, good


def by_name(outcome_text: str) -> dict[str, dict[str, object]]:
    """The rows of a fleet by the folder of the service."""
    return {Path(each["path"]).name: each for each in json.loads(outcome_text)["services"]}


def test_answers(good: Path) -> None:
    for name, answers in ANSWERS.items():
        bad = good.parent / name
        bad.mkdir()
        (bad / ".copier-answers.yml").write_bytes(answers.encode(errors="surrogateescape"))

    found = run_bounded("status", str(good.parent), "--format", "json", cwd=good)
    text = run_bounded("status", str(good.parent), cwd=good)

    assert (found.code, found.err) == (1, "")
    services = by_name(found.out)
    assert services.keys() == {*ANSWERS, "good"}
    assert [name for name, row in services.items() if not row["error"]] == ["good"]
    assert services["good"]["version"] == str(NEWEST)
    assert (text.code, text.err) == (1, "")
    assert len(text.out.splitlines()) == 4 + len(ANSWERS)
    assert max(map(len, text.out.splitlines())) < 200
    assert not set(text.out) & set("\x1b\x07")


PYTHON = "src/bad/bad.py"
CASES = {
    **{
        f"{kind} as {Path(name).name.lstrip('.')}": (name, make)
        for kind, make in NO_FILES.items()
        for name in (".copier-answers.yml", PYTHON, "README.md")
    },
    **{f"parse-{kind}": (PYTHON, make) for kind, make in (HARD_TO_PARSE | NO_PYTHON).items()},
}


def test_files(good: Path, render: Render, tmp_path: Path) -> None:
    expected = {"good": False}
    for case, (name, make) in CASES.items():
        bad = render(good.parent / case, NEWEST, project_name="bad", endpoints=["health"])
        (bad / name).unlink(missing_ok=True)
        make(bad / name)
        if os.path.lexists(bad / name):
            expected[case] = name != "README.md"

    found = run_bounded("status", str(good.parent), "--format", "json", cwd=tmp_path, seconds=300)

    assert (found.code, found.err) == (1, "")
    services = by_name(found.out)
    assert expected.keys() <= services.keys()
    assert {name: bool(services[name]["error"]) for name in expected} == expected
    for name in expected.keys() - {"good"}:
        assert expected[name] or services[name]["edited"] == ["README.md"]


def test_a_folder_that_cannot_be_looked_into(good: Path) -> None:
    for name in ("closed", "team/closed"):
        (good.parent / name).mkdir(parents=True, mode=0)

    found = run_bounded("status", str(good.parent), "--format", "json", cwd=good)

    services = json.loads(found.out)["services"]
    assert found.code == 1
    assert [each["error"] and "Permission denied" in each["error"] for each in services] == [
        True,
        True,
        None,
    ]


def test_settings_of_a_service(good: Path, render: Render) -> None:
    bad = render(good.parent / "bad", NEWEST, project_name="bad")
    (bad / "pyproject.toml").write_text("[tool.infer-scaffold]\nexclude = 7\n")

    row, _ = rows(run_bounded("status", str(good.parent), "--format", "json", cwd=good).out)

    assert "exclude: write a list of texts" in str(row["error"])
    assert row["version"] == str(NEWEST)


def test_a_process_that_ends(
    good: Path, render: Render, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(survey._FEW):
        render(good.parent / f"s{number}", NEWEST)
    look = survey._look

    def killed(*arguments: object) -> object:
        if str(arguments[1]).endswith("s3"):
            os.kill(os.getpid(), signal.SIGKILL)
        return look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(survey, "_look", killed)
    killed.__module__, killed.__qualname__ = survey.__name__, "_look"

    services = json.loads(run("status", str(good.parent), "--format", "json").out)["services"]

    assert [each["path"][-2:] for each in services if each["error"]] == ["s3"]
    assert "the process that judged it ended" in services[0]["error"]
    assert len(services) == survey._FEW + 1


def test_a_status_that_is_killed_leaves_no_process(
    good: Path, render: Render, tmp_path: Path
) -> None:
    for number in range(survey._FEW):
        render(good.parent / f"s{number}", NEWEST, project_name=f"s{number}")
    status = subprocess.Popen(
        [sys.executable, "-m", "infer_scaffold", "status", str(good.parent)],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
    )
    while not any(tmp_path.glob("cache/**/*.json")):  # a verdict: the processes are at work
        assert status.poll() is None
        time.sleep(0.01)

    status.kill()

    # Its processes hold the pipe open as long as they live.
    assert status.communicate(timeout=30) == (b"", None)


def test_another_template(good: Path, render: Render, run: Run) -> None:
    fork = render(good.parent / "fork", NEWEST, project_name="fork")
    file = fork / ".copier-answers.yml"
    text = file.read_text().replace("gh:infer-scaffold/infer-scaffold", "gh:acme/fork")
    file.write_text(text.replace(f"v{NEWEST}", "v7.3"))

    outcome = run("status", str(good.parent), "--format", "json")

    assert (outcome.code, outcome.err) == (0, "")
    row, _ = rows(outcome.out)
    assert (row["template"], row["version"], row["behind"]) == ("gh:acme/fork", None, 0)
    text = run("status", str(good.parent)).out
    assert "of the template gh:acme/fork" in text
    assert text.splitlines()[-1].endswith("1 of another template.")
    assert "of another template" in run("status", str(good.parent), "--format", "html").out


def test_names_are_shown_as_text(good: Path, run: Run) -> None:
    for number, name in enumerate(
        [b"a\x1b[2Jb", b"a\nb", b"\xff", b"n" * 200, "a\u202eb".encode()]
    ):
        folder = Path(os.fsdecode(os.fsencode(good.parent) + b"/" + name))
        folder.mkdir()
        (folder / ".copier-answers.yml").write_text(f'_src_path: "gh:a/b\\e[{number}J\\n"\n')

    for layout in ("text", "json", "html"):
        outcome = run("status", str(good.parent), "--format", layout)
        assert outcome.code == 1
        assert not set(outcome.out + outcome.err) & set("\x1b\x07\u202e")
        if layout == "text":
            assert len(outcome.out.splitlines()) == 9
            assert max(map(len, outcome.out.splitlines())) < 240
