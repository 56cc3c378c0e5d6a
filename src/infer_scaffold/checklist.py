"""The checklist: the patterns that an inference service follows, as data.

check, explain, status and docs/patterns/ read it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from infer_scaffold.errors import UserError


class Severity(StrEnum):
    """The severity of a missing pattern."""

    HIGH = "High"
    MEDIUM = "Medium"
    LOW = "Low"


@dataclass(frozen=True)
class Pattern:
    """One pattern. Its code never changes: baselines and settings of teams mention it.

    `wrong` and `right` are excerpts of Python.
    """

    code: str
    title: str
    severity: Severity
    category: str
    criteria: tuple[str, ...]
    why: str
    fix: str
    wrong: str
    right: str


PATTERNS: tuple[Pattern, ...] = (
    Pattern(
        code="IS101",
        title="Lifespan context manager",
        severity=Severity.HIGH,
        category="Application lifecycle",
        criteria=(
            "FastAPI gets a lifespan",
            "What runs in the background starts before its yield",
            "After the yield, in a finally, it is stopped and models are unloaded",
        ),
        why=(
            "A process that starts things at import, or stops nothing, leaves tasks, threads and "
            "GPU memory behind at every deployment, and its tests share state that nobody made."
        ),
        fix=(
            "Write one async context manager that starts before its yield and stops after it, and "
            "pass it to FastAPI."
        ),
        wrong="""\
app = FastAPI()
model = load_model()
""",
        right="""\
@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[State]:
    registry = ModelRegistry()
    try:
        yield {"registry": registry}
    finally:
        await registry.close()


app = FastAPI(lifespan=lifespan)
""",
    ),
    Pattern(
        code="IS102",
        title="Background task cleanup",
        severity=Severity.HIGH,
        category="Application lifecycle",
        criteria=(
            "Every task is kept",
            "At shutdown it is cancelled",
            "Then it is awaited, with CancelledError suppressed",
        ),
        why=(
            "A task that nobody keeps can vanish in the middle; one that is cancelled and not "
            "awaited is still running when the loop closes, and its errors are never seen."
        ),
        fix=(
            "Keep the task, cancel it at shutdown, and await it with CancelledError suppressed; "
            "or use a TaskGroup."
        ),
        wrong="""\
asyncio.create_task(unload_idle_models())
""",
        right="""\
task = asyncio.create_task(unload_idle_models())
try:
    yield
finally:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
""",
    ),
    Pattern(
        code="IS201",
        title="Async route handlers",
        severity=Severity.HIGH,
        category="Endpoint design",
        criteria=(
            "Routes are `async def`",
            "Model work is awaited",
            "Nothing that they reach on the event loop blocks",
        ),
        why=(
            "One blocking call on the event loop stops every stream, every health check and every "
            "new request until it returns."
        ),
        fix="Give what blocks to a thread, or use a library that awaits.",
        wrong="""\
@router.post("/v1/embeddings")
async def embed(request: EmbeddingsRequest):
    return model.encode(request.input)
""",
        right="""\
@router.post("/v1/embeddings")
async def embed(request: EmbeddingsRequest):
    return await asyncio.to_thread(model.encode, request.input)
""",
    ),
    Pattern(
        code="IS202",
        title="Pydantic request and response models",
        severity=Severity.MEDIUM,
        category="Endpoint design",
        criteria=(
            "Bodies are pydantic models",
            "Fields with a few known values are Literals",
            "Fields have descriptions",
        ),
        why=(
            "What is not checked at the door fails deep inside of the model, as a 500 that tells "
            "the client nothing, and the OpenAPI document has nothing to say."
        ),
        fix="Describe each body as a model with Literal types and Field(description=...).",
        wrong="""\
async def embed(body: dict):
    texts = body["input"]
""",
        right="""\
class EmbeddingsRequest(BaseModel):
    input: str | list[str] = Field(description="One text, or many")
    encoding_format: Literal["float", "base64"] = "float"
""",
    ),
    Pattern(
        code="IS203",
        title="HTTP errors with proper status codes",
        severity=Severity.MEDIUM,
        category="Endpoint design",
        criteria=(
            "400 for bad requests, 404 for what is missing, 413 for what is too large",
            "500 for mistakes of the service alone",
            "Errors made from others keep their cause",
        ),
        why=(
            "Clients decide by the status whether to retry. A 500 for a bad request is retried "
            "for ever, and an error without its cause costs an hour of searching."
        ),
        fix="Raise HTTPException with the status that fits, `from` the error that caused it.",
        wrong="""\
