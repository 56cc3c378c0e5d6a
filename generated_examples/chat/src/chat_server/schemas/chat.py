"""The request of POST /v1/chat/completions.

https://platform.openai.com/docs/api-reference/chat/create, and `top_k`, `min_p` as in vLLM.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .base import APIRequest, Text


def only(*accepted: object) -> AfterValidator:
    """For what this service knows but cannot do: better a 400 than an answer that ignores it."""

    def check(value: object) -> object:
        if value not in (None, *accepted):
            raise ValueError("is not supported by this service")
        return value

    return AfterValidator(check)


# Lists fail fast: an error for each of a million bad items would hold up the event loop.


class TextPart(BaseModel):
    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """One turn. Fields beyond these reach the model's chat template as they are."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="Who speaks; developer is the newer name of system"
    )
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)] = Field(
        description="What is said: text, or parts of text"
    )

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it: a plain string and a role they all know."""
        text = self.content
        if isinstance(text, list):
            text = "".join(part.text for part in text)
        role = "system" if self.role == "developer" else self.role
        return {**(self.model_extra or {}), "role": role, "content": text}


class StreamOptions(BaseModel):
    include_usage: bool | None = Field(None, description="End the stream with the token usage")
    include_obfuscation: bool | None = Field(None, description="Accepted, nothing to obfuscate")


class ChatRequest(APIRequest):
    model: str = Field(description="Id of the model, see GET /v1/models")
    messages: list[ChatMessage] = Field(
        min_length=1, fail_fast=True, description="The conversation so far"
    )
    stream: bool | None = Field(None, description="Send the answer while it is generated")
    stream_options: StreamOptions | None = Field(None, description="Only with stream")
    max_tokens: int | None = Field(None, ge=1, description="Longest answer in tokens")
    max_completion_tokens: int | None = Field(
        None, ge=1, description="The newer name of max_tokens; wins if both are given"
    )
    temperature: float | None = Field(
        None, ge=0, le=2, allow_inf_nan=False, description="0 takes the likeliest token"
    )
    top_p: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="Mass of the likeliest tokens to keep"
    )
    top_k: int | None = Field(None, ge=0, description="How many tokens to keep, 0 for all")
    min_p: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="Least share of the likeliest token's"
    )
    seed: int | None = Field(None, description="Same seed, same answer")
    stop: Text | Annotated[list[Text], Field(max_length=4, fail_fast=True)] | None = Field(
        None, description="Up to 4 strings at which the answer ends; they are not shown"
    )
    user: str | None = Field(None, description="Accepted, not used")

    n: Annotated[int | None, only(1)] = Field(None, description="Only 1")
    logprobs: Annotated[bool | None, only(False)] = Field(None, description="Only false")
    top_logprobs: Annotated[int | None, only(0)] = Field(None, description="Only 0")
    frequency_penalty: Annotated[float | None, only(0)] = Field(None, description="Only 0")
    presence_penalty: Annotated[float | None, only(0)] = Field(None, description="Only 0")
    logit_bias: Annotated[dict[str, Any] | None, only({})] = Field(None, description="Only {}")
    response_format: Annotated[dict[str, Any] | None, only({"type": "text"})] = Field(
        None, description="Only text"
    )
    tools: Annotated[list[Any] | None, only([])] = Field(None, description="Only none")
    tool_choice: Annotated[str | dict[str, Any] | None, only("none", "auto")] = Field(
        None, description="Only none or auto"
    )
    modalities: Annotated[list[Any] | None, only(["text"])] = Field(None, description="Only text")

    @property
    def stops(self) -> tuple[str, ...]:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return tuple(stop for stop in stops if stop)

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
