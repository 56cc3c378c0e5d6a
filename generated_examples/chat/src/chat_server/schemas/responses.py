"""The request and the response of POST /v1/responses.

https://platform.openai.com/docs/api-reference/responses/create, and beyond it the fields of
sampling and constrained output that the other endpoints share. The service keeps no state.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from openai.types.responses import (
    FunctionTool,
    Response,
    ResponseFunctionToolCall,
    ResponseIncludable,
    ResponseOutputMessage,
    ResponseReasoningItem,
)
from openai.types.shared import ReasoningEffort
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    Tag,
    TypeAdapter,
    model_validator,
)

from ..serving.chat.options import ChatOptions, OutputFormat
from ..serving.chat.prompt import ChatPrompt
from ..serving.chat.tool_calls import Tool
from ..serving.models.model_errors import InvalidInput
from .base import Text
from .chat import MOST_TOOLS, NO_ARGUMENTS, JSONObjectFormat, TextFormat, check_variables
from .chat_messages import ChatMessage, ContentPart, FunctionCall, ToolCall
from .generation import HINTS, UNSUPPORTED, GenerationRequest, at_most

# Lists fail fast: an error for each of a million bad items would hold up the event loop.

ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)

LOGPROBS = "message.output_text.logprobs"

ECHO_DEPTH = 10
"""More levels than there are around what a response repeats: pydantic writes a limited number"""

FIELDS_HERE = ("metadata", "store", "user")
"""Fields that other endpoints accept as hints"""

RESPONSES_UNSUPPORTED: Mapping[str, Sequence[object]] = {
    # State
    "background": (False,),
    "conversation": (),
    "previous_response_id": (),
    "prompt": (),
    "store": (False,),
    # Other features of OpenAI's service
    "access_programs": (),
    "background_options": ({},),
    "context_management": ([],),
    "image": ({},),
    "truncation": ("disabled",),
    # Chat
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "logprobs": (False,),
    "max_completion_tokens": (),
    "max_tokens": (),
    "messages": ([],),
    "n": (1,),
    "reasoning_effort": (),
    "response_format": (),
    # vLLM
    "enable_response_messages": (False,),
    "previous_input_messages": ([],),
}
"""Fields that are refused here, with the values that ask for nothing"""

NO_STATE = "is not supported, because the service keeps no state;"
REASONS: Mapping[str, str] = {
    "background": f"{NO_STATE} leave it out or set it to false",
    "conversation": f"{NO_STATE} send the whole conversation in input",
    "previous_response_id": f"{NO_STATE} send the whole conversation in input",
    "prompt": f"{NO_STATE} send the text of the prompt in instructions",
    "store": f"{NO_STATE} leave it out or set it to false",
    "truncation": "auto is not supported; leave items out of input until it fits the model",
    "logprobs": f"is not supported by this endpoint; use include with {LOGPROBS}",
    "max_completion_tokens": "is not supported by this endpoint; use max_output_tokens",
    "max_tokens": "is not supported by this endpoint; use max_output_tokens",
    "messages": "is not supported by this endpoint; use input",
    "reasoning_effort": "is not supported by this endpoint; use reasoning.effort",
    "response_format": "is not supported by this endpoint; use text.format",
}


def only(*types: str) -> BeforeValidator:
    """Refuses objects of other types by name. One without a type is left to its model."""

    def check(value: object) -> object:
        given = value.get("type") if isinstance(value, Mapping) else None
        if given is not None and given not in types:
            raise ValueError(f"the type {given!r} is not supported; use {', '.join(types)}")
        return value

    return BeforeValidator(check)


def refuse_reference(item: object) -> object:
    if isinstance(item, Mapping) and item.get("type") == "item_reference":
        raise ValueError("refers to an item, and the service keeps none; send the item itself")
    return item


def refuse_true(value: bool) -> bool:
    if value:
        raise ValueError("true is not supported; leave it out")
    return value


def check_echo(value: Any) -> Any:
    """Raises ValueError for what the response, which repeats it, could not be written with."""
    nested = value
    for _ in range(ECHO_DEPTH):
        nested = [nested]
    try:
        ANYTHING.dump_json(nested)
    except ValueError as error:
        raise ValueError("is not valid Unicode or nested too deeply") from error
    return value


TextPart = Annotated[ContentPart, only("input_text", "output_text", "refusal", "text")]
Content = Text | Annotated[list[TextPart], Field(fail_fast=True)]


class MessageItem(BaseModel):
    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"] = Field(
        description="Author of the message; developer is the newer name of system"
    )
    content: Content = Field(description="Text, or text parts")


class FunctionCallItem(BaseModel):
    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: Text = Field(
        description="JSON; any text is accepted, as a call can have been cut off"
    )


class FunctionOutputItem(BaseModel):
    type: Literal["function_call_output"]
    call_id: Text | None = Field(None, description="Id of the call whose result this is")
    output: Content = Field(description="Text, or text parts")


class ReasoningText(BaseModel):
    text: Text


class ReasoningItem(BaseModel):
    """Reasoning of an earlier response. Its summary and encrypted content reach no template."""

    type: Literal["reasoning"]
    content: Annotated[list[ReasoningText], Field(fail_fast=True)] | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or ())


def item_type(item: Any) -> str:
    """The type of an input item, which messages may leave out."""
    given = item.get("type") if isinstance(item, Mapping) else getattr(item, "type", None)
    return given if isinstance(given, str) else "message"


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(item_type),
    only("message", "function_call", "function_call_output", "reasoning"),
    BeforeValidator(refuse_reference),
]


class FunctionToolDefinition(BaseModel):
    type: Literal["function"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments")
    strict: StrictBool | None = Field(
        None,
        description="Refuse a schema that cannot be enforced in full; else enforce what can be",
    )
    defer_loading: Annotated[StrictBool, AfterValidator(refuse_true)] | None = None

    def for_template(self) -> dict[str, Any]:
        """The tool as chat has it, which is the form that chat templates read."""
        function = self.model_dump(exclude={"type", "defer_loading"}, exclude_none=True)
        return {"type": "function", "function": function}


class NamedFunction(BaseModel):
    type: Literal["function"]
    name: str


class AllowedTools(BaseModel):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[
        list[Annotated[NamedFunction, only("function")]], Field(min_length=1), at_most(MOST_TOOLS)
    ]


ToolChoice = Annotated[
    Literal["none", "auto", "required"]
    | Annotated[NamedFunction | AllowedTools, Field(discriminator="type")],
    only("function", "allowed_tools"),
]


class NamedSchemaFormat(BaseModel):
    type: Literal["json_schema"]
    name: Text
    description: Text | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: StrictBool | None = Field(
        None,
        description="Refuse a schema that cannot be enforced in full; else enforce what can be",
    )


class TextOptions(BaseModel):
    format: (
        Annotated[
            TextFormat | JSONObjectFormat | NamedSchemaFormat,
            Field(discriminator="type"),
            AfterValidator(check_echo),
        ]
        | None
    ) = Field(None, description="Text, any JSON object, or JSON that matches a schema")
    verbosity: Literal["low", "medium", "high"] | None = Field(
        None, description="Accepted; it does not change the output"
    )


class ReasoningOptions(BaseModel):
    effort: ReasoningEffort | None = Field(
        None, description="Variable reasoning_effort of the chat template; many templates ignore it"
    )
    context: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = Field(None, description="Older name of summary")
    mode: Literal["standard"] | None = None
    summary: Literal["auto"] | None = Field(None, description="Accepted; there are no summaries")


class ResponsesRequest(GenerationRequest):
    hints: ClassVar[Sequence[str]] = (*sorted({*HINTS} - {*FIELDS_HERE}), "max_tool_calls")
    unsupported: ClassVar[Mapping[str, Sequence[object]]] = {**UNSUPPORTED, **RESPONSES_UNSUPPORTED}
    reasons: ClassVar[Mapping[str, str]] = REASONS

    # Fields of the other endpoints that this one does not have
    n: ClassVar[int] = 1  # type: ignore[misc]
    max_completion_tokens: ClassVar[None] = None  # type: ignore[misc]

    max_tokens: StrictInt | None = Field(
        None,
        alias="max_output_tokens",
        ge=1,
        description="Maximum number of generated tokens, reasoning included",
    )
    input: Text | Annotated[list[InputItem], Field(min_length=1, fail_fast=True)] = Field(
        description="Text of the user, or the items of the conversation so far"
    )
    instructions: Text | None = Field(
        None, description="Text of a system message that comes before the input"
    )
    include: Annotated[list[ResponseIncludable], Field(fail_fast=True)] | None = Field(
        None, description=f"{LOGPROBS}; the others concern tools that are not here"
    )
    top_logprobs: StrictInt | None = Field(
        None, ge=0, le=20, description="Number of alternatives to return for each token"
    )
    text: TextOptions | None = Field(None, description="Format of the text")
    tools: (
        Annotated[
            list[Annotated[FunctionToolDefinition, only("function"), AfterValidator(check_echo)]],
            at_most(MOST_TOOLS),
        ]
        | None
    ) = Field(None, description="Functions that the model may call")
    tool_choice: ToolChoice | None = Field(
        None, description="none, auto, required, or the functions that may be called"
    )
    parallel_tool_calls: StrictBool | None = Field(
        None, description="Allow several calls in one response; true by default"
    )
    reasoning: ReasoningOptions | None = Field(None, description="Options of reasoning models")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Further variables of the chat template, such as enable_thinking"
    )
    metadata: dict[Text, Text] | None = Field(None, description="Repeated in the response")
    user: Text | None = Field(None, description="Repeated in the response")

    @model_validator(mode="after")
    def check_combinations(self) -> Self:
        # InvalidInput passes through pydantic, which would blame the request as a whole.
        known = {tool.name for tool in self.tools or ()}
        if self.tool_choice not in (None, "none", "auto") and not self.callable_tools:
            raise InvalidInput("tool_choice: there is no such tool", "tool_choice")
        if unknown := sorted(self.chosen_names - known):
            message = f"tool_choice: there is no tool {unknown[0][:64]!r}"
            raise InvalidInput(message, "tool_choice")
        if self.ignore_eos and self.callable_tools:
            raise InvalidInput("ignore_eos: is not supported together with tools", "ignore_eos")
        if not self.messages:
            raise InvalidInput("input: has no message", "input")
        check_variables(self.chat_template_kwargs)
        return self

    @property
    def chosen_names(self) -> set[str]:
        """The names of functions in `tool_choice`."""
        match self.tool_choice:
            case NamedFunction(name=name):
                return {name}
            case AllowedTools(tools=tools):
                return {tool.name for tool in tools}
            case _:
                return set()

    @property
    def callable_tools(self) -> list[FunctionToolDefinition]:
        """The tools among which `tool_choice` leaves the choice."""
        tools, names = self.tools or [], self.chosen_names
        if names:
            return [tool for tool in tools if tool.name in names]
        return [] if self.tool_choice == "none" else tools

    @cached_property
    def messages(self) -> list[ChatMessage]:
        """`instructions` and `input` as the messages of chat."""
        head = [ChatMessage(role="system", content=self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*head, ChatMessage(role="user", content=self.input)]
        return [*head, *chat_messages(self.input)]

    def conversation(self) -> ChatPrompt:
        tools = self.tools if self.callable_tools else None
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning and self.reasoning.effort is not None:
            variables.setdefault("reasoning_effort", self.reasoning.effort)
        return ChatPrompt(
            [message.for_template() for message in self.messages],
            [tool.for_template() for tool in tools or []],
            variables=variables,
            name="input",
        )

    def options(self) -> ChatOptions:
        options = self.generation_options() | {"max_tokens_name": "max_output_tokens"}
        if self.top_logprobs or LOGPROBS in (self.include or ()):
            options["sampling"]["top_logprobs"] = self.top_logprobs or 0
        choice, names = self.tool_choice, {tool.name for tool in self.callable_tools}
        named = isinstance(choice, NamedFunction)
        required = choice == "required" or (
            isinstance(choice, AllowedTools) and choice.mode == "required"
        )
        return ChatOptions(
            **options,
            tools=[
                Tool(
                    tool.name,
                    tool.parameters or NO_ARGUMENTS,
                    strict=tool.strict is True,
                    param=f"tools[{index}].parameters",
                )
                for index, tool in enumerate(self.tools or [])
                if tool.name in names
            ],
            must_call=named or required,
            parallel_tool_calls=self.parallel_tool_calls is not False and not named,
        )

    def forms(self) -> list[OutputFormat]:
        match self.text and self.text.format:
            case JSONObjectFormat(json_schema=schema):
                form = OutputFormat("json", schema or {}, "text.format", strict=False)
            case NamedSchemaFormat(json_schema=schema, strict=strict):
                form = OutputFormat("json", schema, "text.format", strict=strict is True)
            case _:
                return super().forms()
        return [*super().forms(), form]


def chat_messages(items: Iterable[InputItem]) -> list[ChatMessage]:
    """The items as messages. A turn of the assistant, which is several items here, is one message
    there: its reasoning, its text and its calls."""
    messages: list[ChatMessage] = []
    turn: ChatMessage | None = None
    for item in items:
        match item:
            case ReasoningItem(text=text):
                if not text:
                    continue
                turn = ChatMessage.model_validate({"role": "assistant", "reasoning_content": text})
            case MessageItem(role="assistant", content=content):
                if turn and turn.content is None and not turn.tool_calls:
                    turn.content = content
                    continue
                turn = ChatMessage(role="assistant", content=content)
            case FunctionCallItem():
                function = FunctionCall(name=item.name, arguments=item.arguments)
                call = ToolCall(id=item.call_id, function=function)
                if turn and turn.tool_calls:
                    turn.tool_calls.append(call)
                    continue
                if turn:
                    turn.tool_calls = [call]
                    continue
                turn = ChatMessage(role="assistant", tool_calls=[call])
            case FunctionOutputItem():
                messages.append(
                    ChatMessage(role="tool", content=item.output, tool_call_id=item.call_id)
                )
                turn = None
                continue
            case MessageItem():
                messages.append(ChatMessage(role=item.role, content=item.content))
                turn = None
                continue
        messages.append(turn)
    return messages


OutputItem = ResponseReasoningItem | ResponseOutputMessage | ResponseFunctionToolCall


class ResponseBody(Response):
    """OpenAI's type, narrowed to what this service sends."""

    created_at: int
    """A whole number, as on OpenAI's wire: clients in some languages read no other"""
    completed_at: int | None = None
    instructions: str | None = None
    output: list[OutputItem]  # type: ignore[assignment]
    tools: list[FunctionTool]  # type: ignore[assignment]
