"""Server-sent events: headers, framing, and delivery."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from infer_scaffold.check import evidence
from infer_scaffold.check.evidence import Evidence, text_of_constant
from infer_scaffold.check.judgement import Confidence, Finding, Profile, Verdict
from infer_scaffold.check.objects import last, parameters
from infer_scaffold.check.rules._finding import at, graded
from infer_scaffold.check.service import Route, Service, argument
from infer_scaffold.check.source import Function, Module, text_of

_EVENT_STREAM = "text/event-stream"
# Calls that give what is there already, and do not wait for the next token.
_OF_LISTS = {
    *("enumerate", "zip", "range", "sorted", "list", "tuple", "reversed", "set"),
    *("items", "values", "keys", "split", "splitlines", "get"),
}
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
    for response in responses:
        if response.sends:
            met += 1
        else:
            message = "The event stream lacks headers against buffering."
            findings.append(at(response.module, response.node, message, _HEADERS_FIX))
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
        if isinstance(node.value, str | bytes) and text_of_constant(node).startswith("data: ")
    ]


@dataclass(frozen=True, eq=False)
class _Response:
    """A place that makes an event stream: a call, a class, or the declaration of a route."""

    module: Module
    node: ast.AST
    sends: bool
    """True if it sends the headers."""
    route: Route | None = None
    by_framework: bool = False
    """True if FastAPI writes the events that the route yields."""


@lru_cache(maxsize=1)
def _responses(service: Service) -> list[_Response]:
    """The places that make event streams."""
    return list(_find_responses(service))


def _find_responses(service: Service) -> Iterator[_Response]:
    source = service.source
    for route in service.routes:
        given = argument(route.declaration, None, "response_class")
        if given is not None and last(given) == "EventSourceResponse":
            ours = source.canonical(route.module, given).startswith("fastapi.")
            yield _Response(*route.place, True, route, by_framework=ours)
    for module in source.modules:
        if b"Response" not in module.content and b"event-stream" not in module.content:
            continue
        classes = list(module.of(ast.ClassDef))
        streams = [node for node in classes if _media_type(node)]
        inside = {each for node in streams for each in ast.walk(node)}
        for each in classes:
            ready = any(base.endswith("EventSourceResponse") for base in source.bases(module, each))
            if ready or _media_type(each):
                yield _Response(module, each, ready or _sends(service, module, each))
        for node in module.of(ast.Call):
            if node in inside:
                continue
            name = module.resolve(node.func).rpartition(".")[2]
            if name == "EventSourceResponse":
                yield _Response(module, node, True)
            elif name.endswith("Response") and _is_stream(module, argument(node, 3, "media_type")):
                headers = argument(node, 2, "headers")
                sends = headers is not None and _sends(service, module, headers)
                yield _Response(module, node, sends or _set_later(module, node))


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
    streams = _streams(service)
    if not streams:
        return Verdict.NA, []
    # Where chat is streamed, its clients are those that wait for the end.
    chats = [each for each in streams if each.is_chat] or streams
    framed = [each for each in streams if not _is_framed(each) and not _relays(each)]
    done = [each for each in chats if not _is_ended(each) and not _relays(each)]
    if len(chats) > len(done) and not chats[0].is_chat:
        done = []
    dumped = [each for each in chats if not _is_dumped(each)]
    findings = []
    for stream in done:
        message = "The stream does not end with `data: [DONE]`: OpenAI's clients wait for more."
        fix = "Send `data: [DONE]\\n\\n` as the last event."
        findings.append(at(*stream.place, message, fix))
    for stream in framed:
        fix = "Write each event as `data: {json}\\n\\n`."
        findings.append(at(*stream.place, "No event is framed as `data: `.", fix))
    if profile is Profile.STRICT or done or framed:
        for stream in dumped:
            fix = "Describe the chunk with a pydantic model and write it with model_dump_json()."
            message = "The chunks are no pydantic models, so nothing holds them to a schema."
            findings.append(at(*stream.place, message, fix, Confidence.MEDIUM))
    if not findings:
        return Verdict.PASS, []
    nothing = len(done) == len(chats) and len(dumped) == len(chats)
    return (Verdict.FAIL if nothing else Verdict.PARTIAL), findings


@dataclass(eq=False)
class _Stream:
    """An event stream of a route: where it is made, and the code that shows what it sends."""

    place: tuple[Module, ast.AST]
    route: Route | None
    code: Evidence
    by_framework: bool
    """True if FastAPI writes the events that the route yields."""

    @property
    def is_chat(self) -> bool:
        """True if it answers a request for a completion."""
        return self.route is not None and self.route.path.endswith("/completions")


@lru_cache(maxsize=1)
def _streams(service: Service) -> list[_Stream]:
    """The event streams whose code is known, each for each route that sends it."""
    codes = {route: evidence.of_route(service, route) for route in service.routes}
    found = []
    for response in _responses(service):
        module, node = response.module, response.node
        if isinstance(node, ast.Call) and not _is_ours(service, module, node):
            continue  # an engine of another package makes the events
        users = [route for route, code in codes.items() if _uses(service, response, route, code)]
        for route in users:
            found.append(_Stream((module, node), route, codes[route], response.by_framework))
        around = module.function_around(node)
        if not users and around is not None:
            function = module.function(around)
            code = evidence.of_functions(service, [function])
            found.append(_Stream((module, node), None, code, response.by_framework))
    return found


def _is_ours(service: Service, module: Module, response: ast.Call) -> bool:
    """Return whether the events of a response are made by a generator of the project."""
    content = argument(response, 0, "content")
    if isinstance(content, ast.Name):  # a helper's parameter: what its callers pass
        around = module.function_around(content)
        if around is not None and content.id in [each.arg for each, _ in parameters(around)]:
            return True
    return content is None or _is_our_stream(service, module, content)


def _is_our_stream(service: Service, module: Module, node: ast.expr, depth: int = 4) -> bool:
    if isinstance(node, ast.Await):
        return _is_our_stream(service, module, node.value, depth)
    if not depth or isinstance(node, ast.GeneratorExp):
        return bool(depth)
    if isinstance(node, ast.IfExp):
        return any(
            _is_our_stream(service, module, each, depth) for each in (node.body, node.orelse)
        )
    scope = module.scope_of(node)
    if isinstance(node, ast.Call):
        if any(_is_our_stream(service, module, each, depth - 1) for each in node.args):
            return True
        callee = service.objects.function(node.func, scope)
        return callee is not None and (
            callee.is_generator
            or any(
                _is_our_stream(service, callee.module, each.value, depth - 1)
                for each in callee.body
                if isinstance(each, ast.Return) and each.value is not None
            )
        )
    if isinstance(node, ast.Name) and scope.function is not None:
        values = service.objects.bindings(scope.function).values.get(node.id, [])
        return any(_is_our_stream(service, module, each, depth - 1) for each in values)
    return False


def _uses(service: Service, response: "_Response", route: Route, code: Evidence) -> bool:
    """Return whether a route sends an event stream: its code makes it, or the class of it."""
    if response.route is not None:
        return response.route is route
    if isinstance(response.node, ast.ClassDef):
        return f"{response.module.name}.{response.node.name}" in code.names
    around = response.module.function_around(response.node)
    return any(around is each.node for each in code.functions)


def _is_ended(stream: _Stream) -> bool:
    return any("[DONE]" in text and len(text) < 40 for text in stream.code.texts)


def _is_framed(stream: _Stream) -> bool:
    return (
        stream.by_framework
        or any(re.match(r"(event: .*\n)?data: ?", text) for text in stream.code.texts)
        or any(
            "EventSourceResponse" in name or "ServerSentEvent" in name for name in stream.code.names
        )
    )


_RELAYED = re.compile(
    r"\baiter_|\biter_(any|chunk|chunked|lines|raw|bytes)|body_iterator|\.content\b|\bresponse$"
)


def _relays(stream: _Stream) -> bool:
    """Return whether a stream passes on what another server sends, line by line or as it is."""
    return any(
        _RELAYED.search(ast.unparse(loop.iter))
        and any(
            isinstance(each, ast.Yield)
            and each.value is not None
            and any(last(part) in names for part in ast.walk(each.value))
            for each in ast.walk(loop)
        )
        for _, loop in _loops(stream.code.functions)
        if isinstance(loop, ast.AsyncFor)
        for names in [{last(loop.target)}]
    )


def _is_dumped(stream: _Stream) -> bool:
    return stream.by_framework or any(
        last(call.func) in ("model_dump_json", "to_json") for _, call in stream.code.calls
    )


def event_loop_yield(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS303: the loop gets a turn between two tokens.

    By the intent, waiting for the next token is a turn; by the letter, a call is.
    """
    streams = [each for each in _streams(service) if not each.by_framework]
    if not streams:
        return (Verdict.PASS if _streams(service) else Verdict.NA), []
    bad = []
    for stream in streams:
        strict = profile is Profile.STRICT
        functions = stream.code.functions if strict else _feeding(service, stream)
        loops = list(_loops(functions))
        if strict:
            turned = any(_has_turn(function.module, loop) for function, loop in loops)
        else:
            turned = all(
                _waits(loop)
                or _is_inside_waiting(function, loop)
                or _has_all(service, function, loop)
                for function, loop in loops
            )
        if not turned:
            bad.append(stream)
    if not bad:
        return Verdict.PASS, []
    message = "Nothing gives the event loop a turn between tokens: they may arrive in one lump."
    fix = "Call `await asyncio.sleep(0)` after each event."
    findings = [at(*stream.place, message, fix) for stream in bad]
    return (Verdict.FAIL if len(bad) == len(streams) else Verdict.PARTIAL), findings


