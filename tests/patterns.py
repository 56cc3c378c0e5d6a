"""Write docs/patterns/ from the checklist: `python -m tests.patterns`."""

import shutil
from pathlib import Path

from infer_scaffold.checklist import PATTERNS, to_markdown
from infer_scaffold.probe.questions import asked

FOLDER = Path(__file__).parents[1] / "docs" / "patterns"


def pages() -> dict[str, str]:
    """The pages by file name, the list of all patterns among them."""
    rows = [f"| [{p.code}]({p.code}.md) | {p.severity} | {p.title} |" for p in PATTERNS]
    lines = ["# The patterns", "", "| code | severity | pattern |", "|---|---|---|", *rows]
    found = {f"{p.code}.md": to_markdown(p, asked(p.code)) for p in PATTERNS}
    return found | {"README.md": "\n".join(lines) + "\n"}


def main() -> None:
    """Write every page again."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
