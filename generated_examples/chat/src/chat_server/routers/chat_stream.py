"""A chat answer as server-sent events."""

import asyncio
import logging
from collections.abc import AsyncGenerator

from openai.types import CompletionUsage
from openai.types.chat.chat_completion_chunk import (
    ChatCompletionChunk,
    Choice,
    ChoiceDelta,
    ChoiceDeltaToolCall,
    ChoiceDeltaToolCallFunction,
    ChoiceLogprobs,
)

from ..serving.chat.chat_model import Generation
from ..serving.chat.output_parser import Chunk
from ..serving.http.errors import ErrorEnvelope, envelope_for, internal_error
from ..serving.http.logs import request_id_var
from ..serving.http.sse import DONE, event
from ..serving.models.error_responses import from_model_error
from ..serving.models.model_errors import ModelError
from .chat_parts import ResponseMeta, logprob_entries, reasoning_field, usage_of

logger = logging.getLogger(__name__)


async def stream_chat(
    answer: Generation, head: ResponseMeta, with_usage: bool
) -> AsyncGenerator[bytes]:
    """The answer as events, `[DONE]` last. An error becomes the last event instead.

    The status has already been sent, and OpenAI's clients raise an `error` in the data as an
    exception.
    """
    completion_tokens = [0] * answer.sequences
    reasoning_tokens = [0] * answer.sequences
    try:
        for index in range(answer.sequences):
            delta = ChoiceDelta(role="assistant", content="")
            yield chunk_event(head, [Choice(index=index, delta=delta)])
        async for chunk in answer:
            completion_tokens[chunk.index] = chunk.completion_tokens
            reasoning_tokens[chunk.index] = chunk.thought_tokens
            for choice in choices_of(chunk):
                yield chunk_event(head, [choice])
                # A checkpoint: the event leaves now, and a client that is gone is noticed now.
                await asyncio.sleep(0)
        if with_usage:
            tokens = sum(completion_tokens), sum(reasoning_tokens)
            usage = usage_of(answer.prompt_tokens, *tokens)
            yield chunk_event(head, [], usage)
        yield DONE
    except Exception as error:
        yield failure(error)


def failure(error: Exception) -> bytes:
    """The last event of a stream that fails."""
    return event(envelope_of_failure(error))


def envelope_of_failure(error: Exception) -> ErrorEnvelope:
    """The error as clients see it. What is none of theirs is logged."""
    if isinstance(error, ModelError):
        return envelope_for(from_model_error(error))
    logger.error("the stream failed", exc_info=error)
    return envelope_for(internal_error(request_id_var.get() or "unknown"))


def choices_of(chunk: Chunk) -> list[Choice]:
    """The chunk as events with a thought, text or one piece of a tool call each, as OpenAI does.

    Many clients read the first of an event's tool calls alone, or no tool calls beside text.
    """
    deltas = [
        ChoiceDelta(
            tool_calls=[
                ChoiceDeltaToolCall(
                    index=call.call,
                    id=call.id,
                    type="function" if call.id else None,
                    function=ChoiceDeltaToolCallFunction(name=call.name, arguments=call.arguments),
                )
            ]
        )
        for call in chunk.tool_calls
    ]
    if chunk.text or not (deltas or chunk.thought):
        deltas.insert(0, ChoiceDelta(content=chunk.text or None))
    if chunk.thought:
        deltas.insert(0, ChoiceDelta(**reasoning_field(chunk.thought)))
    choices = [Choice(index=chunk.index, delta=delta) for delta in deltas]
    if chunk.logprobs:
        with_text = 1 if chunk.thought and len(choices) > 1 else 0
        choices[with_text].logprobs = ChoiceLogprobs(content=logprob_entries(chunk.logprobs))
    choices[-1].finish_reason = chunk.finish_reason
    return choices


def chunk_event(
    head: ResponseMeta, choices: list[Choice], usage: CompletionUsage | None = None
) -> bytes:
    return event(
        ChatCompletionChunk(
            id=head.id,
            object="chat.completion.chunk",
            created=head.created,
            model=head.model,
            choices=choices,
            usage=usage,
        )
    )
