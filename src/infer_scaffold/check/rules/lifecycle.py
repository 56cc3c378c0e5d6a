"""Rules for startup, shutdown, and background tasks."""

import ast
from collections.abc import Iterator

from infer_scaffold.check.judgement import Finding, Profile, Verdict
from infer_scaffold.check.objects import last
from infer_scaffold.check.rules._finding import at
from infer_scaffold.check.service import Service, argument
from infer_scaffold.check.source import Definition, Module, body_nodes

_LIFESPAN_FIX = "Pass FastAPI a lifespan that starts what runs before its yield and stops it after."
_TASK_FIX = "Keep the task, and at shutdown cancel it and await it with CancelledError suppressed."


def lifespan(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS101: a lifespan that also cleans up."""
    if not service.applications:
        return Verdict.NA, []
    without, half = [], []
    found = False
    for module, call in service.applications:
        given = argument(call, None, "lifespan")
        if given is None or (isinstance(given, ast.Constant) and given.value is None):
            without.append(at(module, call, "The application has no lifespan.", _LIFESPAN_FIX))
            continue
        found = True
        function = _lifespan_function(service, module, given)
        if function is not None and not _cleans_up(function[1]):
            message = "Nothing happens after the yield: what was started is never stopped."
            half.append(at(function[0], function[1], message, _LIFESPAN_FIX))
    if not found:
        if any(_is_event(module, call) for module, call in service.calls):
            return Verdict.PARTIAL, without
        # An application without anything to start, mounted below another one, needs none.
        return Verdict.FAIL, without
    return (Verdict.PARTIAL, half) if half else (Verdict.PASS, [])


def _is_event(module: Module, call: ast.Call) -> bool:
    return module.resolve(call.func).rpartition(".")[2] in ("on_event", "add_event_handler")


def _lifespan_function(
    service: Service, module: Module, given: ast.expr
) -> tuple[Module, Definition] | None:
    if isinstance(given, ast.Call):  # a factory: make_lifespan(settings), partial(lifespan, x)
        given = given.args[0] if given.args else given.func
    name = service.source.canonical(module, given)
    function = service.source.functions.get(name)
    if function is not None:
        return function.module, function.node
    wanted = name.rpartition(".")[2]
    for node in module.of(ast.FunctionDef, ast.AsyncFunctionDef):
        if node.name == wanted:
            return module, node
    return None


def _cleans_up(node: Definition) -> bool:
    if not any(isinstance(each, ast.Yield) for each in body_nodes(node)):
        return True  # another form of context manager, which is not analysed
    return _after_yield(node.body)


def _after_yield(body: list[ast.stmt]) -> bool:
    """Return whether a statement, or the end of a block, follows the yield."""
    for position, statement in enumerate(body):
        if not any(isinstance(each, ast.Yield) for each in ast.walk(statement)):
            continue
        rest = any(map(_acts, body[position + 1 :]))
        if rest or isinstance(statement, ast.AsyncWith | ast.With):
            return True
        if isinstance(statement, ast.Try):
            return any(map(_acts, statement.finalbody)) or _after_yield(statement.body)
        inner = getattr(statement, "body", None)
        return isinstance(inner, list) and _after_yield(inner)
    return False


def _acts(statement: ast.stmt) -> bool:
    """Return whether a statement may clean up: a log line does not."""
    return not isinstance(statement, ast.Pass | ast.Return) and not _is_log(statement)


def _is_log(statement: ast.stmt) -> bool:
    if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)):
        return False
    function = statement.value.func
    if isinstance(function, ast.Name):
        return function.id == "print"
    return isinstance(function, ast.Attribute) and function.attr in ("info", "debug", "warning")


def background_tasks(service: Service, profile: Profile) -> tuple[Verdict, list[Finding]]:
    """IS102: every task is awaited, or cancelled and then awaited."""
    good, bad = 0, []
    made = [(module, call) for module in service.source.modules for call in _creations(module)]
    ended = _Ended(service, {module for module, _ in made}) if made else None
    for module, call in made:
        holders = _holders(service, module, call)
        # None: awaited on the spot, returned, or passed to another function.
        if holders is None or (ended and holders & ended.awaited):
            good += 1
        elif ended and holders & ended.cancelled:
            bad.append(at(module, call, "The task is cancelled and never awaited.", _TASK_FIX))
        else:
            bad.append(at(module, call, "The task is never cancelled.", _TASK_FIX))
    if not good and not bad:
        return Verdict.NA, []
    if not bad:
        return Verdict.PASS, []
    return (Verdict.FAIL if len(bad) >= good else Verdict.PARTIAL), bad


def _creations(module: Module) -> Iterator[ast.Call]:
    groups = {
        item.optional_vars.id
        for node in module.of(ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and "TaskGroup" in ast.dump(item.context_expr)
    }
    for node in module.of(ast.Call):
        name = module.resolve(node.func)
        if name in ("asyncio.create_task", "asyncio.ensure_future") or (
            isinstance(node.func, ast.Attribute)
            and node.func.attr == "create_task"
            and (receiver := module.resolve(node.func.value)) not in groups
            and "loop" in receiver
        ):
            yield node


# What holds a task: the place that binds it, and its name. An attribute belongs to its class, to
# the state of the application, or, where its object is not known, to the module.
_Holder = tuple[object, str]


def _holders(service: Service, module: Module, call: ast.Call) -> set[_Holder] | None:
    """What keeps a task: its variable or attribute, or the collection that it goes to.

    None if it is used up where it is made.
    """
    node: ast.AST = call
    while (parent := module.parents.get(node)) is not None:
        if isinstance(parent, ast.Await | ast.Return | ast.Yield | ast.Lambda):
            return None
        if isinstance(parent, ast.Call) and node is not parent.func:
            function = parent.func
            if isinstance(function, ast.Attribute) and function.attr in _COLLECTS:
                return _held(service, module, function.value)
            if parent.func is not node and "shield" not in ast.dump(function):
                return None
        if isinstance(parent, ast.Assign):
            return set().union(*(_held(service, module, target) for target in parent.targets))
        if isinstance(parent, ast.AnnAssign | ast.NamedExpr):
            return _held(service, module, parent.target)
        if isinstance(parent, ast.stmt):
            return set()
        node = parent
    return set()


def _held(service: Service, module: Module, node: ast.AST) -> set[_Holder]:
    """What a name or an attribute stands for; of an item, what holds it."""
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _held(service, module, node.func.value)  # tasks.values(), tasks.pop(key)
    scope = module.scope_of(node)
    if isinstance(node, ast.Attribute):
        owner = service.objects.of(node.value, scope)
        if last(node.value) == "state":
            owner = "state"
        return {(owner or module, f".{node.attr}")}
    if not isinstance(node, ast.Name):
        return set()
    binds = service.objects.binds(node.id, scope)
    if binds is None:
        return {(service.source.canonical(module, node).rpartition(".")[0], node.id)}
    return {(binds.node, node.id)}


_COLLECTS = ("append", "add", "appendleft")


class _Ended:
    """What is cancelled, and what is awaited, loops over collections included."""

    def __init__(self, service: Service, modules: set[Module]) -> None:
        self.service = service
        self.cancelled: set[_Holder] = set()
        self.awaited: set[_Holder] = set()
        for module in service.source.modules:
            for node in module.of(ast.Call, ast.Await):
                if isinstance(node, ast.Await):
                    self.awaited |= self._in(module, node.value)
                elif isinstance(node.func, ast.Attribute) and node.func.attr == "cancel":
                    self.cancelled |= _held(service, module, node.func.value)
        for _ in range(2):
            for module in modules:
                self._follow(module)

    def _in(self, module: Module, node: ast.AST) -> set[_Holder]:
        names = [each for each in ast.walk(node) if isinstance(each, ast.Name | ast.Attribute)]
        return set().union(*(_held(self.service, module, each) for each in names))

    def _follow(self, module: Module) -> None:
        """What happens to a variable of a loop, or to another name, happens to what it is."""
        for node in module.of(ast.For, ast.comprehension, ast.Assign):
            if isinstance(node, ast.Assign):
                if isinstance(node.value, ast.Name | ast.Attribute):
                    for target in node.targets:
                        self._share(
                            _held(self.service, module, target),
                            _held(self.service, module, node.value),
                        )
            else:
                targets = self._in(module, node.target)
                self._share(targets, self._in(module, node.iter))
        for call in module.of(ast.Call):
            if isinstance(call.func, ast.Attribute) and call.func.attr in _COLLECTS:
                members = set().union(*(_held(self.service, module, each) for each in call.args))
                self._share(_held(self.service, module, call.func.value), members)

    def _share(self, ended: set[_Holder], same: set[_Holder]) -> None:
        if ended & self.cancelled:
            self.cancelled |= same
        if ended & self.awaited:
            self.awaited |= same
