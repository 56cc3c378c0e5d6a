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
        for finding in judgement.findings:
            lines += [
                _place(finding, judgement, root),
                f"    | {shortened(report.lines[finding.path, finding.line].strip(), _LINE)}",
                f"    {visible(finding.fix)}",
                "",
            ]
    for judgement in report.judgements:
        pattern = judgement.pattern
        verdict = typer.style(f"{judgement.verdict:<7}", fg=_COLOURS.get(judgement.verdict))
        lines.append(f"{pattern.code}  {verdict}  {pattern.severity:<6}  {pattern.title}")
    return "\n".join([*lines, "", _score(report)])


def _score(report: Report) -> str:
    judged = [each for each in report.judgements if each.verdict is not Verdict.NA]
    followed = sum(each.verdict is Verdict.PASS for each in judged)
    score = f"{followed} of {len(judged)} patterns are followed."
    accepted = [(report.ignored, "ignored by a comment"), (report.baselined, "in the baseline")]
    told = [f"{number} {where}" for number, where in accepted if number]
    return f"{score} Accepted findings: {', '.join(told)}." if told else score


def _place(finding: Finding, judgement: Judgement, root: Path) -> str:
    place = f"{visible(shown(finding.path, root))}:{finding.line}:{finding.column}"
    return f"{typer.style(place, bold=True)}: {judgement.pattern.code} {visible(finding.message)}"


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
        f"::{_ANNOTATIONS[each.pattern.severity]} file={_property(shown(finding.path, root))},"
        f"line={finding.line},col={finding.column},"
        f"title={_property(f'{each.pattern.code} {each.pattern.title}')}"
        f"::{_data(f'{finding.message} {finding.fix}')}"
        for each in report.unmet
        for finding in each.findings
    ]
    lines += [
        f"::error file={_property(shown(path, root))},line={line},title=Not judged"
        f"::{_data(f'The file could not be read: {reason}')}"
        for path, line, reason in report.unparsed
    ]
    return "\n".join([*lines, _score(report)])


def _data(text: str) -> str:
    lines = re.split(r"([\r\n])", text.replace("%", "%25"))
    return "".join({"\r": "%0D", "\n": "%0A"}.get(each) or visible(each) for each in lines)


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
