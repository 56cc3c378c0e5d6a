"""From a conversation to the prompt's tokens, by the model's own chat template."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..models.model_errors import ContextExceeded, InvalidInput, Unavailable
from .thinking import Opening, ThinkingFormat, find_thinking, opening_inside, opening_of
from .tool_formats import HERMES, Messages, ToolLayout, calling, read_layout
from .tool_prompt import with_description, with_single_calls, with_written_calls

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

PROBE_TEXT = "qzvx"

PROBE_TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
}


TAIL = 64
"""Tokens at the end of a prompt that may hold the beginning of a thought"""

PROTECTED = frozenset(
    (
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "messages",
        "padding",
        "processor_kwargs",
        "raise_exception",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "strftime_now",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
        "max_length",
    )
)
"""Names that `chat_template_kwargs` must not use: parameters of `apply_chat_template`"""


@dataclass(frozen=True)
class ChatPrompt:
    """The messages so far, and the tools that the model may call."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    """In OpenAI's form, which is the form that chat templates read"""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the template"""
    add_generation_prompt: bool = True
    """The prompt ends with the template's beginning of an assistant message"""
    continue_final_message: bool = False
    """The prompt ends inside of the last message, which the answer continues"""

    name: str = "prompt"
    """Name that the client knows it by, for errors"""

    @property
    def estimated_tokens(self) -> int:
        """An estimate without tokenising: four characters a token."""
        return sum(len(message.get("content") or "") for message in self.messages) // 4


@dataclass(frozen=True)
class TextPrompt:
    """A text or tokens that the answer continues, without a chat template."""

    given: str | Sequence[int]
    """A text or its tokens"""
    add_special_tokens: bool = True
    """A text gets the special tokens that the tokenizer puts around it"""

    name: str = "prompt"
    """Name that the client knows it by, for errors"""

    @property
    def estimated_tokens(self) -> int:
        return len(self.given) // 4 if isinstance(self.given, str) else len(self.given)


def with_arguments(conversation: ChatPrompt, change: Callable[[Any], Any]) -> ChatPrompt:
    """The conversation with the arguments of its calls in another form."""
    messages = [dict(message) for message in conversation.messages]
    for message in messages:
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [
                call
                | {
                    "function": call["function"]
                    | {"arguments": change(call["function"]["arguments"])}
                }
                for call in calls
            ]
    return replace(conversation, messages=messages)


