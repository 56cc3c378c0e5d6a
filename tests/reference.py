"""Write the parts of the docs that follow from code and results: `python -m tests.reference`.

A page is written by hand around regions, `<!-- generated: NAME -->` to `<!-- end -->`, which are
written here; pictures are drawn whole. Of a pattern's page the head comes from its front matter,
and the list of questions from the probe.
"""

import functools
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
import typer.main

from infer_scaffold import cli
from infer_scaffold.checklist import PATTERNS, Pattern
from infer_scaffold.probe.catalogue import asked
from infer_scaffold.project.questions import PRESETS
from tests import svg

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "generated_examples"
RESULTS = ROOT / "bench" / "results"

REGION = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
TRANSCRIPT = re.compile(r"^<!-- transcript -->\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROSE = "## Why\n"
QUESTIONS = "\n## What a running service is asked\n"
OURS = "generated service"

# Run in a process of its own: the examples' packages may be installed here in another version.
INSPECT = """
import importlib, json
from full_server.app import create_app

def text(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

settings = {}
for preset in PRESETS:
    module = importlib.import_module(f"{preset}_server.settings")
    fields = module.Settings.model_fields
    settings[preset] = {name: [text(f.default), f.description] for name, f in fields.items()}
print(json.dumps({"settings": settings, "openapi": create_app().openapi()}))
"""


def files() -> dict[Path, str]:
    """All files that are written here, the hand-written parts as they are."""
    found = {page: with_regions(page.read_text("utf-8")) for page in sorted(DOCS.rglob("*.md"))}
    for pattern in PATTERNS:
        page = DOCS / "patterns" / f"{pattern.code}.md"
        found[page] = pattern_page(pattern, found[page])
    return found | pictures()


def with_regions(text: str) -> str:
    """The text of a page with its regions as they are now."""
    return REGION.sub(lambda match: f"{match[1]}\n{GENERATED[match[2]]().strip()}\n\n", text)


def pattern_page(pattern: Pattern, text: str) -> str:
    """The text of a pattern's page with head and questions as the data has them."""
    _, front, body = text.split("---\n", maxsplit=2)
    prose = body.partition(PROSE)[2].partition(QUESTIONS)[0]
    criteria = "".join(f"- {criterion}.\n" for criterion in pattern.criteria)
    lines = "".join(f"- {each}\n" for each in asked(pattern.code))
    questions = f"{QUESTIONS}\n{lines}" if lines else ""
    return f"""\
---
{front}---

# {pattern.code}: {pattern.title}

{pattern.category}. Severity: {pattern.severity}.

## What it asks for

{criteria}
{PROSE}{prose}{questions}"""


def patterns() -> str:
    rows = [f"| [{p.code}]({p.code}.md) | {p.severity} | {p.title} |" for p in PATTERNS]
    return "\n".join(["| code | severity | pattern |", "|---|---|---|", *rows])


def commands() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    root: Any = typer.main.get_command(cli.app)
    return "\n\n".join(command(name, each) for name, each in root.commands.items())


def command(name: str, command: Any) -> str:
    rows = [
        f"| {_signature(each)} | {_meaning(each)} |"
        for each in command.params
        if each.name != "help"
    ]
    paragraphs = [" ".join(each.split()) for each in command.help.split("\n\n")]
    table = "\n".join(["| argument or flag | meaning |", "|---|---|", *rows])
    return "\n\n".join([f"## infer-scaffold {name}", *paragraphs, table])


def _signature(parameter: Any) -> str:
    if not parameter.opts[0].startswith("-"):
        return f"`{parameter.metavar}`"
    names = ", ".join(f"`{each}`" for each in parameter.opts)
    if parameter.is_flag:
        return names
    # A bar would end the cell of the table.
    values = (parameter.metavar or "|".join(parameter.type_descriptor.annotation)).split("|")
    return f"{names} {' or '.join(f'`{each}`' for each in values)}"


def _meaning(parameter: Any) -> str:
    """The help, the default and the variable, a sentence each.

    A default that the help names is one that is not Typer's own.
    """
    text, _, default = parameter.help.partition(" [default: ")
    if not default and parameter.opts[0].startswith("-") and not parameter.is_flag:
        default = "" if parameter.default is None else str(parameter.default)
    ended = text if text.endswith((".", "?")) else f"{text}."
    told = f" Default: `{default.removesuffix(']')}`." if default else ""
    variable = f" Variable: `{parameter.envvar}`." if getattr(parameter, "envvar", None) else ""
    return f"{ended}{told}{variable}"


def presets() -> str:
    rows = [f"| `{name}` | {', '.join(each['endpoints'])} |" for name, each in PRESETS.items()]
    return "\n".join(["| preset | endpoints |", "|---|---|", *rows])


@functools.cache
def inspected() -> dict[str, Any]:
    """The settings of each example and the OpenAPI document of the full one, from their code."""
    sources = os.pathsep.join(str(EXAMPLES / preset / "src") for preset in PRESETS)
    env = {name: value for name, value in os.environ.items() if not name.startswith("INFER_")}
    script = INSPECT.replace("PRESETS", repr(list(PRESETS)))
    command = [sys.executable, "-c", script]
    env |= {"PYTHONPATH": sources, "PYTHONDONTWRITEBYTECODE": "1"}
    # In a folder that has no .env.
    found: dict[str, Any] = json.loads(subprocess.check_output(command, env=env, cwd=EXAMPLES))
    return found


def settings() -> str:
    """Every setting of a generated service, and the endpoints that bring it."""
    by_preset = inspected()["settings"]
    rows = []
    for name, (default, meaning) in by_preset["full"].items():
        having = [each for each in ("chat", "embeddings", "files") if name in by_preset[each]]
        where = "every service" if name in by_preset["minimal"] else ", ".join(having)
        shown = f"`{default}`" if default else ""
        rows.append(f"| `INFER_{name.upper()}` | {shown} | {meaning} | {where} |")
    return "\n".join(["| variable | default | meaning | with |", "|---|---|---|---|", *rows])


def endpoints() -> str:
    """Every operation of the full service, from its OpenAPI document."""
    rows = []
    for path, operations in inspected()["openapi"]["paths"].items():
        for method, operation in operations.items():
            summary = " ".join(operation["description"].partition("\n\n")[0].split())
            statuses = " ".join(sorted(each for each in operation["responses"] if each.isdigit()))
            rows.append(f"| `{method.upper()} {path}` | {summary} | {statuses} |")
    return "\n".join(["| endpoint | what it does | statuses |", "|---|---|---|", *rows])


def fields() -> str:
    """The fields of a chat request, as the full service lists them."""
    return _section(EXAMPLES / "full" / "docs" / "api.md", "## Fields of a request")


def own_model() -> str:
    """The worked example of the full service, with the names of its files shown."""
    page = EXAMPLES / "full" / "docs" / "your-own-model.md"
    text = page.read_text("utf-8").partition("\n\n")[2]
    return re.sub(r"^<!-- file: (\S+) -->\n", r"`\1`:\n\n", text, flags=re.MULTILINE)


def _section(file: Path, heading: str) -> str:
    """The text below a heading, up to the next heading of its level."""
    level = heading.partition(" ")[0]
    text = file.read_text("utf-8").partition(f"\n{heading}\n")[2]
    assert text, f"{file} has no {heading}"
    return re.split(rf"^#{{1,{len(level)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]


def result_table(start: str) -> Callable[[], str]:
    """The table after the line that begins so, of the results of the servers side by side."""

    def table() -> str:
        text = (RESULTS / "serving.md").read_text("utf-8")
        found = re.search(rf"^{re.escape(start)}.*\n\s*((?:\|.*\n)+)", text, re.MULTILINE)
        assert found, f"serving.md has no table after {start!r}"
        return found[1]

    return table


def measured() -> str:
    """The date, versions and machine of the measurement."""
    lines = (RESULTS / "serving.md").read_text("utf-8").splitlines()
    return "\n\n".join([lines[2], *(each.strip() for each in lines if each.startswith("Machine:"))])


def probe_scores() -> str:
    """The number of answers of each server that are as wanted."""
    lines = (RESULTS / "probe.md").read_text("utf-8").splitlines()
    header, scores = (
        [cell.strip() for cell in line.strip("|").split("|")[1:]]
        for line in lines
        if line.startswith(("| question ", "| **as wanted** "))
    )
    rows = [f"| {name} | {score} |" for name, score in zip(header, scores, strict=True)]
    return "\n".join(["| server | answers as wanted |", "|---|---|", *rows])


def pictures() -> dict[Path, str]:
    """The pictures that are drawn from a transcript or from results."""
    transcript = TRANSCRIPT.search((DOCS / "quick-start.md").read_text("utf-8"))
    assert transcript, "quick-start.md has no transcript"
    figures = json.loads((RESULTS / "serving.json").read_text("utf-8"))["figures"]
    ceilings = json.loads((RESULTS / "serving.json").read_text("utf-8"))["ceilings"]

    def chart(title: str, key: str) -> str:
        rows = [
            (name, statistics.median(each[key].values()))
            for name, each in figures.items()
            if key in each and name not in ceilings
        ]
        return svg.bars(title, rows, OURS)

    images = DOCS / "images"
    return {
        images / "demo.svg": svg.terminal(transcript[1], "A run of make demo"),
        images / "chat.svg": chart("Chat, 16 streams: tokens a second", "chat 16 tokens/s"),
        images / "embeddings.svg": chart(
            "Embeddings, 32 texts a request: texts a second", "embeddings 32x8 texts/s"
        ),
    }


GENERATED: dict[str, Callable[[], str]] = {
    "patterns": patterns,
    "commands": commands,
    "presets": presets,
    "settings": settings,
    "endpoints": endpoints,
    "fields": fields,
    "own-model": own_model,
    "measured": measured,
    "targets": result_table("Peers: "),
    "chat-throughput": result_table("Tokens a second:"),
    "chat-first-text": result_table("Time to the first text, in ms:"),
    "embeddings-throughput": result_table("Texts a second:"),
    "chat-start": result_table("Chat:"),
    "embeddings-start": result_table("Embeddings:"),
    "memory": result_table("Resident memory after so many requests, in MiB:"),
    "probe-scores": probe_scores,
}


def main() -> None:
    """Write every file again."""
    for file, text in files().items():
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
