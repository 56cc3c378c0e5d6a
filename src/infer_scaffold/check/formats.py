"""A report as text, JSON, or GitHub's annotations."""

import json
import os
import re
from pathlib import Path

import typer

from infer_scaffold.check.checker import Report
from infer_scaffold.check.judgement import Finding, Judgement, Verdict
from infer_scaffold.checklist import Severity
from infer_scaffold.visible import shortened, visible

_COLOURS = {Verdict.PASS: "green", Verdict.PARTIAL: "yellow", Verdict.FAIL: "red"}
_LINE = 200  # characters of a source line
_ANNOTATIONS = {Severity.HIGH: "error", Severity.MEDIUM: "warning", Severity.LOW: "notice"}


def to_text(report: Report, root: Path) -> str:
    """Return the findings with their source lines, one line a pattern, and the score."""
    lines = []
    for judgement in report.unmet:
        for first, *others in _equal(judgement.findings):
            lines += [
                _place(first, judgement, root),
                f"    | {shortened(report.lines[first.path, first.line].strip(), _LINE)}",
                f"    {visible(first.fix)}",
                *_further(others, root),
                "",
            ]
    for judgement in report.judgements:
        pattern = judgement.pattern
        verdict = typer.style(f"{judgement.verdict:<7}", fg=_COLOURS.get(judgement.verdict))
        lines.append(f"{pattern.code}  {verdict}  {pattern.severity:<6}  {pattern.title}")
    return "\n".join([*lines, "", _score(report)])


def _equal(findings: list[Finding]) -> list[list[Finding]]:
    """The findings that say the same, together, in the order of the first of each."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.message, finding.fix), []).append(finding)
    return list(groups.values())


def _further(findings: list[Finding], root: Path) -> list[str]:
    """A line with the number of further places, and one with the lines of each file."""
    files: dict[str, list[str]] = {}
    for finding in findings:
        lines = files.setdefault(visible(shown(finding.path, root)), [])
        lines.append(str(finding.line))
    if not files:
        return []
    places = [f"      {file}:{', '.join(lines)}" for file, lines in files.items()]
    return [f"    The same at {len(findings)} further places:", *places]


def _score(report: Report) -> str:
    judged = [each for each in report.judgements if each.verdict is not Verdict.NA]
    followed = sum(each.verdict is Verdict.PASS for each in judged)
    score = f"{followed} of {len(judged)} patterns are followed."
    accepted = [(report.ignored, "ignored by a comment"), (report.baselined, "in the baseline")]
    elsewhere = f" {report.elsewhere} findings are on lines that have not changed."
    told = [f"{number} {where}" for number, where in accepted if number]
    score += f" Accepted findings: {', '.join(told)}." if told else ""
    return score + (elsewhere if report.elsewhere else "")


def _place(finding: Finding, judgement: Judgement, root: Path) -> str:
    place = f"{visible(shown(finding.path, root))}:{finding.line}:{finding.column}"
    return f"{typer.style(place, bold=True)}: {judgement.pattern.code} {visible(finding.message)}"


def in_repository(path: Path, root: Path) -> str:
    """Return the path of a file as seen from the top of its repository, if it is in one.

    Code scanning and annotations of changes name files so, wherever the command runs.
    """
    here = Path(os.path.abspath(root / path))
    for folder in Path(os.path.abspath(root) + "/x").parents:
        if os.path.lexists(folder / ".git"):
            return str(here.relative_to(folder))
    return shown(path, root)


def shown(path: Path, root: Path) -> str:
    """Return the path of a file below the checked folder, as seen from where the command runs."""
    try:
        current = Path.cwd()
    except OSError:  # It was deleted.
        return str(root / path)
    here = Path(os.path.abspath(root / path))
    return str(here.relative_to(current) if here.is_relative_to(current) else here)


def unjudged(path: Path, line: int, reason: str) -> str:
    """Return a line about a file that could not be read."""
    return f"{visible(str(path))}:{line} could not be read, and is not judged: {visible(reason)}"


def to_json(report: Report) -> str:
    """Return a document with one object a pattern, and the files that could not be read."""
    document = {
        "patterns": [
            {
                "code": each.pattern.code,
                "title": each.pattern.title,
                "severity": str(each.pattern.severity),
                "verdict": str(each.verdict),
                "findings": [
                    {
                        "path": finding.path.as_posix(),
                        "line": finding.line,
                        "column": finding.column,
                        "severity": str(each.pattern.severity),
                        "message": finding.message,
                        "fix": finding.fix,
                        "confidence": str(finding.confidence),
                    }
                    for finding in each.findings
                ],
            }
            for each in report.judgements
        ],
        "unparsed": [
            {"path": path.as_posix(), "line": line, "reason": reason}
            for path, line, reason in report.unparsed
        ],
        "accepted": {"ignored": report.ignored, "baseline": report.baselined},
    }
    return json.dumps(document, indent=2)


def to_github(report: Report, root: Path) -> str:
    """Return workflow commands, which GitHub shows as annotations of a change.

    https://docs.github.com/actions/reference/workflow-commands-for-github-actions
    """
    lines = [
        f"::{_ANNOTATIONS[each.pattern.severity]} "
        f"file={_property(in_repository(finding.path, root))},"
        f"line={finding.line},col={finding.column},"
        f"title={_property(f'{each.pattern.code} {each.pattern.title}')}"
        f"::{_data(f'{finding.message} {finding.fix}')}"
        for each in report.unmet
        for finding in each.findings
    ]
    lines += [
        f"::error file={_property(in_repository(path, root))},line={line},title=Not judged"
        f"::{_data(f'The file could not be read: {reason}')}"
        for path, line, reason in report.unparsed
    ]
    return "\n".join([*lines, _score(report)])


def _data(text: str) -> str:
    lines = re.split(r"([\r\n])", text.replace("%", "%25"))
    return "".join({"\r": "%0D", "\n": "%0A"}.get(each) or visible(each) for each in lines)


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
