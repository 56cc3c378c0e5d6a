"""The arguments of tool calls: how each format writes them, and JSON made of them."""

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from .text import overlap

Schema = Mapping[str, Any]


class ArgumentsRead(NamedTuple):
    """The result of reading a piece of text."""

    json: str
    """The next piece of the arguments as JSON"""
    length: int
    """Characters of the text that have been read"""
    complete: bool = False


class ArgumentReader(Protocol):
    """Makes JSON of the arguments of one call, piece by piece."""

    def read(self, text: str) -> ArgumentsRead:
        """text: what has come, without what has been read before."""


class GrammarParts(Protocol):
    """The parts that the grammar of arguments consists of."""

    def literal(self, text: str) -> str:
        """A text, with the special tokens in it"""

    def json(self, schema: Schema) -> str:
        """JSON that is valid against a schema"""

    def rule(self, definition: str, *, lazy: bool = False) -> str:
        """A new rule. Returns its name."""

    def recursive(self, definition: Callable[[str], str]) -> str:
        """A new rule, defined by its own name. Returns the name."""


class ArgumentStyle(Protocol):
    """The notation of arguments in a format."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts whose special tokens the reader has to see"""

    @property
    def begin(self) -> str:
        """The beginning of arguments, where nothing stands between them and the name"""

    def grammar(self, schema: Schema, parts: GrammarParts) -> str: ...

    def reader(self, schema: Schema) -> ArgumentReader: ...


@dataclass(frozen=True)
class JSONArguments:
    """A JSON object."""

    marks: tuple[str, ...] = ()
    begin: str = "{"

    def grammar(self, schema: Schema, parts: GrammarParts) -> str:
        return parts.json({**schema, "type": "object"})

    def reader(self, schema: Schema) -> ArgumentReader:
        return ObjectScanner()


class ObjectScanner:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def read(self, text: str) -> ArgumentsRead:
        for index, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return ArgumentsRead(text[: index + 1], index + 1, complete=True)
        return ArgumentsRead(text, len(text))


@dataclass(frozen=True)
class TaggedArguments:
    """A series of `before key middle value after`, in which texts stand without quotes."""

    before: str
    middle: str
    after: str

    @property
    def marks(self) -> tuple[str, ...]:
        return self.before, self.middle, self.after

    @property
    def begin(self) -> str:
        return self.before

    def grammar(self, schema: Schema, parts: GrammarParts) -> str:
        if is_open(schema):
            head = f"{parts.literal(self.before)} /[A-Za-z0-9_.-]+/ {parts.literal(self.middle)}"
            return f"({head} {self._text({}, parts)})*"
        items = [
            (
                f"{parts.literal(self.before + key + self.middle)} {self._value(value, schema, parts)}",
                needed,
            )
            for key, value, needed in properties_of(schema)
        ]
        return series(items, "", parts)

    def _value(self, value: Schema, schema: Schema, parts: GrammarParts) -> str:
        inner, nullable = without_null(value)
        if not is_text(inner):
            # Templates write Python's words where they mean JSON's, and so do models.
            words = [*(PYTHON_BOOLEANS if inner.get("type") == "boolean" else ())]
            words += ["None"] if nullable else []
            json_value = parts.json(with_definitions(value, schema))
            any_of = " | ".join([json_value, *map(parts.literal, words)])
            return f"({any_of}) {parts.literal(self.after)}"
        value = inner
        if nullable and allowed_values(value):
            value = {"enum": [*allowed_values(value), "null"]}
        if choices := allowed_values(value):
            return "(" + " | ".join(parts.literal(f"{each}{self.after}") for each in choices) + ")"
        return self._text(value, parts)

    def _text(self, value: Schema, parts: GrammarParts) -> str:
        end = parts.literal(self.after)
        text = f"/(?s:.{lengths_of(value)})/"
        if end.startswith("<["):  # a token, which cannot be a part of the text
            return f"{text} {end}"
        return parts.rule(f"{text} {end}", lazy=True)

    def reader(self, schema: Schema) -> ArgumentReader:
        return TagReader(self, schema)


