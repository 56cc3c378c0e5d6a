"""How often `check` is right about servers that were read by hand.

    python bench/check.py LABELS SOURCES

LABELS holds verdicts.csv (repository, item, verdict, ambiguous, commit ...; an item begins with
the number of its pattern) and findings.csv (file:line, expected: report, optional or silent).
SOURCES holds a folder with the source of each repository, under its name. Measures also how long a
generated service takes among 5,000 files of the packages that are installed. Writes
bench/results/check.md; the labelled sources are other people's, and are not part of this project.
"""

import csv
import importlib.util
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from infer_scaffold.check.checker import Report, check
from infer_scaffold.check.judgement import Verdict
from infer_scaffold.checklist import PATTERNS
from infer_scaffold.project import generate

RESULTS = Path(__file__).parent / "results" / "check.md"
NEAR = 1  # A label may be on the line before or after: at a decorator, or at its function.


LARGE = 5000
PACKAGES = ("transformers", "fastapi", "starlette", "openai", "pydantic", "torch")


def processor_seconds() -> tuple[int, float]:
    """The number of files of a large project, and the time that a processor works on it."""
    with tempfile.TemporaryDirectory() as folder:
        generate.render({"project_name": "large"}, Path(folder) / "project")
        large = Path(folder) / "large"
        shutil.copytree(Path(folder) / "project" / "src", large / "src")
        left = LARGE - sum(1 for _ in large.rglob("*.py"))
        for package in PACKAGES:
            spec = importlib.util.find_spec(package)
            assert spec is not None and spec.origin is not None
            library = Path(spec.origin).parent
            for file in sorted(library.rglob("*.py"))[: max(left, 0)]:
                copy = large / package / file.relative_to(library)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
                left -= 1
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "infer_scaffold", "check", str(large)]
        subprocess.run(command, check=False, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return sum(1 for _ in large.rglob("*.py")), taken


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def unmet(verdict: str) -> bool:
    return verdict in (Verdict.FAIL, Verdict.PARTIAL)


def main() -> None:
    labels, sources = map(Path, sys.argv[1:])
    verdicts = rows(labels / "verdicts.csv")
    names = sorted({row["repository"] for row in verdicts})
    reports: dict[str, Report] = {name: check(sources / name.split("/")[1]) for name in names}

    def judged(row: dict[str, str]) -> tuple[str, list[tuple[str, int]]]:
        code = PATTERNS[int(row["item"][:2]) - 1].code
        (judgement,) = (
            each for each in reports[row["repository"]].judgements if each.pattern.code == code
        )
        places = [(finding.path.as_posix(), finding.line) for finding in judgement.findings]
        return judgement.verdict.replace("n/a", "na"), places

    table = []
    for name in names:
        counted: Counter[str] = Counter()
        for row in verdicts:
            if row["repository"] != name or row["ambiguous"] == "y":
                continue
            ours, labelled = judged(row)[0], row["verdict"]
            counted["labels"] += 1
            counted["same"] += ours == labelled
            counted["true"] += unmet(ours) and unmet(labelled)
            counted["false"] += unmet(ours) and not unmet(labelled)
            counted["missed"] += unmet(labelled) and not unmet(ours)
        table.append((name, len(reports[name].unparsed), counted))
    lines: Counter[str] = Counter()
    for row in rows(labels / "findings.csv"):
        path, _, line = row["file:line"].partition(":")
        first, _, last = line.partition("-")
        wanted = range(int(first) - NEAR, int(last or first) + NEAR + 1)
        hit = any(file == path and at in wanted for file, at in judged(row)[1])
        lines[f"{row['expected']} {'reported' if hit else 'not reported'}"] += 1

    total = sum((counted for _, _, counted in table), Counter())
    text = [
        "# How often `check` is right",
        "",
        f"Default profile, Python {platform.python_version()}. Labels that a careful reader could",
        "decide the other way are left out. Written by bench/check.py.",
        "",
        "| server | labels | same verdict | unmet, rightly | unmet, wrongly | missed "
        "| files that do not parse |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, unparsed, counted in [*table, ("all", sum(row[1] for row in table), total)]:
        cells = [counted[key] for key in ("labels", "same", "true", "false", "missed")]
        text.append(f"| {name} | {' | '.join(map(str, cells))} | {unparsed} |")
    precision = total["true"] / (total["true"] + total["false"])
    recall = total["true"] / (total["true"] + total["missed"])
    text += [
        "",
        f"Precision {precision:.2f}, recall {recall:.2f}.",
        "",
        "| label of a line | reported | not reported |",
        "|---|---|---|",
    ]
    for expected in ("report", "optional", "silent"):
        hit, missed = lines[f"{expected} reported"], lines[f"{expected} not reported"]
        text.append(f"| {expected} | {hit} | {missed} |")
    reported, silent = lines["report reported"], lines["silent reported"]
    recall = reported / (reported + lines["report not reported"])
    files, seconds = processor_seconds()
    text += [
        "",
        f"Lines: precision {reported / (reported + silent):.2f}, recall {recall:.2f}. The lists of",
        "lines are not complete, so that what is reported beside them is not counted.",
        "",
        f"A generated service among {files:,} files of installed packages: {seconds:.0f} s of a",
        f"processor, one of {os.cpu_count()}.",
    ]
    RESULTS.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
