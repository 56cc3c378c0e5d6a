"""A report as text or JSON."""

import json
from pathlib import Path

import typer

from infer_scaffold.check.model import Finding, Judgement, Verdict
from infer_scaffold.check.runner import Report

_COLOURS = {Verdict.PASS: "green", Verdict.PARTIAL: "yellow", Verdict.FAIL: "red"}


def to_text(report: Report, root: Path) -> str:
    """Return the findings with their source lines, one line a pattern, and the score."""
    lines = []
    for judgement in report.unmet:
        for finding in judgement.findings:
            lines += [_place(finding, judgement), *_source(finding, root)]
            lines += [f"    {finding.fix}", ""]
    for judgement in report.judgements:
        pattern = judgement.pattern
        verdict = typer.style(f"{judgement.verdict:<7}", fg=_COLOURS.get(judgement.verdict))
        lines.append(f"{pattern.code}  {verdict}  {pattern.severity:<6}  {pattern.title}")
    judged = [each for each in report.judgements if each.verdict is not Verdict.NA]
    followed = sum(each.verdict is Verdict.PASS for each in judged)
    return "\n".join([*lines, "", f"{followed} of {len(judged)} patterns are followed."])


def _place(finding: Finding, judgement: Judgement) -> str:
    place = typer.style(f"{finding.path}:{finding.line}:{finding.column}", bold=True)
    return f"{place}: {judgement.pattern.code} {finding.message}"


def _source(finding: Finding, root: Path) -> list[str]:
    text = (root / finding.path).read_text(encoding="utf-8", errors="replace")
    return [f"    | {line.strip()}" for line in text.splitlines()[finding.line - 1 : finding.line]]


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
    }
    return json.dumps(document, indent=2, ensure_ascii=False)