def _feeding(service: Service, stream: _Stream) -> list[Function]:
    """The functions that run while a stream is sent: those that its content calls."""
    module, node = stream.place
    content = argument(node, 0, "content") if isinstance(node, ast.Call) else None
    if content is None:
        return stream.code.functions
    found: dict[ast.AST, Function] = {}
    pending, seen = [content], set[ast.AST]()
    while pending:
        each = pending.pop()
        scope = module.scope_of(each)
        for part in ast.walk(each):
            if part in seen:
                continue
            seen.add(part)
            if isinstance(part, ast.Call):
                callee = service.objects.function(part.func, scope)
                if callee is not None:
                    found |= {one.node: one for one in service.reached(callee)}
            elif isinstance(part, ast.Name) and (bound := service.objects.binds(part.id, scope)):
                pending += service.objects.bindings(bound.node).values.get(part.id, [])
    return list(found.values()) or stream.code.functions


_THREADS = {"to_thread", "run_in_executor", "run_in_threadpool", "run_sync"}
_Loop = ast.AsyncFor | ast.For | ast.While


def _loops(functions: list[Function]) -> Iterator[tuple[Function, _Loop]]:
    """The loops of generators that run on the event loop, in which they yield."""
    for function in functions:
        if function.is_async and function.is_generator:
            for node in function.body:
                if isinstance(node, _Loop) and any(
                    isinstance(each, ast.Yield) for each in ast.walk(node)
                ):
                    yield function, node


