"""The sampling parameters of one sequence, as the engine gets them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypedDict

if TYPE_CHECKING:
    from .grammar import Grammar
    from .thought import ThoughtParams


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
    thought: "ThoughtParams | None" = None
    """A thought before the answer, where it matters to the grammar or has a limit"""
    adapter: int = 0
    """Number of the adapter that computes the answer; 0 for the base model alone"""

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
    """The parameters that a request may set.

    The generation_config.json of a model may recommend some of them, for requests that do not.
    """

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
