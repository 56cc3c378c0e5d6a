"""Work that holds the event loop (IS201)."""

import ast
import codecs
import re
from collections.abc import Iterator

from infer_scaffold.check.judgement import Confidence, Finding, Profile, Verdict
from infer_scaffold.check.objects import PATH, last
from infer_scaffold.check.rules import blocking
from infer_scaffold.check.rules._finding import at
from infer_scaffold.check.service import Service, argument
from infer_scaffold.check.source import Function

_FIX = "Give it to a thread with `await asyncio.to_thread(...)`, or use an async library."
_SCHEDULES = {
    *("create_task", "ensure_future", "gather", "wait", "wait_for", "shield", "as_completed"),
    *("run_coroutine_threadsafe", "iterate_in_threadpool", "aclosing", "run_until_complete"),
    *("enter_context", "enter_async_context"),
}
# Responses that take a stream; others, and models of answers, take a result.
_STREAMS = re.compile(r"(Stream\w*|Event\w*|SSE)Response$")
# Methods that send or store a result.
_SENDS = {
    *("send_json", "send_text", "send_bytes", "send", "put", "write", "publish", "set", "lpush"),
}
# Calls of a dependency that only reads: they take no time.
_QUICK = {
    *("getattr", "isinstance", "len", "cast", "str", "int", "bool", "HTTPException", "get"),
    *("hasattr", "typing.cast", "startswith", "lower", "upper", "strip", "split"),
}


