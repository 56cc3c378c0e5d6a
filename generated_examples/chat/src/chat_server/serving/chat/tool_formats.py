"""The formats of tool calls, each with how it is recognised, read and forced.

Most are found out by letting the chat template write calls that can be recognised: what stands
around the name and the arguments is taken from there. Templates that describe tools, but write no
calls, are known by a text in them.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .thinking import ThinkingFormat
from .tool_arguments import (
    ArgumentStyle,
    BracedArguments,
    JSONArguments,
    KeywordArguments,
    TaggedArguments,
)

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages, bool], str]
"""Messages as the template writes them, with or without the head of the answer to come"""


@dataclass(frozen=True)
class ToolLayout:
    """The text around tool calls, each of which has a name and arguments.

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
    arguments: ArgumentStyle = field(default_factory=JSONArguments)

    @property
    def marks(self) -> tuple[str, ...]:
        between = self.between or ""
        return self.prefix, self.middle, between, self.suffix, *self.arguments.marks

    @property
    def leads_answer(self) -> bool:
        """Only the beginning of an answer can be a call: within text, JSON is more likely text."""
        return self.trigger.lstrip("[ \n").startswith("{")


HERMES = ToolLayout(
    trigger="<tool_call>",
    prefix='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    between='}\n</tool_call>\n<tool_call>\n{"name": "',
    suffix="}\n</tool_call>",
)


@dataclass(frozen=True)
class WrittenFormat:
    """A format that chat templates write."""

    probe: str
    """Pattern of the arguments that `calling` asks for"""
    style: Callable[[re.Match[str]], ArgumentStyle]
    """The style of the arguments, from a match of `probe`"""
    after: str = ""
    """Pattern of what follows the last call and is no part of it, beside the end of the turn"""


WRITTEN = (
    # Hermes, Qwen, Llama, Mistral, DeepSeek, Granite 4, EXAONE, Jamba, Command A
    WrittenFormat(r'\{\s*"probekey"\s*:\s*"probevalue"\s*\}', lambda _: JSONArguments()),
    # Qwen3-Coder, Qwen3.5, Nemotron 3
    WrittenFormat(
        r"<parameter=probekey>(?P<open>\s*)probevalue(?P<close>\s*</parameter>\s*)",
        lambda found: TaggedArguments("<parameter=", f">{found['open']}", found["close"]),
    ),
    # MiniMax M2
    WrittenFormat(
        r'<parameter name="probekey">(?P<open>\s*)probevalue(?P<close>\s*</parameter>\s*)',
        lambda found: TaggedArguments('<parameter name="', f'">{found["open"]}', found["close"]),
    ),
    # GLM 4.5 and later
    WrittenFormat(
        r"<arg_key>probekey(?P<open></arg_key>\s*<arg_value>)probevalue(?P<close></arg_value>\s*)",
        lambda found: TaggedArguments("<arg_key>", found["open"], found["close"]),
        after=r"<\|observation\|>",
    ),
    # LFM2
    WrittenFormat(r"probekey=(?P<quote>['\"])probevalue(?P=quote)", lambda _: KeywordArguments()),
    # Gemma 4
    WrittenFormat(
        r'probekey:<\|"\|>probevalue<\|"\|>',
        lambda _: BracedArguments(),
        after=r"<\|tool_response>",
    ),
)
"""Formats in calls of the template's own. The first one that fits counts."""

TOLD = (
    # GPT-OSS. The end of a call is a token that ends the answer.
    (
        ("<|channel|>", "functions", "commentary"),
        ToolLayout(
            trigger="<|channel|>commentary to=functions.",
            prefix="<|channel|>commentary to=functions.",
            middle=" <|constrain|>json<|message|>",
            between=None,
            suffix="",
        ),
    ),
    # Falcon H1, whose calls may have the name first as well
    (("<tool_call>", "{'arguments': <args-dict>, 'name': <function-name>}"), HERMES),
    # Granite 3
    (
        ("<|tool_call|>", "JSON list of tools"),
        ToolLayout(
            trigger="<|tool_call|>",
            prefix='<|tool_call|>[{"name": "',
            middle='", "arguments": ',
            between='}, {"name": "',
            suffix="}]",
        ),
    ),
    # The first LFM2
    (
        ("<|tool_list_start|>",),
        ToolLayout(
            trigger="<|tool_call_start|>",
            prefix="<|tool_call_start|>[",
            middle="(",
            between="), ",
            suffix=")]<|tool_call_end|>",
            arguments=KeywordArguments(),
        ),
    ),
)
"""Layouts by texts that are all in the template, where it writes no calls that can be read"""

