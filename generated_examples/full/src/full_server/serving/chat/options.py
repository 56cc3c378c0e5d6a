"""The options of a request: its sampling parameters, output format and tools."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..engine.sampling_params import SamplingOptions
from .tool_calls import Tool


@dataclass(frozen=True)
class OutputFormat:
    """The form that the text of an answer must have."""

    kind: Literal["json", "regex", "choice", "grammar"]
    value: Any
    """JSON schema (an empty one stands for any JSON object), regular expression, list of texts, or
    grammar in Lark's or llama.cpp's notation"""
    param: str
    """Field of the request that gave it, for errors"""
    strict: bool = True
    """Refuses a JSON schema that cannot be enforced, instead of keeping what can be"""


@dataclass(frozen=True)
class ChatOptions:
    """The options of a request."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int | None = None
    max_tokens_name: str = "max_tokens"
    """Field of the request that gave it, for errors"""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends; they are not part of it."""
    n: int = 1
    """Answers to the same prompt"""
    form: OutputFormat | None = None
    """The format of an answer that calls no tool"""
    tools: Sequence[Tool] = ()
    """The tools that the answer may call"""
    must_call: bool = False
    """The answer must be a tool call; else it may be text"""
    parallel_tool_calls: bool = True
