"""A response as server-sent events, each of which has a type and a number.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseErrorEvent,
    ResponseFailedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseIncompleteEvent,
    ResponseInProgressEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseReasoningTextDeltaEvent,
    ResponseReasoningTextDoneEvent,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
)
from pydantic import BaseModel

from ..schemas.responses import ResponseBody
from ..serving.chat.chat_model import Generation
from ..serving.chat.output_parser import Chunk
from ..serving.http.sse import named_event
from .chat_stream import envelope_of_failure
from .responses_parts import (
    CallDraft,
    Draft,
    ItemStatus,
    MessageDraft,
    OutputDelta,
    OutputDraft,
    ReasoningDraft,
    ended_response,
    failed_response,
    text_part,
)

REASONING_PART = {"type": "reasoning_text", "text": ""}


async def stream_response(answer: Generation, response: ResponseBody) -> AsyncGenerator[bytes]:
    """The response as events. After a failure the last ones are `response.failed` and `error`.

    The status has already been sent, and OpenAI's clients raise the `error` as an exception.
    """
    writer = EventWriter(response)
    try:
        for event in writer.begin():
            yield event
        async for chunk in answer:
            for event in writer.push(chunk):
                yield event
                # A checkpoint: the event leaves now, and a client that is gone is noticed now.
                await asyncio.sleep(0)
        for event in writer.end(answer.prompt_tokens):
            yield event
    except Exception as error:
        for event in writer.fail(error):
            yield event


class EventWriter:
    """Writes the events of one response in their order: each item begins, grows and is done."""

    def __init__(self, response: ResponseBody) -> None:
        self._response = response
        self._output = OutputDraft()
        self._last: Chunk | None = None
        self._open: Draft | None = None
        self._index = -1
        """Place of the open item in the output"""
        self._written = 0

    def begin(self) -> Iterator[bytes]:
        yield self._event(ResponseCreatedEvent, "response.created", response=self._response)
        yield self._event(ResponseInProgressEvent, "response.in_progress", response=self._response)

    def push(self, chunk: Chunk) -> Iterator[bytes]:
        self._last = chunk
        for piece in self._output.push(chunk):
            if piece.draft is not self._open:
                yield from self._close("completed")
                yield from self._begin_item(piece.draft)
            if piece.delta:
                yield self._delta(piece)

    def end(self, input_tokens: int) -> Iterator[bytes]:
        assert self._last is not None
        response = ended_response(self._response, self._output, self._last, input_tokens)
        if response.status == "incomplete":
            yield from self._close("incomplete")
            yield self._event(ResponseIncompleteEvent, "response.incomplete", response=response)
        else:
            yield from self._close("completed")
            yield self._event(ResponseCompletedEvent, "response.completed", response=response)

    def fail(self, error: Exception) -> Iterator[bytes]:
        detail = envelope_of_failure(error).error
        response = failed_response(self._response, self._output, detail.message)
        yield self._event(ResponseFailedEvent, "response.failed", response=response)
        yield self._event(
            ResponseErrorEvent,
            "error",
            code=detail.code,
            message=detail.message,
            param=detail.param,
            # Beyond the type, as OpenAI sends it: clients raise an exception for this field.
            error=detail,
        )

    def _begin_item(self, draft: Draft) -> Iterator[bytes]:
        self._open = draft
        self._index += 1
        yield self._event(
            ResponseOutputItemAddedEvent,
            "response.output_item.added",
            item=draft.item("in_progress"),
            output_index=self._index,
        )
        if isinstance(draft, ReasoningDraft | MessageDraft):
            empty = text_part("", []) if isinstance(draft, MessageDraft) else REASONING_PART
            yield self._event_of_part(
                ResponseContentPartAddedEvent, "response.content_part.added", part=empty
            )

    def _delta(self, piece: OutputDelta) -> bytes:
        match piece.draft:
            case ReasoningDraft():
                return self._event_of_part(
                    ResponseReasoningTextDeltaEvent,
                    "response.reasoning_text.delta",
                    delta=piece.delta,
                )
            case MessageDraft():
                return self._event_of_part(
                    ResponseTextDeltaEvent,
                    "response.output_text.delta",
                    delta=piece.delta,
                    logprobs=[each.model_dump() for each in piece.logprobs],
                )
            case CallDraft():
                return self._event_of_item(
                    ResponseFunctionCallArgumentsDeltaEvent,
                    "response.function_call_arguments.delta",
                    delta=piece.delta,
                )

    def _close(self, status: ItemStatus) -> Iterator[bytes]:
        """The events that end the item that is open, if one is."""
        match self._open:
            case ReasoningDraft(text=text) as draft:
                yield self._event_of_part(
                    ResponseReasoningTextDoneEvent, "response.reasoning_text.done", text=text
                )
                yield self._event_of_part(
                    ResponseContentPartDoneEvent,
                    "response.content_part.done",
                    part=draft.part().model_dump(),
                )
            case MessageDraft(text=text, logprobs=logprobs) as draft:
                yield self._event_of_part(
                    ResponseTextDoneEvent,
                    "response.output_text.done",
                    text=text,
                    logprobs=[each.model_dump() for each in logprobs],
                )
                yield self._event_of_part(
                    ResponseContentPartDoneEvent, "response.content_part.done", part=draft.part()
                )
            case CallDraft(name=name, arguments=arguments):
                yield self._event_of_item(
                    ResponseFunctionCallArgumentsDoneEvent,
                    "response.function_call_arguments.done",
                    name=name,
                    arguments=arguments,
                )
        if self._open is not None:
            yield self._event(
                ResponseOutputItemDoneEvent,
                "response.output_item.done",
                item=self._open.item(status),
                output_index=self._index,
            )

    def _event_of_part(self, kind: Callable[..., BaseModel], type_: str, **fields: Any) -> bytes:
        return self._event_of_item(kind, type_, content_index=0, **fields)

    def _event_of_item(self, kind: Callable[..., BaseModel], type_: str, **fields: Any) -> bytes:
        assert self._open is not None
        return self._event(kind, type_, item_id=self._open.id, output_index=self._index, **fields)

    def _event(self, kind: Callable[..., BaseModel], type_: str, **fields: Any) -> bytes:
        event = kind(type=type_, sequence_number=self._written, **fields)
        self._written += 1
        return named_event(type_, event)
