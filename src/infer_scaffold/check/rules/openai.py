"""Compatibility with OpenAI's API."""

import ast

from infer_scaffold.check.judgement import Confidence, Finding, Profile, Verdict
from infer_scaffold.check.rules._finding import at
from infer_scaffold.check.service import Service

_FIELDS = ("object", "id", "created", "model")


def _imports_types(service: Service) -> bool:
    return any(
        name.startswith("openai.types") or name == "openai"
        for module in service.source.modules
        for name in module.imported
    )


def response_schema(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS501: answers have object, id, created and model."""
    if not service.is_openai:
        return Verdict.NA, []
    if _imports_types(service):
        return Verdict.PASS, []
    names = set()
    for module in service.source.modules:
        for node in module.of(ast.Dict, ast.ClassDef):
            if isinstance(node, ast.Dict):
                names |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
            elif isinstance(node, ast.ClassDef):
                names |= {
                    each.target.id
                    for each in node.body
                    if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
                }
    missing = [field for field in _FIELDS if field not in names]
    if not missing:
        return Verdict.PASS, []
    route = next(each for each in service.routes if "POST" in each.methods)
    message = f"No answer has the field {', '.join(missing)}."
    fix = "Answer with the types of the openai package, which have every field."
    findings = [at(route.function.module, route.function.node, message, fix, Confidence.MEDIUM)]
    return (Verdict.PARTIAL if len(missing) <= 1 else Verdict.FAIL), findings


def sdk_types(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS502: the types come from the openai package."""
    if not service.is_openai:
        return Verdict.NA, []
    if _imports_types(service):
        return Verdict.PASS, []
    route = service.routes[0]
    fix = "Build answers with openai.types: a client that parses them is then sure to succeed."
    message = "The answers are not made of the openai package's types."
    return Verdict.FAIL, [at(route.function.module, route.function.node, message, fix)]
