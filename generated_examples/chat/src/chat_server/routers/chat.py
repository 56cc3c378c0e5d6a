"""POST /v1/chat/completions"""

from contextlib import AsyncExitStack

from fastapi import APIRouter, Request
from openai.types.chat import ChatCompletion

from ..dependencies import DeadlineDep, RegistryDep, SettingsDep
from ..schemas.chat import ChatRequest
from ..serving.chat.chat_model import ChatModel
from ..serving.http.disconnect import until_disconnect
from ..serving.http.errors import documented
from ..serving.http.sse import EventStream
from .chat_answer import whole_answer
from .chat_parts import ResponseMeta
from .chat_stream import stream_chat

router = APIRouter(tags=["chat"], responses=documented(404, 429, 504))


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    response_model_exclude_none=True,
    responses={200: {"content": {EventStream.media_type: {}}}},
)
async def create_chat_completion(
    body: ChatRequest,
    request: Request,
    registry: RegistryDep,
    settings: SettingsDep,
    deadline: DeadlineDep,
) -> ChatCompletion | EventStream:
    """Generates the next message of a conversation, whole or as a stream of server-sent events."""
    head = ResponseMeta.new(body.model)
    async with AsyncExitStack() as resources:
        use = registry.use(body.model, ChatModel, deadline)
        model = await resources.enter_async_context(use)
        work = model.answer(body.conversation(), body.options(), resources, deadline)
        answer = await until_disconnect(request, work)
        answer.meter.write_to(request.state.log_fields)
        if body.stream:
            with_usage = body.wants_usage or settings.stream_usage == "always"
            events = stream_chat(answer, head, with_usage)
            # The stream outlives this function, and with it the model's use and its slots.
            return EventStream(events, resources.pop_all(), settings.heartbeat_seconds)
        return await until_disconnect(request, whole_answer(answer, head))