class TagReader:
    """Makes JSON of arguments in tags. A text comes out while it is written."""

    def __init__(self, style: TaggedArguments, schema: Schema) -> None:
        self._style = style
        self._values = {key: value for key, value, _ in properties_of(schema)}
        self._count = 0
        self._value: Schema | None = None
        """Schema of the value that is being read"""
        self._nullable = False
        self._quoted = False

    def read(self, text: str) -> ArgumentsRead:
        json_text, length = "", 0
        while True:
            step = self._head(text[length:]) if self._value is None else self._rest(text[length:])
            json_text += step.json
            length += step.length
            if step.complete or not step.length:
                return ArgumentsRead(json_text, length, step.complete)

    def _head(self, text: str) -> ArgumentsRead:
        before, middle = self._style.before, self._style.middle
        if before.startswith(text[: len(before)]) and len(text) < len(before):
            return ArgumentsRead("", 0)
        if not text.startswith(before):
            return ArgumentsRead("}" if self._count else "{}", 0, complete=True)
        key, found, _ = text[len(before) :].partition(middle)
        if not found:
            return ArgumentsRead("", 0)
        self._value, self._nullable = without_null(self._values.get(key, {}))
        self._quoted = False
        self._count += 1
        opening = "{" if self._count == 1 else ", "
        return ArgumentsRead(f"{opening}{dumped(key)}: ", len(before + key + middle))

    def _rest(self, text: str) -> ArgumentsRead:
        value, found, _ = text.partition(self._style.after)
        if self._nullable or not is_text(self._value or {}):
            if not found:
                return ArgumentsRead("", 0)
            is_null = self._nullable and value in ("null", "None")
            as_it_is = is_text(self._value or {}) and not is_null
            self._value = None
            json_value = dumped(value) if as_it_is else normalised(value)
            return ArgumentsRead(json_value, len(value + found))
        if not found:
            value = text[: len(text) - overlap(text, self._style.after)]
            if not value:
                return ArgumentsRead("", 0)
        opening, closing = "" if self._quoted else '"', '"' if found else ""
        self._quoted = True
        if found:
            self._value = None
        return ArgumentsRead(opening + dumped(value)[1:-1] + closing, len(value + found))


@dataclass(frozen=True)
class KeywordArguments:
    """Python's `key='text', other=1`."""

    marks: tuple[str, ...] = ()
    begin: str = ""

    def grammar(self, schema: Schema, parts: GrammarParts) -> str:
        if is_open(schema):
            item = f'/[A-Za-z_][A-Za-z0-9_]*/ "=" {self._value({}, parts)}'
            return f'({item} (", " {item})*)?'
        items = [
            (f"{parts.literal(key + '=')} {self._value(value, parts)}", needed)
            for key, value, needed in properties_of(schema)
        ]
        return series(items, '", "', parts)

    def _value(self, value: Schema, parts: GrammarParts) -> str:
        if choices := allowed_values(value):
            return "(" + " | ".join(parts.literal(repr(each)) for each in choices) + ")"
        escape = r"""\\['"\\nt]"""
        texts = [
            "|".join(f"{quote}([^{quote}\\\\]|{escape}){count}{quote}" for quote in "'\"")
            for count in (lengths_of(value), "*")
        ]
        text, any_text = (f"/(?s:{each})/" for each in texts)
        return literal_of(value, parts, text, any_text, f'{any_text} ": "')

    def reader(self, schema: Schema) -> ArgumentReader:
        return KeywordReader()


class KeywordReader:
    """Makes JSON of Python's arguments, at once when they are complete."""

    def __init__(self) -> None:
        self._scanner = BracketScanner(("'", '"'), "\\")

    def read(self, text: str) -> ArgumentsRead:
        end = self._scanner.end(text)
        if end is None:
            return ArgumentsRead("", 0)
        # Raw control characters, which Python does not take in a text
        source = text[:end].translate({code: f"\\x{code:02x}" for code in range(32)})
        try:
            call = JSONWords().visit(ast.parse(f"f({source})", mode="eval")).body
            keywords = call.keywords if isinstance(call, ast.Call) else []
            values = {each.arg: ast.literal_eval(each.value) for each in keywords}
            return ArgumentsRead(dumped(values), end, complete=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # nested too deeply
            return ArgumentsRead(dumped({"raw": text[:end]}), end, complete=True)


class JSONWords(ast.NodeTransformer):
    """Makes Python's words of JSON's, in which templates write what is within other values."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        values = {"true": True, "false": False, "null": None}
        return ast.Constant(values[node.id]) if node.id in values else node


@dataclass(frozen=True)
class BracedArguments:
    """Gemma's `key:"text",other:1`, where a token of its own stands for the quote."""

    quote: str = '<|"|>'
    begin: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.quote,)

    def grammar(self, schema: Schema, parts: GrammarParts) -> str:
        if is_open(schema):
            item = f'/[A-Za-z0-9_.-]+/ ":" {self._value({}, parts)}'
            return f'({item} ("," {item})*)?'
        items = [  # in the order in which the template writes them
            (f"{parts.literal(key + ':')} {self._value(value, parts)}", needed)
            for key, value, needed in sorted(properties_of(schema), key=lambda each: each[0])
        ]
        return series(items, '","', parts)

    def _value(self, value: Schema, parts: GrammarParts) -> str:
        quote = parts.literal(self.quote)
        if choices := allowed_values(value):
            texts = (
                parts.literal(
                    f"{self.quote}{each}{self.quote}" if isinstance(each, str) else dumped(each)
                )
                for each in choices
            )
            return "(" + " | ".join(texts) + ")"
        text = f"{quote} /(?s:.{lengths_of(value)})/ {quote}"
        any_text = f"{quote} /(?s:.+)/? {quote}"
        return literal_of(value, parts, text, any_text, '/[A-Za-z0-9_.-]+/ ":"')

    def reader(self, schema: Schema) -> ArgumentReader:
        return BraceReader(self.quote)


