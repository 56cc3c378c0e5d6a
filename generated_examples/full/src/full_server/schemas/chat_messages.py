"""The messages of a conversation, as clients send them and as chat templates read them."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .base import Text

# Lists fail fast: an error for each of a million bad items would hold up the event loop.


class TextPart(BaseModel):
    type: Literal["text"]
    text: Text


class FunctionCall(BaseModel):
    name: Text
    arguments: Text = Field(description="JSON")

    @model_validator(mode="after")
    def check_arguments(self) -> Self:
        if not isinstance(self.parsed, dict):
            raise ValueError("the arguments are not a JSON object")
        return self

    @property
    def parsed(self) -> Any:
        try:
            return json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return None


class ToolCall(BaseModel):
    id: Text
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(BaseModel):
    """One turn. Fields beyond these reach the model's chat template as they are."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Who speaks; developer is the newer name of system"
    )
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)] | None = Field(
        None, description="What is said: text, or parts of text"
    )
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = Field(
        None, description="Of the assistant: what it called"
    )
    tool_call_id: Text | None = Field(None, description="Of a tool: the call that it answers")

    @model_validator(mode="after")
    def check_content(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing")
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it: a plain string, a role they all know, and the
        arguments of calls as objects."""
        text = self.content or ""
        if isinstance(text, list):
            text = "".join(part.text for part in text)
        role = "system" if self.role == "developer" else self.role
        message = {**(self.model_extra or {}), "role": role, "content": text}
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.parsed},
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message
