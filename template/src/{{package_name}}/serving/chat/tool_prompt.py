"""Tools, calls and results as text, for chat templates that have no place for them.

The format is that of Hermes and Qwen, which many models have seen in training.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from .tool_arguments import KeywordArguments, dumped
from .tool_formats import Messages, ToolLayout

DESCRIPTION = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def with_description(
    messages: Messages, tools: Sequence[Mapping[str, Any]], *, takes_system: bool
) -> Messages:
    """The messages with a description of the tools in the system message.

    takes_system: the template takes a system message; else its text comes before the user's.
    """
    text = DESCRIPTION.format(tools="\n".join(map(dumped, tools)))
    if messages[0]["role"] == "system":
        text = f"{messages[0]['content']}\n\n{text}"
        messages = messages[1:]
    if takes_system:
        return [{"role": "system", "content": text}, *messages]
    if messages and messages[0]["role"] == "user":
        text = f"{text}\n\n{messages[0]['content']}"
        messages = messages[1:]
    return [{"role": "user", "content": text}, *messages]


def with_written_calls(messages: Messages, layout: ToolLayout, *, results: bool) -> Messages:
    """The messages with the calls of the assistant in their text.

    results: and with results as messages of the user. Neighbours become one, as some templates
    want user and assistant by turns.
    """
    written: list[Mapping[str, Any]] = []
    joins = False
    """The message before stands for calls or results"""
    for message in messages:
        is_changed = bool(message.get("tool_calls")) or (results and message["role"] == "tool")
        new = as_plain(message, layout) if is_changed else message
        before = written[-1] if written else {"role": ""}
        if results and before["role"] == new["role"] and (joins or is_changed):
            texts = filter(None, (before["content"], new["content"]))
            written[-1] = {**before, **new, "content": "\n".join(texts)}
        else:
            written.append(new)
        joins = is_changed
    return written


def with_single_calls(messages: Messages) -> Messages:
    """The messages with each call in one of its own, and its result after it: some templates write
    one call of a message alone."""
    single: list[Mapping[str, Any]] = []
    rest = deque(messages)
    while rest:
        message = rest.popleft()
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            single.append(message)
            continue
        results = []
        while rest and rest[0].get("role") == "tool":
            results.append(rest.popleft())
        for place, call in enumerate(calls):
            head = message if place == 0 else {"role": message["role"], "content": ""}
            single.append({**head, "tool_calls": [call]})
            single += [each for each in results if each.get("tool_call_id") == call["id"]]
        ids = {call["id"] for call in calls}
        single += [each for each in results if each.get("tool_call_id") not in ids]
    return single


def as_plain(message: Mapping[str, Any], layout: ToolLayout) -> Mapping[str, Any]:
    """A message with calls, or a result, as one of text alone."""
    content = message.get("content") or ""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = written_calls(message["tool_calls"], layout)
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": f"{content}\n{calls}" if content else calls}


def written_calls(calls: Sequence[Mapping[str, Any]], layout: ToolLayout) -> str:
    """The calls as an answer of this layout has them."""
    texts = [
        each["function"]["name"] + layout.middle + written_arguments(each["function"], layout)
        for each in calls
    ]
    if layout.between is None:
        return "\n".join(f"{layout.prefix}{text}{layout.suffix}" for text in texts)
    return layout.prefix + layout.between.join(texts) + layout.suffix


def written_arguments(function: Mapping[str, Any], layout: ToolLayout) -> str:
    arguments = function["arguments"]
    if isinstance(layout.arguments, KeywordArguments) and isinstance(arguments, Mapping):
        return ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return arguments if isinstance(arguments, str) else dumped(arguments)
