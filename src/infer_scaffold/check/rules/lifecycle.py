"""Rules for startup, shutdown, and background tasks."""

import ast
from collections.abc import Iterator

from infer_scaffold.check.judgement import Finding, Profile, Verdict
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
    for module in service.source.modules:
        creations = list(_creations(module))
        if not creations:
            continue
        cancelled, awaited = _ended(module)
        for call in creations:
            names = _holders(call, module.parents)
            # None: awaited on the spot, returned, or passed to another function.
            if names is None or names & awaited:
                good += 1
            elif names & cancelled:
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


def _holders(call: ast.Call, parents: dict[ast.AST, ast.AST]) -> set[str] | None:
    """The names that keep a task: its variable or attribute, or the collection that it goes to.

    None if it is used up where it is made.
    """
    node: ast.AST = call
    while (parent := parents.get(node)) is not None:
        if isinstance(parent, ast.Await | ast.Return | ast.Yield | ast.Lambda):
            return None
        if isinstance(parent, ast.Call) and node is not parent.func:
            function = parent.func
            if isinstance(function, ast.Attribute) and function.attr in ("append", "add"):
                return _names(function.value)
            if parent.func is not node and "shield" not in ast.dump(function):
                return None
        if isinstance(parent, ast.Assign):
            return set().union(*(_names(target) for target in parent.targets))
        if isinstance(parent, ast.AnnAssign | ast.NamedExpr):
            return _names(parent.target)
        if isinstance(parent, ast.stmt):
            return set()
        node = parent
    return set()


def _names(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute):
        return {f".{node.attr}"}  # another thing than a variable of the same name
    if isinstance(node, ast.Name):
        return {node.id}
    return set()


def _ended(module: Module) -> tuple[set[str], set[str]]:
    """The names that are cancelled, and those that are awaited, loops over collections included."""
    loops: dict[str, set[str]] = {}
    for node in module.of(ast.For, ast.comprehension, ast.Assign):
        if isinstance(node, ast.For | ast.comprehension) and isinstance(node.target, ast.Name):
            held = {name for each in ast.walk(node.iter) for name in _names(each)}
            loops.setdefault(node.target.id, set()).update(held)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name | ast.Attribute):
            for target in node.targets:
                for name in _names(target):
                    loops.setdefault(name, set()).update(_names(node.value))
    cancelled, awaited = set(), set()
    for node in module.of(ast.Call, ast.Await):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "cancel"
        ):
            cancelled |= _names(node.func.value)
        elif isinstance(node, ast.Await):
            awaited |= {name for each in ast.walk(node.value) for name in _names(each)}
    for variable, collections in loops.items():
        if variable in cancelled:
            cancelled |= collections
        if variable in awaited:
            awaited |= collections
    for call in module.of(ast.Call):
        # tasks.append(task): what happens to the tasks happens to the task.
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("append", "add"):
            held = _names(call.func.value)
            members = {name for each in call.args for name in _names(each)}
            cancelled |= members if held & cancelled else set()
            awaited |= members if held & awaited else set()
    return cancelled, awaited
