"""The classes of objects, and the functions that calls run, as far as source tells them."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from infer_scaffold.check.source import Definition, Function, Module, Scope, Source, body_nodes

_DEEPEST = 30  # steps from one name to the next
_MOST_CALLERS = 5  # calls of a function that are asked for the class of an argument
_WRAPPERS = {"Annotated", "Optional", "Union", "Final", "ClassVar", "Required", "NotRequired"}
_YIELDED = {"Iterator", "Iterable", "AsyncIterator", "AsyncIterable", "Generator", "AsyncGenerator"}
_ELEMENTS = {"list", "List", "set", "Set", "tuple", "Tuple", "Sequence", "Iterable", "deque"}
_VALUES = {"dict", "Dict", "Mapping", "MutableMapping", "defaultdict", "OrderedDict"}
PATH = "pathlib.Path"


_CONTEXTS = ("multiprocessing.get_context", "torch.multiprocessing.get_context")
"""Objects that have what the module multiprocessing has."""
_PAIRS = dict.fromkeys(
    ("multiprocessing.Pipe", "torch.multiprocessing.Pipe"), "multiprocessing.connection.Connection"
)
"""The class of the items of a tuple, by what returns it."""
_NAMES_OF_PAIRS = {name.rpartition(".")[2] for name in _PAIRS}


@dataclass
class Bindings:
    """The names that the body of a function, or the top of a module, gives a value.

    Attributes of `self` stand among them as `self.name`.
    """

    values: dict[str, list[ast.expr]] = field(default_factory=lambda: defaultdict(list))
    annotations: dict[str, ast.expr] = field(default_factory=dict)
    functions: dict[str, Definition] = field(default_factory=dict)
    elements: dict[str, ast.expr] = field(default_factory=dict)
    """What the variables of loops run over."""
    opaque: set[str] = field(default_factory=set)
    """Names that get a value which is not analysed."""
    outer: set[str] = field(default_factory=set)
    """Names declared global or nonlocal."""

    def __contains__(self, name: str) -> bool:
        """Say whether a name is bound here."""
        return name not in self.outer and (
            name in self.values
            or name in self.annotations
            or name in self.functions
            or name in self.elements
            or name in self.opaque
        )


class Objects:
    """Resolves expressions of a source. A class is a dotted name, "" if it is not known.

    An object of a class, or a function's result, that is foreign has the dotted name of what made
    it, such as `transformers.pipeline`; with a receiver of an unknown class, `?.submit`.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._known: dict[ast.AST, str] = {}
        self._depth = 0
        self._bindings: dict[ast.AST, Bindings] = {}
        self._known_parameters: dict[ast.AST, dict[str, tuple[ast.arg, ast.expr | None]]] = {}
        self._attributes: dict[ast.ClassDef, dict[str, list[tuple[ast.expr, Scope, bool]]]] = {}
        self._shared: dict[str, list[tuple[ast.expr, Scope]]] | None = None
        self._calls: dict[str, list[tuple[Module, ast.Call]]] | None = None
        self._globals: dict[Module, dict[str, list[tuple[ast.expr, Scope]]]] = {}
        self._methods: dict[str, list[Function]] | None = None
        self._subclasses: dict[str, list[str]] | None = None
        self._items: dict[tuple[str, str], list[tuple[ast.expr, Scope]]] | None = None

    # Classes.

    def of(self, node: ast.AST | None, scope: Scope) -> str:
        """Return the class of an object, or what made it."""
        if node is None:
            return ""
        found = self._known.get(node)
        if found is None:
            self._known[node] = ""  # of itself, as in `x = x or y`, nothing is known
            with self._deeper() as allowed:
                found = self._known[node] = self._class(node, scope) if allowed else ""
        return found

    @contextmanager
    def _deeper(self) -> Iterator[bool]:
        """Count steps from one name to the next; say whether one more is allowed."""
        self._depth += 1
        try:
            yield self._depth <= _DEEPEST
        finally:
            self._depth -= 1

    def _class(self, node: ast.AST, scope: Scope) -> str:
        if isinstance(node, ast.Await | ast.NamedExpr | ast.Starred):
            return self.of(node.value, scope)
        if isinstance(node, ast.Call):
            return self._result(node, scope)
        if isinstance(node, ast.Name):
            return self._of_name(node, scope)
        if isinstance(node, ast.Attribute):
            return self._of_attribute(node, scope)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            return PATH if self.of(node.left, scope) == PATH else ""
        if isinstance(node, ast.BoolOp):
            return self._first(node.values, scope)
        if isinstance(node, ast.IfExp):
            return self._first([node.body, node.orelse], scope)
        if isinstance(node, ast.Subscript):
            pair = _PAIRS.get(self.of(node.value, scope))
            return pair or self._element(node.value, scope) or self._of_item(node, scope)
        return ""

    def _of_item(self, node: ast.Subscript, scope: Scope) -> str:
        """The class of an item of a dictionary at the top of a module: `models["chat"]`."""
        if self._items is None:
            self._items = defaultdict(list)
            for module in self.source.modules:
                for statement in module.of(ast.Assign):
                    for target in statement.targets:
                        where = module.scope_of(statement)
                        if isinstance(target, ast.Subscript) and (key := self._item(target, where)):
                            self._items[key].append((statement.value, where))
        key = self._item(node, scope)
        given = self._items.get(key, []) if key else []
        return next(filter(None, (self.of(value, where) for value, where in given)), "")

    def _item(self, node: ast.Subscript, scope: Scope) -> tuple[str, str] | None:
        """The dictionary and the key of an item, if both are known."""
        owner, key = node.value, node.slice
        if (
            not isinstance(owner, ast.Name | ast.Attribute)
            or not isinstance(key, ast.Constant)
            or (isinstance(owner, ast.Name) and self.binds(owner.id, scope) is not None)
        ):
            return None
        return self.source.canonical(scope.module, owner), repr(key.value)

    def _first(self, nodes: list[ast.expr], scope: Scope) -> str:
        return next(filter(None, (self.of(each, scope) for each in nodes)), "")

    def _result(self, call: ast.Call, scope: Scope) -> str:
        name = self.name(call.func, scope)
        if name in self.source.classes:
            return name
        function = self.function(call.func, scope)
        if function is not None:
            return self._returned(function)
        if name in ("typing.cast", "cast") and call.args:
            return self.annotated(scope.module, call.args[0])
        if name in ("getattr",) and len(call.args) > 1 and isinstance(call.args[1], ast.Constant):
            return self._of_shared(str(call.args[1].value))
        if isinstance(call.func, ast.Attribute):
            receiver = self.of(call.func.value, scope)
            if receiver == PATH and call.func.attr in ("resolve", "absolute", "expanduser"):
                return PATH
            if receiver in _CONTEXTS:
                return f"multiprocessing.{call.func.attr}"
            if receiver and receiver not in self.source.classes:
                return f"{receiver}.{call.func.attr}"
            return name if name and self._is_global(call.func, scope) else f"?.{call.func.attr}"
        return name

    def _is_global(self, node: ast.expr, scope: Scope) -> bool:
        """Return whether a dotted name begins at a module, and not at a variable."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and (
            node.id in scope.module.aliases and self.binds(node.id, scope) is None
        )

    def _returned(self, function: Function) -> str:
        """The class of what a function returns, or, for a dependency that yields, of that."""
        annotation = function.node.returns
        if annotation is not None:
            if isinstance(annotation, ast.Subscript) and last(annotation.value) in _YIELDED:
                inner = annotation.slice
                annotation = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
            found = self.annotated(function.module, annotation)
            if found:
                return found
        for each in function.body:
            if isinstance(each, ast.Return | ast.Yield) and each.value is not None:
                found = self.of(each.value, function.scope)
                if found:
                    return found
        return ""

    def _of_name(self, node: ast.Name, scope: Scope) -> str:
        if node.id in ("self", "cls") and scope.owner is not None:
            return f"{scope.module.name}.{scope.owner.name}"
        bound = self.binds(node.id, scope)
        if bound is not None:
            return self._bound(node.id, bound)
        return self._of_global(self.source.canonical(scope.module, node))

    def binds(self, name: str, scope: Scope) -> Function | None:
        """Return the function that gives a name its value, from the inside out."""
        function = scope.function
        while function is not None:
            bound = self.bindings(function)
            if name in bound or (name not in bound.outer and name in self._parameters(function)):
                return scope.module.function(function)
            function = scope.module.function_around(function)
        return None

    def _bound(self, name: str, function: Function) -> str:
        scope = function.scope
        bound = self.bindings(function.node)
        if name in bound.annotations:
            found = self.annotated(scope.module, bound.annotations[name])
            if found:
                return found
        found = self._first(bound.values.get(name, []), scope)
        if not found and name in bound.elements:
            found = self._element(bound.elements[name], scope)
        if not found and name in self._parameters(function.node):
            found = self._of_parameter(name, function)
        return found

    def _of_parameter(self, name: str, function: Function) -> str:
        scope = function.scope
        parameter, default = self._parameters(function.node)[name]
        for each in (*ast.walk(parameter.annotation or ast.Constant(None)), default):
            if isinstance(each, ast.Call) and last(each.func) in ("Depends", "Security"):
                given = each.args[0] if each.args else None
                depended = given and self.function(given, Scope(scope.module))
                if depended:
                    return self._returned(depended)
        found = self.annotated(scope.module, parameter.annotation)
        return found or self.of(default, scope) or self._passed(name, function)

    def _passed(self, name: str, function: Function) -> str:
        """The class of the argument that callers of a function pass for a parameter."""
        node, owner, module = function.node, function.owner, function.module
        names = list(self._parameters(node))
        position = names.index(name)
        called = node.name
        if names[0] in ("self", "cls"):
            position -= 1
            if node.name == "__init__" and owner is not None:
                called = owner.name
        callers = self.calls.get(called, [])
        if not module.is_nested(node) and owner is None:
            wanted = f"{module.name}.{called}"
            callers = [c for c in callers if self.source.canonical(c[0], c[1].func) == wanted]
        for module, call in callers[:_MOST_CALLERS]:
            given: ast.expr | None = next((k.value for k in call.keywords if k.arg == name), None)
            if given is None and 0 <= position < len(call.args):
                given = call.args[position]
            found = self.of(given, module.scope_of(call)) if given is not None else ""
            if found:
                return found
        return ""

    @property
    def calls(self) -> dict[str, list[tuple[Module, ast.Call]]]:
        """The calls of all modules, by the last name of what is called, where it is defined."""
        if self._calls is None:
            self._calls = defaultdict(list)
            for module in self.source.modules:
                for call in module.of(ast.Call):
                    name = last(call.func)
                    if isinstance(call.func, ast.Name):
                        name = module.aliases.get(name, name).rpartition(".")[2]
                    self._calls[name].append((module, call))
        return self._calls

    def _of_global(self, name: str) -> str:
        """The class of a variable at the top of a module, set there or by `global`."""
        origin, _, member = name.rpartition(".")
        module = self.source.by_name.get(origin)
        if module is None:
            return ""
        for value, scope in self._globals_of(module).get(member, []):
            found = self.of(value, scope)
            if found:
                return found
        annotation = self.bindings(module.tree).annotations.get(member)
        return self.annotated(module, annotation)

    def _globals_of(self, module: Module) -> dict[str, list[tuple[ast.expr, Scope]]]:
        found = self._globals.get(module)
        if found is None:
            found = self._globals[module] = defaultdict(list)
            for name, values in self.bindings(module.tree).values.items():
                found[name] += [(value, Scope(module)) for value in values]
            for statement in module.of(ast.Global):
                function = module.function_around(statement)
                if function is None:
                    continue
                for name in statement.names:
                    values = self.bindings(function).values.get(name, [])
                    found[name] += [(value, module.scope_of(value)) for value in values]
        return found

    def _of_attribute(self, node: ast.Attribute, scope: Scope) -> str:
        if isinstance(node.value, ast.Attribute) and node.value.attr == "state":
            return self._of_shared(node.attr)
        owner = self.of(node.value, scope)
        if not owner:  # of the class itself, as in `Settings.engine`
            owner = self.source.canonical(scope.module, node.value)
            owner = owner if owner in self.source.classes else ""
        if owner in self.source.classes:
            return self._member(owner, node.attr)
        if isinstance(node.value, ast.Name) and node.value.id == "state":
            return self._of_shared(node.attr)
        return "" if owner else self._of_global(self.source.canonical(scope.module, node))

    def _member(self, owner: str, name: str, depth: int = 5) -> str:
        """The class of an attribute: `self.name = ...`, `name: Type`, or a property."""
        module, node = self.source.classes[owner]
        for value, scope, is_type in self.attributes(module, node).get(name, []):
            found = self.annotated(module, value) if is_type else self.of(value, scope)
            if found:
                return found
        method = self.source.functions.get(f"{owner}.{name}")
        if method is not None and method.node.decorator_list:
            return self._returned(method)
        for base in node.bases:
            parent = self.source.canonical(module, base)
            if depth and parent in self.source.classes and parent != owner:
                found = self._member(parent, name, depth - 1)
                if found:
                    return found
        return ""

    def attributes(
        self, module: Module, node: ast.ClassDef
    ) -> dict[str, list[tuple[ast.expr, Scope, bool]]]:
        """The values, and the types, that a class gives its attributes."""
        found = self._attributes.get(node)
        if found is not None:
            return found
        found = self._attributes[node] = defaultdict(list)
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                found[statement.target.id].append((statement.annotation, Scope(module), True))
            elif isinstance(statement, ast.Assign):
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        found[target.id].append((statement.value, Scope(module), False))
        for statement in node.body:
            if not isinstance(statement, Definition):
                continue
            scope, bound = Scope(module, statement, node), self.bindings(statement)
            for name, annotation in bound.annotations.items():
                if name.startswith("self."):
                    found[name[5:]].append((annotation, scope, True))
            for name, values in bound.values.items():
                if name.startswith("self."):
                    found[name[5:]] += [(value, scope, False) for value in values]
        return found

    def _of_shared(self, name: str) -> str:
        """The class of `app.state.name`, set anywhere, or yielded by a lifespan."""
        if self._shared is None:
            self._shared = defaultdict(list)
            for module in self.source.modules:
                for statement in module.of(ast.Assign):
                    for target in statement.targets:
                        if isinstance(target, ast.Attribute) and last(target.value) == "state":
                            entry = statement.value, module.scope_of(statement)
                            self._shared[target.attr].append(entry)
                for node in module.of(ast.Yield):
                    if isinstance(node.value, ast.Dict):
                        for key, value in zip(node.value.keys, node.value.values, strict=True):
                            if isinstance(key, ast.Constant):
                                entry = value, module.scope_of(node)
                                self._shared[str(key.value)].append(entry)
        for value, scope in self._shared.get(name, []):
            found = self.of(value, scope)
            if found:
                return found
        return ""

    def annotated(self, module: Module, annotation: ast.AST | None) -> str:
        """Return the class that an annotation names: of `Annotated[A, ...]` and `A | None`, A."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                annotation = ast.parse(annotation.value, mode="eval").body
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                return ""
        if isinstance(annotation, ast.Subscript):
            if last(annotation.value) not in _WRAPPERS:
                return self.source.canonical(module, annotation.value)
            inner = annotation.slice
            annotation = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
            return self.annotated(module, annotation)
        if isinstance(annotation, ast.BinOp):
            left = self.annotated(module, annotation.left)
            return left or self.annotated(module, annotation.right)
        if not isinstance(annotation, ast.Name | ast.Attribute):
            return ""
        name = self.source.canonical(module, annotation)
        if name.rpartition(".")[2] in ("Any", "object"):
            return ""
        return name

    def _element(self, node: ast.expr, scope: Scope) -> str:
        """The class of what a list or a dictionary holds, by its annotation."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr not in ("values", "get", "pop", "copy"):
                return ""
            node = node.func.value
        module, annotation = self._annotation(node, scope) or (scope.module, None)
        if not isinstance(annotation, ast.Subscript):
            return ""
        inner = annotation.slice
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        container = last(annotation.value)
        if container in _ELEMENTS:
            return self.annotated(module, parts[0])
        return self.annotated(module, parts[-1]) if container in _VALUES else ""

    def _annotation(self, node: ast.expr, scope: Scope) -> tuple[Module, ast.expr] | None:
        if isinstance(node, ast.Name):
            bound = self.binds(node.id, scope)
            if bound is not None:
                given = self.bindings(bound.node).annotations.get(node.id)
                parameter = self._parameters(bound.node).get(node.id)
                given = given or (parameter[0].annotation if parameter else None)
                return (scope.module, given) if given is not None else None
            origin, _, member = self.source.canonical(scope.module, node).rpartition(".")
            module = self.source.by_name.get(origin)
            given = self.bindings(module.tree).annotations.get(member) if module else None
            return (module, given) if module is not None and given is not None else None
        if isinstance(node, ast.Attribute):
            owner = self.source.classes.get(self.of(node.value, scope))
            if owner is not None:
                for value, where, is_type in self.attributes(*owner).get(node.attr, []):
                    if is_type:
                        return where.module, value
        return None

    def _parameters(self, node: Definition) -> dict[str, tuple[ast.arg, ast.expr | None]]:
        """The parameters of a function by name, with their defaults."""
        found = self._known_parameters.get(node)
        if found is None:
            found = {parameter.arg: (parameter, default) for parameter, default in parameters(node)}
            for each in (node.args.vararg, node.args.kwarg):
                if each is not None:
                    found[each.arg] = (ast.arg(each.arg), None)
            self._known_parameters[node] = found
        return found

    # Names and functions.

    def name(self, node: ast.AST | None, scope: Scope) -> str:
        """Return what a dotted name stands for, through imports; "" if it is no name.

        A variable of a function stands for itself.
        """
        root: ast.AST | None = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if not isinstance(root, ast.Name):
            return ""
        bound = self.binds(root.id, scope)
        if bound is not None:
            inside = self.bindings(bound.node)
            if root.id not in inside.functions:
                return f"?.{scope.module.resolve(node)}"
            return scope.module.resolve(node)
        name = self.source.canonical(scope.module, node)
        builtin = f"{scope.module.name}.{root.id}"
        if isinstance(node, ast.Name) and name == builtin and not self._is_defined(node, scope):
            return node.id
        return name

    def _is_defined(self, node: ast.Name, scope: Scope) -> bool:
        module = scope.module
        return node.id in self.bindings(module.tree) or f"{module.name}.{node.id}" in (
            self.source.classes
        )

    def function(self, node: ast.AST, scope: Scope) -> Function | None:
        """Return the project's function that a callee stands for."""
        with self._deeper() as allowed:
            return self._function(node, scope) if allowed else None

    def _function(self, node: ast.AST, scope: Scope) -> Function | None:
        if isinstance(node, ast.Name):
            return self._function_named(node, scope)
        if isinstance(node, ast.Call) and last(node.func) == "partial" and node.args:
            return self.function(node.args[0], scope)
        if not isinstance(node, ast.Attribute):
            return None
        if isinstance(node.value, ast.Call) and last(node.value.func) == "super" and scope.owner:
            for base in scope.owner.bases:
                found = self.method(self.source.canonical(scope.module, base), node.attr)
                if found is not None:
                    return found
            return None
        owner = self.of(node.value, scope)
        if owner:
            return self.method(owner, node.attr)
        name = self.name(node, scope)
        found = self.source.functions.get(name)
        if found is None and name in self.source.classes:
            return self.method(name, "__init__")
        return found

    def _function_named(self, node: ast.Name, scope: Scope) -> Function | None:
        bound = self.binds(node.id, scope)
        if bound is not None:
            inside = self.bindings(bound.node)
            if node.id in inside.functions:
                return scope.module.function(inside.functions[node.id])
            for value in inside.values.get(node.id, []):
                if isinstance(value, ast.Name | ast.Attribute) and not _is_name(value, node.id):
                    found = self.function(value, bound.scope)
                    if found is not None:
                        return found
            return self.method(self.of(node, scope), "__call__")
        name = self.source.canonical(scope.module, node)
        found = self.source.functions.get(name)
        if found is not None:
            return found
        if name in self.source.classes:
            return self.method(name, "__init__")
        made = self._of_global(name)
        if made:
            return self.method(made, "__call__")
        return None

    def method(self, owner: str, name: str, depth: int = 5) -> Function | None:
        """Return a method of a project's class, or of its bases."""
        if owner not in self.source.classes:
            return None
        found = self.source.functions.get(f"{owner}.{name}")
        if found is not None:
            return found
        module, node = self.source.classes[owner]
        for base in node.bases:
            parent = self.source.canonical(module, base)
            if depth and parent != owner:
                found = self.method(parent, name, depth - 1)
                if found is not None:
                    return found
        return None

    def implementations(self, function: Function) -> list[Function]:
        """Return the methods of subclasses for a method that does nothing itself."""
        if function.owner is None or not _is_abstract(function.node):
            return []
        if self._subclasses is None:
            self._subclasses = defaultdict(list)
            for name, known in self.source.classes.items():
                for base in self.source.bases(*known):
                    self._subclasses[base].append(name)
        owner = f"{function.module.name}.{function.owner.name}"
        methods = (
            self.source.functions.get(f"{each}.{function.node.name}")
            for each in self._subclasses.get(owner, [])
        )
        return [each for each in methods if each is not None]

    def only_method(self, name: str) -> Function | None:
        """Return the method that alone in the project has a name."""
        if self._methods is None:
            self._methods = defaultdict(list)
            for function in self.source.functions.values():
                if function.owner is not None:
                    self._methods[function.node.name].append(function)
        found = self._methods.get(name, [])
        return found[0] if len(found) == 1 else None

    def bindings(self, body: Definition | ast.Module) -> Bindings:
        """Return the names that a function, or the top of a module, gives a value."""
        found = self._bindings.get(body)
        if found is None:
            found = self._bindings[body] = Bindings()
            for node in _statements(body):
                _bind(node, found)
        return found


