"""The request of POST /v1/chat/completions.

https://platform.openai.com/docs/api-reference/chat/create, and beyond it, as in vLLM: `top_k`,
`min_p`, `repetition_penalty`, `min_tokens`, `ignore_eos`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, StrictBool, StrictInt, model_validator

from ..serving.chat.options import ChatOptions, OutputFormat
from ..serving.chat.prompt import PROTECTED, ChatPrompt
from ..serving.chat.tool_calls import Tool
from ..serving.models.model_errors import InvalidInput
from .base import Text
from .chat_messages import ChatMessage
from .generation import GenerationRequest, at_most

MOST_TOOLS = 128

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


class FunctionDefinition(BaseModel):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments")
    strict: StrictBool | None = Field(
        None,
        description="Refuse a schema that cannot be enforced in full; else enforce what can be",
    )


class ToolDefinition(BaseModel):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(BaseModel):
    name: str


class NamedTool(BaseModel):
    type: Literal["function"]
    function: FunctionName


class TextFormat(BaseModel):
    type: Literal["text"]


class JSONObjectFormat(BaseModel):
    type: Literal["json_object"]
    json_schema: dict[str, Any] | None = Field(
        None, alias="schema", description="As in llama.cpp: JSON schema of the object"
    )


class NamedSchema(BaseModel):
    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: StrictBool | None = Field(
        None,
        description="Refuse a schema that cannot be enforced in full; else enforce what can be",
    )


class JSONSchemaFormat(BaseModel):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    TextFormat | JSONObjectFormat | JSONSchemaFormat, Field(discriminator="type")
]


class ChatRequest(GenerationRequest):
    messages: list[ChatMessage] = Field(
        min_length=1, fail_fast=True, description="Messages of the conversation so far"
    )
    logprobs: StrictBool | None = Field(
        None, description="Return the log probability of each token"
    )
    top_logprobs: StrictInt | None = Field(
        None,
        ge=0,
        le=20,
        description="With logprobs: number of alternatives to return for each token",
    )
    response_format: ResponseFormat | None = Field(
        None, description="Text, any JSON object, or JSON that matches a schema"
    )
    tools: Annotated[list[ToolDefinition], at_most(MOST_TOOLS)] | None = Field(
        None, description="Functions that the model may call"
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="none, auto, required, or the function that must be called"
    )
    parallel_tool_calls: StrictBool | None = Field(
        None, description="Allow several calls in one message; true by default"
    )
    add_generation_prompt: StrictBool | None = Field(
        None, description="Begin the assistant's turn at the end of the prompt; true by default"
    )
    continue_final_message: StrictBool | None = Field(
        None, description="Continue the last message instead of answering it"
    )
    reasoning_effort: str | None = Field(
        None, description="Variable of the chat template; many templates ignore it"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Further variables of the chat template, such as enable_thinking"
    )

    @model_validator(mode="after")
    def check_combinations(self) -> Self:
        # InvalidInput passes through pydantic, which would blame the request as a whole.
        if self.top_logprobs and not self.logprobs:
            raise InvalidInput("top_logprobs: only with logprobs", "top_logprobs")
        if self.tool_choice not in (None, "none", "auto") and not self.callable_tools:
            raise InvalidInput("tool_choice: there is no such tool", "tool_choice")
        if self.ignore_eos and self.callable_tools:
            raise InvalidInput("ignore_eos: is not supported together with tools", "ignore_eos")
        if self.continue_final_message and self.add_generation_prompt:
            message = "continue_final_message: is not supported together with add_generation_prompt"
            raise InvalidInput(message, "continue_final_message")
        check_variables(self.chat_template_kwargs)
        return self

    @property
    def callable_tools(self) -> list[ToolDefinition]:
        """The tools among which `tool_choice` leaves the choice."""
        tools, choice = self.tools or [], self.tool_choice
        if isinstance(choice, NamedTool):
            return [tool for tool in tools if tool.function.name == choice.function.name]
        return [] if choice == "none" else tools

    def conversation(self) -> ChatPrompt:
        tools = self.tools if self.callable_tools else None
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", self.reasoning_effort)
        return ChatPrompt(
            [message.for_template() for message in self.messages],
            [tool.model_dump(exclude_none=True) for tool in tools or []],
            variables=variables,
            add_generation_prompt=self.add_generation_prompt is not False,
            continue_final_message=self.continue_final_message is True,
            name="messages",
        )

    def options(self) -> ChatOptions:
        options = self.generation_options()
        names = {tool.function.name for tool in self.callable_tools}
        if self.logprobs:
            options["sampling"]["top_logprobs"] = self.top_logprobs or 0
        return ChatOptions(
            **options,
            tools=[
                Tool(
                    tool.function.name,
                    tool.function.parameters or NO_ARGUMENTS,
                    strict=tool.function.strict is True,
                    param=f"tools[{index}].function.parameters",
                )
                for index, tool in enumerate(self.tools or [])
                if tool.function.name in names
            ],
            must_call=self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool),
            parallel_tool_calls=self.parallel_tool_calls is not False
            and not isinstance(self.tool_choice, NamedTool),
        )

    def forms(self) -> list[OutputFormat]:
        return super().forms() + output_format_of(self.response_format)


def check_variables(variables: Mapping[str, Any] | None) -> None:
    """Raises InvalidInput for variables of the chat template that clients must not set."""
    if protected := sorted(PROTECTED.intersection(variables or ())):
        message = f"chat_template_kwargs: {protected[0]} is not a variable that may be set"
        raise InvalidInput(message, f"chat_template_kwargs.{protected[0]}")


def output_format_of(response_format: ResponseFormat | None) -> list[OutputFormat]:
    """None for text."""
    match response_format:
        case JSONObjectFormat(json_schema=schema):
            return [OutputFormat("json", schema or {}, "response_format", strict=False)]
        case JSONSchemaFormat(json_schema=named):
            strict, schema = named.strict is True, named.json_schema or {}
            return [OutputFormat("json", schema, "response_format", strict=strict)]
        case _:
            return []
