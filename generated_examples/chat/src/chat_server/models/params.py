"""Parameters of an answer: those of the request, and those for the engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from .tools import Tool

if TYPE_CHECKING:
    from .grammar import Grammar


@dataclass(frozen=True)
class SamplingParams:
    """The sampling of one sequence; the names are OpenAI's and vLLM's."""

    max_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 considers the whole vocabulary."""
    min_p: float = 0.0
    seed: int = 0
    """Decides every choice: same seed, same text, whatever else is in the batch."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens in prompt and answer, or multiplies the negative ones."""
    frequency_penalty: float = 0.0
    """Subtracted for each time that the answer has the token already."""
    presence_penalty: float = 0.0
    """Subtracted once the answer has the token."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id → what is added to its logit"""
    min_tokens: int = 0
    """The answer does not end before it has so many."""
    ignore_eos: bool = False
    """The answer goes on to `max_tokens`, whatever the model says."""
    stop_token_ids: Sequence[int] = ()
    """Tokens that end the answer beside the model's own"""
    top_logprobs: int | None = None
    """Number of alternatives to report for each token; None reports no logprobs at all."""
    grammar: "Grammar | None" = None
    """Restricts the tokens of the answer; None for free text"""

    def end_tokens(self, eos_token_ids: Sequence[int]) -> list[int]:
        """The tokens that end the answer, given the model's own."""
        return [*(() if self.ignore_eos else eos_token_ids), *self.stop_token_ids]


class TokenLogprob(NamedTuple):
    """A generated token under the model's own distribution, before any of the above."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    """The likeliest tokens with their logprobs, likeliest first"""


class SamplingOptions(TypedDict, total=False):
    """The parameters that a request may set; the model's authors set some of the others."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    min_tokens: int
    ignore_eos: bool
    stop_token_ids: Sequence[int]
    top_logprobs: int


@dataclass(frozen=True)
class AnswerForm:
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
    form: AnswerForm | None = None
    """The form of an answer that calls no tool"""
    tools: Sequence[Tool] = ()
    """The tools that the answer may call"""
    must_call: bool = False
    """The answer must be a tool call; else it may be text"""
    parallel_tool_calls: bool = True
