"""Uploads: limits and metadata."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from infer_scaffold.check import evidence
from infer_scaffold.check.evidence import Evidence
from infer_scaffold.check.judgement import Confidence, Finding, Profile, Verdict
from infer_scaffold.check.objects import last
from infer_scaffold.check.rules._finding import at
from infer_scaffold.check.service import Route, Service, argument
from infer_scaffold.check.source import Function

_LIMIT_FIX = "Count the bytes while they arrive, and answer 413 when they exceed a limit."
_SIZE = re.compile(r"size|length|limit|max|received|total|bytes|\blen\(", re.IGNORECASE)
_EMPTY = re.compile(r"[<>]=? [01]$")
_LIMITER = re.compile(r"(size|body|upload|content|request).*limit|limit.*(size|body|upload)", re.I)
_RAW_PATH = re.compile(r"file|upload|audio|image|transcri|media|document|pdf|ocr|voice|asset")
_PARSES = {"loads", "model_validate_json", "parse_raw", "parse_obj", "json", "validate_json"}
_STORES = {"BytesIO", "write", "write_bytes", "open", "frombuffer", "put", "put_object"}


@dataclass(frozen=True)
class _Upload:
    """A route that takes a file: as a parameter, in a form that it reads, or as its body."""

    route: Route
    raw: bool = False
    """True if the file is the body, which has no fields beside it."""


def _uploads(service: Service) -> list[_Upload]:
    found = []
    for route in service.routes:
        if any(
            _is_upload(service, function, parameter)
            for function, parameter, _ in service.route_parameters(route)
        ):
            found.append(_Upload(route))
        elif route.function is not None and route.methods & {"POST", "PUT", "PATCH"}:
            functions = service.reached(route.function)
            if any(_reads_form(function) for function in functions):
                found.append(_Upload(route))
            elif any(_takes_raw(route, function) for function in functions):
                found.append(_Upload(route, raw=True))
    return found


def _is_upload(service: Service, function: Function, parameter: ast.arg) -> bool:
    annotation = parameter.annotation
    if annotation is None:
        return False
    if re.search(r"\b(UploadFile|File)\b", ast.unparse(annotation)):
        return True
    # An alias such as `Upload = Annotated[UploadFile, File()]`.
    value = service.source.constant(function.module, annotation)
    return value is not None and "UploadFile" in ast.unparse(value)


def _reads_form(function: Function) -> bool:
    """Return whether a function reads a form, and a file of it."""
    nodes = function.body
    return any(map(_is_form, nodes)) and any(
        isinstance(node, ast.Attribute) and node.attr in ("read", "filename", "file")
        for node in nodes
    )


def _is_form(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and last(node.func) == "form" and _is_request(node)


def _is_body(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and last(node.func) == "body" and _is_request(node)


def _is_request(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and "request" in last(call.func.value).lower()


def _takes_raw(route: Route, function: Function) -> bool:
    """Return whether a function takes the body as a file, and not as JSON."""
    nodes = function.body
    if not any(map(_is_body, nodes)):
        return False
    called = {last(node.func) for node in nodes if isinstance(node, ast.Call)}
    if called & _PARSES:
        return False
    return bool(called & _STORES or _RAW_PATH.search(route.path.lower()))


def size_limit(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS401: an upload that is too large is a 413, before it is held in memory."""
    uploads = _uploads(service)
    if not uploads:
        return Verdict.NA, []
    around = evidence.of_functions(service, service.middleware)
    if _is_bounded(service) or (413 in around.statuses and _compares_size(around)):
        return Verdict.PASS, []
    findings, answered = [], False
    for upload in uploads:
        route = upload.route
        own = evidence.of_route(service, route)
        too_large = 413 in own.statuses or 413 in around.statuses
        answered |= too_large
        if evidence.given(route.declaration, "max_body_size") or (
            too_large and (_compares_size(own) or _compares_size(around))
        ):
            answered = True
            continue
        functions = own.functions if own.functions else []
        reads = [
            at(function.module, node, _whole(node), _LIMIT_FIX)
            for function in functions
            for node in _reads(service, function)
        ]
        message = "Nothing limits the size of an upload."
        findings += reads or [at(*route.place, message, _LIMIT_FIX, Confidence.MEDIUM)]
    if not findings:
        return Verdict.PASS, []
    return (Verdict.PARTIAL if answered else Verdict.FAIL), findings


def _whole(node: ast.AST) -> str:
    what = "The form" if _is_form(node) else "The whole upload"
    return f"{what} is read into memory, without a limit."


def _is_bounded(service: Service) -> bool:
    """Return whether an application, its routers, or a middleware of a package has a limit."""
    for _, call in service.applications:
        if evidence.given(call, "max_body_size"):
            return True
        middleware = argument(call, None, "middleware")
        if middleware is not None and _LIMITER.search(ast.unparse(middleware)):
            return True
    for _, call in service.objects.calls.get("add_middleware", []):
        name = last(call.args[0]) if call.args else ""
        if _LIMITER.search(name) and not any(
            each.endswith(f".{name}") for each in service.source.classes
        ):
            return True
    return False


def _compares_size(code: Evidence) -> bool:
    return any(
        isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.Gt | ast.GtE | ast.Lt | ast.LtE)
        and _SIZE.search(text := ast.unparse(node))
        and not _EMPTY.search(text)
        for _, node in code.nodes
    )


def _reads(service: Service, function: Function) -> Iterator[ast.Call]:
    """The calls that read an upload, or a whole form or body, at once."""
    for node in function.body:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if _is_body(node):
            yield node
        elif node.func.attr == "read" and not node.args and not node.keywords:
            awaited = isinstance(function.module.parents.get(node), ast.Await)
            spooled = last(node.func.value) == "file"
            made = service.objects.of(node.func.value, function.scope)
            if (awaited or spooled) and (not made or made.endswith("UploadFile")):
                yield node


def form_parameters(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS402: the metadata of a file are form fields."""
    routes = [each.route for each in _uploads(service) if not each.raw]
    if not routes:
        return Verdict.NA, []
    for route in routes:
        for _, parameter, default in service.route_parameters(route):
            texts = [ast.unparse(each) for each in (parameter.annotation, default) if each]
            if any(re.search(r"\bForm(Depends)?\b", text) for text in texts):
                return Verdict.PASS, []
        if route.function is not None and any(
            len(_fields(function)) > 1 for function in service.reached(route.function)
        ):
            return Verdict.PASS, []
    fix = "Take options with Form(), which clients send in the same body as the file."
    return Verdict.FAIL, [at(*routes[0].place, "The upload takes no form fields.", fix)]


def _fields(function: Function) -> set[str]:
    """The fields that a function takes from a form that it has read."""
    names = {
        each.id
        for node in function.body
        if isinstance(node, ast.Assign) and any(map(_is_form, ast.walk(node.value)))
        for each in node.targets
        if isinstance(each, ast.Name)
    }
    found = set()
    for node in function.body:
        key: ast.expr | None = None
        if isinstance(node, ast.Subscript) and last(node.value) in names:
            key = node.slice
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("get", "getlist")
            and last(node.func.value) in names
        ):
            key = argument(node, 0, "key")
        if isinstance(key, ast.Constant):
            found.add(str(key.value))
    return found
