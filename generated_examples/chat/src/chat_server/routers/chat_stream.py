"""A chat answer as server-sent events."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator

from openai.types import CompletionUsage
from openai.types.chat.chat_completion_chunk import ChatCompletionChunk, Choice, ChoiceDelta

from ..errors import envelope_for, from_model_error, internal_error
from ..logs import request_id_var
from ..models.chat import TextChunk
from ..models.errors import ModelError
from ..sse import DONE, event
from .chat_parts import Head, usage_of

logger = logging.getLogger(__name__)


async def stream_events(
    chunks: AsyncIterator[TextChunk], head: Head, usage_prompt_tokens: int | None
) -> AsyncGenerator[bytes]:
    """The answer as events, `[DONE]` last. An error becomes the last event instead.

    The status has long been sent when something fails here, and clients read an `error` in the
    data as what it is.

    Args:
        usage_prompt_tokens: adds an event with the token usage; None leaves it out.
    """
    try:
        yield chunk_event(head, [Choice(index=0, delta=ChoiceDelta(role="assistant", content=""))])
        async for chunk in chunks:
            if chunk.text:
                delta = ChoiceDelta(content=chunk.text)
                yield chunk_event(head, [Choice(index=0, delta=delta)])
                # A checkpoint: the event leaves now, and a client that is gone is noticed now.
                await asyncio.sleep(0)
            if chunk.finish_reason:
                end = Choice(index=0, delta=ChoiceDelta(), finish_reason=chunk.finish_reason)
                yield chunk_event(head, [end])
                if usage_prompt_tokens is not None:
                    usage = usage_of(usage_prompt_tokens, chunk.completion_tokens)
                    yield chunk_event(head, [], usage)
        yield DONE
    except ModelError as error:
        yield event(envelope_for(from_model_error(error)))
    except Exception:
        logger.exception("the stream failed")
        yield event(envelope_for(internal_error(request_id_var.get() or "unknown")))


def chunk_event(head: Head, choices: list[Choice], usage: CompletionUsage | None = None) -> bytes:
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