class BraceReader:
    """Makes JSON of Gemma's arguments, at once when they are complete."""

    def __init__(self, quote: str) -> None:
        self._quote = quote
        self._scanner = BracketScanner((quote,))

    def read(self, text: str) -> ArgumentsRead:
        end = self._scanner.end(text)
        if end is None:
            return ArgumentsRead("", 0)
        quoted = text[:end].split(self._quote)
        # Every second part is a text, the others are JSON but for their keys.
        quoted[1::2] = map(dumped, quoted[1::2])
        quoted[::2] = [
            re.sub(r"\b(True|False|None)\b(?!:)", lambda word: PYTHON_WORDS[word[0]], each)
            for each in (re.sub(r"([{,]|^)([\w.-]+):", r'\1"\2":', part) for part in quoted[::2])
        ]
        try:
            values = json.loads("{" + "".join(quoted) + "}")
        except (ValueError, RecursionError):  # nested too deeply
            values = {"raw": text[:end]}
        return ArgumentsRead(dumped(values), end, complete=True)


class BracketScanner:
    """Finds the bracket that closes the one before a text, which comes in pieces.

    It goes on where it has stopped, so that each mark of a long call is looked at once.
    """

    def __init__(self, quotes: Sequence[str], escape: str = "") -> None:
        """escape: character that takes its meaning from the next one in a string"""
        marks = [*map(re.escape, quotes), r"[(\[{}\])]"]
        marks += [f"{re.escape(escape)}."] if escape else []
        self._mark = re.compile("|".join(marks), re.DOTALL)
        self._quotes = quotes
        self._place = self._depth = 0
        self._inside = ""
        """Quote of the string at the present place"""

    def end(self, text: str) -> int | None:
        """Place of the bracket; None if it has not come yet. text: all that has come."""
        while found := self._mark.search(text, self._place):
            mark, self._place = found[0], found.end()
            if mark in self._quotes:
                if self._inside in ("", mark):
                    self._inside = "" if self._inside else mark
            elif self._inside:
                continue
            elif mark in ("(", "[", "{"):
                self._depth += 1
            elif mark in (")", "]", "}"):
                if self._depth == 0:
                    return found.start()
                self._depth -= 1
            else:  # no escape outside a string
                self._place = found.start() + 1
        return None


def literal_of(
    value: Schema,
    parts: GrammarParts,
    text: str,
    any_text: str,
    key: str,
) -> str:
    """A value in a notation with texts and keys of its own, and the words of Python or JSON:
    templates write the one or the other.

    Within lists and objects anything is allowed: schemas hold for the arguments themselves.

    text: the texts that the schema allows
    """
    true, false, null = (f'("{python}" | "{json_}")' for python, json_ in PYTHON_WORDS.items())
    number = r"/-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?/"
    simple = {
        "string": text,
        "integer": parts.json({**value, "type": "integer"}),
        "number": parts.json({**value, "type": "number"}),
        "boolean": f"({true} | {false})",
        "null": null,
    }
    types = value.get("type")
    wanted = [types] if isinstance(types, str) else types or ["any"]
    if all(each in simple for each in wanted):
        return "(" + " | ".join(simple[each] for each in wanted) + ")"
    anything = parts.recursive(
        lambda name: (
            f"{any_text} | {number} | {true} | {false} | {null}"
            f' | "[" ({name} (/, ?/ {name})*)? "]"'
            f' | "{{" ({key} {name} (/, ?/ {key} {name})*)? "}}"'
        )
    )
    compound = {
        "array": f'"[" ({anything} (/, ?/ {anything})*)? "]"',
        "object": f'"{{" ({key} {anything} (/, ?/ {key} {anything})*)? "}}"',
        "any": anything,
    }
    return "(" + " | ".join((simple | compound).get(each, anything) for each in wanted) + ")"