def async_routes(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS201: routes are async, and nothing that runs on the event loop blocks."""
    if not service.operations:
        return Verdict.NA, []
    strict = profile is Profile.STRICT
    blocked = _Findings(service)
    for start in service.on_loop:
        for function in service.reached(start):
            blocked.add(function, "on the event loop", strict)
    failed = bool(blocked.found)
    if strict:
        for start in service.startup:
            for function in service.reached(start) if start.is_async else []:
                blocked.add(function, "on the event loop, before the service answers", False)
        _threads(service, blocked)
    found = list(blocked.found.values())
    if failed:
        return Verdict.FAIL, found
    return (Verdict.PARTIAL, found) if found else (Verdict.PASS, [])


class _Findings:
    """The findings of a check, one at a place."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.found: dict[tuple[str, int, int], Finding] = {}
        self._judged: set[ast.AST] = set()

    def add(self, function: Function, where: str, strict: bool) -> None:
        """Judge a function, unless it has been judged."""
        if function.node in self._judged:
            return
        self._judged.add(function.node)
        for node, why, confidence in Calls(self.service, function, strict).blocking():
            self.keep(at(function.module, node, f"{why} {where}.", _FIX, confidence))

    def keep(self, finding: Finding) -> None:
        """Keep a finding, if it is the first at its place."""
        self.found.setdefault((str(finding.path), finding.line, finding.column), finding)


def _threads(service: Service, findings: _Findings) -> None:
    """Add routes and dependencies that each take a thread of a small pool."""
    for route in service.routes:
        start = route.function
        if start is None:
            continue
        if not start.is_async:
            message = "The route is no `async def`: each request takes a thread of a small pool."
            fix = "Make it async, and give what blocks to a thread."
            findings.keep(at(start.module, start.node, message, fix))
        for each in service.dependencies(start):
            if each.is_async:
                continue
            if _only_reads(service, each):
                message = "The dependency only reads, yet takes a thread of a small pool."
                fix = "Make it `async def`: while all threads are busy, its routes wait."
                findings.keep(at(each.module, each.node, message, fix))
            elif any(True for _ in Calls(service, each, strict=False).blocking()):
                message = "The dependency blocks, and holds a thread of a small pool meanwhile."
                fix = "Make it async, and use an async library."
                findings.keep(at(each.module, each.node, message, fix))


def _only_reads(service: Service, function: Function) -> bool:
    """Return whether a function makes no calls but quick ones, and so cannot block."""
    for node in function.body:
        if isinstance(node, ast.With | ast.For | ast.While | ast.Import | ast.ImportFrom):
            return False
        if isinstance(node, ast.Call) and last(node.func) not in _QUICK:
            return False
    return True


_Found = tuple[ast.AST, str, Confidence]


class Calls:
    """The calls of one function that hold the thread that runs it."""

    def __init__(self, service: Service, function: Function, strict: bool) -> None:
        self.objects, self.source = service.objects, service.source
        self.function, self.scope, self.strict = function, function.scope, strict
        self.nodes = function.body

    def blocking(self) -> Iterator[_Found]:
        """The calls, with the reason and the confidence in it."""
        awaited = {each.value for each in self.nodes if isinstance(each, ast.Await)}
        computed = False
        for node in self.nodes:
            if not isinstance(node, ast.Call) or node in awaited:
                continue
            why = self._certainly(node)
            if why:
                yield node, f"`{_shown(node.func)}` {why}", Confidence.HIGH
                continue
            why = self._computation(node)
            if why and (self.function.is_async or not computed):
                computed = True
                yield node, f"`{_shown(node.func)}` {why}", Confidence.MEDIUM
                continue
            why = self._by_name(node)
            if why and not self._becomes_async(node):
                yield node, f"`{_shown(node.func)}` {why}", Confidence.MEDIUM

    def _certainly(self, call: ast.Call) -> str | None:
        """Why a call blocks whose function, or the class of whose object, is known."""
        name = self.objects.name(call.func, self.scope)
        if name in blocking.MODULE_CALLS:
            return blocking.MODULE_CALLS[name]
        if name in blocking.CONDITIONAL_CALLS:
            return _if_it_waits(call, blocking.CONDITIONAL_CALLS[name])
        if self.strict and name in blocking.STRICT_CALLS:
            return blocking.STRICT_CALLS[name]
        if isinstance(call.func, ast.Attribute):
            verb = call.func.attr
            if verb in blocking.METHODS and not self._is_async_callee(call):
                return blocking.METHODS[verb]
            if verb == "read" and ast.unparse(call.func).endswith(".file.read"):
                return "reads a file"
        return self._of_instance(call)

    def _of_instance(self, call: ast.Call) -> str | None:
        """Why a method of an object blocks, by what made the object."""
        names: list[str] = []
        receiver = call.func
        while True:
            maker = self.objects.of(receiver, self.scope)
            if maker:
                found = _method(maker, ".".join(names), call, self.strict)
                if found:
                    return found
            if not isinstance(receiver, ast.Attribute):
                return None
            names.insert(0, receiver.attr)
            receiver = receiver.value

    def _computation(self, call: ast.Call) -> str | None:
        name = self.objects.name(call.func, self.scope)
        if name in blocking.COMPUTATION:
            return blocking.COMPUTATION[name]
        for beginning, why in blocking.COMPUTATION_BELOW.items():
            if name.startswith(beginning):
                return why
        if name.startswith("hashlib.") and call.args and self._is_content(call.args[0]):
            return "hashes a whole file"
        return None

    def _is_content(self, node: ast.expr) -> bool:
        """Return whether an expression is what a file or a request was read into."""
        if isinstance(node, ast.Await | ast.NamedExpr):
            return self._is_content(node.value)
        if isinstance(node, ast.Call):
            return last(node.func) in ("read", "body", "read_bytes", "getvalue") and not node.args
        if not isinstance(node, ast.Name):
            return False
        values = self.objects.bindings(self.function.node).values.get(node.id, [])
        return any(
            isinstance(each, ast.Await | ast.Call) and self._is_content(each) for each in values
        )

    def _by_name(self, call: ast.Call) -> str | None:
        """Why a call blocks, as its name says: that of a model's method, or of a pipeline."""
        if not self.function.is_async or self._is_async_callee(call):
            return None
        if isinstance(call.func, ast.Name) or not isinstance(call.func, ast.Attribute):
            return self._by_own_name(call)
        verb, receiver = call.func.attr, _name(call.func.value)
        if verb in blocking.NAMED_CALLS:
            return blocking.NAMED_CALLS[verb]
        if verb in blocking.MODEL_METHODS and not _names_codec(call):
            says_model = any(each in receiver for each in blocking.MODEL_NAMES)
            unmistakable = verb in blocking.UNMISTAKABLE and not self._is_module(call.func.value)
            if says_model or unmistakable:
                return blocking.MODEL_METHODS[verb]
        return self._by_own_name(call)

    def _by_own_name(self, call: ast.Call) -> str | None:
        name = last(call.func)
        if name in blocking.NAMED_CALLS and isinstance(call.func, ast.Name):
            return blocking.NAMED_CALLS[name]
        # A class has a capital letter: multiprocessing.Pipe() connects two processes.
        is_pipeline = name.lower().endswith(blocking.PIPELINES) and not name[:1].isupper()
        if is_pipeline and not self._is_module(call.func):
            callee = self.objects.function(call.func, self.scope)
            return None if callee is not None else "runs the model"
        return None

    def _is_module(self, node: ast.expr) -> bool:
        """Return whether an expression is an imported name, or one of the project's functions.

        An attribute of a module of the project may be an object; one of `os` is a function.
        """
        name = self.objects.name(node, self.scope)
        if name in self.source.functions or name in self.source.classes:
            return True
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if not isinstance(root, ast.Name) or root.id not in self.scope.module.aliases:
            return False
        return root is node or not any(name.startswith(f"{own}.") for own in self.source.by_name)

    def _is_async_callee(self, call: ast.Call) -> bool:
        callee = self.objects.function(call.func, self.scope)
        if callee is None:
            return False
        return callee.is_async or bool(
            callee.is_generator and last(call.func) not in blocking.MODEL_METHODS
        )

    def _becomes_async(self, call: ast.Call) -> bool:
        """Return whether the result of a call is awaited, iterated by `async for`, or streamed.

        A generator that is created here may be iterated in a function inside. A context manager
        counts as well: no library's `generate()` or `transcribe()` returns one.
        """
        module = self.function.module
        node: ast.AST = call
        around = module.parents.get(node)
        while isinstance(around, ast.keyword | ast.Starred | ast.IfExp):
            node, around = around, module.parents.get(around)
        if isinstance(around, ast.Await | ast.AsyncFor):
            return True
        if isinstance(around, ast.withitem):
            return True
        if isinstance(around, ast.comprehension):
            return bool(around.is_async)
        if isinstance(around, ast.Call) and node is not around.func:
            return self._takes_streams(around) or self._becomes_async(around)
        if isinstance(around, ast.Assign | ast.NamedExpr | ast.AnnAssign):
            targets = around.targets if isinstance(around, ast.Assign) else [around.target]
            names = {each.id for each in targets if isinstance(each, ast.Name)}
            return any(self._uses_async(each, names) for each in ast.walk(self.function.node))
        return False

    def _uses_async(self, node: ast.AST, names: set[str]) -> bool:
        """Return whether a node awaits one of some names, or iterates it by `async for`."""
        used: list[ast.expr] = []
        if isinstance(node, ast.AsyncFor) or (
            isinstance(node, ast.comprehension) and node.is_async
        ):
            used = [node.iter]
        elif isinstance(node, ast.Await):
            used = [node.value]
        elif isinstance(node, ast.AsyncWith):
            used = [item.context_expr for item in node.items]
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("__anext__", "aclose"):
                used = [node.func.value]
            elif self._takes_streams(node):
                used = _arguments(node)
        return any(_hands_on(value, names) for value in used)

    def _takes_streams(self, call: ast.Call) -> bool:
        """Return whether a call schedules, enters or streams what it is given."""
        name = last(call.func)
        if name in _SCHEDULES or _STREAMS.search(name):
            return True
        callee = self.objects.function(call.func, self.scope)
        return callee is not None and callee.is_async and callee.is_generator


def _hands_on(node: ast.expr, names: set[str]) -> bool:
    """Return whether an expression is one of some names, or passes one on whole.

    A part of a result, as in `await socket.send_json({"text": result.text})`, is no coroutine and
    no stream, and neither is what is sent.
    """
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Starred | ast.Await):
        return _hands_on(node.value, names)
    if isinstance(node, ast.List | ast.Tuple):
        return any(_hands_on(each, names) for each in node.elts)
    if not isinstance(node, ast.Call) or last(node.func) in _SENDS:
        return False
    receiver = node.func.value if isinstance(node.func, ast.Attribute) else None
    return any(_hands_on(each, names) for each in filter(None, (receiver, *_arguments(node))))


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(each.value for each in call.keywords)]