def _is_inside_waiting(function: Function, loop: _Loop) -> bool:
    """Return whether a loop stands in another one that waits: it passes on what has arrived."""
    around = function.module.parents.get(loop)
    while around is not None and around is not function.node:
        if isinstance(around, _Loop) and _waits(around):
            return True
        around = function.module.parents.get(around)
    return False


def _waits(loop: _Loop) -> bool:
    """Return whether a loop waits for what it yields."""
    return any(
        isinstance(each, ast.Await | ast.AsyncFor | ast.AsyncWith) for each in ast.walk(loop)
    )


def _has_all(service: Service, function: Function, loop: _Loop) -> bool:
    """Return whether a loop runs over what is there already, such as the items of a list."""
    if not isinstance(loop, ast.For):
        return False
    over = loop.iter
    if isinstance(over, ast.Name):
        values = service.objects.bindings(function.node).values.get(over.id, [])
        return bool(values) and all(_is_there(service, function, each) for each in values)
    return _is_there(service, function, over)


def _is_there(service: Service, function: Function, node: ast.expr) -> bool:
    if isinstance(node, ast.Await):  # a thread may give a generator, which runs here
        return isinstance(node.value, ast.Call) and last(node.value.func) not in _THREADS
    if not isinstance(node, ast.Call):
        return not isinstance(node, ast.Name | ast.GeneratorExp)
    if last(node.func) in _OF_LISTS:
        return True
    callee = service.objects.function(node.func, function.scope)
    return callee is not None and not (
        callee.is_generator and any(isinstance(each, _Loop) for each in callee.body)
    )


def _has_turn(module: Module, loop: _Loop) -> bool:
    return any(_is_turn(module, each) for each in ast.walk(loop))


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
