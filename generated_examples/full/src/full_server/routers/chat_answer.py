"""A chat answer as a whole."""

from collections.abc import Sequence

from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_message_function_tool_call import (
    ChatCompletionMessageFunctionToolCall,
    Function,
)

from ..serving.chat.chat_model import Generation
from ..serving.chat.output_parser import Chunk
from .chat_parts import ResponseMeta, logprob_entries, reasoning_field, usage_of


async def whole_answer(answer: Generation, head: ResponseMeta) -> ChatCompletion:
    """Waits for all of the answer. Raises what the answer raises."""
    chunks = [chunk async for chunk in answer]
    choices = [[c for c in chunks if c.index == index] for index in range(answer.sequences)]
    return ChatCompletion(
        id=head.id,
        object="chat.completion",
        created=head.created,
        model=head.model,
        choices=[message_choice(index, chunks) for index, chunks in enumerate(choices)],
        usage=usage_of(
            answer.prompt_tokens,
            sum(c[-1].completion_tokens for c in choices),
            sum(c[-1].thought_tokens for c in choices),
        ),
    )


def message_choice(index: int, chunks: Sequence[Chunk]) -> Choice:
    entries = [entry for chunk in chunks for entry in chunk.logprobs]
    calls = tool_calls_of(chunks)
    text = "".join(chunk.text for chunk in chunks)
    thought = "".join(chunk.thought for chunk in chunks)
    return Choice(
        index=index,
        message=ChatCompletionMessage(
            role="assistant",
            content=text if text or not calls else None,
            tool_calls=calls or None,
            **reasoning_field(thought),
        ),
        logprobs=ChoiceLogprobs(content=logprob_entries(entries)) if entries else None,
        finish_reason=chunks[-1].finish_reason or "stop",
    )


def tool_calls_of(chunks: Sequence[Chunk]) -> list[ChatCompletionMessageFunctionToolCall]:
    calls: list[ChatCompletionMessageFunctionToolCall] = []
    for delta in (delta for chunk in chunks for delta in chunk.tool_calls):
        if delta.id is not None and delta.name is not None:
            function = Function(name=delta.name, arguments="")
            calls.append(
                ChatCompletionMessageFunctionToolCall(
                    id=delta.id, type="function", function=function
                )
            )
        calls[delta.call].function.arguments += delta.arguments
    return calls
