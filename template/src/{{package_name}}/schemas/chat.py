"""The request of POST /v1/chat/completions.

https://platform.openai.com/docs/api-reference/chat/create, and beyond it, as in vLLM: `top_k`,
`min_p`, `repetition_penalty`, `min_tokens`, `ignore_eos`.
"""

from collections.abc import Sized
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from ..models.errors import InvalidInput
from ..models.params import ChatOptions, SamplingOptions
from ..models.prompt import Conversation
from ..models.tools import Tool
from .base import APIRequest, Text
from .chat_messages import ChatMessage

MOST_TOOLS = 128
MOST_BIASES = 1024


def only(*accepted: object) -> AfterValidator:
    """For what this service knows but cannot do: better a 400 than an answer that ignores it."""

    def check(value: object) -> object:
        if value not in (None, *accepted):
            raise ValueError("is not supported by this service")
        return value

    return AfterValidator(check)


def at_most(count: int) -> BeforeValidator:
    """Looks at the size before the entries: errors for a million of them would hold up the loop."""

    def check(value: object) -> object:
        if isinstance(value, Sized) and len(value) > count:
            raise ValueError(f"has more than {count} entries")
        return value

    return BeforeValidator(check)


class StreamOptions(BaseModel):
    include_usage: bool | None = Field(None, description="End the stream with the token usage")
    include_obfuscation: bool | None = Field(None, description="Accepted, nothing to obfuscate")


class FunctionDefinition(BaseModel):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments")
    strict: bool | None = Field(None, description="Accepted; arguments always keep to the schema")


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


class NamedSchema(BaseModel):
    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Accepted; answers always keep to the schema")


class JSONSchemaFormat(BaseModel):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    TextFormat | JSONObjectFormat | JSONSchemaFormat, Field(discriminator="type")
]
Number = Annotated[float, Field(allow_inf_nan=False)]


class ChatRequest(APIRequest):
    model: str = Field(description="Id of the model, see GET /v1/models")
    messages: list[ChatMessage] = Field(
        min_length=1, fail_fast=True, description="The conversation so far"
    )
    stream: bool | None = Field(None, description="Send the answer while it is generated")
    stream_options: StreamOptions | None = Field(None, description="Only with stream")
    n: int | None = Field(None, ge=1, le=128, description="How many answers")
    max_tokens: int | None = Field(None, ge=1, description="Longest answer in tokens")
    max_completion_tokens: int | None = Field(
        None, ge=1, description="The newer name of max_tokens; wins if both are given"
    )
    min_tokens: int | None = Field(None, ge=0, description="Shortest answer in tokens")
    ignore_eos: bool | None = Field(None, description="Go on to max_tokens in any case")
    stop: Text | Annotated[list[Text], Field(max_length=4, fail_fast=True)] | None = Field(
        None, description="Up to 4 strings at which the answer ends; they are not shown"
    )
    seed: int | None = Field(None, description="Same seed, same answer")
    temperature: Number | None = Field(None, ge=0, le=2, description="0 takes the likeliest token")
    top_p: Number | None = Field(None, ge=0, le=1, description="Mass of likely tokens to keep")
    top_k: int | None = Field(None, ge=0, description="How many tokens to keep, 0 for all")
    min_p: Number | None = Field(None, ge=0, le=1, description="Least share of the likeliest's")
    frequency_penalty: Number | None = Field(
        None, ge=-2, le=2, description="Taken off a token's logit for each time it was said"
    )
    presence_penalty: Number | None = Field(
        None, ge=-2, le=2, description="Taken off a token's logit once it was said"
    )
    repetition_penalty: Number | None = Field(
        None, gt=0, le=100, description="Divides the logits of tokens in prompt and answer"
    )
    logit_bias: (
        Annotated[
            dict[Annotated[int, Field(ge=0)], Annotated[Number, Field(ge=-100, le=100)]],
            at_most(MOST_BIASES),
        ]
        | None
    ) = Field(None, description="Token id → what is added to its logit")
    logprobs: bool | None = Field(None, description="Report each token's log probability")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="With logprobs: how many alternatives to report"
    )
    response_format: ResponseFormat | None = Field(
        None, description="Text, any JSON object, or JSON that keeps to a schema"
    )
    tools: Annotated[list[ToolDefinition], at_most(MOST_TOOLS)] | None = Field(
        None, description="Functions that the model may call"
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="Whether it may call them, must, or must call a certain one"
    )
    parallel_tool_calls: bool | None = Field(None, description="Several calls at once")
    user: str | None = Field(None, description="Accepted, not used")

    modalities: Annotated[list[Any] | None, only(["text"])] = Field(None, description="Only text")
    functions: Annotated[list[Any] | None, only([])] = Field(None, description="Use tools")
    function_call: Annotated[Any, only("none", "auto")] = Field(None, description="Use tool_choice")
    audio: Annotated[Any, only()] = Field(None, description="Not supported")
    prediction: Annotated[Any, only()] = Field(None, description="Not supported")
    web_search_options: Annotated[Any, only()] = Field(None, description="Not supported")
    store: Annotated[bool | None, only(False)] = Field(None, description="Only false")

    @model_validator(mode="after")
    def check_combinations(self) -> Self:
        # InvalidInput passes through pydantic, which would blame the request as a whole.
        wants_json = self.schema_of_answer is not None
        if self.top_logprobs and not self.logprobs:
            raise InvalidInput("top_logprobs: only with logprobs", "top_logprobs")
        if self.tool_choice not in (None, "none", "auto") and not self.callable_tools:
            raise InvalidInput("tool_choice: there is no such tool", "tool_choice")
        if wants_json and self.callable_tools:
            message = "response_format: is not supported together with tools"
            raise InvalidInput(message, "response_format")
        if self.ignore_eos and (wants_json or self.callable_tools):
            message = "ignore_eos: is not supported with tools or response_format"
            raise InvalidInput(message, "ignore_eos")
        return self

    @property
    def callable_tools(self) -> list[ToolDefinition]:
        """The tools among which `tool_choice` leaves the choice."""
        tools, choice = self.tools or [], self.tool_choice
        if isinstance(choice, NamedTool):
            return [tool for tool in tools if tool.function.name == choice.function.name]
        return [] if choice == "none" else tools

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def conversation(self) -> Conversation:
        tools = self.tools if self.callable_tools else None
        return Conversation(
            [message.for_template() for message in self.messages],
            [tool.model_dump(exclude_none=True) for tool in tools or []],
        )

    def options(self) -> ChatOptions:
        names = set(SamplingOptions.__annotations__) - {"top_logprobs"}
        given: Any = self.model_dump(include=names, exclude_none=True)
        sampling: SamplingOptions = given
        if self.logprobs:
            sampling["top_logprobs"] = self.top_logprobs or 0
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        newer = self.max_completion_tokens is not None
        return ChatOptions(
            sampling=sampling,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            max_tokens_name="max_completion_tokens" if newer else "max_tokens",
            seed=self.seed,
            stop=tuple(stop for stop in stops if stop),
            n=self.n or 1,
            schema=self.schema_of_answer,
            tools=[
                Tool(tool.function.name, tool.function.parameters or {})
                for tool in self.callable_tools
            ],
            must_call=self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool),
            parallel_tool_calls=self.parallel_tool_calls is not False
            and not isinstance(self.tool_choice, NamedTool),
        )

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """None for text, empty for any JSON object."""
        match self.response_format:
            case JSONObjectFormat():
                return {}
            case JSONSchemaFormat():
                return self.response_format.json_schema.json_schema or {}
            case _:
                return None
