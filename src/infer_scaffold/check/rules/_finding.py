"""Construction of findings and verdicts, shared by the rules."""

import ast

from infer_scaffold.check.judgement import Confidence, Finding, Verdict
from infer_scaffold.check.source import Module


def at(
    module: Module,
    node: ast.AST,
    message: str,
    fix: str,
    confidence: Confidence = Confidence.HIGH,
) -> Finding:
    """Return a finding at a node."""
    line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1
    return Finding(module.path, line, column, message, fix, confidence)


def graded(met: int, criteria: int) -> Verdict:
    """Return the verdict for how many criteria are met."""
    if met == criteria:
        return Verdict.PASS
    return Verdict.PARTIAL if met else Verdict.FAIL
