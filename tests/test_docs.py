"""Promises of README and docs: commands, flags, files, figures, transcripts, links."""

import json
import re
import statistics
import tomllib
from pathlib import Path

import pytest
import typer.main

from infer_scaffold import cli
from infer_scaffold.check import config
from infer_scaffold.check.judgement import Profile
from infer_scaffold.checklist import PAGES
from infer_scaffold.probe.catalogue import QUESTIONS
from infer_scaffold.project import generate, template
from infer_scaffold.project.questions import PRESETS, load
from tests import reference
from tests.conftest import Run

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text("utf-8")
COMMAND_PAGE = (DOCS / "reference" / "commands.md").read_text("utf-8")
REPOSITORY = re.compile(re.escape(PAGES.partition("/blob/")[0]) + r"/(?:blob|tree)/main/([^)#\s]+)")
WRITTEN = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


def flags() -> set[str]:
    parameters = [parameter for command in COMMANDS.values() for parameter in command.params]
    return {option for each in parameters for option in each.opts if option[:2] == "--"}


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def links(text: str) -> list[str]:
    """The links of a page, those in examples of code aside."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ {4,}.*$", "", text, flags=re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_what_follows_from_code_and_results_is_up_to_date() -> None:
    # Names first: a difference of everything is unreadable.
    stale = [
        str(file.relative_to(ROOT))
        for file, text in reference.files().items()
        if not file.is_file() or file.read_text("utf-8") != text
    ]
    assert stale == [], "run `make examples`"


def test_every_region_is_used() -> None:
    used = {name for file in WRITTEN for _, name in reference.REGION.findall(file.read_text())}
    assert used == set(reference.GENERATED)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(command: str) -> None:
    assert f"    infer-scaffold {command} " in README
    assert f"\n## infer-scaffold {command}\n" in COMMAND_PAGE


@pytest.mark.parametrize("flag", sorted(flags()))
def test_every_flag(flag: str) -> None:
    assert re.search(rf"^\| (`-\w`, )?`{flag}`", COMMAND_PAGE, re.M)


def test_how_many_files_the_transcript_counts(tmp_path: Path) -> None:
    questions = load(template.root())
    files = generate.preview(tmp_path / "myserver", questions, {"devices": ["cpu"]})

    created = f"Created .demo/myserver ({len(files)} files, first commit on main)."
    assert f"\n{created}\n" in page("quick-start.md")
    assert created in (DOCS / "images" / "demo.svg").read_text("utf-8")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(preset: str) -> None:
    assert f"| `{preset}` |" in COMMAND_PAGE
    assert (ROOT / "generated_examples" / preset).is_dir()


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_make_target_that_is_promised(file: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:^    |`)make ([a-z]+)", file.read_text("utf-8"), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"^\| `([a-z_]+(?:\.py|/))`", page("concepts.md"), re.M)))
)
def test_every_file_that_is_explained(name: str) -> None:
    assert list((ROOT / "generated_examples" / "full").rglob(name.rstrip("/")))


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_into_the_repository_lead_somewhere(file: Path) -> None:
    text = file.read_text("utf-8")
    targets = [file.parent / link.partition("#")[0] for link in links(text) if ":" not in link]
    targets += [ROOT / path for path in REPOSITORY.findall(text)]

    assert [str(target) for target in targets if not target.exists()] == []


def test_the_transcript_of_check(folder: Path, run: Run) -> None:
    text = page("how-to/check.md")
    (service,) = re.findall(r"^<!-- checked -->\n```python\n(.*?)^```$", text, re.M | re.S)
    (transcript,) = re.findall(r"^<!-- finds -->\n```text\n(.*?)^```$", text, re.M | re.S)
    command, _, output = transcript.partition("\n")
    (folder / "main.py").write_text(service)

    outcome = run(*command.removeprefix("$ infer-scaffold ").split())

    assert (outcome.code, outcome.out) == (1, output)


def test_the_transcript_of_probe_has_the_words_of_its_questions() -> None:
    lines = re.findall(
        r"^(IS\d+)  (?:pass|fail|error|skip) +(\S+) +(.+)$", page("how-to/probe.md"), re.M
    )
    assert lines
    assert set(lines) <= {(each.code, each.name, each.holds) for each in QUESTIONS}


def test_the_settings_of_check(folder: Path) -> None:
    (table,) = re.findall(r"^```toml\n(.*?)^```$", page("how-to/check.md"), re.M | re.S)
    (folder / "pyproject.toml").write_text(table)

    assert config.load(folder) == config.Config(
        Profile.STRICT,
        frozenset({"IS101", "IS102", "IS201", "IS203"}),
        ("/scripts/",),
        config.FailOn.HIGH,
    )
    assert tomllib.loads(table)["tool"]["infer-scaffold"].keys() == set(config.SETTINGS)


def test_every_module_of_the_tool_is_explained() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    table = text.partition("| module | what it does |\n")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()]
    named = {name for row in rows for name in re.findall(r"`([a-z_/.]+)`", row)}
    package = ROOT / "src" / "infer_scaffold"
    modules = {file.relative_to(package).as_posix() for file in package.rglob("[a-z]*.py")}
    folders = {f"{name.partition('/')[0]}/" for name in modules if "/" in name}
    whole = named & folders
    assert named == whole | {name for name in modules if not name.startswith(tuple(whole))}


FIGURES = json.loads((ROOT / "bench" / "results" / "serving.json").read_text())["figures"]
SERVE, LLAMA, INFINITY = "transformers serve", "llama.cpp server, Q4_K_M", "infinity, defaults"
BATCHING, OURS = f"{SERVE}, continuous batching", reference.OURS


def figure(server: str, key: str) -> float:
    return statistics.median(FIGURES[server][key].values())


def resident(requests: int) -> str:
    soak = "generated service, chat and embeddings"
    return f"{figure(soak, f'resident after {requests}') / 2**20:,.0f} MiB"


def test_the_figures_in_prose_are_those_of_the_results() -> None:
    one, sixteen, loaded = "chat 1 tokens/s", "chat 16 tokens/s", "chat resident"
    text = page("when-not-to-use.md")

    assert f"{figure(LLAMA, one):.0f} tokens a second to our {figure(OURS, one):.0f} " in text
    assert (
        f"{figure(LLAMA, loaded) / 2**20:,.0f} MiB to our "
        f"{figure(OURS, loaded) / 2**20:,.0f}, " in text
    )
    assert f"({figure(SERVE, one):.0f} to {figure(OURS, one):.0f} tokens a second)" in text
    assert f"({figure(BATCHING, sixteen):.0f} to {figure(OURS, sixteen):.0f})" in text
    texts = "embeddings 32x8 texts/s"
    assert f"{figure(INFINITY, texts):.0f} texts a second to our {figure(OURS, texts):.0f}" in text
    single = "embeddings 1x1 texts/s"
    assert f"({figure('LitServe', single):.0f} to {figure(OURS, single):.0f} texts" in text
    assert f"from {resident(0)} to {resident(11000)}" in text

    readme = " ".join(README.split())
    ours, theirs = figure(OURS, sixteen), figure(SERVE, sixteen)
    assert f"it generates {ours:.0f} tokens a second: {ours / theirs:.0f} times as many" in readme
    assert f"as with it ({figure(BATCHING, sixteen):.0f}), more than llama.cpp" in readme
    assert f"llama.cpp ({figure(LLAMA, sixteen):.0f})" in readme
    assert figure(LLAMA, one) / figure(OURS, one) == pytest.approx(3, abs=0.25)


def test_the_size_of_a_service_is_about_what_is_said() -> None:
    text = " ".join(page("when-not-to-use.md").split())
    said = re.search(
        r"has ([\d,]+) lines \(`minimal`\) to ([\d,]+) lines \(`full`\), "
        r"and ([\d,]+) to ([\d,]+) in tests",
        text,
    )
    assert said
    folders = ("minimal/src", "full/src", "minimal/tests", "full/tests")
    for folder, number in zip(folders, said.groups(), strict=True):
        sources = (ROOT / "generated_examples" / folder).rglob("*.py")
        lines = sum(len(file.read_text("utf-8").splitlines()) for file in sources)
        assert int(number.replace(",", "")) == pytest.approx(lines, rel=0.15), folder


def test_what_is_said_to_be_missing_is_missing() -> None:
    missing = page("status.md").partition("## What is missing\n")[2].partition("\n## ")[0]
    named = re.findall(r"`(/[\w/]+)`", missing)
    assert named
    assert set(named).isdisjoint(reference.inspected()["openapi"]["paths"])
    assert ("4 or 8 bits" in missing) is not (
        "quantization" in reference.inspected()["settings"]["full"]
    )
