"""Server-sent events: headers, framing, and delivery."""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache

from infer_scaffold.check.judgement import Confidence, Finding, Profile, Verdict
from infer_scaffold.check.rules._finding import at, graded
from infer_scaffold.check.service import Service, argument
from infer_scaffold.check.source import Module, text_of

_EVENT_STREAM = "text/event-stream"
_HEADERS = ("cache-control", "x-accel-buffering")
_HEADERS_FIX = (
    "Send Cache-Control: no-cache and X-Accel-Buffering: no, or proxies hold tokens back."
)


def headers(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS301: event streams have their media type and headers against buffering."""
    responses = _responses(service)
    if not responses:
        events = _untyped_events(service)
        return (Verdict.FAIL if events else Verdict.NA), events
    met, findings = 0, []
    for module, node, sends in responses:
        if sends:
            met += 1
        else:
            message = "The event stream has no headers against buffering."
            findings.append(at(module, node, message, _HEADERS_FIX))
    return graded(met, len(responses)), findings


def _untyped_events(service: Service) -> list[Finding]:
    """Findings for events that are sent without the media type of event streams."""
    streams = ("fastapi.responses.StreamingResponse", "starlette.responses.StreamingResponse")
    if not any(name in streams for each in service.source.modules for name in each.imported):
        return []
    message = 'The events are sent without media_type="text/event-stream".'
    return [
        at(module, node, message, _HEADERS_FIX)
        for module in service.source.modules
        for node in module.of(ast.Constant)
        if isinstance(node.value, str | bytes) and _text(node).startswith("data: ")
    ]


@lru_cache(maxsize=1)
def _responses(service: Service) -> list[tuple[Module, ast.AST, bool]]:
    """The places that make event streams, and whether each sends the headers."""
    return list(_find_responses(service))


def _find_responses(service: Service) -> Iterator[tuple[Module, ast.AST, bool]]:
    for module in service.source.modules:
        classes = list(module.of(ast.ClassDef))
        streams = [node for node in classes if _media_type(node)]
        inside = {each for node in streams for each in ast.walk(node)}
        for each in classes:
            ready = any(
                base.endswith("EventSourceResponse") for base in service.source.bases(module, each)
            )
            if ready or _media_type(each):
                yield module, each, ready or _sends(service, module, each)
        for node in module.of(ast.Call):
            if node in inside:
                continue
            name = module.resolve(node.func).rpartition(".")[2]
            if name == "EventSourceResponse":
                yield module, node, True
            elif name.endswith("Response") and _is_stream(module, argument(node, 3, "media_type")):
                given = argument(node, 2, "headers")
                sends = given is not None and _sends(service, module, given)
                yield module, node, sends or _set_later(module, node)


def _set_later(module: Module, call: ast.Call) -> bool:
    """`response = StreamingResponse(...)`, and then `response.headers[...] = ...`."""
    assignment = module.parents.get(call)
    if not isinstance(assignment, ast.Assign):
        return False
    receivers = {f"{name}.headers" for name in _targets(assignment)}
    texts = {
        text.lower()
        for statement in ast.walk(module.parents[assignment])
        if isinstance(statement, ast.Assign | ast.Expr)
        and any(module.resolve(node) in receivers for node in ast.walk(statement))
        for text in text_of(statement)
    }
    return texts.issuperset(_HEADERS)


def _media_type(node: ast.ClassDef) -> bool:
    return any(
        isinstance(statement, ast.Assign | ast.AnnAssign)
        and statement.value is not None
        and _is_stream(None, statement.value)
        for statement in node.body
    )


def _is_stream(module: Module | None, node: ast.expr | None) -> bool:
    if isinstance(node, ast.Name) and module is not None:
        return any(
            isinstance(statement, ast.Assign)
            and any(isinstance(each, ast.Name) and each.id == node.id for each in statement.targets)
            and _is_stream(module, statement.value)
            for statement in module.tree.body
        )
    return isinstance(node, ast.Constant) and str(node.value).startswith(_EVENT_STREAM)


def _sends(service: Service, module: Module, node: ast.AST, depth: int = 2) -> bool:
    """Return whether the headers are in a node, or in the values of its names."""
    texts = {text.lower() for text in text_of(node)}
    keywords = {
        each.arg.lower().replace("_", "-")
        for each in ast.walk(node)
        if isinstance(each, ast.keyword) and each.arg
    }
    if all(header in texts | keywords for header in _HEADERS):
        return True
    if not depth:
        return False
    for each in ast.walk(node):
        if not isinstance(each, ast.Name | ast.Attribute):
            continue
        name = service.source.canonical(module, each)
        function = service.source.functions.get(name)
        if function is not None and _sends(service, function.module, function.node, depth - 1):
            return True
        parent, _, member = name.rpartition(".")
        origin = service.source.by_name.get(parent, module)
        for statement in origin.of(ast.Assign, ast.AnnAssign):
            if (
                statement.value is not None
                and member in _targets(statement)
                and statement.value is not node
                and _sends(service, origin, statement.value, depth - 1)
            ):
                return True
    return False


def _targets(statement: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return {each.id for each in targets if isinstance(each, ast.Name)}


def framing(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS302: events are `data: {json}`, made by pydantic, and the last one is [DONE]."""
    responses = _responses(service)
    if not responses:
        return Verdict.NA, []
    module, node, _ = responses[0]
    texts = [
        (each_module, each)
        for each_module in service.source.modules
        for each in each_module.of(ast.Constant)
        if isinstance(each.value, str | bytes)
    ]
    values = [_text(each) for _, each in texts]
    done = any("[DONE]" in value and len(value) < 40 for value in values)
    framed = any(re.match(r"(event: .*\n)?data: ", value) for value in values) or any(
        "EventSourceResponse" in name or "ServerSentEvent" in name
        for each in service.source.modules
        for name in each.imported
    )
    dumped = any(
        isinstance(call.func, ast.Attribute) and call.func.attr == "model_dump_json"
        for _, call in service.calls
    )
    findings = []
    if not done:
        message = "No stream ends with `data: [DONE]`: OpenAI's clients wait for more."
        findings.append(at(module, node, message, "Send `data: [DONE]\\n\\n` as the last event."))
    if not framed:
        fix = "Write each event as `data: {json}\\n\\n`."
        findings.append(at(module, node, "No event is framed as `data: `.", fix))
    if not dumped:
        fix = "Describe the chunk with a pydantic model and write it with model_dump_json()."
        message = "The chunks are no pydantic models, so nothing holds them to a schema."
        findings.append(at(module, node, message, fix, Confidence.MEDIUM))
    if not done and not dumped:
        return Verdict.FAIL, findings
    if profile is Profile.DEFAULT and done and framed:
        return Verdict.PASS, []
    return (Verdict.PARTIAL, findings) if findings else (Verdict.PASS, [])


def _text(node: ast.Constant) -> str:
    value = node.value
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def event_loop_yield(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS303: the loop gets a turn between two tokens."""
    responses = _responses(service)
    if not responses:
        return Verdict.NA, []
    for module in service.source.modules:
        for node in module.of(ast.AsyncFor, ast.For, ast.While):
            if any(_is_turn(module, each) for each in ast.walk(node)):
                return Verdict.PASS, []
    module, node, _ = responses[0]
    message = "Nothing gives the event loop a turn between tokens: they may arrive in one lump."
    fix = "Call `await asyncio.sleep(0)` after each event."
    return Verdict.FAIL, [at(module, node, message, fix)]


def _is_turn(module: Module, node: ast.AST) -> bool:
    if not (isinstance(node, ast.Await) and isinstance(node.value, ast.Call)):
        return False
    call = node.value
    name = module.resolve(call.func)
    if name in ("anyio.lowlevel.checkpoint", "anyio.sleep", "asyncio.sleep", "trio.sleep"):
        if not call.args:
            return name.endswith("checkpoint")
        pause = call.args[0]
        return (
            isinstance(pause, ast.Constant)
            and isinstance(pause.value, int | float)
            and (pause.value <= 0.01)
        )
    return False
