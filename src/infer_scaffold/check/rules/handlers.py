"""Rules for route handlers: request bodies, and errors."""

import ast
import re
from itertools import pairwise

from infer_scaffold.check.evidence import statuses
from infer_scaffold.check.judgement import Finding, Profile, Verdict
from infer_scaffold.check.objects import last
from infer_scaffold.check.rules._finding import at, graded
from infer_scaffold.check.service import OPENAI_PATHS, Route, Service
from infer_scaffold.check.source import Module, body_nodes

_CHAIN_FIX = "End it with `from error`, or `from None` where the cause says nothing."


# What FastAPI takes from elsewhere than the body.
_NO_BODY = {"Depends", "Security", "Query", "Path", "Header", "Cookie"}


def pydantic_models(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS202: bodies are pydantic models, with Literal types and descriptions."""
    routes = [route for route in service.routes if route.methods & {"POST", "PUT", "PATCH"}]
    if not routes:
        return Verdict.NA, []
    models: dict[str, None] = {}
    # The bodies of a handler that is not known may be described as well.
    findings, elsewhere = [], any(route.function is None for route in routes)
    for route in sorted(routes, key=lambda route: not route.path.endswith(OPENAI_PATHS)):
        for parameter_function, parameter, default in service.route_parameters(route):
            if isinstance(default, ast.Call) and last(default.func) in _NO_BODY:
                continue
            module = parameter_function.module
            models |= dict.fromkeys(service.models_in(module, parameter.annotation))
            elsewhere |= _is_foreign(service, module, parameter.annotation)
            if module.resolve(parameter.annotation) in ("dict", "typing.Any", "typing.Dict"):
                message = f"The body `{parameter.arg}` is taken as it comes, unchecked."
                fix = "Describe it with a pydantic model."
                findings.append(at(module, parameter, message, fix))
    if not models:
        return _without_models(service, routes, findings, elsewhere)
    reachable = _with_fields(service, set(models))
    literal = any(_has(service, name, r"\b(Literal|Enum|StrEnum)\b") for name in reachable)
    described = any(_has(service, name, r"description=") for name in reachable) or any(
        _has_docstrings(service, name) for name in reachable
    )
    if profile is Profile.DEFAULT and elsewhere:
        literal = described = True
    module, node = service.source.classes[next(iter(models))]
    others = f" and of {len(models) - 1} other models" if len(models) > 1 else ""
    if not literal:
        fix = "Give fields with a few known values a Literal type."
        message = f"No field of {node.name}{others} is a Literal."
        findings.append(at(module, node, message, fix))
    if not described:
        fix = "Add Field(description=...) to the fields that clients set."
        message = f"No field of {node.name}{others} has a description."
        findings.append(at(module, node, message, fix))
    return (Verdict.PARTIAL, findings) if findings else (Verdict.PASS, [])


def _without_models(
    service: Service, routes: list[Route], findings: list[Finding], elsewhere: bool
) -> tuple[Verdict, list[Finding]]:
    """The judgement of a service that takes no pydantic model of its own."""
    if not findings and elsewhere:
        return Verdict.PASS, []
    if not findings and all(_takes_upload(service, route) for route in routes):
        return Verdict.NA, []
    if not findings:
        message = "No body is described by a pydantic model."
        fix = "Take it as a parameter whose type is a BaseModel, so that FastAPI checks it."
        reads = [route for route in routes if _reads_json(service, route)]
        findings = [at(*route.place, message, fix) for route in reads or routes[:1]]
    return Verdict.FAIL, findings


def _reads_json(service: Service, route: Route) -> bool:
    return route.function is not None and any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("json", "body")
        and "req" in ast.unparse(node.func.value).lower()
        for function in service.reached(route.function, hops=1)
        for node in function.body
    )


def _is_foreign(service: Service, module: Module, annotation: ast.AST | None) -> bool:
    """Return whether an annotation names a class of another package that may be a model."""
    known = ("fastapi", "starlette", "typing", "collections", "asyncio")
    for node in ast.walk(annotation or ast.Constant(None)):
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        name = service.source.canonical(module, node)
        root, _, member = name.partition(".")
        inside = name.rpartition(".")[0] in service.source.by_name
        written = module.resolve(node) != ast.unparse(node)  # by an import
        if member and written and root not in known and not inside and root[:1].islower():
            return True
    return False


def _takes_upload(service: Service, route: Route) -> bool:
    return any(
        "UploadFile" in ast.dump(parameter.annotation)
        for _, parameter, _ in service.route_parameters(route)
        if parameter.annotation is not None
    )


def _with_fields(service: Service, models: set[str]) -> set[str]:
    """Models, their project bases, and the models of their fields."""
    found: set[str] = set()
    pending = list(models)
    while pending:
        name = pending.pop()
        if name in found or name not in service.source.classes:
            continue
        found.add(name)
        module, node = service.source.classes[name]
        pending += list(service.source.bases(module, node))
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign):
                pending += service.models_in(module, statement.annotation)
                alias = service.source.canonical(module, statement.annotation)
                pending += _alias_models(service, alias)
    return found


def _alias_models(service: Service, name: str) -> list[str]:
    module = service.source.by_name.get(name.rpartition(".")[0])
    if module is None:
        return []
    member = name.rpartition(".")[2]
    return [
        model
        for statement in module.tree.body
        if isinstance(statement, ast.Assign | ast.AnnAssign)
        and statement.value is not None
        and member in ast.unparse(statement).partition("=")[0]
        for model in service.models_in(module, statement.value)
    ]


def _has(service: Service, name: str, pattern: str) -> bool:
    return re.search(pattern, ast.unparse(service.source.classes[name][1])) is not None


def _has_docstrings(service: Service, name: str) -> bool:
    body = service.source.classes[name][1].body
    return any(
        isinstance(field, ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
        for field, after in pairwise(body)
    )


def status_codes(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS203: errors have a status that fits, and keep their cause."""
    if not service.routes:
        return Verdict.NA, []
    codes: set[int] = set()
    findings = []
    for module in service.source.modules:
        if _STATUS.search(module.content):
            for node in module.of(*_WITH_STATUS):
                codes.update(statuses(module, node))
        for node in module.of(ast.ExceptHandler):
            findings += [
                at(module, each, "The error loses its cause.", _CHAIN_FIX)
                for each in body_nodes(node)
                if isinstance(each, ast.Raise)
                and each.cause is None
                and _is_http_error(service, module, each)
            ]
    unchained = bool(findings)
    kinds = {code for code in codes if 400 <= code < 500 and code != 401}
    if not kinds:
        message = "No error says with its status that the client is to blame."
        fix = "Answer 400 to what is wrong, 404 to what is missing, 413 to what is too large."
        return Verdict.FAIL, [*findings, at(*service.anchor, message, fix)]
    enough = len(kinds) > 1 or not _needs_more(service)
    if not enough:
        message = f"Every mistake of a client gets the same status, {min(kinds)}."
        fix = "Answer 404 to what is missing, and 413 to what is too large."
        findings = [*findings, at(*service.anchor, message, fix)]
    return graded(1 + enough + (not unchained), 3), findings


_STATUS = re.compile(rb"\b[1-5]\d\d\b|HTTP_[1-5]|HTTPStatus")
_WITH_STATUS = (ast.Call, ast.Attribute, ast.Assign, ast.AnnAssign, ast.Dict)


def _is_http_error(service: Service, module: Module, node: ast.Raise) -> bool:
    """Return whether a statement raises an HTTPException, or a class that is one."""
    raised = node.exc
    if isinstance(raised, ast.Name):  # error = HTTPException(...); raise error
        function = module.function_around(node)
        bound = service.objects.bindings(function or module.tree)
        raised = next((x for x in bound.values.get(raised.id, []) if isinstance(x, ast.Call)), None)
    if not isinstance(raised, ast.Call):
        return False
    name = service.source.canonical(module, raised.func)
    if name.endswith("HTTPException"):
        return True
    known = service.source.classes.get(name)
    return known is not None and any(
        base.endswith("HTTPException") for base in service.source.bases(*known)
    )


def _needs_more(service: Service) -> bool:
    """Return whether one status is not enough: resources may be missing, or there are uploads."""
    return any("{" in route.path or _takes_upload(service, route) for route in service.routes)
