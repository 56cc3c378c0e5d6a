"""The result of a check, as data."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from infer_scaffold.checklist import Pattern


class Verdict(StrEnum):
    """The degree to which a service follows a pattern."""

    PASS = "pass"  # noqa: S105
    PARTIAL = "partial"
    FAIL = "fail"
    NA = "n/a"


class Profile(StrEnum):
    """The strictness of a check: the intent of a pattern, or its letter."""

    DEFAULT = "default"
    STRICT = "strict"


class Confidence(StrEnum):
    """The confidence in a finding: certain, or inferred from names."""

    HIGH = "high"
    MEDIUM = "medium"


@dataclass(frozen=True)
class Finding:
    """One place where a service departs from a pattern. Lines and columns count from 1."""

    path: Path
    line: int
    column: int
    message: str
    fix: str
    confidence: Confidence = Confidence.HIGH


@dataclass(frozen=True)
class Judgement:
    """The verdict on one pattern, with its findings."""

    pattern: Pattern
    verdict: Verdict
    findings: list[Finding] = field(default_factory=list)
