"""POST /v1/chat/completions"""

from contextlib import AsyncExitStack

from fastapi import APIRouter, Request
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice

from ..dependencies import RegistryDep, SettingsDep
from ..disconnect import until_disconnect
from ..models.chat import ChatModel
from ..schemas.chat import ChatRequest
from ..sse import EventStream
from .chat_parts import Head, usage_of
from .chat_stream import stream_events

router = APIRouter(tags=["chat"])


@router.post(
    "/v1/chat/completions", response_model=ChatCompletion, response_model_exclude_none=True
)
async def create_chat_completion(
    body: ChatRequest, request: Request, registry: RegistryDep, settings: SettingsDep
) -> ChatCompletion | EventStream:
    """Answers a conversation, whole or as a stream of server-sent events."""
    head = Head.new(body.model)
    async with AsyncExitStack() as resources:
        model = await resources.enter_async_context(registry.use(body.model, ChatModel))
        prompt = await model.encode([message.for_template() for message in body.messages])
        params = model.sampling(
            prompt,
            max_tokens=body.token_limit,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            min_p=body.min_p,
            seed=body.seed,
            stop=body.stops,
        )
        if body.stream:
            chunks = resources.enter_context(model.generate(prompt, params))
            with_usage = body.wants_usage or settings.stream_usage == "always"
            events = stream_events(chunks, head, len(prompt) if with_usage else None)
            # The stream outlives this function, and with it the model's use and the batch's place.
            return EventStream(events, resources.pop_all(), settings.heartbeat_seconds)
        answer = await until_disconnect(request, model.complete(prompt, params))

    message = ChatCompletionMessage(role="assistant", content=answer.text)
    return ChatCompletion(
        id=head.id,
        object="chat.completion",
        created=head.created,
        model=head.model,
        choices=[Choice(index=0, message=message, finish_reason=answer.finish_reason or "stop")],
        usage=usage_of(len(prompt), answer.completion_tokens),
    )
