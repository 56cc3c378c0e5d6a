"""The parts of a FastAPI service: applications, routers, routes, and reachable functions."""

import ast
import re
from dataclasses import dataclass
from functools import cached_property

from infer_scaffold.check.source import Function, Module, Source, body_nodes

METHODS = {"get", "post", "put", "delete", "patch", "head", "options"}
ROUTE_DECORATORS = METHODS | {"api_route", "add_api_route"}
_MODELS_AND_TYPES = {"BaseModel", "pydantic.BaseModel", "pydantic.main.BaseModel"}


@dataclass(eq=False)
class Route:
    """One operation: methods, path as far as it can be read, and the function that answers."""

    methods: frozenset[str]
    path: str
    function: Function
    on_application: bool


@dataclass(eq=False)
class Service:
    """A service as its source describes it."""

    source: Source

    @cached_property
    def applications(self) -> list[tuple[Module, ast.Call]]:
        """The calls that make FastAPI applications."""
        return [
            (module, node)
            for module, node in self.calls
            if self.source.canonical(module, node.func)
            in ("fastapi.FastAPI", "fastapi.applications.FastAPI")
        ]

    @cached_property
    def calls(self) -> list[tuple[Module, ast.Call]]:
        """The calls in all modules."""
        return [(module, node) for module in self.source.modules for node in module.of(ast.Call)]

    @cached_property
    def routes(self) -> list[Route]:
        """The operations: decorators and calls, at module level, in factories and in helpers."""
        routes = []
        for module in self.source.modules:
            for function in module.functions:
                for decorator in function.node.decorator_list:
                    enclosing = self._enclosing(module, function.node)
                    routes += self._route(module, function, decorator, enclosing)
            for call in module.of(ast.Call):
                routes += self._registered(module, call)
        return routes

    def _registered(self, module: Module, call: ast.Call) -> list[Route]:
        """`router.post("/path")(function)`, or `router.add_api_route("/path", function)`."""
        if isinstance(call.func, ast.Call) and len(call.args) == 1:
            target, declaration = call.args[0], call.func
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "add_api_route":
            given = argument(call, 1, "endpoint")
            if given is None:
                return []
            target, declaration = given, call
        else:
            return []
        function = self.source.function(module, target, None, None)
        if function is None:
            return []
        return self._route(module, function, declaration, self._enclosing(module, call))

    def _route(
        self,
        module: Module,
        function: Function,
        declaration: ast.expr,
        enclosing: Function | None,
    ) -> list[Route]:
        if not (isinstance(declaration, ast.Call) and isinstance(declaration.func, ast.Attribute)):
            return []
        verb = declaration.func.attr
        path = argument(declaration, 0, "path")
        if verb not in ROUTE_DECORATORS or not isinstance(
            path, ast.Constant | ast.JoinedStr | ast.Name | ast.Attribute
        ):
            return []
        if isinstance(path, ast.Constant) and not re.match(r"/|$", str(path.value)):
            return []
        if isinstance(path, ast.Name | ast.Attribute):
            path = self.source.constant(module, path) or path
        receiver = module.resolve(declaration.func.value)
        methods = frozenset({verb.upper()})
        if verb not in METHODS:
            listed = argument(declaration, None, "methods")
            methods = frozenset(
                str(each.value).upper()
                for each in getattr(listed, "elts", [])
                if isinstance(each, ast.Constant)
            ) or frozenset({"GET"})
        text = self._prefix(module, receiver) + path_text(path)
        direct = self._is_application(module, receiver, enclosing)
        return [Route(methods, text, function, direct)]

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

    def _prefix(self, module: Module, name: str) -> str:
        given = (argument(call, None, "prefix") for call in self._made.get((module, name), ()))
        return next((path_text(prefix) for prefix in given if prefix is not None), "")

    def _is_application(self, module: Module, name: str, enclosing: Function | None) -> bool:
        """Return whether a name is an application here: created here, or a parameter."""
        if enclosing is not None:
            names = [parameter.arg for parameter, _ in parameters(enclosing.node)]
            if name in names:
                return self._gets_application(enclosing, names.index(name), name)
        made = self._made.get((module, name), ())
        return name.rpartition(".")[2] == "app" or any(
            (module, call) in self._application_set for call in made
        )

    def _gets_application(self, function: Function, position: int, name: str) -> bool:
        wanted = f"{function.module.name}.{function.node.name}"
        for module, call in self.calls:
            if self.source.canonical(module, call.func) == wanted:
                given = module.resolve(argument(call, position, name))
                return self._is_application(module, given, None)
        return name == "app"

    def _enclosing(self, module: Module, route: ast.AST) -> Function | None:
        """The function that declares a route inside itself."""
        while (above := module.parents.get(route)) is not None:
            if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef):
                return Function(above, module, None)
            route = above
        return None

    @cached_property
    def _application_set(self) -> set[tuple[Module, ast.Call]]:
        return set(self.applications)

    def route_parameters(self, route: Route) -> list[tuple[Function, ast.arg, ast.expr | None]]:
        """The parameters of a route and of the functions that it depends on."""
        found = []
        for function in [route.function, *self.dependencies(route.function)]:
            found += [(function, *each) for each in parameters(function.node)]
        return found

    def dependencies(self, function: Function, depth: int = 3) -> list[Function]:
        """The project's functions that FastAPI calls for `Depends` in a signature."""
        found = []
        for argument_, default in parameters(function.node):
            for node in ast.walk(argument_.annotation or ast.Constant(None)):
                found += self._depends(function, node)
                if isinstance(node, ast.Name | ast.Attribute):
                    found += self._annotated_alias(function, node)
            if default is not None:
                found += self._depends(function, default)
        if depth:
            for each in list(found):
                found += self.dependencies(each, depth - 1)
        return list(dict.fromkeys(found))

    def _depends(self, function: Function, node: ast.AST) -> list[Function]:
        if not isinstance(node, ast.Call):
            return []
        name = function.module.resolve(node.func).rpartition(".")[2]
        if name not in ("Depends", "Security") or not node.args:
            return []
        target = self.source.function(function.module, node.args[0], None, None)
        return [target] if target else []

    def _annotated_alias(self, function: Function, node: ast.AST) -> list[Function]:
        """`Dep = Annotated[X, Depends(f)]` somewhere, and `dep: Dep` here."""
        name = self.source.canonical(function.module, node)
        parent, _, member = name.rpartition(".")
        module = self.source.by_name.get(parent)
        if module is None:
            return []
        inside = Function(function.node, module, None)
        found = []
        for statement in module.tree.body:
            value = getattr(statement, "value", None)
            targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
            if value is not None and any(
                module.resolve(each) == member for each in targets if each
            ):
                for each in ast.walk(value):
                    found += self._depends(inside, each)
        return found

    def reached(self, start: Function, hops: int = 2) -> list[Function]:
        """A function and the project's functions that run on the event loop because of it."""
        found: dict[ast.AST, Function] = {start.node: start}
        edge = [start]
        for _ in range(hops):
            following = []
            for function in edge:
                for node in body_nodes(function.node):
                    if isinstance(node, ast.Call):
                        callee = self.source.function(
                            function.module, node.func, function.owner, function.node
                        )
                        if (
                            callee is not None
                            and callee.node not in found
                            and _runs(callee, node, function)
                        ):
                            found[callee.node] = callee
                            following.append(callee)
            # What is defined inside and yields, such as the generator of a stream, runs as well.
            for function in edge:
                for node in body_nodes(function.node):
                    if isinstance(node, ast.AsyncFunctionDef) and node not in found:
                        inner = Function(node, function.module, function.owner)
                        found[node] = inner
                        following.append(inner)
            edge = following
        return list(found.values())

    def models_in(self, module: Module, annotation: ast.AST | None) -> list[str]:
        """The project's pydantic models that an annotation names."""
        if annotation is None:
            return []
        names = {
            self.source.canonical(module, node)
            for node in ast.walk(annotation)
            if isinstance(node, ast.Name | ast.Attribute)
        }
        return [name for name in names if self.is_model(name)]

    def is_model(self, name: str) -> bool:
        """Return whether a class of the project is a pydantic model, by inheritance."""
        if name not in self.source.classes:
            return False
        bases = self.source.bases(*self.source.classes[name])
        return any(base in _MODELS_AND_TYPES or base.startswith("openai.types") for base in bases)

    @cached_property
    def is_openai(self) -> bool:
        """True if the service has endpoints of OpenAI's API."""
        ends = ("/chat/completions", "/completions", "/embeddings", "/audio/speech", "/responses")
        return any(route.path.endswith(ends) for route in self.routes)


def _runs(callee: Function, call: ast.Call, caller: Function) -> bool:
    """Return whether a call runs the body: a generator's runs only where it is iterated."""
    if callee.is_async or not any(
        isinstance(node, ast.Yield | ast.YieldFrom) for node in body_nodes(callee.node)
    ):
        return True
    around = caller.module.parents.get(call)
    return isinstance(around, ast.For | ast.comprehension) and around.iter is call


def argument(call: ast.Call, position: int | None, name: str) -> ast.expr | None:
    """Return an argument of a call, by keyword or position."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    if position is not None and len(call.args) > position:
        return call.args[position]
    return None


def path_text(node: ast.expr) -> str:
    """The literal part of a path, without the values of names."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(each.value) for each in node.values if isinstance(each, ast.Constant))
    return ""


def parameters(
    node: ast.FunctionDef | ast.AsyncFunctionDef,
) -> list[tuple[ast.arg, ast.expr | None]]:
    """The parameters of a function with their defaults."""
    positional = [*node.args.posonlyargs, *node.args.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(node.args.defaults))
    pairs = list(zip(positional, [*missing, *node.args.defaults], strict=True))
    return [*pairs, *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
