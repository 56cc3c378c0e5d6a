"""Whatever a person answers, every rendered file is what its name says it is."""

import ast
import json
import shutil
import tempfile
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infer_scaffold.project import generate
from infer_scaffold.project.questions import Answers


class ComposeLoader(yaml.SafeLoader):
    """Knows the tag of compose files for a value in the place of another file's."""


ComposeLoader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))
PARSERS: dict[str, Callable[[str], object]] = {
    ".py": ast.parse,
    ".toml": tomllib.loads,
    ".yml": lambda text: list(yaml.safe_load_all(text)),
    ".yaml": lambda text: list(yaml.load_all(text, ComposeLoader)),
    ".json": json.loads,
}

# Text that breaks out of a format that does not quote it.
HOSTILE = ['"', "'", '"""', "'''", "\\", "\\n", "{{ 1 }}", "{% raw %}", "{#", "#}", "${X}", "$(x)"]
HOSTILE += [
    "`",
    "#",
    ": ",
    "- ",
    "---",
    "]]>",
    "<b>",
    "%s",
    "{x}",
    "é",
    "漢字",
    "🎉",
    "\u202e",
    "\ufeff",
]

pieces = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=8),
)
descriptions = (
    st.lists(pieces, min_size=1, max_size=12)
    .map("".join)
    .filter(lambda text: text.strip() and len(text) <= 200)
)
# A prefix of its own, so that no name is a keyword or a module.
names = st.from_regex(r"zz[a-z0-9]{0,7}([-_][a-z0-9]{1,6}){0,3}", fullmatch=True)
models = st.from_regex(r"([A-Za-z0-9]|~/|\.{0,2}/)[A-Za-z0-9._/+-]{0,60}", fullmatch=True)


def some(*choices: str) -> st.SearchStrategy[list[str]]:
    """Any subset of the choices that is not empty, in their order."""
    subsets = st.sets(st.sampled_from(choices), min_size=1)
    return subsets.map(lambda chosen: [choice for choice in choices if choice in chosen])


def answer_sets(*endpoints: str) -> st.SearchStrategy[Answers]:
    return st.fixed_dictionaries(
        {
            "project_name": names,
            "description": descriptions,
            "endpoints": some(*endpoints),
            "devices": some("cpu", "cuda", "mps"),
        },
        optional={
            "deploy": st.just([]) | some("docker", "kubernetes", "ray"),
            "streaming": st.sampled_from(["sse", "none"]),
            "heartbeat_seconds": st.integers(0, 3600),
            "stream_usage": st.sampled_from(["request", "always"]),
            "chat_model": models,
            "embeddings_model": models,
        },
    )


@cache
def parse(kind: str, text: str) -> None:
    """Raise what the parser of this kind of file raises. Most files are those of other answers."""
    if kind in PARSERS:
        PARSERS[kind](text)


def check(answers: Answers) -> None:
    """Render and read every file back."""
    folder = Path(tempfile.mkdtemp(prefix="infer-scaffold-"))
    try:
        generate.render(answers, folder)
        for name in generate.list_files(folder):
            text = (folder / name).read_text(encoding="utf-8")
            try:
                parse(Path(name).suffix, text)
            except Exception as error:
                raise AssertionError(f"{name} does not parse: {error}\n{text}") from error
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert project["name"] == answers["project_name"]
        assert project["description"] == answers["description"]
        remembered = yaml.safe_load((folder / ".copier-answers.yml").read_text(encoding="utf-8"))
        for name in ("project_name", "description", "endpoints", "devices"):
            assert remembered[name] == answers[name]
    finally:
        shutil.rmtree(folder)


# Two tests, so that two processes share the work.
@pytest.mark.parametrize(
    "endpoints", [("chat", "embeddings", "files", "health"), ("embeddings", "files", "health")]
)
def test_every_file_of_every_answer_set_parses(endpoints: tuple[str, ...]) -> None:
    @settings(
        max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(answer_sets(*endpoints))
    def generated(answers: Answers) -> None:
        check(answers)

    generated()
