"""The parts of a FastAPI service: applications, routers, routes, and reachable functions."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from infer_scaffold.check.objects import Objects, last, parameters
from infer_scaffold.check.source import Definition, Function, Module, Scope, Source, walk

METHODS = {"get", "post", "put", "delete", "patch", "head", "options"}
_ANY_METHOD = {"api_route", "add_api_route", "route", "add_route"}
_WEBSOCKET = {
    *("websocket", "websocket_route", "add_api_websocket_route", "add_websocket_route"),
    *("WebSocketRoute", "APIWebSocketRoute"),
}
# Calls with a path and a handler. They need no decorator.
_ADDS = {"add_api_route", "add_route", "add_api_websocket_route", "add_websocket_route"}
_ROUTE_CLASSES = {
    *("fastapi.routing.APIRoute", "fastapi.routing.APIWebSocketRoute"),
    *("starlette.routing.Route", "starlette.routing.WebSocketRoute"),
}
_REGISTERS = _ADDS | {name.rpartition(".")[2] for name in _ROUTE_CLASSES}
_ROUTERS = {
    *("fastapi.FastAPI", "fastapi.applications.FastAPI"),
    *("fastapi.APIRouter", "fastapi.routing.APIRouter"),
    *("starlette.applications.Starlette", "starlette.routing.Router"),
}
APPLICATIONS = {"fastapi.FastAPI", "fastapi.applications.FastAPI"}
_LIKE_A_ROUTER = re.compile(r"(^|_)(app|api|router|server|blueprint)s?$", re.IGNORECASE)
_TASKS = {"create_task", "ensure_future", "run_coroutine_threadsafe", "start_soon", "add_task"}
_ITERATES = {"list", "tuple", "set", "next", "sum", "join", "enumerate", "zip", "sorted", "dict"}
_MODELS_AND_TYPES = {"BaseModel", "pydantic.BaseModel", "pydantic.main.BaseModel"}
_HOPS = 4  # from a route to what blocks
_EVIDENCE_HOPS = 6  # from a route to what shows that it follows a pattern
_MOST_EVIDENCE = 1000  # functions, the nearest ones: else it would grow with the project
OPENAI_PATHS = ("/chat/completions", "/completions", "/embeddings", "/audio/speech", "/responses")

Place = tuple[Module, ast.AST]


@dataclass(eq=False)
class Route:
    """One operation: methods, path as far as it can be read, and the function that answers.

    `function` is None where the handler is not known; `declaration` is the call that declares it.
    """

    methods: frozenset[str]
    path: str
    function: Function | None
    module: Module
    declaration: ast.Call
    on_application: bool

    @property
    def place(self) -> Place:
        """The function that answers, or what declares it."""
        if self.function is None:
            return self.module, self.declaration
        return self.function.module, self.function.node


@dataclass(eq=False)
class Service:
    """A service as its source describes it."""

    source: Source

    @cached_property
    def objects(self) -> Objects:
        """The classes of its objects."""
        return Objects(self.source)

    @cached_property
    def applications(self) -> list[tuple[Module, ast.Call]]:
        """The calls that make FastAPI applications."""
        return [
            (module, node)
            for module, node in self.calls
            if self.source.canonical(module, node.func) in APPLICATIONS
        ]

    @cached_property
    def calls(self) -> list[tuple[Module, ast.Call]]:
        """The calls in all modules."""
        return [(module, node) for module in self.source.modules for node in module.of(ast.Call)]

    @cached_property
    def anchor(self) -> Place:
        """The place of what is said of the service as a whole: where its application is made.

        Of several applications it is the one whose module declares most.
        """
        declared = [route.module for route in self.operations]
        included = [module for module, call in self.calls if last(call.func) == "include_router"]

        def rank(made: tuple[Module, ast.Call]) -> tuple[int, int, str, int]:
            module, call = made
            uses = declared.count(module) + included.count(module)
            return -uses, len(module.path.parts), str(module.path), call.lineno

        if self.applications:
            return min(self.applications, key=rank)
        return self.routes[0].place

    @cached_property
    def operations(self) -> list[Route]:
        """The routes of HTTP and of WebSockets."""
        return [route for module in self.source.modules for route in self._declared(module)]

    @cached_property
    def routes(self) -> list[Route]:
        """The operations of HTTP: decorators and calls, in modules, factories and helpers."""
        return [route for route in self.operations if "WEBSOCKET" not in route.methods]

    def _declared(self, module: Module) -> Iterator[Route]:
        for function in module.functions:
            for decorator in function.node.decorator_list:
                if isinstance(decorator, ast.Call):
                    yield from self._route(module, decorator, function)
        for node in module.of(ast.ClassDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and last(decorator.func) in _ANY_METHOD:
                    yield from self._endpoint(module, decorator, node)
        for call in module.of(ast.Call):
            if isinstance(call.func, ast.Call) or last(call.func) in _REGISTERS:
                yield from self._registered(module, call)

    def _registered(self, module: Module, call: ast.Call) -> Iterator[Route]:
        """`router.post("/path")(function)`, or `router.add_api_route("/path", function)`."""
        if isinstance(call.func, ast.Call) and len(call.args) == 1:
            handler, declaration = call.args[0], call.func
        elif last(call.func) in _ADDS or self._is_route_class(module, call):
            given = argument(call, 1, "endpoint") or argument(call, 1, "route")
            if given is None:
                return
            handler, declaration = given, call
        else:
            return
        for row in self._rows(module, call) or [{}]:
            answers = _in_row(row, handler)
            name = self.source.canonical(module, answers)
            if name in self.source.classes:
                yield from self._endpoint(module, declaration, self.source.classes[name][1])
            else:
                yield from self._route(module, declaration, self._handler(module, answers), row)

    def _rows(self, module: Module, call: ast.Call) -> list[dict[str, ast.expr]]:
        """The variables of the loop around a call, where it runs over a table of routes.

        `for path, handler in TABLE:`, over tuples or the items of a dictionary.
        """
        around = module.parents.get(call)
        while around is not None and not isinstance(around, Definition | ast.For):
            around = module.parents.get(around)
        if not isinstance(around, ast.For) or not isinstance(around.target, ast.Tuple):
            return []
        over: ast.expr | None = around.iter
        if isinstance(over, ast.Call) and isinstance(over.func, ast.Attribute):
            over = over.func.value if over.func.attr == "items" else None
        if isinstance(over, ast.Name | ast.Attribute):
            over = self.source.constant(module, over)
        if isinstance(over, ast.Dict):
            rows = [[key, value] for key, value in zip(over.keys, over.values, strict=True) if key]
        elif isinstance(over, ast.List | ast.Tuple):
            rows = [each.elts for each in over.elts if isinstance(each, ast.Tuple | ast.List)]
        else:
            return []
        names = [last(each) for each in around.target.elts]
        return [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]

    def _is_route_class(self, module: Module, call: ast.Call) -> bool:
        return last(call.func) in _REGISTERS and (
            self.source.canonical(module, call.func) in _ROUTE_CLASSES
        )

    def _handler(self, module: Module, node: ast.expr) -> Function | None:
        """The function of a handler: of a name, a method, or the only method of that name."""
        found = self.objects.function(node, module.scope_of(node))
        if found is None and isinstance(node, ast.Attribute):
            found = self.objects.only_method(node.attr)
        return found

    def _endpoint(
        self, module: Module, declaration: ast.Call, node: ast.ClassDef
    ) -> Iterator[Route]:
        """The methods of a class that answers: `async def get(self, request)`."""
        for each in node.body:
            if isinstance(each, Definition) and each.name in METHODS:
                owner = next(
                    (m for m, found in self.source.classes.values() if found is node), module
                )
                function = owner.function(each)
                for route in self._route(module, declaration, function):
                    route.methods = frozenset({each.name.upper()})
                    yield route

    def _route(
        self,
        module: Module,
        declaration: ast.Call,
        function: Function | None,
        row: dict[str, ast.expr] = {},  # noqa: B006
    ) -> Iterator[Route]:
        verb = last(declaration.func)
        path = argument(declaration, 0, "path")
        if verb not in METHODS | _ANY_METHOD | _WEBSOCKET and not self._is_route_class(
            module, declaration
        ):
            return
        if path is None or not self._may_route(module, declaration, verb, path):
            return
        receiver = declaration.func.value if isinstance(declaration.func, ast.Attribute) else None
        prefix = self._prefix(module, receiver)
        direct = receiver is not None and self._is_application(module, receiver)
        for text in self._paths(module, _in_row(row, path)):
            methods = self._methods(declaration, verb)
            yield Route(methods, prefix + text, function, module, declaration, direct)

    def _methods(self, declaration: ast.Call, verb: str) -> frozenset[str]:
        if verb in _WEBSOCKET:
            return frozenset({"WEBSOCKET"})
        if verb in METHODS:
            return frozenset({verb.upper()})
        listed = argument(declaration, None, "methods")
        return frozenset(
            str(each.value).upper()
            for each in getattr(listed, "elts", [])
            if isinstance(each, ast.Constant)
        ) or frozenset({"GET"})

    def _may_route(self, module: Module, call: ast.Call, verb: str, path: ast.expr) -> bool:
        """Return whether a call declares a route, and does not get a value of a dictionary."""
        if isinstance(path, ast.Constant):
            if not isinstance(path.value, str) or not re.match(r"/|$", path.value):
                return False
        elif not isinstance(
            path, ast.JoinedStr | ast.Name | ast.Attribute | ast.BinOp | ast.Call | ast.Subscript
        ):
            return False
        if not isinstance(call.func, ast.Attribute):
            origin = module.resolve(call.func)
            return "." in origin and isinstance(path, ast.Constant)
        if verb in _ADDS:
            return True
        receiver = call.func.value
        if verb == "route" or not isinstance(path, ast.Constant | ast.JoinedStr):
            made = self.objects.of(receiver, module.scope_of(call))
            if made in _ROUTERS:
                return True
            if verb == "route" or isinstance(path, ast.Call | ast.Subscript):
                return False
            return isinstance(path, ast.Name) or bool(_LIKE_A_ROUTER.search(last(receiver)))
        return True

    def _paths(self, module: Module, path: ast.expr) -> list[str]:
        """The paths that an expression stands for: several for the variable of a loop."""
        if isinstance(path, ast.Name):
            function = module.function_around(path)
            bound = self.objects.bindings(function or module.tree)
            over = bound.elements.get(path.id)
            if isinstance(over, ast.Tuple | ast.List):
                return [self._path(module, each) for each in over.elts] or [""]
        return [self._path(module, path)]

    def _path(self, module: Module, node: ast.expr, depth: int = 3) -> str:
        """The literal part of a path, with the values of names at the top of modules."""
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(self._path(module, each, depth) for each in node.values)
        if isinstance(node, ast.FormattedValue):
            return self._path(module, node.value, depth)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._path(module, node.left, depth) + self._path(module, node.right, depth)
        if isinstance(node, ast.Name | ast.Attribute) and depth:
            value = self.source.constant(module, node)
            return self._path(module, value, depth - 1) if value is not None else ""
        return ""

    @cached_property
    def _made(self) -> dict[tuple[Module, str], list[ast.Call]]:
        """The calls that the names of each module are given."""
        found: dict[tuple[Module, str], list[ast.Call]] = {}
        for module in self.source.modules:
            for node in module.of(ast.Assign):
                if isinstance(node.value, ast.Call):
                    for target in node.targets:
                        found.setdefault((module, module.resolve(target)), []).append(node.value)
        return found

    def _prefix(self, module: Module, receiver: ast.expr | None) -> str:
        if receiver is None:
            return ""
        made = self._made.get((module, module.resolve(receiver)), ())
        given = (argument(call, None, "prefix") for call in made)
        own = next((self._path(module, prefix) for prefix in given if prefix is not None), "")
        return self._included.get(self.source.canonical(module, receiver), "") + own

    @cached_property
    def _included(self) -> dict[str, str]:
        """The prefix that `include_router` gives a router, by the router's dotted name."""
        found = {}
        for module, call in self.calls:
            if last(call.func) == "include_router" and call.args:
                prefix = argument(call, 1, "prefix")
                if prefix is not None:
                    name = self.source.canonical(module, call.args[0])
                    found[name] = self._path(module, prefix)
        return found

    def _is_application(self, module: Module, receiver: ast.expr) -> bool:
        """Return whether a name is an application here: created here, or a parameter."""
        made = self.objects.of(receiver, module.scope_of(receiver))
        if made in _ROUTERS:
            return made in APPLICATIONS
        name = module.resolve(receiver)
        return name.rpartition(".")[2] == "app" or any(
            (module, call) in self._application_set for call in self._made.get((module, name), ())
        )

    @cached_property
    def _application_set(self) -> set[tuple[Module, ast.Call]]:
        return set(self.applications)

    # What runs on the event loop.

    @cached_property
    def on_loop(self) -> list[Function]:
        """The functions that run on the event loop while the service answers.

        Handlers of requests and of WebSockets, dependencies, middleware, handlers of errors, and
        background tasks, without what they call.
        """
        found: dict[ast.AST, Function] = {}
        for route in self.operations:
            for function in self._with_dependencies(route):
                found.setdefault(function.node, function)
        for function in (*self.middleware, *self._tasks()):
            found.setdefault(function.node, function)
        return [function for function in found.values() if function.is_async]

    def _with_dependencies(self, route: Route) -> list[Function]:
        found = [] if route.function is None else [route.function]
        found += [each for each in found[:1] for each in self.dependencies(each)]
        for keyword in route.declaration.keywords:
            if keyword.arg == "dependencies":
                scope = route.module.scope_of(route.declaration)
                found += self._depends(keyword.value, scope)
        return found

    @cached_property
    def middleware(self) -> list[Function]:
        """Middleware and handlers of errors, as functions and as classes."""
        return list({each.node: each for each in self._find_middleware()}.values())

    def _find_middleware(self) -> Iterator[Function]:
        for module in self.source.modules:
            for function in module.functions:
                for decorator in function.node.decorator_list:
                    if isinstance(decorator, ast.Call) and last(decorator.func) in (
                        *("middleware", "exception_handler"),
                    ):
                        yield function
        for name in ("add_middleware", "Middleware", "add_exception_handler"):
            for module, call in self.objects.calls.get(name, []):
                scope = module.scope_of(call)
                given = [*call.args[:2], argument(call, None, "dispatch")]
                for each in filter(None, given):
                    owner = self.source.canonical(module, each)
                    for method in ("dispatch", "__call__"):
                        found = self.objects.method(owner, method)
                        if found is not None:
                            yield found
                    found = self.objects.function(each, scope)
                    if found is not None and found.node.name != "__init__":
                        yield found

    @cached_property
    def startup(self) -> list[Function]:
        """The lifespans and the handlers of the event "startup": they run before requests do."""
        found = []
        for module, call in self.applications:
            given = argument(call, None, "lifespan")
            if isinstance(given, ast.Call):  # a factory: make_lifespan(settings), partial(...)
                given = given.args[0] if given.args else given.func
            if given is not None:
                found.append(self._handler(module, given))
        for module in self.source.modules:
            for function in module.functions:
                if any(
                    isinstance(each, ast.Call) and last(each.func) == "on_event"
                    for each in function.node.decorator_list
                ):
                    found.append(function)
        for module, call in self.objects.calls.get("add_event_handler", []):
            given = argument(call, 1, "func")
            if given is not None:
                found.append(self._handler(module, given))
        return [each for each in found if each is not None]

    def _tasks(self) -> Iterator[Function]:
        """The functions of tasks that startup, or a module with an application, starts."""
        starting = {
            function.node: function for each in self.startup for function in self.reached(each)
        }
        with_application = {module for module, _ in self.applications}
        for name in _TASKS:
            for module, call in self.objects.calls.get(name, []):
                around = module.function_around(call)
                if module not in with_application and around not in starting:
                    continue
                for given in call.args[:2]:
                    callee = given.func if isinstance(given, ast.Call) else given
                    found = self.objects.function(callee, module.scope_of(call))
                    if found is not None and found.is_async:
                        yield found

    def route_parameters(self, route: Route) -> list[tuple[Function, ast.arg, ast.expr | None]]:
        """The parameters of a route and of the functions that it depends on."""
        return [
            (function, *each)
            for function in self._with_dependencies(route)
            for each in parameters(function.node)
        ]

    def dependencies(self, function: Function, depth: int = 3) -> list[Function]:
        """The project's functions that FastAPI calls for `Depends` in a signature."""
        found = []
        for argument_, default in parameters(function.node):
            scope = Scope(function.module)
            if argument_.annotation is not None:
                found += self._depends(argument_.annotation, scope)
                for node in ast.walk(argument_.annotation):
                    if isinstance(node, ast.Name | ast.Attribute):
                        found += self._annotated_alias(function.module, node)
            if default is not None:
                found += self._depends(default, scope)
        if depth:
            for each in list(found):
                found += self.dependencies(each, depth - 1)
        return list(dict.fromkeys(found))

    def _depends(self, node: ast.AST, scope: Scope) -> list[Function]:
        """The functions that the `Depends` in a node name."""
        found = []
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and last(call.func) in ("Depends", "Security"):
                target = argument(call, 0, "dependency")
                function = self.objects.function(target, scope) if target is not None else None
                found += [function] if function is not None else []
        return found

    def _annotated_alias(self, module: Module, node: ast.expr) -> list[Function]:
        """`Dep = Annotated[X, Depends(f)]` somewhere, and `dep: Dep` here."""
        parent, _, member = self.source.canonical(module, node).rpartition(".")
        origin = self.source.by_name.get(parent)
        if origin is None:
            return []
        values = self.objects.bindings(origin.tree).values.get(member, [])
        return [each for value in values for each in self._depends(value, Scope(origin))]

    def reached(self, start: Function, hops: int = _HOPS) -> list[Function]:
        """A function and the project's functions that run on the event loop because of it."""
        found: dict[ast.AST, Function] = {start.node: start}
        edge = [start]
        for _ in range(hops):
            following = []
            for function in edge:
                for callee in self._called(function):
                    if callee.node not in found:
                        found[callee.node] = callee
                        following.append(callee)
            edge = following
        return list(found.values())

    def _called(self, function: Function) -> list[Function]:
        """What a function calls, and what is defined inside and yields, such as a stream."""
        known = self._callees.get(function.node)
        if known is not None:
            return known
        found: dict[ast.AST, Function] = {}
        nodes = function.body
        awaited = {each.value for each in nodes if isinstance(each, ast.Await)}
        for node in nodes:
            if isinstance(node, ast.AsyncFunctionDef):
                found[node] = function.module.function(node)
            if not isinstance(node, ast.Call):
                continue
            callee = self.objects.function(node.func, function.scope)
            if callee is None or not _runs(callee, node, function):
                continue
            # What is awaited and is no coroutine function was made one by its decorator.
            if node in awaited and not callee.is_async and callee.node.decorator_list:
                continue
            found[callee.node] = callee
            for each in self.objects.implementations(callee):
                found[each.node] = each
        self._callees[function.node] = list(found.values())
        return self._callees[function.node]

    @cached_property
    def _callees(self) -> dict[ast.AST, list[Function]]:
        return {}

    # Evidence for a route.

    def related(self, route: Route) -> list[Function]:
        """The functions that a route uses in any way: on the loop, in threads, as arguments.

        Dependencies belong to them, and what the dependencies of its router are.
        """
        return self.used_by(self._with_dependencies(route))

    def used_by(self, functions: Iterable[Function]) -> list[Function]:
        """Some functions, and all that they mention, with all methods of classes they make."""
        found = {each.node: each for each in functions}
        edge = list(found.values())
        for _ in range(_EVIDENCE_HOPS):
            following = []
            for function in edge:
                if len(found) > _MOST_EVIDENCE:
                    return list(found.values())
                for each in self._mentioned(function):
                    if each.node not in found:
                        found[each.node] = each
                        following.append(each)
            edge = following
        return list(found.values())

    def _mentioned(self, function: Function) -> list[Function]:
        known = self._mentions.get(function.node)
        if known is not None:
            return known
        found: dict[ast.AST, Function] = {}
        for node in walk(function.node):
            if isinstance(node, Definition) and node is not function.node:
                found[node] = function.module.function(node)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                scope = function.scope
                each = self.objects.function(node, scope)
                if each is not None:
                    found[each.node] = each
                for method in self._methods_of(self.source.canonical(function.module, node)):
                    found[method.node] = method
        self._mentions[function.node] = list(found.values())
        return self._mentions[function.node]

    def _methods_of(self, name: str) -> list[Function]:
        if name not in self.source.classes:
            return []
        module, node = self.source.classes[name]
        return [module.function(each) for each in node.body if isinstance(each, Definition)]

    @cached_property
    def _mentions(self) -> dict[ast.AST, list[Function]]:
        return {}

    # Models.

    def models_in(self, module: Module, annotation: ast.AST | None) -> list[str]:
        """The project's pydantic models that an annotation names."""
        if annotation is None:
            return []
        names = {
            self.source.canonical(module, node)
            for node in ast.walk(annotation)
            if isinstance(node, ast.Name | ast.Attribute)
        }
        return [name for name in sorted(names) if self.is_model(name)]

    def is_model(self, name: str) -> bool:
        """Return whether a class of the project is a pydantic model, by inheritance."""
        if name not in self.source.classes:
            return False
        bases = self.source.bases(*self.source.classes[name])
        return any(base in _MODELS_AND_TYPES or base.startswith("openai.types") for base in bases)

    @cached_property
    def is_openai(self) -> bool:
        """True if the service has endpoints of OpenAI's API."""
        return any(route.path.endswith(OPENAI_PATHS) for route in self.routes)


def _in_row(row: dict[str, ast.expr], node: ast.expr) -> ast.expr:
    """Return what a variable of a loop stands for in one of its turns."""
    return row.get(node.id, node) if isinstance(node, ast.Name) else node


def _runs(callee: Function, call: ast.Call, caller: Function) -> bool:
    """Return whether a call runs the body: a generator's runs only where it is iterated."""
    if callee.is_async or not callee.is_generator:
        return True
    around = caller.module.parents.get(call)
    if isinstance(around, ast.For | ast.comprehension):
        return around.iter is call
    if isinstance(around, ast.Call):
        return last(around.func) in _ITERATES
    if isinstance(around, ast.Assign):
        names = {each.id for each in around.targets if isinstance(each, ast.Name)}
        return any(
            isinstance(each, ast.For | ast.comprehension)
            and isinstance(each.iter, ast.Name)
            and each.iter.id in names
            for each in caller.body
        )
    return False


def argument(call: ast.Call, position: int | None, name: str) -> ast.expr | None:
    """Return an argument of a call, by keyword or position."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    if position is not None and len(call.args) > position:
        return call.args[position]
    return None