try:
    page = int(text)
except ValueError:
    raise HTTPException(500, "error")
""",
        right="""\
try:
    page = int(text)
except ValueError as error:
    raise HTTPException(400, "page must be a number") from error
""",
    ),
    Pattern(
        code="IS301",
        title="Server-sent events for streaming",
        severity=Severity.HIGH,
        category="Streaming responses",
        criteria=(
            "The media type is text/event-stream",
            "Cache-Control and X-Accel-Buffering keep proxies from buffering",
        ),
        why=(
            "Without the headers nginx and its like collect the stream, and the reader gets the "
            "whole answer in one lump at the end."
        ),
        fix="Send Cache-Control: no-cache and X-Accel-Buffering: no with every event stream.",
        wrong="""\
return StreamingResponse(events(), media_type="text/event-stream")
""",
        right="""\
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
return StreamingResponse(events(), media_type="text/event-stream", headers=HEADERS)
""",
    ),
    Pattern(
        code="IS302",
        title="SSE format with JSON data",
        severity=Severity.HIGH,
        category="Streaming responses",
        criteria=(
            "An event is `data: `, JSON, and an empty line",
            "The last event is `data: [DONE]`",
            "Chunks are pydantic models",
        ),
        why=(
            "OpenAI's clients read up to `[DONE]`; without it they wait until the connection "
            "dies, and a chunk that lacks a field breaks their parser in the middle of an answer."
        ),
        fix="Write each chunk with model_dump_json(), and end with `data: [DONE]`.",
        wrong="""\
yield json.dumps({"token": token})
""",
        right="""\
yield f"data: {chunk.model_dump_json()}\\n\\n"
...
yield "data: [DONE]\\n\\n"
""",
    ),
    Pattern(
        code="IS303",
        title="Event loop yield for real-time streaming",
        severity=Severity.HIGH,
        category="Streaming responses",
        criteria=("The loop gets a turn after each event",),
        why=(
            "A generator that always has the next token never gives the loop back: nothing is "
            "sent, other requests wait, and a client that left is not noticed."
        ),
        fix="Await asyncio.sleep(0) after each event.",
        wrong="""\
async for chunk in chunks:
    yield event(chunk)
""",
        right="""\
async for chunk in chunks:
    yield event(chunk)
    await asyncio.sleep(0)
""",
    ),
    Pattern(
        code="IS401",
        title="File size validated before processing",
        severity=Severity.HIGH,
        category="File uploads",
        criteria=(
            "There is a limit",
            "What exceeds it is a 413",
            "The limit holds before the bytes are in memory",
        ),
        why=(
            "One large upload, or ten at once, and the process is killed for its memory, with "
            "everything that it was answering."
        ),
        fix="Count the bytes while they arrive, and answer 413 when they exceed the limit.",
        wrong="""\
content = await file.read()
store(content)
""",
        right="""\
size = 0
while chunk := await file.read(65536):
    size += len(chunk)
    if size > MAX_UPLOAD_SIZE:
        raise HTTPException(413, "The file is too large")
    await store.write(chunk)
""",
    ),
    Pattern(
        code="IS402",
        title="Form parameters for file metadata",
        severity=Severity.LOW,
        category="File uploads",
        criteria=(
            "Options of an upload are Form fields",
            "They have defaults",
            "They are documented",
        ),
        why=(
            "A multipart body carries its options in fields of the same body: clients that send "
            "them there find them ignored when they are read from the query."
        ),
        fix="Declare the options with Form().",
        wrong="""\
async def upload(file: UploadFile, purpose: str = "assistants"): ...
""",
        right="""\
async def upload(file: UploadFile, purpose: Annotated[str, Form()] = "assistants"): ...
""",
    ),
    Pattern(
        code="IS501",
        title="OpenAI response schema",
        severity=Severity.HIGH,
        category="OpenAI API compatibility",
        criteria=("Answers have object, id, created and model",),
        why=(
            "Typed clients read these fields without asking; where one is missing they fail on an "
            "answer that was right."
        ),
        fix="Build answers from the types of the openai package.",
        wrong="""\
return {"text": text}
""",
        right="""\