def _method(maker: str, name: str, call: ast.Call, strict: bool) -> str | None:
    """Why a method blocks of an object that a maker made."""
    waits = blocking.CONDITIONAL_METHODS.get(maker, {}).get(name)
    if waits is not None:
        return _if_it_waits(call, waits)
    if strict and maker == PATH and name in blocking.STRICT_PATH_METHODS:
        return blocking.STRICT_PATH_METHODS[name]
    methods = blocking.INSTANCE_CALLS.get(maker)
    if methods is None and "." in maker:
        methods = blocking.MADE_BY.get(maker.rpartition(".")[2])
    if methods is None:
        return None
    return methods.get(name) or (methods.get("*") if name else None)


def _if_it_waits(call: ast.Call, waits: blocking.Waits) -> str | None:
    given = argument(call, waits.position, waits.argument)
    value = given.value if isinstance(given, ast.Constant) else given
    if waits.unless_false:
        return None if value is False else waits.why
    return waits.why if value else None


def _shown(node: ast.expr) -> str:
    """The source of a callee; of a method of a longer expression, the method alone."""
    text = ast.unparse(node)
    if len(text) > 40 and isinstance(node, ast.Attribute):
        return f".{node.attr}()"
    return text


def _name(node: ast.expr) -> str:
    """The last name of an expression, in lower case: of `worker.engine` and `engine(x)`, that is
    `engine`."""
    if isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return last(node).lower()


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