def in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its text as a list of parts, of which there is one."""
    content = message.get("content")
    if not isinstance(content, str):
        return dict(message)
    return {**message, "content": [{"type": "text", "text": content}]}


def with_objects(conversation: ChatPrompt) -> ChatPrompt:
    """The conversation with arguments of calls as objects, over which some templates iterate."""
    return with_arguments(conversation, as_object)


def as_object(arguments: Any) -> Any:
    return {"raw": arguments} if isinstance(arguments, str) else arguments


def as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def with_short_ids(conversation: ChatPrompt) -> ChatPrompt:
    """The conversation with ids of calls of nine letters and digits, each in all of its places."""
    messages = [dict(message) for message in conversation.messages]
    for message in messages:
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [call | {"id": short_id(call["id"])} for call in calls]
        if "tool_call_id" in message:
            message["tool_call_id"] = short_id(message["tool_call_id"])
    return replace(conversation, messages=messages)


def short_id(id_: str) -> str:
    if re.fullmatch("[A-Za-z0-9]{9}", id_):
        return id_
    return hashlib.sha256(id_.encode()).hexdigest()[:9]


def variants(conversation: ChatPrompt, *, texts: bool) -> Iterator[ChatPrompt]:
    """The conversation as it is, then in the forms that some templates want.

    Some iterate over arguments, DeepSeek's append them to a text, Mistral's refuse longer ids.

    texts: the template takes arguments as text alone
    """
    yield conversation
    changed = with_arguments(conversation, as_text) if texts else with_objects(conversation)
    yield changed
    if any("tool_calls" in message or "tool_call_id" in message for message in changed.messages):
        yield with_short_ids(changed)


class PromptEncoder:
    """A tokenizer and its chat template."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        max_length: int,
        *,
        tool_prompt: bool = False,
    ) -> None:
        """tool_prompt: where the template has no calls of its own, tools, calls and results are
        written as text.
        """
        self._tokenizer = tokenizer
        self._tool_prompt = tool_prompt
        self._max_length = max_length
        self._max_characters = max_length * max(map(len, tokenizer.get_vocab()))

    @property
    def layout(self) -> ToolLayout | None:
        """The layout of tool calls; None if there is no way for the model to make any."""
        return HERMES if self.writes_tools else self._own_layout

    @property
    def writes_tools(self) -> bool:
        """True if tools are written as text, as the template has no calls of its own."""
        return self._tool_prompt and self._own_layout is None

    @cached_property
    def _own_layout(self) -> ToolLayout | None:
        """The layout in the template; None if it writes no calls, or ignores the tools."""

        def render(messages: Messages, with_head: bool) -> str:
            return self._render(ChatPrompt(messages, [PROBE_TOOL]), with_head)

        question = [{"role": "user", "content": "q"}]
        try:
            without_tools = self._render(ChatPrompt(question), True)
            reads_tools = without_tools != render(question, True)
        except Exception:
            reads_tools = False
        return read_layout(render, self._template, self.thinking) if reads_tools else None

    @cached_property
    def thinking(self) -> ThinkingFormat | None:
        """The format of the model's thoughts; None if the template says nothing of thoughts."""
        return find_thinking(self._template)

    @property
    def _template(self) -> str:
        template = self._tokenizer.chat_template
        named = template.values() if isinstance(template, dict) else [template]
        return "\n".join(map(str, named))

    def opening(self, conversation: ChatPrompt | TextPrompt, tokens: Sequence[int]) -> Opening:
        """State of the thought when the answer to the conversation, of these tokens, begins."""
        if self.thinking is None or isinstance(conversation, TextPrompt):
            return "over"
        if conversation.continue_final_message:
            text = str(conversation.messages[-1].get("content") or "")
            return opening_inside(self.thinking, text)
        return opening_of(self.thinking, self.decode(tokens[-TAIL:]))

    def encode(self, conversation: ChatPrompt | TextPrompt) -> list[int]:
        """The prompt's tokens. Blocks.

        Raises InvalidInput when the template refuses the messages, or for far too many of them;
        Unavailable when the template does not work.
        """
        if isinstance(conversation, TextPrompt):
            return self._encode_raw(conversation)
        text = self._render_somehow(self._with_written_tools(conversation))
        self._check_characters(text, conversation.name)
        # The template writes the special tokens itself.
        tokens = list(self._tokenizer.encode(text, add_special_tokens=False))
        if not tokens:  # which no engine can continue
            message = "The model's chat template makes an empty prompt of these messages."
            raise InvalidInput(message, conversation.name)
        return tokens

    def _with_written_tools(self, conversation: ChatPrompt) -> ChatPrompt:
        """With tools, calls and results as text, as far as the template has no place for them.

        Raises InvalidInput where it would leave out calls or results.
        """
        messages = conversation.messages
        if self.writes_tools:
            messages = with_written_calls(messages, HERMES, results=True)
            if conversation.tools:
                messages = with_description(
                    messages, conversation.tools, takes_system=self._takes_system
                )
            return replace(conversation, messages=messages, tools=())
        if not any(each.get("tool_calls") or each.get("role") == "tool" for each in messages):
            return conversation
        shown = self._shown_in_history
        if not {"firstname", PROBE_TEXT} <= shown:
            if self._own_layout is None:
                raise InvalidInput(
                    f"{conversation.name}: the model's chat template leaves out tool calls or their"
                    " results; with INFER_TOOL_PROMPT=true the service writes them as text",
                    conversation.name,
                )
            results = PROBE_TEXT not in shown
            messages = with_written_calls(messages, self._own_layout, results=results)
        elif "secondname" not in shown:
            messages = with_single_calls(messages)
        return replace(conversation, messages=messages)

    @cached_property
    def _shown_in_history(self) -> set[str]:
        """Those of `firstname`, `secondname` and PROBE_TEXT that the template writes: the calls of
        an earlier answer, and a result."""
        expected = {"firstname", "secondname", PROBE_TEXT}
        result = {"role": "tool", "tool_call_id": "probeid00", "content": PROBE_TEXT}
        for names in (("firstname", "secondname"), ("firstname",)):
            messages = [{"role": "user", "content": "q"}, calling(*names), result]
            conversation = ChatPrompt(messages, [PROBE_TOOL])
            for variant in variants(conversation, texts=self._wants_texts):
                try:
                    text = self._render(variant, True)
                except Exception:
                    continue
                return {each for each in expected if each in text}
        return expected  # the template refuses what it does not write

    @cached_property
    def _takes_system(self) -> bool:
        question = {"role": "user", "content": "q"}
        try:
            messages = [{"role": "system", "content": PROBE_TEXT}, question]
            return PROBE_TEXT in self._render(ChatPrompt(messages), True)
        except Exception:
            return False

    def _render_somehow(self, conversation: ChatPrompt) -> str:
        """The text of the first variant that the template takes. Raises as `encode` does."""
        first: Exception | None = None
        for variant in variants(conversation, texts=self._wants_texts):
            try:
                return self._render_strictly(variant)
            # Templates compute with the messages, and can raise anything.
            except Exception as error:
                first = first or error
        if self._is_broken:
            raise Unavailable("The model's chat template does not work.") from first
        raise InvalidInput(
            f"The model's chat template refuses these messages: {str(first)[:500]}",
            conversation.name,
        ) from first

    def _encode_raw(self, prompt: TextPrompt) -> list[int]:
        if not isinstance(prompt.given, str):
            return list(prompt.given)
        self._check_characters(prompt.given, prompt.name)
        special = prompt.add_special_tokens
        tokens = list(self._tokenizer.encode(prompt.given, add_special_tokens=special))
        if not tokens:  # which no engine can continue
            raise InvalidInput(f"{prompt.name}: is empty", prompt.name)
        return tokens

    def _check_characters(self, text: str, name: str) -> None:
        if len(text) > self._max_characters:  # too long with any tokens: not worth tokenising
            however = f"{len(text)} characters in the {name} are more than so many tokens hold"
            raise ContextExceeded(self._max_length, however, name)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens))

    @cached_property
    def _wants_texts(self) -> bool:
        """True if the template refuses arguments of calls as objects, but not as text."""

        def takes(message: Mapping[str, Any]) -> bool:
            try:
                self._render(ChatPrompt([{"role": "user", "content": "q"}, message]), False)
            except Exception:
                return False
            return True

        return not takes(calling("f")) and takes(calling("f", as_text=True))

    @cached_property
    def _is_broken(self) -> bool:
        """True if the template fails at the simplest conversation, other than by refusing it."""
        from jinja2 import TemplateError

        try:
            self._render(ChatPrompt([{"role": "user", "content": "q"}]), True)
        except Exception as error:
            logger.exception("the chat template does not work")
            return type(error) is not TemplateError  # which templates raise themselves
        return False

    def _render_strictly(self, conversation: ChatPrompt) -> str:
        wants_head = conversation.add_generation_prompt and not conversation.continue_final_message
        text = self._render(conversation, wants_head)
        text.encode()  # a template may read fields that have not been checked
        return text

    def token(self, id_: int) -> str | None:
        """The tokenizer's text of a token; None if it has no token of this number."""
        if id_ >= len(self._tokenizer):  # which the client may have sent, however large
            return None
        return str(self._tokenizer.convert_ids_to_tokens(id_))

    def _render(self, conversation: ChatPrompt, with_head: bool) -> str:
        return self._apply(conversation, with_head, as_parts=self._reads_parts)

    @cached_property
    def _reads_parts(self) -> bool:
        """True if the template leaves out a text that is not in parts, as those of older models
        that read images too do, without an error."""

        def renders(as_parts: bool) -> bool:
            try:
                return PROBE_TEXT in self._apply(probe, True, as_parts=as_parts)
            except Exception:
                return False

        probe = ChatPrompt([{"role": "user", "content": PROBE_TEXT}])
        return not renders(False) and renders(True)

    def _apply(self, conversation: ChatPrompt, with_head: bool, *, as_parts: bool) -> str:
        messages = [dict(message) for message in conversation.messages]
        if as_parts:
            messages = [in_parts(message) for message in messages]
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                tools=[dict(tool) for tool in conversation.tools] or None,
                tokenize=False,
                add_generation_prompt=with_head,
                continue_final_message=conversation.continue_final_message,
                **conversation.variables,
            )
        )
