"""The messages of a conversation, as clients send them and as chat templates read them."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .base import Text

NOT_TEXT = ("image", "image_url", "audio", "video", "video_url", "audio_url", "file", "document")
"""Ends of the types of parts that models for more than text read, such as input_image"""

# Lists fail fast: an error for each of a million bad items would hold up the event loop.


class ContentPart(BaseModel):
    """A text part. The types beside `text` are those of earlier responses that clients send back."""

    type: Literal["text", "output_text", "input_text", "refusal"]
    text: Text | None = None
    refusal: Text | None = Field(None, description="Text of a part of type refusal")

    @field_validator("type", mode="before")
    @classmethod
    def check_type(cls, value: object) -> object:
        if isinstance(value, str) and value.endswith(NOT_TEXT):
            raise ValueError(f"{value[:40]} is refused, as this service reads text only")
        return value

    @model_validator(mode="after")
    def check_text(self) -> Self:
        if self.said is None:
            raise ValueError(f"{'refusal' if self.type == 'refusal' else 'text'} is missing")
        return self

    @property
    def said(self) -> str | None:
        return self.refusal if self.type == "refusal" else self.text


class FunctionCall(BaseModel):
    name: Text
    arguments: Text | dict[str, Any] | None = Field(
        None, description="JSON; any text is accepted, as a call can have been cut off"
    )

    def for_template(self) -> dict[str, Any] | str:
        """An object where it is one, as templates expect it, or else the text itself."""
        if not isinstance(self.arguments, str):
            return self.arguments or {}
        try:
            parsed = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return self.arguments
        if parsed is None:
            return {}
        return parsed if isinstance(parsed, dict) else self.arguments


class ToolCall(BaseModel):
    id: Text | None = None
    type: Literal["function"] | None = "function"
    function: FunctionCall


class ChatMessage(BaseModel):
    """One message. Further fields are passed to the chat template unchanged."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Author of the message; developer is the newer name of system"
    )
    content: Text | Annotated[list[ContentPart], Field(fail_fast=True)] | None = Field(
        None, description="Text, or text parts"
    )
    refusal: Text | None = Field(None, description="Of the assistant: text of a refusal")
    reasoning_content: Text | None = Field(
        None, description="Of the assistant: its thought; many templates leave it out"
    )
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = Field(
        None, description="Of the assistant: the calls that it made"
    )
    tool_call_id: Text | None = Field(
        None, description="Of a tool: id of the call whose result this is"
    )

    @model_validator(mode="after")
    def check_content(self) -> Self:
        if self.content is None and self.role not in ("assistant", "tool"):
            raise ValueError("content is missing")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it: a plain string, a role they all know, and the
        arguments of calls as objects."""
        text = self.content or self.refusal or ""
        if isinstance(text, list):
            text = "".join(part.said or "" for part in text)
        role = "system" if self.role == "developer" else self.role
        message = {**(self.model_extra or {}), "role": role, "content": text}
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    # Some templates want nine letters or digits.
                    "id": f"{place:09}" if call.id is None else call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": call.function.for_template(),
                    },
                }
                for place, call in enumerate(self.tool_calls)
            ]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message
