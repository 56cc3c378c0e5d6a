"""POST /v1/responses: what OpenAI's clients and agents use by default. The service keeps no state."""

from contextlib import AsyncExitStack

from fastapi import APIRouter, Request

from ..dependencies import DeadlineDep, RegistryDep, SettingsDep
from ..schemas.responses import ResponseBody, ResponsesRequest
from ..serving.chat.chat_model import ChatModel, Generation
from ..serving.http.disconnect import until_disconnect
from ..serving.http.errors import documented
from ..serving.http.sse import EventStream
from .responses_parts import OutputDraft, ended_response, started_response
from .responses_stream import stream_response

router = APIRouter(tags=["chat"], responses=documented(404, 429, 504))


@router.post(
    "/v1/responses",
    response_model=ResponseBody,
    response_model_exclude_unset=True,
    responses={200: {"content": {EventStream.media_type: {}}}},
)
async def create_response(
    body: ResponsesRequest,
    request: Request,
    registry: RegistryDep,
    settings: SettingsDep,
    deadline: DeadlineDep,
) -> ResponseBody | EventStream:
    """Generates a message or function calls, whole or as a stream of server-sent events."""
    response = started_response(body)
    async with AsyncExitStack() as resources:
        use = registry.use(body.model, ChatModel, deadline)
        model = await resources.enter_async_context(use)
        work = model.answer(body.conversation(), body.options(), resources, deadline)
        answer = await until_disconnect(request, work)
        answer.meter.write_to(request.state.log_fields)
        if body.stream:
            events = stream_response(answer, response)
            # The stream outlives this function, and with it the model's use and its slots.
            return EventStream(events, resources.pop_all(), settings.heartbeat_seconds)
        return await until_disconnect(request, whole_response(answer, response))


async def whole_response(answer: Generation, response: ResponseBody) -> ResponseBody:
    """Waits for all of the answer. Raises what the answer raises."""
    output = OutputDraft()
    chunks = [chunk async for chunk in answer]
    for chunk in chunks:
        output.push(chunk)
    return ended_response(response, output, chunks[-1], answer.prompt_tokens)
