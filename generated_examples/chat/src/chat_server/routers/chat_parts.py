"""What a whole chat answer and a streamed one have in common."""

import time
import uuid
from typing import NamedTuple, Self

from openai.types import CompletionUsage


class Head(NamedTuple):
    """Names one answer; the same in all of its chunks."""

    id: str
    created: int
    """Unix time in seconds"""
    model: str

    @classmethod
    def new(cls, model: str) -> Self:
        return cls(id=f"chatcmpl-{uuid.uuid4().hex}", created=int(time.time()), model=model)


def usage_of(prompt_tokens: int, completion_tokens: int) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )
