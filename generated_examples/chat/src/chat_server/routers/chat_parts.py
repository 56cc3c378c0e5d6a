"""Parts that a whole chat answer and a streamed one share."""

import time
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from openai.types import CompletionUsage
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob, TopLogprob
from openai.types.completion_usage import CompletionTokensDetails

from ..serving.chat.output_parser import LogprobEntry


class ResponseMeta(NamedTuple):
    """Names one answer; the same in all of its chunks."""

    id: str
    created: int
    """Unix time in seconds"""
    model: str

    @classmethod
    def new(cls, model: str, prefix: str = "chatcmpl") -> Self:
        return cls(id=f"{prefix}-{uuid.uuid4().hex}", created=int(time.time()), model=model)


def usage_of(
    prompt_tokens: int, completion_tokens: int, reasoning_tokens: int | None = None
) -> CompletionUsage:
    """reasoning_tokens: those of the completion tokens; None where there is no such thing."""
    details = CompletionTokensDetails(reasoning_tokens=reasoning_tokens)
    return CompletionUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        completion_tokens_details=None if reasoning_tokens is None else details,
    )


def reasoning_field(thought: str) -> dict[str, Any]:
    """The field of a message or a delta that OpenAI's types lack, named as by vLLM and DeepSeek."""
    return {"reasoning_content": thought} if thought else {}


def logprob_entries(entries: Sequence[LogprobEntry]) -> list[ChatCompletionTokenLogprob]:
    return [
        ChatCompletionTokenLogprob(
            token=chosen.text,
            bytes=chosen.bytes,
            logprob=chosen.logprob,
            top_logprobs=[
                TopLogprob(token=each.text, bytes=each.bytes, logprob=each.logprob) for each in top
            ],
        )
        for chosen, top in entries
    ]
