"""Tool calls: how a model's chat template writes them, and how they are read from its answer."""

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from .text import overlap

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages, bool], str]
"""Messages as the template writes them, with or without the head of the answer to come"""


PROBE = r'\{\s*"probekey"\s*:\s*"probevalue"\s*\}'
ONE_CALL = re.compile(rf"(.*?)firstname(.*?){PROBE}(.*)", re.DOTALL)
TWO_CALLS = re.compile(rf"{PROBE}(.*?)secondname", re.DOTALL)


class SchemaRefused(ValueError):
    """The grammar cannot keep to the schema of a tool. The message is one sentence."""

    def __init__(self, tool: "Tool", reason: str) -> None:
        super().__init__(f"of the tool {tool.name!r}: {reason}")
        self.param = tool.param


class Tool(NamedTuple):
    """A function that the model may ask for."""

    name: str
    parameters: Mapping[str, Any]
    """JSON schema of its arguments"""
    strict: bool = True
    """Refuses a schema that cannot be enforced, instead of keeping what can be"""
    param: str = "tools"
    """Field of the request with its parameters, for errors"""


@dataclass(frozen=True)
class ToolLayout:
    """The text around tool calls, each of which has a name and a JSON object of arguments.

    One call is `prefix name middle arguments suffix`; two are `prefix name middle arguments between
    name middle arguments suffix`.
    """

    trigger: str
    """The beginning of `prefix`, after which no more plain text comes"""
    prefix: str
    middle: str
    between: str | None
    """None where the template writes one call at most"""
    suffix: str


class ToolCallDelta(NamedTuple):
    """A piece of a tool call. The first one of each call has its id and its name."""

    call: int
    """Number of the call in the answer"""
    arguments: str
    id: str | None = None
    name: str | None = None


def new_call_id() -> str:
    """Nine letters and digits: the only form that every model's template takes."""
    return uuid.uuid4().hex[:9]


def read_layout(render: Render) -> ToolLayout | None:
    """The layout of a chat template, found out by letting it write calls that can be recognised.

    None for a template that does not write calls at all, or not as a name and a JSON object.
    """
    question = {"role": "user", "content": "q"}
    plain = {"role": "assistant", "content": "plainanswer"}
    try:
        head = render([question], True)
        end_of_turn = render([question, plain], False).partition("plainanswer")[2]
        one = render([question, calling("firstname")], False)
    # Templates can raise anything for messages that they do not support.
    except Exception:
        return None
    found = ONE_CALL.fullmatch(one)
    if not found or not one.startswith(head) or not one.endswith(end_of_turn):
        return None
    before, middle, after = found.groups()
    if "probeid" in middle + after:  # the model would have to make up an id
        return None
    try:
        two = TWO_CALLS.search(render([question, calling("firstname", "secondname")], False))
    except Exception:
        two = None
    prefix = before.removeprefix(head).lstrip()
    return ToolLayout(
        trigger=prefix.partition("{")[0].rstrip() or prefix,
        prefix=prefix,
        middle=middle,
        between=two.group(1) if two else None,
        suffix=after.removesuffix(end_of_turn),
    )


def calling(*names: str) -> dict[str, Any]:
    """An assistant's message that calls these functions."""
    calls = [
        {
            "id": f"probeid0{index}",
            "type": "function",
            "function": {"name": name, "arguments": {"probekey": "probevalue"}},
        }
        for index, name in enumerate(names)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


class ToolCallParser:
    """Separates plain text from tool calls, piece by piece, as the model writes them.

    From the trigger on a grammar holds the model to the layout, so what comes is either legal or
    cut off.
    """

    def __init__(
        self,
        layout: ToolLayout,
        answer: Literal["text", "call", "either"] = "text",
        names: Sequence[str] = (),
    ) -> None:
        """answer: text with or without calls after it; calls alone, so that what is cut off is no
        text; or either calls of tools with these names or a text of a given form.
        """
        self.calls = 0
        """Calls begun so far"""
        self._layout = layout
        self._heads = [f"{layout.prefix}{name}{layout.middle}" for name in names]
        self._place: Literal["either", "form", "text", "prefix", "name", "arguments", "after"] = (
            "prefix" if answer == "call" else answer
        )
        self._held = ""
        self._json = ObjectScanner()

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """The plain text and the pieces of calls that `text` completes, at most one of each call."""
        layout = self._layout
        self._held += text
        plain = ""
        deltas: list[ToolCallDelta] = []
        while True:
            match self._place:
                case "either":
                    if any(self._held.startswith(head) for head in self._heads):
                        self._place = "prefix"
                    elif any(head.startswith(self._held) for head in self._heads):
                        break
                    else:
                        self._place = "form"
                case "form":
                    plain, self._held = self._held, ""
                    break
                case "text":
                    before, found, _ = self._held.partition(layout.trigger)
                    keep = 0 if found else overlap(self._held, layout.trigger)
                    plain = before[: len(before) - keep]
                    self._held = self._held[len(plain) :]
                    if not found:
                        break
                    self._place = "prefix"
                case "prefix":
                    if len(self._held) < len(layout.prefix):
                        break
                    self._held = self._held[len(layout.prefix) :]
                    self._place = "name"
                case "name":
                    name, found, rest = self._held.partition(layout.middle)
                    if not found:
                        break
                    deltas.append(ToolCallDelta(self.calls, "", new_call_id(), name))
                    self.calls += 1
                    self._held, self._json = rest, ObjectScanner()
                    self._place = "arguments"
                case "arguments":
                    end = self._json.push(self._held)
                    if arguments := self._held[:end]:
                        add_arguments(deltas, self.calls - 1, arguments)
                    self._held = self._held[end:]
                    if not self._json.complete:
                        break
                    self._place = "after"
                case "after":
                    if not layout.between or not self._held.startswith(layout.between):
                        break
                    self._held = self._held[len(layout.between) :]
                    self._place = "name"
        return plain, deltas

    def flush(self) -> str:
        """Plain text that was held back because it might have become a call."""
        if self._place == "either":  # the whole answer so far
            return self._held if self._held[:1] in ("{", '"') else ""
        return self._held if self._place == "text" else ""


def add_arguments(deltas: list[ToolCallDelta], call: int, arguments: str) -> None:
    """To the last piece where that is of the same call: clients take two pieces for two calls."""
    if deltas and deltas[-1].call == call:
        last = deltas.pop()
        deltas.append(last._replace(arguments=last.arguments + arguments))
    else:
        deltas.append(ToolCallDelta(call, arguments))


class ObjectScanner:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self.complete = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, text: str) -> int:
        """Length of the part of `text` that belongs to the object."""
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
                    self.complete = True
                    return index + 1
        return len(text)
