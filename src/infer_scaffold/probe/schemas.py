"""Schemas: answers that OpenAI's types and OpenAI's client accept."""

import base64
import math
import struct
from typing import Any

from pydantic import BaseModel, ValidationError

from infer_scaffold.probe.answers import Question
from infer_scaffold.probe.outcomes import Skip, Unmet
from infer_scaffold.probe.sse import from_json
from infer_scaffold.probe.target import Reply, Stream, Target, short

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


_REQUIRED: dict[str, Any] = {"tools": [_TOOL], "tool_choice": "required", "temperature": 0}
_CALLED = (128, 2048)  # tokens until a call is whole, and where there are long thoughts before it


async def _tool_stream(target: Target) -> None:
    await target.whole_sample()
    for tokens in _CALLED:
        stream = await target.stream(target.chat(max_tokens=tokens, **_REQUIRED))
        if stream.reply.status in (400, 422, 501):
            raise Skip(f"the service or its model calls no tools: {stream.reply.shown}")
        stream.reply.require(200)
        calls = _pieces(stream)
        is_cut = any(choice.get("finish_reason") == "length" for choice in stream.choices)
        if not is_cut:
            _require_whole_calls(stream, calls)
        if calls or not is_cut:
            return
    raise Skip("the answer is cut off before there is a call")


def _pieces(stream: Stream) -> dict[int, list[dict[str, Any]]]:
    """The pieces of the calls by index. Raises Unmet for two of one call in a chunk."""
    calls: dict[int, list[dict[str, Any]]] = {}
    for choice in stream.choices:
        pieces = (choice.get("delta") or {}).get("tool_calls") or []
        places = [piece.get("index") for piece in pieces]
        if len(set(places)) < len(places):
            wanted = "one entry an index in each chunk: clients take two for two calls"
            raise stream.unmet(f"a chunk with the indices {places}", wanted)
        for piece in pieces:
            calls.setdefault(piece.get("index"), []).append(piece)
    return calls


def _require_whole_calls(stream: Stream, calls: dict[int, list[dict[str, Any]]]) -> None:
    """Raise Unmet if the pieces of the calls, by index, do not join to calls."""
    if not calls:
        raise stream.unmet("an end without a call", "a call: tool_choice is required")
    for pieces in calls.values():
        functions = [piece.get("function") or {} for piece in pieces]
        if not pieces[0].get("id") or not functions[0].get("name"):
            wanted = "the id and the name of a call in its first piece"
            raise stream.unmet(f"first {short(str(pieces[0]))}", wanted)
        arguments = "".join(function.get("arguments") or "" for function in functions)
        if not _is_object(arguments):
            got = f"arguments that join to {short(arguments)!r}"
            raise stream.unmet(got, "arguments that join to a JSON object")


def _is_object(text: str) -> bool:
    try:
        return isinstance(from_json(text), dict)
    except ValueError:
        return False


async def _tool_required(target: Target) -> None:
    wanted = "a call: tool_choice is required, and clients read the first one"
    for tokens in _CALLED:
        body = target.chat(max_tokens=tokens, **_REQUIRED)
        reply = await target.send("POST", target.chat_path, body)
        if reply.status in (400, 422, 501):
            raise Skip(f"the service or its model calls no tools: {reply.shown}")
        choice = reply.require(200).json()["choices"][0]
        calls = choice["message"].get("tool_calls")
        if calls:
            whole = choice.get("finish_reason") != "length"
            if whole and not all(_is_object(call["function"]["arguments"]) for call in calls):
                raise reply.unmet("a call whose arguments are a JSON object")
            return
        text = (choice["message"].get("content") or "").lstrip()
        if choice.get("finish_reason") != "length" or (text and not text.startswith("<think>")):
            raise reply.unmet(wanted)
    raise Skip("the answer is cut off before there is a call")


_THOUGHTS = ("reasoning_content", "reasoning")


async def _reasoning(target: Target) -> None:
    stream = await target.whole_sample()
    body = target.chat(temperature=0)
    reply = (await target.send("POST", target.chat_path, body)).require(200)
    message = reply.json()["choices"][0]["message"]
    deltas = [choice.get("delta") or {} for choice in stream.choices]
    whole = {name for name in _THOUGHTS if message.get(name)}
    streamed = {name for name in _THOUGHTS if any(delta.get(name) for delta in deltas)}
    if not whole | streamed:
        raise Skip("the model does not think, or the service does not tell its thoughts apart")
    if whole != streamed:
        got = f"{' and '.join(sorted(streamed)) or 'no thoughts'} in the deltas"
        wanted = f"{' and '.join(sorted(whole)) or 'none'}, as in the message of a whole answer"
        raise stream.unmet(got, wanted)
    if any("<think>" in str(each.get("content")) for each in (message, *deltas)):
        raise stream.unmet("<think> in the text as well", "thoughts apart from the text")


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


# By which messages two clients that many build on tell that a context is too long, in lower case:
# litellm 1.110 (exception_mapping_utils.py) and langchain-openai 1.7 (chat_models/base.py).
_OVERFLOWS = {
    "LiteLLM": (
        "exceed context limit",
        "this model's maximum context length is",
        "requested token count exceeds the model's maximum context length",
        "string too long. expected a string with maximum length",
        "model's maximum context limit",
        "is longer than the model's context length",
        "input tokens exceed the configured limit",
        "`inputs` tokens + `max_new_tokens` must be",
        "exceeds the available context size",
        "exceeds the maximum number of tokens allowed",
        "prompt is too long",
        "current length is ... while limit is",
        "maximum input length is ... tokens",
        "input too long: ... input tokens, limit is",
    ),
    "LangChain": (
        "context_length_exceeded",
        "input tokens exceed the configured limit",
        "prompt is too long",
        "contextwindowexceedederror",
    ),
}


async def _overflow(target: Target) -> None:
    body = target.chat(max_tokens=1) | {
        "messages": [{"role": "user", "content": "word " * 200_000}]
    }
    reply = await target.send("POST", target.chat_path, body)
    if reply.status in (200, 413):
        raise Skip("a million characters are not too long, or too long for the body's limit")
    error = reply.require(400).json().get("error")
    error = error if isinstance(error, dict) else {}
    said = str(error.get("message"))
    readers = [name for name, rules in _OVERFLOWS.items() if not _says(said, rules)]
    if readers or error.get("code") != "context_length_exceeded":
        raise reply.unmet(
            '"This model\'s maximum context length is N tokens." and context_length_exceeded, in '
            "the message and as the code: "
            + (f"{' and '.join(readers)} tell it by the message" if readers else "clients read it")
        )


def _says(message: str, rules: tuple[str, ...]) -> bool:
    """Return whether a message has all parts of one of the rules."""
    text = message.lower()
    return any(all(part in text for part in rule.split(" ... ")) for rule in rules)


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
    Question("IS501", "tool-stream", "Pieces of tool calls join to whole calls.", _tool_stream),
    Question("IS501", "tool-required", "A required tool call is made.", _tool_required),
    Question("IS501", "reasoning", "Thoughts come in streams as in whole answers.", _reasoning),
    Question("IS501", "cut-off-calls", "Calls that were cut off are taken back.", _cut_off_calls),
    Question(
        "IS501", "context-overflow", "Too long a context is told in OpenAI's words.", _overflow
    ),
    Question("IS501", "embeddings-schema", "Embeddings have all that OpenAI's have.", _embeddings),
    Question("IS501", "embeddings-base64", "Embeddings come as base64, too.", _base64),
    Question("IS502", "openai-python", "OpenAI's client reads the answers.", openai_python),
)
