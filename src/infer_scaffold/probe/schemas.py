"""Schemas: answers that OpenAI's types and OpenAI's client accept."""

import base64
import math
import struct
from typing import Any

from pydantic import BaseModel, ValidationError

from infer_scaffold.probe.answers import Question
from infer_scaffold.probe.outcomes import Skip, Unmet
from infer_scaffold.probe.target import Reply, Target, short

_PARTS = 2e-2  # how far a text's embedding in a batch may be from that alone
_SAME = 1e-3


def _validated(reply: Reply, kind: type[BaseModel]) -> Any:
    try:
        return kind.model_validate_json(reply.content, strict=True)
    except ValidationError as error:
        raise reply.unmet(f"openai.types' {kind.__name__} ({_first(error)})") from None


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
    return short(f"{place}: {problem['msg']}")


async def _chat(target: Target) -> None:
    from openai.types.chat import ChatCompletion

    body = target.chat(max_tokens=4, temperature=0)
    reply = (await target.send("POST", target.chat_path, body)).require(200)
    answer: ChatCompletion = _validated(reply, ChatCompletion)
    again = (await target.send("POST", target.chat_path, body)).require(200).json()
    if answer.id == again.get("id"):
        raise reply.unmet("an id of its own for each answer", f"{answer.id} twice")
    usage = answer.usage
    if usage is None or usage.prompt_tokens + usage.completion_tokens != usage.total_tokens:
        raise reply.unmet("usage that adds up")
    if usage.completion_tokens > 4 or answer.choices[0].finish_reason not in ("length", "stop"):
        raise reply.unmet("at most max_tokens tokens, and a finish_reason")


async def _chunks(target: Target) -> None:
    from openai.types.chat import ChatCompletionChunk

    stream = await target.sample()
    for event in stream.events:
        if event.data and event.data != "[DONE]":
            try:
                ChatCompletionChunk.model_validate_json(event.data, strict=True)
            except ValidationError as error:
                wanted = f"openai.types' ChatCompletionChunk ({_first(error)})"
                raise stream.unmet(f"data: {short(event.data)}", wanted) from None


_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Paris", "Ulm"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}


async def _tool_stream(target: Target) -> None:
    await target.whole_sample()
    asked = {"tools": [_TOOL], "tool_choice": "required", "temperature": 0}
    stream = await target.stream(target.chat(max_tokens=48, **asked))
    if stream.reply.status in (400, 422, 501):
        raise Skip(f"the service or its model calls no tools: {stream.reply.shown}")
    stream.reply.require(200)
    for chunk in stream.chunks:
        for choice in chunk.get("choices") or []:
            calls = (choice.get("delta") or {}).get("tool_calls") or []
            places = [call.get("index") for call in calls]
            if len(set(places)) < len(places):
                wanted = "one entry an index in each chunk: clients take two for two calls"
                raise stream.unmet(f"a chunk with the indices {places}", wanted)


def _after_a_call(target: Target, arguments: str) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    call = {"id": "call00001", "type": "function", "function": function}
    messages = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "content": "Error: invalid JSON"},
        {"role": "user", "content": "Go on."},
    ]
    return target.chat(max_tokens=1) | {"messages": messages}


async def _cut_off_calls(target: Target) -> None:
    body = _after_a_call(target, '{"place": "Paris"}')
    reply = await target.send("POST", target.chat_path, body)
    if reply.status in (400, 422, 501):
        raise Skip(f"the service or its model knows no tools: {reply.shown}")
    for arguments in ('{"', '{"place": "Pa', "null", ""):
        body = _after_a_call(target, arguments)
        reply = await target.send("POST", target.chat_path, body)
        if reply.status != 200:
            raise reply.unmet("200: a call that max_tokens cut off comes back in every later turn")


async def _overflow(target: Target) -> None:
    body = target.chat(max_tokens=1) | {
        "messages": [{"role": "user", "content": "word " * 200_000}]
    }
    reply = await target.send("POST", target.chat_path, body)
    if reply.status in (200, 413):
        raise Skip("a million characters are not too long, or too long for the body's limit")
    error = reply.require(400).json().get("error")
    error = error if isinstance(error, dict) else {}
    wanted = (
        '"This model\'s maximum context length is N tokens" and the code context_length_exceeded, '
        "by which clients tell it"
    )
    said = str(error.get("message"))
    if "maximum context length is" not in said or error.get("code") != "context_length_exceeded":
        raise reply.unmet(wanted)


