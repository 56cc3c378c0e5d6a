"""The code that shows whether a route follows a pattern: its own, and what that uses."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from http import HTTPStatus

from infer_scaffold.check.objects import last
from infer_scaffold.check.service import Route, Service, argument
from infer_scaffold.check.source import Definition, Function, Module, walk

_CONSTANT_HOPS = 2
_CODE_NAMES = {"status_code", "code", "status", "http_status", "http_code"}
# Calls that look for a text, and do not send it.
_LOOKS_FOR = {
    *("startswith", "endswith", "strip", "lstrip", "rstrip", "removeprefix", "removesuffix"),
    *("replace", "split", "partition", "find", "index", "count", "search", "match", "compile"),
}


@dataclass(eq=False)
class _Part:
    """A tree of the code: a function, a statement of a class, or the value of a constant."""

    service: Service
    module: Module
    root: ast.AST

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(walk(self.root))

    @cached_property
    def calls(self) -> list[ast.Call]:
        return [node for node in self.nodes if isinstance(node, ast.Call)]

    @cached_property
    def texts(self) -> list[str]:
        return [
            text_of_constant(node)
            for node in self.nodes
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str | bytes)
            and not _is_sought(self.module, node)
        ]

    @cached_property
    def names(self) -> set[str]:
        canonical = self.service.source.canonical
        return {
            canonical(self.module, node)
            for node in self.nodes
            if isinstance(node, ast.Name | ast.Attribute)
        }

    @cached_property
    def statuses(self) -> set[int]:
        return {code for node in self.nodes for code in statuses(self.module, node)}

    @cached_property
    def behind(self) -> list["_Part"]:
        """The values of the constants, and the statements of the classes, that it names."""
        source, found = self.service.source, []
        for name in sorted(self.names):
            if name in source.classes:
                origin, cls = source.classes[name]
                kept = [each for each in cls.body if not isinstance(each, Definition)]
                found += [(origin, each) for each in (*cls.bases, *kept)]
            else:
                parent, _, member = name.rpartition(".")
                module = source.by_name.get(parent)
                if module is not None:
                    values = self.service.objects.bindings(module.tree).values.get(member, [])
                    found += [(module, each) for each in values[:1]]
        return [_part(self.service, module, root) for module, root in found]


@lru_cache(maxsize=1)
def _parts(service: Service) -> dict[ast.AST, _Part]:
    return {}


def _part(service: Service, module: Module, root: ast.AST) -> _Part:
    """Return the facts of a tree, which many routes share."""
    known = _parts(service)
    found = known.get(root)
    if found is None:
        found = known[root] = _Part(service, module, root)
    return found


@dataclass(eq=False)
class Evidence:
    """Functions, and the classes and constants that they mention."""

    service: Service
    functions: list[Function]

    @cached_property
    def _all(self) -> list[_Part]:
        edge = [_part(self.service, each.module, each.node) for each in self.functions]
        found = {part.root: part for part in edge}
        for _ in range(_CONSTANT_HOPS):
            edge = [each for part in edge for each in part.behind if each.root not in found]
            found |= {part.root: part for part in edge}
        return list(found.values())

    @property
    def roots(self) -> list[tuple[Module, ast.AST]]:
        """The trees of the code: functions, the statements of classes, values of constants."""
        return [(part.module, part.root) for part in self._all]

    @property
    def nodes(self) -> Iterator[tuple[Module, ast.AST]]:
        """All nodes of the code."""
        return ((part.module, node) for part in self._all for node in part.nodes)

    @property
    def calls(self) -> Iterator[tuple[Module, ast.Call]]:
        """The calls of the code."""
        return ((part.module, node) for part in self._all for node in part.calls)

    @property
    def texts(self) -> Iterator[str]:
        """The constant texts that the code may send: it does not only look for them."""
        return (text for part in self._all for text in part.texts)

    @cached_property
    def names(self) -> set[str]:
        """The dotted names that the code mentions."""
        return set().union(*(part.names for part in self._all))

    @cached_property
    def statuses(self) -> set[int]:
        """The statuses that the code answers with."""
        return set().union(*(part.statuses for part in self._all))


@lru_cache(maxsize=1)
def _known(service: Service) -> dict[Route, Evidence]:
    return {}


def of_route(service: Service, route: Route) -> Evidence:
    """Return the evidence of a route, its dependencies included."""
    known = _known(service)
    if route not in known:
        known[route] = Evidence(service, service.related(route))
    return known[route]


def of_functions(service: Service, functions: Iterable[Function]) -> Evidence:
    """Return the evidence of some functions."""
    return Evidence(service, service.used_by(functions))


def text_of_constant(node: ast.Constant) -> str:
    """Return a text or the text of bytes."""
    value = node.value
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _is_sought(module: Module, node: ast.AST) -> bool:
    """Return whether a text is compared or looked for, or says something to readers of code."""
    around = module.parents.get(node)
    while isinstance(around, ast.Tuple | ast.List | ast.Set):
        node, around = around, module.parents.get(around)
    if isinstance(around, ast.Compare | ast.Expr):
        return True
    return isinstance(around, ast.Call) and last(around.func) in _LOOKS_FOR


def statuses(module: Module, node: ast.AST) -> Iterator[int]:
    """The statuses of errors that a node names: a call's, an attribute's, a table's."""
    if isinstance(node, ast.Call):
        raised = isinstance(module.parents.get(node), ast.Raise)
        if raised or _may_answer(last(node.func)):
            given = [*node.args[:2], *(k.value for k in node.keywords if k.arg in _CODE_NAMES)]
            yield from filter(None, map(_status, given))
    elif isinstance(node, ast.Attribute):
        code = _status(node) if node.attr.isupper() else None
        if code is not None and not isinstance(module.parents.get(node), ast.Compare):
            yield code
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if node.value is not None and any(last(each) in _CODE_NAMES for each in targets):
            code = _status(node.value)
            yield from () if code is None else (code,)
    elif isinstance(node, ast.Dict):
        codes = [_status(value) for value in node.values]
        if codes and all(code is not None and code >= 400 for code in codes):
            yield from filter(None, codes)


@lru_cache(maxsize=10_000)
def _may_answer(name: str) -> bool:
    return re.search(r"(Exception|Error|Response|error|abort|__init__)", name) is not None


def _status(node: ast.expr) -> int | None:
    """The status that an expression names: 404, HTTPStatus.NOT_FOUND, status.HTTP_404_..."""
    if isinstance(node, ast.Constant):
        value = node.value
        return value if type(value) is int and 100 <= value < 600 else None
    if isinstance(node, ast.Attribute) and node.attr in ("value", "real"):
        return _status(node.value)
    if not isinstance(node, ast.Name | ast.Attribute):
        return None
    name = last(node)
    if match := re.match(r"HTTP_(\d{3})", name):
        return int(match[1])
    if isinstance(node, ast.Attribute) and last(node.value) == "HTTPStatus":
        return int(HTTPStatus[name]) if name in HTTPStatus.__members__ else None
    return None


def given(call: ast.Call, name: str) -> bool:
    """Return whether a call has an argument of a name that is not None."""
    value = argument(call, None, name)
    return value is not None and not (isinstance(value, ast.Constant) and value.value is None)
