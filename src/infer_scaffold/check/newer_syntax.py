"""Source in a syntax that is newer than the running Python, rewritten in an older one.

Type parameters and aliases (PEP 695), quotes inside of f-strings (PEP 701), templates (PEP 750),
and `except A, B:` (PEP 758). What is rewritten says nothing about a service. Lines stay where they
are, and columns but for the rest of a line that an exception's brackets were added to.
"""

import ast
import re
from collections.abc import Iterator

# Each byte is one character here, so that columns stay those of bytes.
_BYTES = "latin-1"
_STRING = re.compile(r"(?<![\w])([A-Za-z]{0,2})('''|\"\"\"|'|\")")
_DEFINITION = re.compile(r"(?:def|class)[ \t]+\w+[ \t]*\[")
_ALIAS = re.compile(r"(?m)^([ \t]*)type([ \t]+)(\w+)[ \t]*(?=[\[=])")
_EXCEPT = re.compile(r"(?m)^([ \t]*except\*?) ([\w.]+(?:[ \t]*,[ \t]*[\w.]+)+)[ \t]*:")
_WORD = re.compile(r"\w+")
_PARAMETERS = re.compile(r"\w+ +\[")
_VALUE = re.compile(r"[ \t]*=[^=]")
_PREFIXES = {"", "r", "b", "u", "f", "t", "br", "rb", "fr", "rf", "tr", "rt"}
_OPENING, _CLOSING = "([{", ")]}"
_MOST_PIECES = 2000


def rewritten(text: bytes) -> bytes:
    """Return source with its newer syntax replaced; the same if there is none."""
    source = text.decode(_BYTES)
    source = _EXCEPT.sub(r"\1(\2):", source)
    source = _ALIAS.sub(
        lambda m: f"{m[1]}{m[3]}{' ' * (len(m[0]) - len(m[1]) - len(m[3]))}", source
    )
    changes: dict[int, str] = {}
    at = 0
    while at < len(source):
        at = _step(source, changes, at)
    return "".join(changes.get(place, each) for place, each in enumerate(source)).encode(_BYTES)


def _step(source: str, out: dict[int, str], at: int) -> int:
    """Rewrite what begins at a place, and return where it ends."""
    if source[at] == "#":
        end = source.find("\n", at)
        return len(source) if end < 0 else end
    string = _STRING.match(source, at)
    if string and string[1].lower() in _PREFIXES:
        return _string(source, out, string)
    if source[at].isalpha() or source[at] == "_":
        definition = _DEFINITION.match(source, at)
        if definition:
            return _blank(source, out, definition.end() - 1)
        word = _WORD.match(source, at)
        after = word.end() if word else at + 1
        # The parameters of an alias, whose `type` is gone already.
        alias = _PARAMETERS.match(source, at)
        if alias and _begins_line(source, at) and _is_alias(source, alias.end() - 1):
            return _blank(source, out, alias.end() - 1)
        return after
    return at + 1


def _begins_line(source: str, at: int) -> bool:
    return not source[source.rfind("\n", 0, at) + 1 : at].strip()


def _is_alias(source: str, bracket: int) -> bool:
    """Return whether `= value` follows a bracket after which spaces were left by `type`."""
    end = _bracket_end(source, bracket)
    return bool(_VALUE.match(source, end)) and source[bracket - 5 : bracket] == (" " * 5)


def _bracket_end(source: str, at: int) -> int:
    depth = 0
    while at < len(source):
        depth += (source[at] in _OPENING) - (source[at] in _CLOSING)
        at += 1
        if not depth:
            break
    return at


def _blank(source: str, out: dict[int, str], at: int) -> int:
    """Replace a bracket by spaces; its lines are joined, so that they stay one statement."""
    end = _bracket_end(source, at)
    for place in range(at, end):
        out[place] = "\\\n" if source[place] == "\n" else " "
    return end


def _string(source: str, out: dict[int, str], start: "re.Match[str]") -> int:
    prefix, quote = start[1].lower(), start[2]
    formatted = "f" in prefix or "t" in prefix
    if "t" in prefix:
        place = start.start() + prefix.index("t")
        out[place] = "f"
    at = start.end()
    while at < len(source):
        if source[at] == "\\" and "r" not in prefix:
            at += 2
        elif source[at] == "\\":
            at += 2 if source[at + 1 : at + 2] in (quote[0], "\\") else 1
        elif source.startswith(quote, at):
            return at + len(quote)
        elif formatted and source.startswith("{{", at):
            at += 2
        elif formatted and source[at] == "{":
            at = _field(source, out, at, quote)
        elif source[at] == "\n" and len(quote) == 1:
            return at  # it is not closed
        else:
            at += 1
    return at


def _field(source: str, out: dict[int, str], start: int, quote: str) -> int:
    """Rewrite a field of an f-string without the quotes of the string, and return its end."""
    at, depth, nowhere = start, 0, dict[int, str]()
    while at < len(source):
        string = _STRING.match(source, at)
        if string and at > start:
            at = _string(source, nowhere, string)
            continue
        depth += (source[at] in _OPENING) - (source[at] in _CLOSING)
        at += 1
        if not depth:
            break
    inside = source[start:at]
    if quote in inside or "\\" in inside or "#" in inside or (len(quote) == 1 and "\n" in inside):
        other = "'" if quote[0] == '"' else '"'
        simple = not any(each in inside[1:] for each in (other, "\\", "#", "\n", "{"))
        for place in range(start + 1, at - 1):
            if simple:
                out[place] = other if source[place] == quote[0] else source[place]
            elif source[place] != "\n" or len(quote) == 1:
                out[place] = " "
        if not simple:
            out[start + 1] = "0"
            lines = inside.count("\n") if len(quote) == 1 else 0
            out[at - 1] = "}" + "\\\n" * lines
    return at


def pieces(text: str) -> Iterator[ast.stmt]:
    """Yield the statements at the top of a file that parse, where the file as a whole does not."""
    lines = text.splitlines(keepends=True)
    starts = [
        number
        for number, line in enumerate(lines)
        if re.match(r"[^\s#)\]}'\"]", line)
        and not re.match(r"(else|elif|except|finally|case)\b", line)
    ]
    # A decorator belongs to what follows it.
    starts = [
        start
        for position, start in enumerate(starts)
        if not (position and lines[starts[position - 1]].startswith("@"))
    ][:_MOST_PIECES]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        try:
            yield from ast.parse("\n" * start + "".join(lines[start:end])).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
