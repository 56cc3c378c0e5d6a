"""`infer-scaffold status`: a fleet in many states."""

import datetime
import json
import subprocess
import time
from pathlib import Path

import pytest
from packaging.version import Version

from infer_scaffold.fleet import fixes, report, survey
from infer_scaffold.project import history
from infer_scaffold.project.rendering import Renderer
from tests.conftest import Run
from tests.update.conftest import LATER, NEXT, Render
from tests.update.edits import PACKAGE, changed_settings, crlf_files, deleted_files, own_router

NODE = Path(__file__).parents[1] / "node"
FIXES = """
[[fix]]
version = "99.0"
pattern = "IS301"
title = "Streams <end> well"
action = "None."

[[fix]]
version = "99.0"
pattern = "IS702"
title = "Models are listed"
action = "Look."

[[fix]]
version = "unreleased"
pattern = "IS101"
title = "Not yet"
action = "None."
"""


@pytest.fixture
def fleet(render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with services of several teams, one of them broken."""
    (tmp_path / "fixes.toml").write_text(FIXES)
    monkeypatch.setattr(fixes, "FILE", tmp_path / "fixes.toml")
    monkeypatch.setattr(fixes.load, "__defaults__", (tmp_path / "fixes.toml",))
    fleet = tmp_path / "fleet"
    for name, version, edits in (
        ("team/a", NEXT, [own_router, crlf_files]),
        ("team/b", Version("0.1.0"), [changed_settings, deleted_files]),
        ("c", Version("0.1.0"), []),
    ):
        project = render(fleet / name, version)
        for edit in edits:
            edit(project)
    render(fleet / "d", endpoints=["files", "health"])
    (fleet / "e").mkdir()
    (fleet / "e" / ".copier-answers.yml").write_text("<<<<<<< before updating\n")
    (fleet / "notes").mkdir()
    render(fleet / "team" / ".hidden")
    return fleet


def test_json(fleet: Path, run: Run) -> None:
    outcome = run("status", str(fleet), "--format", "json")

    assert (outcome.code, outcome.err) == (1, "")
    document = json.loads(outcome.out)
    assert document["newest"] == "99.0"
    # The most urgent first, then by path.
    c, e, b, d, a = document["services"]
    assert [Path(each["path"]).name for each in (c, e, b, d, a)] == ["c", "e", "b", "d", "a"]
    behind = sum(version > Version("0.1.0") for version in history.versions())
    assert (c["version"], c["behind"], c["edited"], c["deleted"]) == ("0.1.0", behind, [], [])
    assert [(fix["pattern"], fix["severity"], fix["action"]) for fix in c["missing"]] == [
        ("IS301", "High", "None."),
        ("IS702", "Low", "Look."),
    ]
    assert (d["behind"], d["missing"], d["edited"], d["deleted"]) == (0, [], [], [])
    assert (c["core"], e["core"]) == (None, None)
    assert e["version"] is None
    assert "cannot be used" in e["error"]
    # Files of one's own and other line ends are no edits of what the template manages.
    assert (a["version"], a["edited"], a["deleted"]) == ("99.0", [], [])
    assert b["edited"] == ["src/myserver/settings.py"]
    assert b["deleted"] == ["Dockerfile.cuda", "bench/load.py", "deploy/kubernetes.yaml"]


def test_text(fleet: Path, run: Run) -> None:
    outcome = run("status", str(fleet / "c"), str(fleet / "team"))

    assert outcome.code == 1
    header, *rows, empty, summary = outcome.out.splitlines()
    columns = ["service", "version", "behind", "High", "edited", "core", "failing", "note"]
    assert header.split() == columns
    behind = str(sum(version > Version("0.1.0") for version in history.versions()))
    # One name, so that paths tell them apart; of a long one the end.
    assert [row.split()[0][-7:] for row in rows] == ["fleet/c", "/team/b", "/team/a"]
    assert [row.split()[1:] for row in rows] == [
        ["0.1.0", behind, "1", "0", "-", "-"],
        ["0.1.0", behind, "1", "4", "-", "-"],
        ["99.0", "0", "0", "0", "untouched", "-"],
    ]
    assert empty == ""
    assert summary == "3 services, 2 behind 99.0, 2 without fixes of High severity."


def test_the_core(moved_render: Render, tmp_path: Path) -> None:
    def look() -> tuple[object, str, str]:
        services = survey.survey([service])
        assert services[0].error == ""
        (data,) = json.loads(report.to_json(services, LATER))["services"]
        page = report.to_html(services, LATER, datetime.date.today())
        return data["core"], report.to_text(services, LATER).splitlines()[1], page

    service = moved_render(tmp_path / "service", NEXT)
    (service / "src" / PACKAGE).rename(service / "acme")
    core = service / "acme" / "serving"
    crlf = core / "http" / "sse.py"
    crlf.write_bytes(crlf.read_bytes().replace(b"\n", b"\r\n"))
    (core / "http" / "__pycache__").mkdir()
    (core / "http" / "__pycache__" / "sse.pyc").touch()
    (service / "acme" / "routers" / "ours.py").touch()
    (service / "acme" / "settings.py").open("a").write("# ours\n")

    data, row, page = look()
    assert data == {"untouched": True, "edited": []}
    assert row.split()[4:6] == ["1", "untouched"]
    assert "untouched" in page

    (core / "engine" / "stall.py").open("a").write("# ours\n")
    data, row, _ = look()
    assert data == {"untouched": False, "edited": ["acme/serving/engine/stall.py"]}
    assert " 1 file edited " in row

    (core / "chat" / "text.py").unlink()
    (core / "ours.py").touch()
    data, row, page = look()
    names = [f"acme/serving/{each}" for each in ("chat/text.py", "engine/stall.py", "ours.py")]
    assert data == {"untouched": False, "edited": names}
    assert " 3 files edited " in row
    assert all(page.count(f"<code>{name}</code>") for name in names)


def test_a_fleet_that_is_up_to_date_exits_with_0(fleet: Path, run: Run) -> None:
    assert run("status", str(fleet / "d")).code == 0


def test_a_conflict_that_nobody_settled_is_told(fleet: Path, run: Run) -> None:
    with (fleet / "d" / "src" / "myserver" / "app.py").open("a") as app:
        app.write("<<<<<<< before updating\n")

    outcome = run("status", str(fleet / "d"), "--format", "json")

    assert outcome.code == 1
    (service,) = json.loads(outcome.out)["services"]
    assert service["error"].startswith("src/myserver/app.py:")
    assert (service["version"], service["edited"]) == ("99.0", ["src/myserver/app.py"])


@pytest.mark.parametrize("path", ["notes", "nothing"])
def test_a_path_without_services(path: str, fleet: Path, run: Run) -> None:
    outcome = run("status", str(fleet / path))

    assert (outcome.code, outcome.out) == (2, "")
    assert "holds no project of infer-scaffold; give a folder that does." in outcome.err


def test_the_page_in_a_browser(fleet: Path, run: Run, tmp_path: Path) -> None:
    page = tmp_path / "status.html"
    page.write_text(run("status", str(fleet), "--format", "html").out, encoding="utf-8")

    shown = subprocess.run(
        ["node", "page.mjs", str(page)], cwd=NODE, capture_output=True, text=True, check=True
    )

    seen = json.loads(shown.stdout)
    assert seen["problems"] == []
    assert seen["requests"] == [page.as_uri()]
    assert seen["title"] == "Inference services"
    assert [(row[0][-1], row[1]) for row in seen["rows"]] == [
        ("c", "needs an update"),
        ("e", "unknown"),
        ("b", "needs an update"),
        ("d", "up to date"),
        ("a", "up to date"),
    ]
    # A click unfolds what is missing; markup in a title is text.
    assert seen["before"] == ""
    assert "High Streams <end> well (IS301, 99.0). To do: None." in seen["after"]
    # On a telephone the table scrolls and the page does not.
    assert seen["phone"]["page"] <= seen["phone"]["window"]


def test_sixty_services(render: Render, templates: Path, tmp_path: Path, run: Run) -> None:
    renderer = Renderer(templates / "0.1.0")
    for number in range(60):
        name = f"service-{number}"
        answers = {"project_name": name, "endpoints": ["chat", "embeddings", "files", "health"]}
        project = tmp_path / "fleet" / name
        for file, content in renderer.render(answers).items():
            (project / file).parent.mkdir(parents=True, exist_ok=True)
            (project / file).write_bytes(content)
        recorded = "_src_path: gh:infer-scaffold/infer-scaffold\n_commit: v0.1.0\n"
        recorded += f"project_name: {name}\nendpoints: [chat, embeddings, files, health]\n"
        (project / ".copier-answers.yml").write_text(recorded)

    started = time.monotonic()
    outcome = run("status", str(tmp_path / "fleet"), "--format", "json")
    seconds = time.monotonic() - started

    services = json.loads(outcome.out)["services"]
    assert len(services) == 60
    assert not any(service["error"] or service["edited"] for service in services)
    # 200 take 5 s on two idle cores (bench/results/speed.md); here, other tests run beside them.
    assert seconds < 45
