"""The request of POST /v1/completions, the older endpoint that knows no messages.

https://platform.openai.com/docs/api-reference/completions/create
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, StrictBool, StrictInt, model_validator

from ..serving.chat.options import ChatOptions, OutputFormat
from ..serving.chat.prompt import TextPrompt
from ..serving.models.model_errors import InvalidInput
from .base import Text
from .chat import ResponseFormat, output_format_of
from .generation import UNSUPPORTED, GenerationRequest

DEFAULT_MAX_TOKENS = 16
"""OpenAI's"""
MOST_PROMPTS = 128

CHAT_ONLY: Mapping[str, Sequence[object]] = {
    "add_generation_prompt": (False,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "messages": ([],),
    "parallel_tool_calls": (True, False),
    "reasoning_effort": ("none",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Fields of chat that mean nothing without messages, with the values that ask for nothing."""

Tokens = Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1, fail_fast=True)]


class CompletionRequest(GenerationRequest):
    unsupported: ClassVar[Mapping[str, Sequence[object]]] = {**UNSUPPORTED, **CHAT_ONLY}

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    ) = Field(description="Text, list of texts, list of token ids, or list of such lists")
    echo: StrictBool | None = Field(None, description="Return the prompt before the output")
    logprobs: StrictInt | None = Field(
        None, ge=0, le=20, description="Number of alternatives to return for each token"
    )
    best_of: StrictInt | None = Field(None, ge=1, description="Accepted if it equals n")
    add_special_tokens: StrictBool | None = Field(
        None, description="Add the tokenizer's special tokens, such as BOS; true by default"
    )
    response_format: ResponseFormat | None = Field(
        None, description="Text, any JSON object, or JSON that matches a schema"
    )

    @model_validator(mode="after")
    def check_what_is_asked_for(self) -> Self:
        # InvalidInput passes through pydantic, which would blame the request as a whole.
        if self.best_of not in (None, self.n or 1):
            raise InvalidInput("best_of: is supported only where it equals n", "best_of")
        if self.echo and self.logprobs is not None:
            message = "logprobs: is not supported together with echo"
            raise InvalidInput(message, "logprobs")
        return self

    def prompts(self) -> list[TextPrompt]:
        """`prompt` as a list, whichever of its four forms it has."""
        given: Any = self.prompt
        if isinstance(given, str) or isinstance(given[0], int):
            given = [given]
        return [TextPrompt(each, self.add_special_tokens is not False) for each in given]

    def options(self) -> ChatOptions:
        options = self.generation_options()
        options["max_tokens"] = options["max_tokens"] or DEFAULT_MAX_TOKENS
        if self.logprobs is not None:
            options["sampling"]["top_logprobs"] = self.logprobs
        return ChatOptions(**options)

    def forms(self) -> list[OutputFormat]:
        return super().forms() + output_format_of(self.response_format)