PROBE_ID = re.compile(r',\s*"(id|tool_call_id)":\s*"probeid\d+"')
"""An id after the arguments. Models leave it out, as the server makes the ids."""

EMPTY_CONTENT = re.compile(r"^<\|python_start\|><\|python_end\|>")
"""Marks of Llama 4 around the text before a call, of which the prompt says nothing"""

TAG = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")


def read_layout(
    render: Render, template: str = "", thinking: ThinkingFormat | None = None
) -> ToolLayout | None:
    """The layout of the calls that a chat template writes; None for one that cannot be read."""
    if thinking and thinking.channels:
        return told_layout(template)
    return written_layout(render, thinking) or told_layout(template)


def told_layout(template: str) -> ToolLayout | None:
    return next((layout for marks, layout in TOLD if all(mark in template for mark in marks)), None)


def written_layout(render: Render, thinking: ThinkingFormat | None) -> ToolLayout | None:
    question = {"role": "user", "content": "q"}
    plain = {"role": "assistant", "content": "plainanswer"}
    try:
        head = without_thought(render([question], True), thinking)
        end_of_turn = render([question, plain], False).rpartition("plainanswer")[2]
        one = render_calls(render, question, "firstname")
    # Templates can raise anything for messages that they do not support.
    except Exception:
        return None
    try:
        two = render_calls(render, question, "firstname", "secondname")
    except Exception:
        two = ""
    if not one.startswith(head):
        return None
    for each in WRITTEN:
        if layout := layout_in(each, one.removeprefix(head), two, end_of_turn, thinking):
            return layout
    return None


def layout_in(
    written: WrittenFormat, one: str, two: str, end_of_turn: str, thinking: ThinkingFormat | None
) -> ToolLayout | None:
    """The layout in answers with one and with two calls, if they have this format."""
    pattern = rf"(?s:(?P<prefix>.*?)firstname(?P<middle>.*?))(?P<arguments>{written.probe})"
    found = re.match(pattern, one)
    if not found or "probeid" in one:  # the model would have to make up an id
        return None
    rest = one[found.end() :]
    suffix = re.sub(f"({written.after})$", "", without_end(rest, end_of_turn))
    if suffix == rest and end_of_turn:
        return None
    between = re.search(rf"{written.probe}(?s:(?P<between>.*?))secondname", two)
    prefix = found["prefix"]
    if thinking and thinking.end in prefix:
        prefix = prefix.rpartition(thinking.end)[2]
    prefix = EMPTY_CONTENT.sub("", prefix.lstrip())
    return ToolLayout(
        trigger=trigger_of(prefix),
        prefix=prefix,
        middle=found["middle"],
        between=between["between"] if between else None,
        suffix=suffix,
        arguments=written.style(found),
    )


def trigger_of(prefix: str) -> str:
    if tag := TAG.match(prefix):
        return tag[0]
    return prefix.partition("{")[0].rstrip() or prefix


def without_thought(head: str, thinking: ThinkingFormat | None) -> str:
    """The head of an answer up to the thought that it begins, and may end at once."""
    if thinking is None:
        return head
    text = head.rstrip()
    if text.endswith(thinking.end):
        text = text.removesuffix(thinking.end).rstrip()
        return text.removesuffix(thinking.begin.rstrip())
    begun = text.endswith(thinking.begin.rstrip())
    return text.removesuffix(thinking.begin.rstrip()) if begun else head


def without_end(text: str, end_of_turn: str) -> str:
    """Without the end of a turn, or with what it shares with it from some mark on."""
    if text.endswith(end_of_turn):
        return text.removesuffix(end_of_turn)
    ends = (end_of_turn[mark.start() :] for mark in re.finditer(r"[<\[]", end_of_turn))
    return next((text.removesuffix(end) for end in ends if text.endswith(end)), text)


def render_calls(render: Render, question: Mapping[str, Any], *names: str) -> str:
    """A message with these calls. Some templates want objects, some texts as arguments."""
    try:
        text = render([question, calling(*names)], False)
    except Exception:
        text = render([question, calling(*names, as_text=True)], False)
    return PROBE_ID.sub("", text)


def calling(*names: str, as_text: bool = False) -> dict[str, Any]:
    """An assistant's message that calls these functions."""
    arguments: object = {"probekey": "probevalue"}
    if as_text:
        arguments = json.dumps(arguments)
    calls = [
        {
            "id": f"probeid0{index}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for index, name in enumerate(names)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}
