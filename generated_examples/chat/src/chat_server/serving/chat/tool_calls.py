"""Tool calls: how they are read from an answer."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from .text import overlap
from .tool_formats import ToolLayout


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


class ToolCallParser:
    """Separates plain text from tool calls, piece by piece, as the model writes them.

    From the trigger on a grammar holds the model to the layout, so what comes is either legal or
    cut off.
    """

    def __init__(
        self,
        layout: ToolLayout,
        answer: Literal["text", "call", "either"] = "text",
        tools: Sequence[Tool] = (),
        hidden: Sequence[str] = (),
    ) -> None:
        """answer: text with or without calls after it; calls alone, so that what is cut off is no
        text; or either calls of these tools or a text of a given form.
        hidden: special tokens, which are no plain text
        """
        self.calls = 0
        """Calls begun so far"""
        self.must_call = answer == "call"
        self._free = answer == "text"
        self._layout = layout
        self._tools = {tool.name: tool.parameters for tool in tools}
        self._hidden = hidden
        self._heads = [f"{layout.prefix}{tool.name}{layout.middle}" for tool in tools]
        if answer == "text" and layout.leads_answer:
            answer, self._heads = "either", [layout.trigger]
        self._place: Literal["either", "form", "text", "prefix", "name", "arguments", "after"] = (
            "prefix" if answer == "call" else answer
        )
        self._held = ""
        self._reader = layout.arguments.reader({})

    @property
    def complete(self) -> bool:
        """There are calls, and the last one is not cut off."""
        return self._place == "after"

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """The plain text and the pieces of calls that `text` completes, at most one of each call."""
        self._held += text
        plain = ""
        deltas: list[ToolCallDelta] = []
        while True:
            place = self._place
            match place:
                case "either":
                    self._tell_call_from_form()
                case "form":
                    plain, self._held = self._held, ""
                case "text":
                    plain = self._plain()
                case "prefix":
                    self._skip_prefix()
                case "name":
                    self._read_name(deltas)
                case "arguments":
                    self._read_arguments(deltas)
                case "after":
                    self._skip_between()
            if self._place == place:
                return self._without_marks(plain), deltas

    def flush(self, *, cut_off: bool = True) -> str:
        """Plain text that was held back because it might have become a call.

        cut_off: the answer has no end, so that the beginning of a call is one.
        """
        if self._place == "either":  # the whole answer so far
            return self._held if self._free or self._held.startswith(("{", '"')) else ""
        if self._place == "text" or (self._place == "prefix" and self._free and not cut_off):
            return self._without_marks(self._held)
        return ""

    def _without_marks(self, plain: str) -> str:
        for mark in self._hidden:
            plain = plain.replace(mark, "")
        return plain

    def _tell_call_from_form(self) -> None:
        text = self._held.lstrip()
        if any(text.startswith(head) for head in self._heads):
            self._place = "prefix"
        elif not any(head.startswith(text) for head in self._heads):
            self._place = "form"

    def _plain(self) -> str:
        trigger = self._layout.trigger
        before, found, _ = self._held.partition(trigger)
        keep = 0 if found else overlap(self._held, trigger)
        plain = before[: len(before) - keep]
        self._held = self._held[len(plain) :]
        self._place = "prefix" if found else "text"
        return plain

    def _skip_prefix(self) -> None:
        self._held = self._held.lstrip()
        if len(self._held) >= len(self._layout.prefix):
            self._held = self._held[len(self._layout.prefix) :]
            self._place = "name"

    def _read_name(self, deltas: list[ToolCallDelta]) -> None:
        layout = self._layout
        if layout.middle:
            name, found, rest = self._held.partition(layout.middle)
        else:  # the name ends where the arguments begin, or without any where the call ends
            ends = [layout.arguments.begin, layout.suffix, layout.between or layout.suffix]
            places = [place for end in ends if (place := self._held.find(end)) >= 0]
            end = min(places, default=0)
            name, found, rest = self._held[:end], self._held[:end], self._held[end:]
        if not found:
            return
        deltas.append(ToolCallDelta(self.calls, "", new_call_id(), name))
        self.calls += 1
        self._held = rest
        self._reader = layout.arguments.reader(self._tools.get(name, {}))
        self._place = "arguments"

    def _read_arguments(self, deltas: list[ToolCallDelta]) -> None:
        read = self._reader.read(self._held)
        if read.json:
            add_arguments(deltas, self.calls - 1, read.json)
        self._held = self._held[read.length :]
        if read.complete:
            self._place = "after"

    def _skip_between(self) -> None:
        between = self._layout.between
        if between and self._held.startswith(between):
            self._held = self._held[len(between) :]
            self._place = "name"


def add_arguments(deltas: list[ToolCallDelta], call: int, arguments: str) -> None:
    """To the last piece where that is of the same call: clients take two pieces for two calls."""
    if deltas and deltas[-1].call == call:
        last = deltas.pop()
        deltas.append(last._replace(arguments=last.arguments + arguments))
    else:
        deltas.append(ToolCallDelta(call, arguments))


def add_pieces(deltas: list[ToolCallDelta], more: Sequence[ToolCallDelta]) -> None:
    """At the end, one piece of each call."""
    for each in more:
        if each.id is None:
            add_arguments(deltas, each.call, each.arguments)
        else:
            deltas.append(each)
