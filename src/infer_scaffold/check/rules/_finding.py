"""Construction of findings and verdicts, shared by the rules."""

import ast
import re

from infer_scaffold.check.judgement import Confidence, Finding, Verdict
from infer_scaffold.check.service import argument
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


def statuses(module: Module, call: ast.Call) -> set[int]:
    """The statuses that a call names, in an argument or a keyword."""
    name = module.resolve(call.func).rpartition(".")[2]
    if not re.search(r"(Exception|Error|Response|error|abort)", name):
        return set()
    given = [*call.args[:1], *filter(None, [argument(call, None, "status_code")])]
    found = set()
    for each in given:
        if isinstance(each, ast.Constant) and isinstance(each.value, int):
            found.add(each.value)
        match = re.search(r"HTTP_(\d{3})", ast.unparse(each))
        if match:
            found.add(int(match[1]))
    return found
