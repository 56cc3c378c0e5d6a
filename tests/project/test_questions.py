"""copier.yml as data and as options, and the rules that its validators hold."""

import keyword
import re
import sys
import tomllib
from pathlib import Path

import jinja2
import pytest
import yaml

from infer_scaffold.errors import UserError
from infer_scaffold.project import generate, questions, template
from infer_scaffold.project.questions import PRESETS, Question

QUESTIONS = {question.name: question for question in questions.load(template.root())}


def reserved_lists() -> list[list[str]]:
    """The lists of reserved.jinja."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.root()), autoescape=True
    )
    module = environment.get_template("reserved.jinja").module
    return [part for part in vars(module).values() if part and isinstance(part, list)]


def reserved() -> set[str]:
    """The names in reserved.jinja."""
    return {name for part in reserved_lists() for name in part}


def test_every_question_that_is_asked_is_loaded_in_order() -> None:
    config = yaml.safe_load((template.root() / "copier.yml").read_text())
    names = [name for name in config if not name.startswith("_")]

    assert list(QUESTIONS) == [name for name in names if name != "package_name"]


def test_a_question_knows_its_flag_type_choices_and_condition() -> None:
    assert QUESTIONS["heartbeat_seconds"].flag == "--heartbeat-seconds"
    assert QUESTIONS["heartbeat_seconds"].type is int
    assert QUESTIONS["streaming"].choices == ("sse", "none")
    assert QUESTIONS["streaming"].when == "'chat' in endpoints"
    assert QUESTIONS["endpoints"].multiselect


def test_flags_become_answers_in_the_order_of_the_choices() -> None:
    flags = {"endpoints": "files, chat,files", "streaming": None, "heartbeat_seconds": 0}

    answers = questions.answers_from_flags(list(QUESTIONS.values()), flags)

    assert answers == {"endpoints": ["chat", "files"], "heartbeat_seconds": 0}


def test_an_unknown_choice_names_the_flag_and_the_choices() -> None:
    question = Question("how", str, "How?", choices=("a", "b"))

    with pytest.raises(UserError, match=r"^--how: there is no 'c'; choose from a, b\.$"):
        questions.answers_from_flags([question], {"how": "c"})


def test_presets_are_valid_and_full_is_the_default() -> None:
    endpoints = QUESTIONS["endpoints"]

    assert PRESETS[questions.DEFAULT_PRESET]["endpoints"] == endpoints.default
    for answers in PRESETS.values():
        assert answers["endpoints"]
        assert set(answers["endpoints"]) <= set(endpoints.choices)


def test_no_keyword_and_no_public_module_is_missing_from_the_reserved_names() -> None:
    names = {*keyword.kwlist, *keyword.softkwlist, *sys.stdlib_module_names, "test"}
    possible = {name for name in names if re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", name)}

    assert len(possible) > 200
    assert not possible - reserved()


def test_no_dependency_of_a_project_is_missing_from_the_reserved_names(tmp_path: Path) -> None:
    generate.render({"project_name": "server", "devices": ["cpu", "cuda", "mps"]}, tmp_path)
    pyproject = tomllib.loads((tmp_path / "pyproject.toml").read_text())
    groups = (pyproject["project"]["dependencies"], *pyproject["dependency-groups"].values())
    wanted = {re.split(r"[^\w.-]", line)[0] for group in groups for line in group}

    assert "torch" in wanted
    packages = {re.sub(r"[-.]+", "_", name).lower() for name in wanted}
    assert not {name for name in packages if len(name) <= 30} - reserved()  # more is refused


@pytest.mark.parametrize("name", ["x", "my-server", "my_server", "llm2", "a-1", "x" * 30])
def test_good_names(name: str, tmp_path: Path) -> None:
    rendered = generate.render({"project_name": name}, tmp_path / "x", pretend=True)

    assert rendered.answers["package_name"] == name.replace("-", "_")


@pytest.mark.parametrize(
    "name", ["a--b", "a-", "-a", "_a", "a.b", "a/b", "a\\b", "\uff41", "{{ 1 }}"]
)
def test_bad_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Start with a lower-case letter"):
        generate.render({"project_name": name}, tmp_path / "x", pretend=True)


MODELS = ["owner/Name-0.5B", "gpt2", "/models/a_b", "./m", "../m/n", "../../m", "~/m", "a+b"]


@pytest.mark.parametrize("name", ["con", "aux", "nul", "prn", "com1", "lpt9"])
def test_names_of_windows_devices_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f'"{name}" is a device on Windows'):
        generate.render({"project_name": name}, tmp_path / "x", pretend=True)


WIDTH = 60
LONGEST_NAMES = sorted(max(sorted(names), key=len) for names in reserved_lists())
REFUSED = {
    "project_name": [*LONGEST_NAMES, "x" * 31, "Server"],
    "description": ["x" * 201, "", "a\nb", "a\x9fb", "a\u2028b", "\udc9c"],
    "endpoints": [[]],
    "devices": [[]],
    "heartbeat_seconds": [-1],
    "chat_model": ["x" * 201, "a b"],
    "embeddings_model": ["x" * 201, "a b"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values]
)
def test_every_reason_fits_a_narrow_terminal(name: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        generate.render({"project_name": "x", name: value}, tmp_path / "x", pretend=True)

    reason = str(refusal.value).partition(": ")[2]
    assert 0 < len(reason) <= WIDTH, reason


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_every_question_fits_a_narrow_terminal(question: Question) -> None:
    assert len(question.help) <= WIDTH - len("🎤 ") - 1, question.help


def test_the_reason_for_undecodable_bytes_speaks_of_the_encoding(tmp_path: Path) -> None:
    # An "Ü" in UTF-8 that a process under LC_ALL=C was given.
    answers = {"project_name": "x", "description": "\udcc3\udc9cbersetzer"}
    with pytest.raises(UserError, match="in the locale's encoding"):
        generate.render(answers, tmp_path / "x", pretend=True)


@pytest.mark.parametrize("model", MODELS)
def test_good_models(model: str, tmp_path: Path) -> None:
    answers = {"project_name": "x", "chat_model": model, "embeddings_model": model}

    assert generate.render(answers, tmp_path / "x", pretend=True).answers["chat_model"] == model


@pytest.mark.parametrize("model", ["", "-m", "~m", "a b", "a\n", "a'b", "é", "{{ x }}", "x" * 201])
@pytest.mark.parametrize("question", ["chat_model", "embeddings_model"])
def test_bad_models(question: str, model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^--{question.replace('_', '-')}: "):
        generate.render({"project_name": "x", question: model}, tmp_path / "x", pretend=True)