def _statements(body: Definition | ast.Module) -> Iterator[ast.AST]:
    if isinstance(body, Definition):
        yield from body_nodes(body)
        return
    pending: list[ast.AST] = list(body.body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.ExceptHandler):
            pending += [
                each
                for each in ast.iter_child_nodes(node)
                if isinstance(each, ast.stmt | ast.ExceptHandler)
            ]


def _bind(node: ast.AST, found: Bindings) -> None:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Tuple | ast.List):
                _bind_each(target, node.value, found)
            elif name := _dotted(target):
                found.values[name].append(node.value)
    elif isinstance(node, ast.AnnAssign):
        if name := _dotted(node.target):
            found.annotations[name] = node.annotation
            if node.value is not None:
                found.values[name].append(node.value)
    elif isinstance(node, ast.NamedExpr):
        found.values[node.target.id].append(node.value)
    elif isinstance(node, ast.For | ast.AsyncFor):
        if isinstance(node.target, ast.Name):
            found.elements[node.target.id] = node.iter
        else:
            found.opaque.update(_names(node.target))
    elif isinstance(node, ast.With | ast.AsyncWith):
        for item in node.items:
            if isinstance(item.optional_vars, ast.Name):
                found.values[item.optional_vars.id].append(item.context_expr)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        found.functions[node.name] = node
    elif isinstance(node, ast.ClassDef | ast.ExceptHandler):
        found.opaque.update([node.name] if node.name else [])
    elif isinstance(node, ast.Global | ast.Nonlocal):
        found.outer.update(node.names)


