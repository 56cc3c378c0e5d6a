"""Rules for route handlers: blocking calls, request bodies, and errors."""

import ast
import codecs
import re
from collections.abc import Iterator
from itertools import pairwise

from infer_scaffold.check.judgement import Finding, Profile, Verdict
from infer_scaffold.check.rules._finding import at, graded, statuses
from infer_scaffold.check.rules.blocking import (
    INSTANCE_CALLS,
    METHODS,
    MODEL_METHODS,
    MODEL_NAMES,
    MODULE_CALLS,
)
from infer_scaffold.check.service import Service, argument
from infer_scaffold.check.source import Function, Module, body_nodes

_BLOCK_FIX = "Give it to a thread with `await asyncio.to_thread(...)`, or use an async library."
_CHAIN_FIX = "End it with `from error`, or `from None` where the cause says nothing."


def async_routes(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS201: routes are async, and nothing that they reach on the loop blocks."""
    if not service.routes:
        return Verdict.NA, []
    findings: dict[tuple[str, int, int], Finding] = {}
    synchronous = []
    idle: dict[tuple[object, int], Finding] = {}
    for route in service.routes:
        for start in (route.function, *service.dependencies(route.function)):
            if not start.is_async:  # FastAPI runs it in a thread
                if start is not route.function and _only_reads(start):
                    message = "The dependency only reads, yet takes a thread of a small pool."
                    fix = "Make it `async def`: while all threads are busy, its routes wait."
                    idle[start.module.path, start.node.lineno] = at(
                        start.module, start.node, message, fix
                    )
                continue
            for function in service.reached(start):
                for node, why in _blocking(service, function):
                    finding = at(function.module, node, f"{why} on the event loop.", _BLOCK_FIX)
                    findings[str(finding.path), finding.line, finding.column] = finding
        if not route.function.is_async:
            message = "The route is no `async def`: each request takes a thread of a small pool."
            fix = "Make it async, and give what blocks to a thread."
            synchronous.append(at(route.function.module, route.function.node, message, fix))
    found = list(findings.values())
    if profile is Profile.STRICT:
        found += [*synchronous, *idle.values()]
    if findings:
        return Verdict.FAIL, found
    return (Verdict.PARTIAL, found) if found else (Verdict.PASS, [])


def _only_reads(function: Function) -> bool:
    """Return whether a function has no calls, and so cannot block."""
    calls = ast.Call | ast.With | ast.For | ast.Import | ast.ImportFrom
    return not any(isinstance(node, calls) for node in body_nodes(function.node))


def _blocking(service: Service, function: Function) -> Iterator[tuple[ast.AST, str]]:
    module = function.module
    awaited = {each.value for each in body_nodes(function.node) if isinstance(each, ast.Await)}
    for node in body_nodes(function.node):
        if not isinstance(node, ast.Call) or node in awaited:
            continue
        name = module.resolve(node.func)
        known = _of_instance(service, function, node)
        if known:
            yield node, f"`{ast.unparse(node.func)}` {known}"
        elif name in MODULE_CALLS:
            yield node, f"`{ast.unparse(node.func)}` {MODULE_CALLS[name]}"
        elif isinstance(node.func, ast.Attribute):
            verb, receiver = node.func.attr, _name(node.func.value)
            if verb in METHODS:
                yield node, f"`.{verb}()` {METHODS[verb]}"
            elif verb in MODEL_METHODS and any(each in receiver for each in MODEL_NAMES):
                if _names_codec(node):
                    continue
                if function.is_async and not _iterated_async(function, node):
                    yield node, f"`.{verb}()` {MODEL_METHODS[verb]}"
            elif verb == "read" and ast.unparse(node.func).endswith(".file.read"):
                yield node, "`UploadFile.file.read()` reads a file"


def _name(node: ast.expr) -> str:
    """The last name of an expression, in lower case: of `worker.engine` and `engine(x)`, that is
    `engine`."""
    if isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Attribute):
        return node.attr.lower()
    return node.id.lower() if isinstance(node, ast.Name) else ""


def _names_codec(call: ast.Call) -> bool:
    """Return whether a call names a codec, as `text.encode("utf-8")` does."""
    given = argument(call, 0, "encoding")
    if not (isinstance(given, ast.Constant) and isinstance(given.value, str)):
        return False
    try:
        codecs.lookup(given.value)
    except (LookupError, ValueError):
        return False
    return True


def _of_instance(service: Service, function: Function, call: ast.Call) -> str | None:
    """Return why a method of an object of a known class blocks, or None."""
    names: list[str] = []
    receiver = call.func
    while True:
        maker = service.source.made_by(function.module, receiver, function.owner, function.node)
        if maker in INSTANCE_CALLS:
            return INSTANCE_CALLS[maker].get(".".join(names))
        if not isinstance(receiver, ast.Attribute):
            return None
        names.insert(0, receiver.attr)
        receiver = receiver.value


def _iterated_async(function: Function, call: ast.Call) -> bool:
    """Return whether the result of a call is awaited, or used by `async for` or `async with`."""
    for node in body_nodes(function.node):
        if isinstance(node, ast.AsyncFor) and call in ast.walk(node.iter):
            return True
        if isinstance(node, ast.AsyncWith) and any(
            call in ast.walk(item.context_expr) for item in node.items
        ):
            return True
        if isinstance(node, ast.Call) and call in node.args:
            return True
        if isinstance(node, ast.Assign) and node.value is call:
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            for later in body_nodes(function.node):
                iterated = getattr(later, "iter", None) if isinstance(later, ast.AsyncFor) else None
                value = later.value if isinstance(later, ast.Await) else iterated
                if value is not None and any(
                    isinstance(each, ast.Name) and each.id in names for each in ast.walk(value)
                ):
                    return True
    return False


def pydantic_models(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS202: bodies are pydantic models, with Literal types and descriptions."""
    routes = [route for route in service.routes if route.methods & {"POST", "PUT", "PATCH"}]
    if not routes:
        return Verdict.NA, []
    models: set[str] = set()
    findings, elsewhere = [], False
    for route in routes:
        for parameter_function, parameter, _ in service.route_parameters(route):
            module = parameter_function.module
            models |= set(service.models_in(module, parameter.annotation))
            elsewhere |= _is_foreign(service, module, parameter.annotation)
            if module.resolve(parameter.annotation) in ("dict", "typing.Any", "typing.Dict"):
                message = f"The body `{parameter.arg}` is taken as it comes, unchecked."
                fix = "Describe it with a pydantic model."
                findings.append(at(module, parameter, message, fix))
    if not models:
        if elsewhere and not findings:
            return Verdict.PASS, []
        uploads = all(_takes_upload(service, route.function) for route in routes)
        if uploads and not findings:
            return Verdict.NA, []
        if not findings:
            function = routes[0].function
            message = "No body is described by a pydantic model."
            fix = "Take it as a parameter whose type is a BaseModel, so that FastAPI checks it."
            findings = [at(function.module, function.node, message, fix)]
        return Verdict.FAIL, findings
    reachable = _with_fields(service, models)
    literal = any(_has(service, name, r"\b(Literal|Enum|StrEnum)\b") for name in reachable)
    described = any(_has(service, name, r"description=") for name in reachable) or any(
        _has_docstrings(service, name) for name in reachable
    )
    if profile is Profile.DEFAULT and elsewhere:
        literal = described = True
    name = sorted(models)[0]
    module, node = service.source.classes[name]
    if not literal:
        fix = "Give fields with a few known values a Literal type."
        findings.append(at(module, node, f"No field of {node.name} is a Literal.", fix))
    if not described:
        fix = "Add Field(description=...) to the fields that clients set."
        findings.append(at(module, node, f"No field of {node.name} has a description.", fix))
    return (Verdict.PARTIAL, findings) if findings else (Verdict.PASS, [])


def _is_foreign(service: Service, module: Module, annotation: ast.AST | None) -> bool:
    """Return whether an annotation names a class of another package that may be a model."""
    known = ("fastapi", "starlette", "typing", "collections", "asyncio")
    for node in ast.walk(annotation or ast.Constant(None)):
        if isinstance(node, ast.Name) and node.id in module.aliases:
            name = service.source.canonical(module, node)
            root = name.partition(".")[0]
            inside = name.rpartition(".")[0] in service.source.by_name
            if root not in known and not inside and name[:1].islower():
                return True
    return False


def _takes_upload(service: Service, function: Function) -> bool:
    return any(
        "UploadFile" in ast.dump(each.annotation)
        for owner in (function, *service.dependencies(function))
        for each in [*owner.node.args.args, *owner.node.args.kwonlyargs]
        if each.annotation is not None
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
    unchained = []
    for module in service.source.modules:
        for node in module.of(ast.Call, ast.ExceptHandler):
            if isinstance(node, ast.Call):
                codes |= statuses(module, node)
            elif isinstance(node, ast.ExceptHandler):
                unchained += [
                    at(module, each, "The error loses its cause.", _CHAIN_FIX)
                    for each in body_nodes(node)
                    if isinstance(each, ast.Raise)
                    and isinstance(each.exc, ast.Call)
                    and module.resolve(each.exc.func).endswith("HTTPException")
                    and each.cause is None
                ]
    kinds = {code for code in codes if 400 <= code < 500 and code != 401}
    route = service.routes[0].function
    if not kinds:
        message = "No error says with its status that the client is to blame."
        fix = "Answer 400 to what is wrong, 404 to what is missing, 413 to what is too large."
        return Verdict.FAIL, [*unchained, at(route.module, route.node, message, fix)]
    enough = len(kinds) > 1 or not _needs_more(service)
    findings = unchained
    if not enough:
        message = f"Every mistake of a client gets the same status, {min(kinds)}."
        fix = "Answer 404 to what is missing, and 413 to what is too large."
        findings = [*unchained, at(route.module, route.node, message, fix)]
    return graded(1 + enough + (not unchained), 3), findings


def _needs_more(service: Service) -> bool:
    """Return whether one status is not enough: resources may be missing, or there are uploads."""
    return any(
        "{" in route.path or _takes_upload(service, route.function) for route in service.routes
    )
