"""The law: update(copy(old) + edits) is copy(new) + edits, without a conflict."""

from pathlib import Path

import pytest
from packaging.version import Version

from infer_scaffold import git
from infer_scaffold.project import history, questions, template, updating
from infer_scaffold.project.updating import Kind
from tests.update.conftest import (
    NEWEST,
    NEXT,
    OLDEST,
    RELEASED,
    Render,
    commit,
    files,
    render_wanted,
)
from tests.update.edits import EDITS, Edit, change, everything

CASES = [
    pytest.param(version, edit, id=f"{version}-{edit.__name__}")
    for version in RELEASED
    for edit in EDITS
    if version in (OLDEST, NEWEST) or edit is everything
]


@pytest.mark.parametrize(("version", "edit"), CASES)
def test_law(version: Version, edit: Edit, render: Render, tmp_path: Path) -> None:
    project = render(tmp_path / "project", version)
    git.make_repository(project, "Generate")
    edit(project)
    commit(project)

    wanted = render_wanted(render, tmp_path / "wanted", version)
    edit(wanted)

    with updating.prepare(project, [], {}) as prepared:
        assert prepared is not None
        prepared.apply()
    assert prepared.of(Kind.CONFLICT) == []
    # Later projects say that git decides about the line ends of the work tree.
    assert_same(project, wanted, line_ends=version < Version("0.2.0"))


@pytest.mark.parametrize("version", RELEASED, ids=str)
def test_endpoints_that_were_switched_off_stay_off(
    version: Version, render: Render, tmp_path: Path
) -> None:
    project = render(tmp_path / "project", version)
    git.make_repository(project, "Generate")
    answers = {"endpoints": ["chat", "health"], "devices": ["cpu"]}
    with updating.prepare(project, [], answers, to=str(version)) as prepared:
        assert prepared is not None
        prepared.apply()
    commit(project)
    assert_same(project, render(tmp_path / "reduced", version, **answers))

    with updating.prepare(project, [], {}) as prepared:
        assert prepared is not None
        prepared.apply()
    assert_same(project, render_wanted(render, tmp_path / "wanted", version, **answers))


def test_endpoints_come_and_go_while_the_version_rises(render: Render, tmp_path: Path) -> None:
    project = render(tmp_path / "project", RELEASED[0], endpoints=["embeddings"])
    git.make_repository(project, "Generate")
    answers = {"endpoints": ["chat", "files"]}

    with updating.prepare(project, [], answers) as prepared:
        assert prepared is not None
        prepared.apply()
    # A question that is asked for the first time gets today's default.
    defaults = {question.name: question.default for question in questions.load(template.root())}
    wanted = render_wanted(
        render,
        tmp_path / "wanted",
        RELEASED[0],
        made_with={"endpoints": ["embeddings"]},
        **answers,
        chat_model=defaults["chat_model"],
    )
    assert_same(project, wanted)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sse.py", "serving/http/sse.py"),
        ("models/batching.py", "serving/engine/continuous.py"),
        ("routers/chat.py", "routers/chat.py"),
    ],
)
def test_a_local_fix_that_the_template_makes_too(
    old: str, new: str, project: Path, render: Render, tmp_path: Path
) -> None:
    wanted = render_wanted(render, tmp_path / "wanted", RELEASED[0])
    package = Path("src", "myserver")
    (project / package / old).write_bytes((wanted / package / new).read_bytes())
    commit(project)

    with updating.prepare(project, [], {}) as prepared:
        assert prepared is not None
        prepared.apply()
    assert_same(project, wanted)


def test_a_line_that_both_changed_is_marked_and_both_sides_survive(
    project: Path, templates: Path, render: Render
) -> None:
    ours, theirs = '"fastapi>=0.165,<0.166",', '"fastapi>=0.170",'
    change(project / "pyproject.toml", '"fastapi>=0.165",', ours)
    commit(project)
    bundle = templates / "conflict.bundle"
    source = templates / "conflict"
    history.copy_template(templates / str(NEXT), source)
    change(source / "template" / "pyproject.toml.jinja", '"fastapi>=0.165",', theirs)
    bundle.write_bytes((templates / "bundle").read_bytes())
    history.add(bundle, Version("100.0"), source)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(history, "BUNDLE", bundle)
        with updating.prepare(project, [], {}) as prepared:
            assert prepared is not None
            prepared.apply()

    assert prepared.of(Kind.CONFLICT) == ["pyproject.toml"]
    text = (project / "pyproject.toml").read_text()
    marks = ("<<<<<<< before updating", ours, "=======", theirs, ">>>>>>> after updating")
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    # git knows of it, too: it shows the file as unmerged and refuses to commit it.
    assert "UU pyproject.toml" in git.output(project, "status", "--porcelain")
    for stage, line in (("2", ours), ("3", theirs)):
        assert line in git.output(project, "show", f":{stage}:pyproject.toml")


def assert_same(project: Path, wanted: Path, *, line_ends: bool = True) -> None:
    found, expected = files(project), files(wanted)
    if not line_ends:
        found, expected = (with_lf(each) for each in (found, expected))
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def with_lf(found: dict[str, tuple[int, bytes]]) -> dict[str, tuple[int, bytes]]:
    return {name: (mode, text.replace(b"\r\n", b"\n")) for name, (mode, text) in found.items()}
