"""Uploads: limits and metadata."""

import ast
import re

from infer_scaffold.check.judgement import Confidence, Finding, Profile, Verdict
from infer_scaffold.check.rules._finding import at, statuses
from infer_scaffold.check.service import Route, Service
from infer_scaffold.check.source import Function, body_nodes

_LIMIT_FIX = "Count the bytes while they arrive, and answer 413 when they exceed a limit."
_SIZE = re.compile(r"size|length|limit|max|received|total|bytes", re.IGNORECASE)


def _upload_routes(service: Service) -> list[Route]:
    return [route for route in service.routes if _uploads(service, route)]


def _uploads(service: Service, route: Route) -> list[tuple[Function, ast.arg]]:
    return [
        (function, parameter)
        for function, parameter, _ in service.route_parameters(route)
        if (
            parameter.annotation is not None
            and re.search(r"\b(UploadFile|File)\b", ast.unparse(parameter.annotation))
        )
        or (
            parameter.annotation is not None
            and _names_upload(service, function, parameter.annotation)
        )
    ]


def _names_upload(service: Service, function: Function, annotation: ast.AST) -> bool:
    """An alias such as `Upload = Annotated[UploadFile, File()]`."""
    name = service.source.canonical(function.module, annotation)
    module = service.source.by_name.get(name.rpartition(".")[0])
    return module is not None and any(
        isinstance(statement, ast.Assign)
        and any(ast.unparse(each) == name.rpartition(".")[2] for each in statement.targets)
        and "UploadFile" in ast.unparse(statement.value)
        for statement in module.tree.body
    )


def size_limit(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS401: an upload that is too large is a 413, before it is held in memory."""
    routes = _upload_routes(service)
    if not routes:
        return Verdict.NA, []
    modules = service.source.modules
    bounded = any(
        keyword.arg in ("max_body_size", "max_part_size")
        for module in modules
        for keyword in module.of(ast.keyword)
    )
    too_large = bounded or any(
        node.attr.startswith("HTTP_413") for module in modules for node in module.of(ast.Attribute)
    )
    limited = bounded or any(
        _compares_size(node) for module in modules for node in module.of(ast.Compare)
    )
    too_large |= any(413 in statuses(module, call) for module, call in service.calls)
    limited = bounded or any(
        _compares_size(node) for module in modules for node in module.of(ast.Compare)
    )
    findings = []
    for route in routes:
        for function in service.reached(route.function):
            findings += [
                at(
                    function.module,
                    node,
                    "The whole upload is read into memory, without a limit.",
                    _LIMIT_FIX,
                )
                for node in body_nodes(function.node)
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "read"
                and not node.args
            ]
    if too_large and limited:
        return Verdict.PASS, []
    if not findings:
        node = routes[0].function.node
        message = "Nothing limits the size of an upload."
        findings = [at(routes[0].function.module, node, message, _LIMIT_FIX, Confidence.MEDIUM)]
    return (Verdict.PARTIAL if too_large else Verdict.FAIL), findings


def _compares_size(node: ast.Compare) -> bool:
    return isinstance(node.ops[0], ast.Gt | ast.GtE) and bool(_SIZE.search(ast.unparse(node)))


def form_parameters(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS402: the metadata of a file are form fields."""
    routes = _upload_routes(service)
    if not routes:
        return Verdict.NA, []
    for route in routes:
        for _, parameter, default in service.route_parameters(route):
            texts = [ast.unparse(each) for each in (parameter.annotation, default) if each]
            if any(re.search(r"\bForm(Depends)?\b", text) for text in texts):
                return Verdict.PASS, []
    route = routes[0]
    fix = "Take options with Form(), which clients send in the same body as the file."
    message = "The upload takes no form fields."
    return Verdict.FAIL, [at(route.function.module, route.function.node, message, fix)]