return ChatCompletion(
    id=f"chatcmpl-{uuid4().hex}",
    object="chat.completion",
    created=int(time.time()),
    model=name,
    choices=choices,
)
""",
    ),
    Pattern(
        code="IS502",
        title="OpenAI types from the SDK",
        severity=Severity.MEDIUM,
        category="OpenAI API compatibility",
        criteria=(
            "Types are imported from the openai package",
            "Chunks of a stream are made of them",
        ),
        why=(
            "Types that are written again drift from the ones that clients parse with; the "
            "package's own cannot."
        ),
        fix="Import them from openai.types.",
        wrong="""\
class ChatCompletion(BaseModel): ...
""",
        right="""\
from openai.types.chat import ChatCompletion, ChatCompletionChunk
""",
    ),
    Pattern(
        code="IS601",
        title="APIRouter for endpoint groups",
        severity=Severity.LOW,
        category="Router organization",
        criteria=(
            "Related endpoints are a module with an APIRouter",
            "The application includes it",
        ),
        why="A module with thirty routes is where every change meets every other one.",
        fix="Move each group into a module of its own with an APIRouter, and include those.",
        wrong="""\
@app.post("/v1/embeddings")
async def embed(request: EmbeddingsRequest): ...
""",
        right="""\
router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings")
async def embed(request: EmbeddingsRequest): ...


app.include_router(embeddings.router)
""",
    ),
    Pattern(
        code="IS701",
        title="Health check endpoint",
        severity=Severity.MEDIUM,
        category="Health and monitoring",
        criteria=(
            "It says which device is used",
            "It lists the loaded models",
            "It has a timestamp and the process id",
        ),
        why=(
            "A health check that always says OK hides the service whose worker died, whose GPU is "
            "gone, or that was restarted a minute ago."
        ),
        fix="Return status, device, loaded models, time and process id.",
        wrong="""\
@router.get("/health")
async def health():
    return {"status": "ok"}
""",
        right="""\
@router.get("/health")
async def health(registry: RegistryDep) -> Health:
    return Health(
        device=str(registry.device),
        models=registry.loaded(),
        timestamp=time.time(),
        pid=os.getpid(),
    )
""",
    ),
    Pattern(
        code="IS702",
        title="List of loaded models",
        severity=Severity.LOW,
        category="Health and monitoring",
        criteria=(
            "GET /v1/models is OpenAI's list",
            "Each model has id, type, created and owner",
        ),
        why="Clients and gateways ask it which names they may use; without it people guess.",
        fix="Add GET /v1/models.",
        wrong="""\
@router.get("/models")
async def models():
    return list(MODELS)
""",
        right="""\
@router.get("/v1/models")
async def models() -> ModelList:
    return ModelList(object="list", data=[...])
""",
    ),
)

BY_CODE = {pattern.code: pattern for pattern in PATTERNS}


def to_markdown(pattern: Pattern, asked: Iterable[str] = ()) -> str:
    """Return the page on a pattern, which docs/patterns/ holds and `explain` prints.

    `asked` is what a running service is asked about it.
    """
    criteria = "\n".join(f"- {criterion}." for criterion in pattern.criteria)
    questions = "".join(f"- {each}\n" for each in asked)
    live = f"\n## What a running service is asked\n\n{questions}" if questions else ""
    return f"""\
# {pattern.code}: {pattern.title}

{pattern.category}. Severity: {pattern.severity}.

## What it asks for

{criteria}

## Why

{pattern.why}

## Wrong

```python
{pattern.wrong}```

## Right

```python
{pattern.right}```

{pattern.fix}
{live}"""


def matching(
    select: Iterable[str],
    ignore: Iterable[str],
    *,
    names: tuple[str, str] = ("--select", "--ignore"),
) -> frozenset[str]:
    """Return the codes that begin with one of `select` and with none of `ignore`.

    Without `select` all codes are taken. Raises UserError for one that no code begins with;
    `names` are those of the two for its message.
    """
    wanted = _prefixes(names[0], select) or ("",)
    unwanted = _prefixes(names[1], ignore)
    return frozenset(
        code for code in BY_CODE if code.startswith(wanted) and not code.startswith(unwanted)
    )


def _prefixes(name: str, given: Iterable[str]) -> tuple[str, ...]:
    prefixes = tuple(each.strip().upper() for each in given if each.strip())
    for prefix in prefixes:
        if not any(code.startswith(prefix) for code in BY_CODE):
            raise UserError(f"{name}: there is no {prefix!r}; choose from {', '.join(BY_CODE)}.")
    return prefixes
