"""Parts that a whole response and a streamed one share: its items, and the response around them."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from openai.types.responses import (
    FunctionTool,
    ResponseError,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
    ResponseUsage,
)
from openai.types.responses.response import IncompleteDetails
from openai.types.responses.response_output_text import Logprob, LogprobTopLogprob
from openai.types.responses.response_reasoning_item import Content
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from ..schemas.responses import OutputItem, ResponseBody, ResponsesRequest
from ..serving.chat.output_parser import Chunk, LogprobEntry

ItemStatus = Literal["in_progress", "completed", "incomplete"]


@dataclass
class ReasoningDraft:
    """The thought of a response, while it is generated."""

    id: str
    text: str = ""

    def part(self) -> Content:
        return Content(text=self.text, type="reasoning_text")

    def item(self, status: ItemStatus) -> ResponseReasoningItem:
        """in_progress: the item as it begins, without content."""
        return ResponseReasoningItem(
            id=self.id,
            summary=[],
            content=[] if status == "in_progress" else [self.part()],
            status=status,
            type="reasoning",
        )


@dataclass
class MessageDraft:
    """A message of a response, while it is generated."""

    id: str
    text: str = ""
    logprobs: list[Logprob] = field(default_factory=list)

    def part(self) -> ResponseOutputText:
        return text_part(self.text, self.logprobs)

    def item(self, status: ItemStatus) -> ResponseOutputMessage:
        """in_progress: the item as it begins, without content."""
        return ResponseOutputMessage(
            id=self.id,
            content=[] if status == "in_progress" else [self.part()],
            role="assistant",
            status=status,
            type="message",
        )


@dataclass
class CallDraft:
    """A function call of a response, while it is generated."""

    id: str
    call_id: str
    name: str
    arguments: str = ""

    def item(self, status: ItemStatus) -> ResponseFunctionToolCall:
        """in_progress: the item as it begins, without arguments."""
        return ResponseFunctionToolCall(
            id=self.id,
            arguments="" if status == "in_progress" else self.arguments,
            call_id=self.call_id,
            name=self.name,
            status=status,
            type="function_call",
        )


Draft = ReasoningDraft | MessageDraft | CallDraft


class OutputDelta(NamedTuple):
    """Addition of a chunk to one item of the output."""

    draft: Draft
    delta: str
    logprobs: Sequence[Logprob] = ()


class OutputDraft:
    """The items of a response while they are generated: a thought, a message, calls, in this order."""

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        self._logprobs: list[Logprob] = []
        """Of tokens whose text has not come yet"""

    def push(self, chunk: Chunk) -> list[OutputDelta]:
        """The pieces of a chunk: those of the item before, then those of items that it begins."""
        pieces: list[OutputDelta] = []
        if chunk.thought:
            pieces.append(self._push_thought(chunk.thought))
        self._logprobs += map(logprob_of, chunk.logprobs)
        is_empty = chunk.finish_reason is not None and not self.drafts and not chunk.tool_calls
        if chunk.text or is_empty:
            pieces.append(self._push_text(chunk.text))
        for call in chunk.tool_calls:
            if call.id is not None and call.name is not None:
                self._logprobs = []
                self.drafts.append(CallDraft(prefixed_id("fc"), call.id, call.name))
            draft = self.drafts[-1]
            if isinstance(draft, CallDraft):
                draft.arguments += call.arguments
                pieces.append(OutputDelta(draft, call.arguments))
        return pieces

    def _push_thought(self, text: str) -> OutputDelta:
        draft = self.drafts[-1] if self.drafts else None
        if not isinstance(draft, ReasoningDraft):
            draft = ReasoningDraft(prefixed_id("rs"))
            self.drafts.append(draft)
        draft.text += text
        return OutputDelta(draft, text)

    def _push_text(self, text: str) -> OutputDelta:
        draft = self.drafts[-1] if self.drafts else None
        if not isinstance(draft, MessageDraft):
            draft = MessageDraft(prefixed_id("msg"))
            self.drafts.append(draft)
        logprobs, self._logprobs = self._logprobs, []
        draft.text += text
        draft.logprobs += logprobs
        return OutputDelta(draft, text, logprobs)

    def items(self, last: ItemStatus) -> list[OutputItem]:
        """The items so far, the last of which has this status; those before it are complete."""
        return [
            draft.item(last if draft is self.drafts[-1] else "completed") for draft in self.drafts
        ]


def prefixed_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def text_part(text: str, logprobs: Sequence[Logprob]) -> ResponseOutputText:
    return ResponseOutputText(
        annotations=[], logprobs=list(logprobs), text=text, type="output_text"
    )


def logprob_of(entry: LogprobEntry) -> Logprob:
    chosen, top = entry
    return Logprob(
        token=chosen.text,
        bytes=chosen.bytes or [],
        logprob=chosen.logprob,
        top_logprobs=[
            LogprobTopLogprob(token=each.text, bytes=each.bytes or [], logprob=each.logprob)
            for each in top
        ],
    )


def started_response(body: ResponsesRequest) -> ResponseBody:
    """The response before its first token. It repeats the request, as OpenAI's does."""
    echo: dict[str, Any] = body.model_dump(
        include={"instructions", "metadata", "model", "temperature", "text", "top_p", "user"},
        by_alias=True,
    )
    echo["metadata"] = body.metadata or {}
    echo["text"] = {"format": {"type": "text"}} | (
        body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    )
    echo["reasoning"] = body.reasoning.model_dump(exclude_none=True) if body.reasoning else None
    choice = body.tool_choice or "auto"
    return ResponseBody(
        **echo,
        id=prefixed_id("resp"),
        object="response",
        created_at=int(time.time()),
        completed_at=None,
        status="in_progress",
        background=False,
        error=None,
        incomplete_details=None,
        max_output_tokens=body.max_tokens,
        output=[],
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=None,
        store=False,
        tool_choice=choice if isinstance(choice, str) else choice.model_dump(),
        tools=[
            FunctionTool(**tool.model_dump(exclude={"defer_loading"})) for tool in body.tools or ()
        ],
        top_logprobs=body.top_logprobs or 0,
        truncation="disabled",
        usage=None,
    )


def ended_response(
    response: ResponseBody, output: OutputDraft, last: Chunk, input_tokens: int
) -> ResponseBody:
    """The response with all of its output. last: the chunk with the finish reason."""
    cut = last.finish_reason == "length"
    status: Literal["incomplete", "completed"] = "incomplete" if cut else "completed"
    details = IncompleteDetails(reason="max_output_tokens")
    return response.model_copy(
        update={
            "status": status,
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": details if cut else None,
            "output": output.items(status),
            "usage": usage_of_response(input_tokens, last),
        }
    )


def failed_response(response: ResponseBody, output: OutputDraft, message: str) -> ResponseBody:
    return response.model_copy(
        update={
            "status": "failed",
            "error": ResponseError(code="server_error", message=message),
            "output": output.items("incomplete"),
        }
    )


def usage_of_response(input_tokens: int, last: Chunk) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=input_tokens,
        # The engine does not tell how much of a prompt was cached.
        input_tokens_details=InputTokensDetails(cache_write_tokens=0, cached_tokens=0),
        output_tokens=last.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=last.thought_tokens),
        total_tokens=input_tokens + last.completion_tokens,
    )
