"""Write the parts of docs/patterns/ that follow from data: `python -m tests.patterns`.

Of each page the head, from its front matter, and the list of questions, from the probe; and the
list of all patterns. The prose between head and list is written by hand.
"""

from infer_scaffold.checklist import PATTERNS, Pattern, folder
from infer_scaffold.probe.questions import asked

FOLDER = folder()
PROSE = "## Why\n"
QUESTIONS = "\n## What a running service is asked\n"


def pages() -> dict[str, str]:
    """The pages by file name, the list of all patterns among them."""
    rows = [f"| [{p.code}]({p.code}.md) | {p.severity} | {p.title} |" for p in PATTERNS]
    lines = ["# The patterns", "", "| code | severity | pattern |", "|---|---|---|", *rows]
    files = {pattern: FOLDER / f"{pattern.code}.md" for pattern in PATTERNS}
    found = {file.name: page(p, file.read_text("utf-8")) for p, file in files.items()}
    return found | {"README.md": "\n".join(lines) + "\n"}


def page(pattern: Pattern, text: str) -> str:
    """The text of a page with its head and its questions as the data has them."""
    _, front, body = text.split("---\n", maxsplit=2)
    prose = body.partition(PROSE)[2].partition(QUESTIONS)[0]
    return f"---\n{front}---\n\n{head(pattern)}{PROSE}{prose}{questions(pattern)}"


def head(pattern: Pattern) -> str:
    criteria = "".join(f"- {criterion}.\n" for criterion in pattern.criteria)
    return f"""\
# {pattern.code}: {pattern.title}

{pattern.category}. Severity: {pattern.severity}.

## What it asks for

{criteria}
"""


def questions(pattern: Pattern) -> str:
    lines = "".join(f"- {each}\n" for each in asked(pattern.code))
    return f"{QUESTIONS}\n{lines}" if lines else ""


def main() -> None:
    """Write every page again."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
