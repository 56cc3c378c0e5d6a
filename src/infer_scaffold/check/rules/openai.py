"""Compatibility with OpenAI's API."""

import ast
import re
from collections.abc import Iterator

from infer_scaffold.check import evidence
from infer_scaffold.check.evidence import Evidence
from infer_scaffold.check.judgement import Confidence, Finding, Profile, Verdict
from infer_scaffold.check.objects import last
from infer_scaffold.check.rules._finding import at
from infer_scaffold.check.service import OPENAI_PATHS, Route, Service
from infer_scaffold.check.source import Function, Module

# The fields of an answer, by the end of its path. The first that fits counts.
_FIELDS = {
    "/chat/completions": ("object", "id", "created", "model"),
    "/completions": ("object", "id", "created", "model"),
    "/embeddings": ("object", "model"),
    "/responses": ("object", "id", "model"),
}
_AUDIO = "/audio/speech"  # answers with the bytes of a file, which no type describes
_ANSWERS = re.compile(r"(Completion|Embedding|Chunk|Choice|Usage|Response)(?!.*Request)")
_FRAMEWORK = ("fastapi", "starlette", "typing", "collections", "pydantic", "asyncio", "sse_")
_UPSTREAM = re.compile(
    r"\b(chat\.completions|completions|embeddings|responses|speech|transcriptions|models)"
    r"\.(create|list|parse|stream)$"
)
_DUMPS = {"model_dump", "model_dump_json", "to_dict", "to_json", "dict", "json"}


def response_schema(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS501: answers have object, id, created and model."""
    met, missing_most, findings = 0, 0, []
    for route in _routes(service):
        wanted = next((_FIELDS[end] for end in _FIELDS if route.path.endswith(end)), None)
        if wanted is None:
            continue
        code = evidence.of_route(service, route)
        dropped = [at(*place, _DROPPED, _DROPPED_FIX) for place in _drops_object(code, route)]
        findings += dropped
        if _has_types(code) or _passes_on(code):
            met += not dropped
            continue
        named = _fields(code, _requested(service, route))
        missing = [field for field in wanted if field not in named]
        if not missing:
            met += not dropped
        elif not _is_foreign(service, route, code):
            message = f"No answer has the field {', '.join(missing)}."
            fix = "Answer with the types of the openai package, which have every field."
            findings.append(at(*route.place, message, fix, Confidence.MEDIUM))
            missing_most = max(missing_most, len(missing))
    if findings:
        return (Verdict.PARTIAL if met or missing_most <= 1 else Verdict.FAIL), findings
    return (Verdict.PASS if met else Verdict.NA), []


_DROPPED = "exclude_unset leaves out fields with a default, such as `object`."
_DROPPED_FIX = "Use exclude_none, or set the fields: OpenAI's clients expect them."


def sdk_types(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS502: the types come from the openai package."""
    routes = _routes(service)
    known = [
        route for route in routes if route.function is not None and not route.path.endswith(_AUDIO)
    ]
    for route in routes:
        code = evidence.of_route(service, route)
        if _has_types(code) or _passes_on(code):
            return Verdict.PASS, []
    if not known:
        return Verdict.NA, []
    fix = "Build answers with openai.types: a client that parses them is then sure to succeed."
    message = "The answers are not made of the openai package's types."
    return Verdict.FAIL, [at(*known[0].place, message, fix)]


def _routes(service: Service) -> list[Route]:
    """The routes of OpenAI's API, that for chat first."""
    found = [
        route
        for route in service.routes
        if "POST" in route.methods and route.path.endswith(OPENAI_PATHS)
    ]
    return sorted(found, key=lambda route: not route.path.endswith("/chat/completions"))


def _has_types(code: Evidence) -> bool:
    """Return whether the code uses the openai package's types, itself or in its declaration."""
    return any(name.startswith("openai.types") for name in code.names)


def _passes_on(code: Evidence) -> bool:
    """Return whether what a client of OpenAI's API returns is the answer, unchanged."""
    return any(
        _is_passed(function, value)
        for function in code.functions
        if any(map(_is_upstream, function.body))
        for node in function.body
        if isinstance(node, ast.Return | ast.Yield) and (value := node.value) is not None
    )


def _is_passed(function: Function, value: ast.expr) -> bool:
    upstream = {
        each.id
        for node in function.body
        for target, given in _assigned(node)
        if _is_upstream(given)
        for each in [target]
        if isinstance(each, ast.Name)
    }
    # An item of the stream is passed on as well.
    for node in function.body:
        if isinstance(node, ast.AsyncFor | ast.For) and isinstance(node.target, ast.Name):
            iterated = node.iter
            if _is_upstream(iterated) or last(iterated) in upstream:
                upstream.add(node.target.id)
    for node in ast.walk(value):
        around = function.module.parents.get(node)
        if isinstance(node, ast.Name) and node.id in upstream:
            if not isinstance(around, ast.Attribute) or around.attr in _DUMPS:
                return True
        elif isinstance(node, ast.Call) and _is_upstream(node):
            return not isinstance(around, ast.Attribute)
    return False


def _assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield target, node.value
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        yield node.target, node.value


def _is_upstream(node: ast.AST) -> bool:
    if isinstance(node, ast.Await):
        node = node.value
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and bool(_UPSTREAM.search(ast.unparse(node.func)))
    )


