"""POST /v1/completions: the older endpoint, which gateways and evaluation harnesses still speak."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Literal

from fastapi import APIRouter, Request
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.completion_choice import Logprobs

from ..dependencies import DeadlineDep, RegistryDep, SettingsDep
from ..schemas.completions import CompletionRequest
from ..serving.chat.chat_model import ChatModel, Generation
from ..serving.chat.options import ChatOptions
from ..serving.chat.output_parser import Chunk, LogprobEntry
from ..serving.chat.prompt import TextPrompt
from ..serving.deadline import Deadline
from ..serving.http.disconnect import until_disconnect
from ..serving.http.errors import documented
from ..serving.http.sse import DONE, EventStream, event
from .chat_parts import ResponseMeta, usage_of
from .chat_stream import failure

router = APIRouter(tags=["chat"], responses=documented(404, 429, 504))


@router.post(
    "/v1/completions",
    response_model=Completion,
    response_model_exclude_none=True,
    responses={200: {"content": {EventStream.media_type: {}}}},
)
async def create_completion(
    body: CompletionRequest,
    request: Request,
    registry: RegistryDep,
    settings: SettingsDep,
    deadline: DeadlineDep,
) -> Completion | EventStream:
    """Generates continuations of texts, whole or as a stream of server-sent events."""
    head = ResponseMeta.new(body.model, "cmpl")
    prompts = body.prompts()
    async with AsyncExitStack() as resources:
        use = registry.use(body.model, ChatModel, deadline)
        model = await resources.enter_async_context(use)
        work = begin(model, prompts, body.options(), resources, deadline)
        answers = await until_disconnect(request, work)
        if len(answers) == 1:
            answers[0].meter.write_to(request.state.log_fields)
        echoes = [echo_of(prompt, model) if body.echo else "" for prompt in prompts]
        if body.stream:
            with_usage = body.wants_usage or settings.stream_usage == "always"
            events = stream_completions(answers, echoes, head, with_usage)
            # The stream outlives this function, and with it the model's use and its slots.
            return EventStream(events, resources.pop_all(), settings.heartbeat_seconds)
        return await until_disconnect(request, whole(answers, echoes, head))


async def begin(
    model: ChatModel,
    prompts: Sequence[TextPrompt],
    options: ChatOptions,
    resources: AsyncExitStack,
    deadline: Deadline,
) -> list[Generation]:
    """Queues one request for each prompt. Raises what `ChatModel.answer` raises."""
    return [await model.answer(prompt, options, resources, deadline) for prompt in prompts]


def echo_of(prompt: TextPrompt, model: ChatModel) -> str:
    return prompt.given if isinstance(prompt.given, str) else model.text(prompt.given)


async def whole(
    answers: Sequence[Generation], echoes: Sequence[str], head: ResponseMeta
) -> Completion:
    """Waits for all of all answers. Raises what they raise."""
    read = await asyncio.gather(*(collect(answer) for answer in answers))
    choices: list[CompletionChoice] = []
    tokens = 0
    for answer, echo, chunks in zip(answers, echoes, read, strict=True):
        for index in range(answer.sequences):
            own = [chunk for chunk in chunks if chunk.index == index]
            entries = [entry for chunk in own for entry in chunk.logprobs]
            choices.append(
                CompletionChoice(
                    index=len(choices),
                    text=echo + "".join(chunk.text for chunk in own),
                    finish_reason=finish_reason(own[-1]) or "stop",
                    logprobs=logprobs_of(entries, 0),
                )
            )
            tokens += own[-1].completion_tokens
    return Completion(
        id=head.id,
        object="text_completion",
        created=head.created,
        model=head.model,
        choices=choices,
        usage=usage_of(sum(answer.prompt_tokens for answer in answers), tokens),
    )


async def collect(answer: Generation) -> list[Chunk]:
    return [chunk async for chunk in answer]


def finish_reason(chunk: Chunk) -> Literal["stop", "length"] | None:
    """Of an answer without tools"""
    return chunk.finish_reason if chunk.finish_reason != "tool_calls" else "stop"


def logprobs_of(entries: Sequence[LogprobEntry], offset: int) -> Logprobs | None:
    """offset: of the first entry in the text of the answer, in characters."""
    if not entries:
        return None
    tokens = [chosen.text for chosen, _ in entries]
    return Logprobs(
        tokens=tokens,
        token_logprobs=[chosen.logprob for chosen, _ in entries],
        top_logprobs=[
            {each.text: each.logprob for each in (chosen, *reversed(top))}
            for chosen, top in entries
        ],
        text_offset=[offset + sum(map(len, tokens[:place])) for place in range(len(tokens))],
    )


async def stream_completions(
    answers: Sequence[Generation], echoes: Sequence[str], head: ResponseMeta, with_usage: bool
) -> AsyncGenerator[bytes]:
    """The answers as events, one prompt after the other, `[DONE]` last. All of them are generated
    at the same time. An error becomes the last event instead."""
    first = 0
    tokens: dict[int, int] = {}
    offsets: dict[int, int] = {}
    try:
        for answer, echo in zip(answers, echoes, strict=True):
            for index in range(first, first + answer.sequences if echo else first):
                yield completion_event(head, [completion_choice(index, echo)])
            async for chunk in answer:
                index = first + chunk.index
                tokens[index] = chunk.completion_tokens
                logprobs = logprobs_of(chunk.logprobs, offsets.get(index, 0))
                offsets[index] = offsets.get(index, 0) + len(
                    "".join(entry.chosen.text for entry in chunk.logprobs)
                )
                yield completion_event(
                    head, [completion_choice(index, chunk.text, chunk, logprobs)]
                )
                # A checkpoint: the event leaves now, and a client that is gone is noticed now.
                await asyncio.sleep(0)
            first += answer.sequences
        if with_usage:
            prompt_tokens = sum(answer.prompt_tokens for answer in answers)
            yield completion_event(head, [], usage_of(prompt_tokens, sum(tokens.values())))
        yield DONE
    except Exception as error:
        yield failure(error)


def completion_choice(
    index: int, text: str, chunk: Chunk | None = None, logprobs: Logprobs | None = None
) -> CompletionChoice:
    # None until the last, as OpenAI does and its types do not say.
    reason: Any = finish_reason(chunk) if chunk else None
    return CompletionChoice.model_construct(
        index=index, text=text, finish_reason=reason, logprobs=logprobs
    )


def completion_event(
    head: ResponseMeta, choices: list[CompletionChoice], usage: CompletionUsage | None = None
) -> bytes:
    return event(
        Completion.model_construct(
            id=head.id,
            object="text_completion",
            created=head.created,
            model=head.model,
            choices=choices,
            usage=usage,
        )
    )
