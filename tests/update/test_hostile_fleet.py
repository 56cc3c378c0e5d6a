"""`infer-scaffold status` where one service is broken: it has a row, and so have the others."""

import json
import os
import signal
from collections.abc import Callable
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
    services = json.loads(outcome_text)["services"]
    (bad,) = (each for each in services if not each["path"].endswith("good"))
    (good,) = (each for each in services if each["path"].endswith("good"))
    assert (good["error"], good["edited"], good["version"]) == (None, [], str(NEWEST))
    return bad, good


@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS)
def test_answers(answers: str, good: Path) -> None:
    bad = good.parent / "bad"
    bad.mkdir()
    (bad / ".copier-answers.yml").write_bytes(answers.encode(errors="surrogateescape"))

    found = run_bounded("status", str(good.parent), "--format", "json", cwd=good)
    text = run_bounded("status", str(good.parent), cwd=good)

    assert (found.code, found.err) == (1, "")
    row, _ = rows(found.out)
    assert row["error"]
    assert (text.code, text.err) == (1, "")
    assert len(text.out.splitlines()) == 5
    assert max(map(len, text.out.splitlines())) < 200
    assert not set(text.out) & set("\x1b\x07")


PYTHON = "src/bad/bad.py"
CASES = [
    *((name, kind) for kind in NO_FILES for name in (".copier-answers.yml", PYTHON, "README.md")),
    *((PYTHON, kind) for kind in (HARD_TO_PARSE | NO_PYTHON)),
]


@pytest.mark.parametrize(
    ("name", "make"),
    [(name, (NO_FILES | HARD_TO_PARSE | NO_PYTHON)[kind]) for name, kind in CASES],
    ids=[f"{name}-{kind}" for name, kind in CASES],
)
def test_files(
    name: str, make: Callable[[Path], object], good: Path, render: Render, tmp_path: Path
) -> None:
    bad = render(good.parent / "bad", NEWEST, project_name="bad")
    (bad / name).unlink(missing_ok=True)
    make(bad / name)

    found = run_bounded("status", str(good.parent), "--format", "json", cwd=tmp_path)

    assert found.err == ""
    if (bad / name).is_symlink() or os.path.lexists(bad / name):
        row, _ = rows(found.out)
        assert row["edited"] == ["README.md"] if name == "README.md" else row["error"]
        assert found.code == (0 if name == "README.md" else 1)


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
        render(good.parent / f"s{number}", NEWEST, project_name=f"s{number}")
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