def _requested(service: Service, route: Route) -> set[ast.AST]:
    """The statements of the models that a route takes: their fields are no answer."""
    found: set[ast.AST] = set()
    for function, parameter, _ in service.route_parameters(route):
        for name in service.models_in(function.module, parameter.annotation):
            found.update(service.source.classes[name][1].body)
    return found


def _fields(code: Evidence, requested: set[ast.AST]) -> set[str]:
    """The names of fields in the code: keys of dictionaries, attributes of models, keywords."""
    found: set[str] = set()
    for _, root in code.roots:
        if isinstance(root, ast.AnnAssign) and root not in requested:
            found.add(last(root.target))
    for _, node in code.nodes:
        if isinstance(node, ast.Dict):
            found |= {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}
        elif isinstance(node, ast.Call) and last(node.func)[:1].isupper():
            found |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return found


def _is_foreign(service: Service, route: Route, code: Evidence) -> bool:
    """Return whether an answer may be made by code, or be of a type, that is not here."""
    if route.function is None:
        return True
    source = service.source
    for name in code.names:
        root, _, member = name.partition(".")
        if (
            member
            and _ANSWERS.search(name.rpartition(".")[2])
            and not root.startswith(_FRAMEWORK)
            and name not in source.classes
            and name.rpartition(".")[0] not in source.by_name
            and name.rpartition(".")[2][:1].isupper()
        ):
            return True
    # A stream comes from generators, which are part of the code where they are the project's.
    answers = [
        node.value
        for node in route.function.body
        if isinstance(node, ast.Return) and node.value is not None
    ]
    return any(not _is_known(service, route.function, each) for each in answers)


def _is_known(service: Service, function: Function, node: ast.expr, depth: int = 5) -> bool:
    """Return whether source shows what an expression of an answer is."""
    if isinstance(node, ast.Await):
        return _is_known(service, function, node.value, depth)
    if isinstance(node, ast.Call):
        name = last(node.func)
        if name.endswith("Response") and (node.args or node.keywords):
            given = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "content")]
            return all(_is_known(service, function, each, depth) for each in given)
        callee = service.objects.function(node.func, function.scope)
        made = service.objects.name(node.func, function.scope)
        if callee is not None or made in service.source.classes:
            return True
        if isinstance(node.func, ast.Attribute) and name in _DUMPS:
            return _is_known(service, function, node.func.value, depth)
        return False
    if isinstance(node, ast.Name):
        bound = service.objects.bindings(function.node)
        values = bound.values.get(node.id, [])
        if node.id in bound.functions:
            return True
        return bool(depth and values) and all(
            _is_known(service, function, each, depth - 1) for each in values
        )
    return not isinstance(node, ast.Attribute | ast.Subscript)


def _drops_object(code: Evidence, route: Route) -> Iterator[tuple[Module, ast.AST]]:
    """The places where exclude_unset leaves out `object`, which has a default in a model."""
    defaulted = any(
        isinstance(root, ast.AnnAssign) and last(root.target) == "object" and root.value is not None
        for _, root in code.roots
    )
    passed = any(keyword.arg == "object" for _, call in code.calls for keyword in call.keywords)
    if not defaulted or passed:
        return
    for keyword in route.declaration.keywords:
        if keyword.arg == "response_model_exclude_unset" and _is_true(keyword.value):
            yield route.module, keyword.value
    for module, call in code.calls:
        if last(call.func) in _DUMPS and any(
            keyword.arg == "exclude_unset" and _is_true(keyword.value) for keyword in call.keywords
        ):
            yield module, call


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True
