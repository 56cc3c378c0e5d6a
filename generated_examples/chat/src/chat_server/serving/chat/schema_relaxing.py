"""Schemas that no grammar enforces in full, without what cannot be enforced.

MCP servers and libraries write keywords such as `propertyNames` as a matter of course, and OpenAI
promises to keep to a schema only with `strict`. What is dropped here is dropped at its place alone,
so that the grammar never allows more than it must.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

DROPPED = frozenset(
    (
        "$dynamicAnchor",
        "$dynamicRef",
        "$recursiveAnchor",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    )
)
"""Keywords that llguidance refuses"""
FORMATS = frozenset(
    (
        "date",
        "date-time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "time",
        "unknown",
        "uri",
        "uuid",
    )
)
"""Formats of strings that llguidance knows"""
NAMED = ("$defs", "definitions", "patternProperties", "properties")
"""Keywords with schemas by name"""
LISTED = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
"""Keywords with a list of schemas"""
MAX_MULTIPLE = 10_000
"""Least common multiple of all `multipleOf`, decimal points aside: there are as many states."""


def digits(factor: float) -> int:
    return int("".join(c for c in f"{factor}" if c.isdigit()) or "0")


class Relaxer:
    """Rewrites one schema."""

    def __init__(self, takes_pattern: Callable[[str], bool]) -> None:
        """takes_pattern: True for a regular expression that can be enforced."""
        self.dropped: set[str] = set()
        """Keywords that are not in the result, or not everywhere"""
        self._takes_pattern = takes_pattern
        self._multiple = 1

    def relax(self, schema: Any) -> Any:
        """The schema without what cannot be enforced. Recurses, so its depth has to be bounded."""
        if not isinstance(schema, Mapping):
            return schema
        kept = {key: value for key, value in schema.items() if self._keeps(key, value, schema)}
        self.dropped |= schema.keys() - kept.keys()
        for key in kept.keys() & {*NAMED}:
            if isinstance(kept[key], Mapping):
                kept[key] = {name: self.relax(each) for name, each in kept[key].items()}
        for key in kept.keys() & {*LISTED}:
            if isinstance(kept[key], list):
                kept[key] = [self.relax(each) for each in kept[key]]
            else:
                kept[key] = self.relax(kept[key])
        for key in kept.keys() & {"additionalItems", "additionalProperties"}:
            kept[key] = self.relax(kept[key])
        self._relax_patterns(kept)
        return kept

    def _keeps(self, key: str, value: Any, schema: Mapping[str, Any]) -> bool:
        match key:
            case "format":
                types = schema.get("type", "string")
                return value in FORMATS or "string" not in types
            case "pattern":
                return not isinstance(value, str) or self._takes_pattern(value)
            case "$ref":
                return not isinstance(value, str) or value.startswith("#")
            case "$schema":
                return "json-schema.org" in str(value)
            case "minProperties":
                # A key that is repeated would count.
                required = schema.get("required")
                enough = len(required) if isinstance(required, list) else 1
                return not isinstance(value, int) or value <= max(enough, 1)
            case "multipleOf" if isinstance(value, int | float) and value > 0:
                multiple = math.lcm(self._multiple, digits(value))
                if multiple <= MAX_MULTIPLE:
                    self._multiple = multiple
                return multiple <= MAX_MULTIPLE
            case _:
                return key not in DROPPED

    def _relax_patterns(self, kept: dict[str, Any]) -> None:
        """Properties whose pattern cannot be told are properties that may be anything."""
        patterns = kept.get("patternProperties")
        if not isinstance(patterns, Mapping):
            return
        told = {pattern: each for pattern, each in patterns.items() if self._takes_pattern(pattern)}
        if len(told) < len(patterns):
            self.dropped.add("patternProperties")
            kept["patternProperties"] = told
            kept.pop("additionalProperties", None)


DOUBTFUL = re.compile(r"\(\?<?[=!]|\\[1-9kbB]|\(\?[>|(P]")
"""May be look-around, a reference to a group, or the border of a word, which are not enforceable"""