def series(items: Sequence[tuple[str, bool]], separator: str, parts: GrammarParts) -> str:
    """Items in this order with separators between them. Those that are not needed may be missing."""
    # Each rule is a tail of the series, before or after the first item that is there.
    first, later = "", ""
    for item, needed in reversed(items):
        after = parts.rule(
            f"{separator} {item} {later}" + ("" if needed else f" | {later or EMPTY}")
        )
        begin = f"{item} {later}" + ("" if needed else f" | {first or EMPTY}")
        first, later = parts.rule(begin), after
    return first


EMPTY = '""'
PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
PYTHON_BOOLEANS = ("True", "False")


def properties_of(schema: Schema) -> list[tuple[str, Schema, bool]]:
    """Key, schema and whether it is required, for each property."""
    properties, required = schema.get("properties"), schema.get("required") or ()
    if not isinstance(properties, Mapping):
        return []
    return [(key, resolved(value, schema), key in required) for key, value in properties.items()]


def is_open(schema: Schema) -> bool:
    """Properties may have any name, as none is given."""
    return not schema.get("properties") and schema.get("additionalProperties") is not False


def resolved(value: Any, schema: Schema) -> Schema:
    """The schema to which a reference leads, if it leads to a definition."""
    if not isinstance(value, Mapping):
        return {}
    found = re.fullmatch(r"#/(\$defs|definitions)/([^/]+)", str(value.get("$ref", "")))
    target = schema.get(found[1], {}).get(found[2]) if found else None
    return target if isinstance(target, Mapping) else value


def with_definitions(value: Schema, schema: Schema) -> Schema:
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema} | dict(value)


def allowed_values(value: Schema) -> list[Any]:
    return [value["const"]] if "const" in value else list(value.get("enum") or ())


def lengths_of(value: Schema) -> str:
    """The quantifier of a regular expression for the characters of a text."""
    least, most = value.get("minLength", 0), value.get("maxLength", "")
    return f"{{{int(least)},{most if most == '' else int(most)}}}"


def is_text(value: Schema) -> bool:
    """Such a value has no quotes in tags."""
    if choices := allowed_values(value):
        return all(isinstance(each, str) for each in choices)
    return value.get("type") == "string"


def dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def without_null(value: Schema) -> tuple[Schema, bool]:
    """The schema of a value if it is not null, and whether it may be null."""
    types, any_of = value.get("type"), value.get("anyOf")
    if isinstance(types, list) and len(types) == 2 and "null" in types:
        return {**value, "type": next((each for each in types if each != "null"), "null")}, True
    if isinstance(any_of, list) and len(any_of) == 2 and {"type": "null"} in any_of:
        inner: Any = next((each for each in any_of if each != {"type": "null"}), {})
        rest = {key: each for key, each in value.items() if key != "anyOf"}
        return ({**rest, **inner} if isinstance(inner, Mapping) else {}), True
    return value, False


def normalised(text: str) -> str:
    """JSON as it is, and other text as a string."""
    try:
        return dumped(json.loads(PYTHON_WORDS.get(text.strip(), text)))
    except (ValueError, RecursionError):
        return dumped(text.strip("\n"))


ENFORCED = frozenset(
    "type properties required additionalProperties enum const $ref $defs definitions"
    " title description default examples $schema $comment".split()
)
"""Keywords that every style enforces, or that restrict nothing"""


NUMBERS = ("integer", "number")


def unenforced(style: ArgumentStyle, schema: Schema) -> None:
    """Raises ValueError for what a style beside JSON enforces only in part."""
    found = {*schema} - ENFORCED
    for _, value, _ in properties_of(schema):
        inner = without_null(value)[0] if isinstance(style, TaggedArguments) else value
        if is_text(inner):
            found |= {*inner} - ENFORCED - {"minLength", "maxLength"}
        elif not isinstance(style, TaggedArguments) and value.get("type") not in NUMBERS:
            found |= {*value} - ENFORCED | {*value} & {"properties"}
    if found:
        raise ValueError(
            f"The schema uses {sorted(found)[0]}, which cannot be enforced in the form in which"
            " this model writes calls."
        )