async def _embeddings(target: Target) -> None:
    from openai.types import CreateEmbeddingResponse

    texts = ["The sun is a star.", "Hello!"]
    reply = await _embed(target, texts, encoding_format="float")
    answer: CreateEmbeddingResponse = _validated(reply, CreateEmbeddingResponse)
    if [each.index for each in answer.data] != [0, 1]:
        raise reply.unmet("an embedding for each text, in their order")
    first, second = (each.embedding for each in answer.data)
    if len(first) != len(second) or not all(map(math.isfinite, first + second)):
        raise reply.unmet("vectors of one size, and of numbers")
    alone = await _embed(target, texts[0], encoding_format="float")
    (single,) = alone.json()["data"]
    if _distance(first, single["embedding"]) > _PARTS * math.hypot(*first):
        raise alone.unmet("the same embedding alone and in a batch", "another one")


async def _base64(target: Target) -> None:
    floats = await _embed(target, "hello", encoding_format="float")
    encoded = await _embed(target, "hello", encoding_format="base64")
    (numbers,), (text,) = floats.json()["data"], encoded.json()["data"]
    wanted = "a text: the float32 values, little-endian, in base64. OpenAI's clients ask for it"
    try:
        packed = base64.b64decode(text["embedding"], validate=True)
        values = struct.unpack(f"<{len(packed) // 4}f", packed)
    except (TypeError, ValueError, struct.error):
        raise encoded.unmet(wanted) from None
    if len(values) != len(numbers["embedding"]):
        raise encoded.unmet(wanted, f"{len(values)} values, not {len(numbers['embedding'])}")
    if _distance(list(values), numbers["embedding"]) > _SAME * math.hypot(*values):
        raise encoded.unmet(wanted, "other values than as floats")


def _distance(one: list[float], other: list[float]) -> float:
    return math.dist(one, other) if len(one) == len(other) else math.inf


async def _embed(target: Target, given: Any, **fields: Any) -> Reply:
    path = f"{target.api}/embeddings"
    reply = (await target.send("POST", path, target.embed(given, **fields))).require(200)
    if not isinstance(reply.json(), dict) or not reply.json().get("data"):
        raise reply.unmet("a list of embeddings")
    return reply


async def _openai_python(target: Target) -> None:
    import openai

    client = openai.AsyncOpenAI(
        base_url=f"{target.url.rstrip('/')}{target.api}",
        api_key=target.key or "none",
        timeout=target.timeout,
        max_retries=0,
    )
    request = f"openai-python {openai.__version__}"
    async with client:
        if target.chat_model is not None:
            body: Any = target.chat(max_tokens=16, temperature=0)
            answer = await client.chat.completions.create(**body)
            if not answer.choices[0].message.content:
                raise Unmet(f"{request}, chat", short(str(answer)), "text")
            if await target.streams():
                async with await client.chat.completions.create(**body, stream=True) as stream:
                    chunks = [chunk async for chunk in stream]
                if not any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks):
                    raise Unmet(f"{request}, a stream", f"{len(chunks)} chunks, no text", "text")
        if target.embeddings_model is not None:
            # The client asks for base64 by itself, and decodes it.
            vectors = await client.embeddings.create(model=target.embeddings_model, input="hello")
            if not all(isinstance(number, float) for number in vectors.data[0].embedding):
                raise Unmet(f"{request}, embeddings", short(str(vectors)), "numbers")
        async for model in client.models.list():
            if not isinstance(model.id, str):
                raise Unmet(f"{request}, models", short(str(model)), "models with an id")


async def openai_python(target: Target) -> None:
    """Use OpenAI's own client. Raises Unmet for its exceptions."""
    import openai

    if target.chat_model is None and target.embeddings_model is None and not target.models:
        raise Skip("there is nothing of OpenAI's API")
    try:
        await _openai_python(target)
    except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError) as error:
        got = f"{type(error).__name__}: {short(str(error))}"
        raise Unmet(f"openai-python {openai.__version__}", got, "answers it can read") from error


QUESTIONS = (
    Question("IS501", "chat-schema", "A chat answer has all that OpenAI's has.", _chat),
    Question("IS501", "chunk-schema", "A chunk has all that OpenAI's has.", _chunks),
    Question("IS501", "tool-stream", "A chunk has one piece of each tool call.", _tool_stream),
    Question("IS501", "cut-off-calls", "Calls that were cut off are taken back.", _cut_off_calls),
    Question(
        "IS501", "context-overflow", "Too long a context is told in OpenAI's words.", _overflow
    ),
    Question("IS501", "embeddings-schema", "Embeddings have all that OpenAI's have.", _embeddings),
    Question("IS501", "embeddings-base64", "Embeddings come as base64, too.", _base64),
    Question("IS502", "openai-python", "OpenAI's client reads the answers.", openai_python),
)