def _bind_each(target: ast.Tuple | ast.List, value: ast.expr, found: Bindings) -> None:
    same = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts)
    for position, each in enumerate(target.elts):
        name = _dotted(each)
        if name and same and isinstance(value, ast.Tuple | ast.List):
            found.values[name].append(value.elts[position])
        elif name and isinstance(value, ast.Call) and last(value.func) in _NAMES_OF_PAIRS:
            item = ast.Subscript(value, ast.Constant(position), ast.Load())
            found.values[name].append(ast.copy_location(item, value))
        elif name:
            found.opaque.add(name)


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return node.id if isinstance(node, ast.Name) else ""


def _names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _is_abstract(node: Definition) -> bool:
    """Return whether a method only says what it is, or that it is not implemented."""
    return any(last(each) == "abstractmethod" for each in node.decorator_list) or all(
        isinstance(each, ast.Pass)
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        or (isinstance(each, ast.Raise) and "NotImplemented" in ast.dump(each))
        for each in node.body
    )


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def last(node: ast.AST) -> str:
    """The last name of an expression."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def parameters(node: Definition) -> list[tuple[ast.arg, ast.expr | None]]:
    """The parameters of a function with their defaults."""
    positional = [*node.args.posonlyargs, *node.args.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(node.args.defaults))
    pairs = list(zip(positional, [*missing, *node.args.defaults], strict=True))
    return [*pairs, *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
