"""A report as SARIF 2.1.0, which code scanning services read.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from infer_scaffold import __version__
from infer_scaffold.check import accepted
from infer_scaffold.check.checker import Report
from infer_scaffold.check.formats import in_repository
from infer_scaffold.check.judgement import Finding, Judgement
from infer_scaffold.checklist import PAGES, Pattern, Severity

_LEVELS = {Severity.HIGH: "error", Severity.MEDIUM: "warning", Severity.LOW: "note"}


def to_sarif(report: Report, root: Path) -> str:
    """Return a log with one run: a rule for each pattern, and a result for each finding.

    Paths are relative to the top of the repository, or else to where the command runs.
    """
    rules = [_rule(each.pattern) for each in report.judgements]
    seen: Counter[str] = Counter()
    results = [
        _result(report, root, index, each, finding, seen)
        for index, each in enumerate(report.judgements)
        for finding in each.findings
        if each in report.unmet
    ]
    notifications = [
        {
            "level": "error",
            "message": {"text": f"The file could not be read, and is not judged: {reason}"},
            "locations": [{"physicalLocation": _location(path, root) | _region(line)}],
        }
        for path, line, reason in report.unparsed
    ]
    run = {
        "tool": {
            "driver": {"name": "infer-scaffold", "semanticVersion": _semantic(), "rules": rules}
        },
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {
                "executionSuccessful": not notifications,
                "toolExecutionNotifications": notifications,
            }
        ],
        "results": results,
        "properties": {
            "verdicts": {each.pattern.code: str(each.verdict) for each in report.judgements}
        },
    }
    schema = (
        "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
    )
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=2)


def _semantic() -> str:
    return __version__.replace(".dev", "-dev.")


def _rule(pattern: Pattern) -> dict[str, Any]:
    return {
        "id": pattern.code,
        "name": "".join(
            word[:1].upper() + word[1:] for word in pattern.title.split() if word.isalpha()
        ),
        "shortDescription": {"text": pattern.title},
        "fullDescription": {"text": pattern.why},
        "help": {"text": pattern.fix, "markdown": pattern.page},
        "helpUri": f"{PAGES}{pattern.code}.md",
        "defaultConfiguration": {"level": _LEVELS[pattern.severity]},
        "properties": {"tags": [pattern.category]},
    }


def _result(
    report: Report,
    root: Path,
    index: int,
    judgement: Judgement,
    finding: Finding,
    seen: Counter[str],
) -> dict[str, Any]:
    pattern = judgement.pattern
    line = report.lines[finding.path, finding.line]
    entry = accepted.known(pattern.code, finding, line)
    identity = "\0".join((entry.code, entry.path, entry.text))
    seen[identity] += 1
    digest = hashlib.sha256(
        f"{identity}\0{seen[identity]}".encode(errors="surrogateescape")
    ).hexdigest()
    region = _region(finding.line)
    region["region"] |= {"startColumn": finding.column, "snippet": {"text": line}}
    return {
        "ruleId": pattern.code,
        "ruleIndex": index,
        "level": _LEVELS[pattern.severity],
        "message": {"text": f"{finding.message} {finding.fix}"},
        "locations": [{"physicalLocation": _location(finding.path, root) | region}],
        "partialFingerprints": {"codePathLineText/v1": digest},
        "properties": {"confidence": str(finding.confidence)},
    }


def _location(path: Path, root: Path) -> dict[str, Any]:
    place = Path(in_repository(path, root))
    uri = place.as_uri() if place.is_absolute() else quote(os.fsencode(place.as_posix()))
    return {"artifactLocation": {"uri": uri}}


def _region(line: int) -> dict[str, Any]:
    return {"region": {"startLine": line}}
