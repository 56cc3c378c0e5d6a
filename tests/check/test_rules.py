"""The criteria of the checklist, each met and not met, in code as people write it.

A case is a service of one or more files. `# !` marks the lines that the rule has to report, and a
line without it must not be reported.
"""

import re
from pathlib import Path

import pytest

from infer_scaffold.check.checker import check
from infer_scaffold.check.config import Config
from infer_scaffold.check.judgement import Profile

APP = """\
from fastapi import FastAPI, APIRouter, HTTPException, UploadFile, File, Form, Depends, status
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
import asyncio, contextlib

app = FastAPI()
"""
# Where findings about the service as a whole are.
MARKED = APP.replace("FastAPI()", "FastAPI()  # !")
CASES: list[tuple[str, str, str]] = []


def case(title: str, verdict: str, source: str) -> None:
    """`title` begins with the code; `verdict` may name the profile, which else is strict."""
    CASES.append((title, verdict, source))


case(
    "IS101 none",
    "fail",
    """
from fastapi import FastAPI
app = FastAPI(title="x")  # !
""",
)
case(
    "IS101 another name for the class",
    "fail",
    """
import fastapi as fa
def build():
    return fa.FastAPI()  # !
""",
)
case(
    "IS101 the old events",
    "partial",
    """
from fastapi import FastAPI
app = FastAPI()  # !
@app.on_event("startup")
async def load(): app.state.model = 1
""",
)
case(
    "IS101 nothing is stopped",
    "partial",
    """
from contextlib import asynccontextmanager
from fastapi import FastAPI
@asynccontextmanager
async def lifespan(app):  # !
    app.state.model = object()
    yield
app = FastAPI(lifespan=lifespan)
""",
)
case(
    "IS101 a log line stops nothing",
    "partial",
    """
import logging
from contextlib import asynccontextmanager
from fastapi import FastAPI
@asynccontextmanager
async def lifespan(app):  # !
    try:
        yield
    finally:
        logging.getLogger().info("bye")
app = FastAPI(lifespan=lifespan)
""",
)
case(
    "IS101 in a factory, the lifespan in another module",
    "pass",
    """
# file: app/main.py
from fastapi import FastAPI
from .life import lifespan as serve
def create_app():
    return FastAPI(lifespan=serve)
# file: app/life.py
from contextlib import asynccontextmanager
@asynccontextmanager
async def lifespan(app):
    model = object()
    try:
        yield {"model": model}
    finally:
        await model.unload()
""",
)
case(
    "IS101 an exit stack",
    "pass",
    """
from contextlib import AsyncExitStack, asynccontextmanager
from fastapi import FastAPI
@asynccontextmanager
async def lifespan(app):
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.state.pool)
        yield
app = FastAPI(lifespan=lifespan)
""",
)
case(
    "IS102 a task that nobody keeps",
    "fail",
    """
import asyncio
from fastapi import FastAPI
app = FastAPI()
@app.get("/x")
async def x():
    asyncio.create_task(work())  # !
async def work(): ...
""",
)
case(
    "IS102 cancelled and not awaited",
    "fail",
    """
import asyncio
from contextlib import asynccontextmanager
from fastapi import FastAPI
@asynccontextmanager
async def lifespan(app):
    task = asyncio.create_task(work())  # !
    yield
    task.cancel()
async def work(): ...
app = FastAPI(lifespan=lifespan)
""",
)
for name, end in {
    "suppress": "with contextlib.suppress(asyncio.CancelledError):\n        await task",
    "try": "try:\n        await task\n    except asyncio.CancelledError:\n        pass",
    "gather": "await asyncio.gather(task, return_exceptions=True)",
    "wait": "await asyncio.wait([task])",
}.items():
    case(
        f"IS102 cancelled and awaited with {name}",
        "pass",
        f"""
import asyncio, contextlib
from fastapi import FastAPI
@contextlib.asynccontextmanager
async def lifespan(app):
    task = asyncio.create_task(work())
    yield
    task.cancel()
    {end}
async def work(): ...
app = FastAPI(lifespan=lifespan)
""",
    )
case(
    "IS102 a task group",
    "n/a",
    """
import asyncio, contextlib
from fastapi import FastAPI
@contextlib.asynccontextmanager
async def lifespan(app):
    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        yield
async def work(): ...
app = FastAPI(lifespan=lifespan)
""",
)
case(
    "IS102 a set of tasks",
    "pass",
    """
import asyncio
from fastapi import FastAPI
app = FastAPI()
tasks: set[asyncio.Task] = set()
def start():
    tasks.add(asyncio.create_task(work()))
async def stop():
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
async def work(): ...
""",
)
case(
    "IS102 appended, and waited for with the others",
    "pass",
    """
import asyncio
from fastapi import FastAPI
app = FastAPI()
@app.post("/x")
async def x():
    tasks = []
    for number in range(3):
        task = asyncio.create_task(work(number))
        tasks.append(task)
    await asyncio.wait([*tasks])
async def work(number): ...
""",
)
for call in (
    "time.sleep(1)",
    "open('x').read()",
    "requests.post('http://x', json={})",
    "subprocess.run(['ls'])",
    "model.generate(**inputs)",
    "tokenizer.encode('text')",
    "AutoModel.from_pretrained('gpt2')",
    "self_model.encode(['a'])",
    "torch.load('x.pt')",
    "Path('x').read_bytes()",
    "session.run(None, {})",
    "httpx.get('http://x')",
    "os.system('ls')",
    "pipe('text')",
    "torch.cuda.synchronize()",
    "concurrent.futures.wait([])",
):
    imports = """
import concurrent.futures, os, subprocess, time
import httpx, onnxruntime, requests, torch, transformers
from pathlib import Path
from fastapi import FastAPI
from transformers import AutoModel, pipeline
app = FastAPI()
model = tokenizer = self_model = object()
pipe = pipeline("text-generation")
session = onnxruntime.InferenceSession("x.onnx")
inputs = {}
"""
    case(
        f"IS201 {call}",
        "fail",
        f'{imports}@app.post("/x")\nasync def x():\n    return {call}  # !\n',
    )
    function = call.partition("(")[0].removesuffix(".read()")
    case(
        f"IS201 {call} in a plain route, which has a thread",
        "default: pass",
        f'{imports}@app.post("/x")\ndef x():\n    return {call}\n',
    )
    case(
        f"IS201 {call} in a thread",
        "pass",
        f'{imports}import asyncio\n@app.post("/x")\nasync def x():\n'
        f"    return await asyncio.to_thread(lambda: {call})\n",
    )
    case(
        f"IS201 {call} in an executor",
        "pass",
        f'{imports}import asyncio\n@app.post("/x")\nasync def x():\n'
        "    loop = asyncio.get_running_loop()\n"
        f"    return await loop.run_in_executor(None, {function})\n",
    )
case(
    "IS201 two hops, over modules",
    "fail",
    """
# file: app/main.py
from fastapi import FastAPI
from app.service import answer
app = FastAPI()
@app.post("/x")
async def x():
    return await answer()
# file: app/service.py
from .disk import load
async def answer():
    return load()
# file: app/disk.py
import time
def load():
    time.sleep(1)  # !
""",
)
case(
    "IS201 two hops, and a thread between them",
    "pass",
    """
# file: app/main.py
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from app.disk import load
app = FastAPI()
@app.post("/x")
async def x():
    return await answer()
async def answer():
    return await run_in_threadpool(load)
# file: app/disk.py
import time
def load():
    time.sleep(1)
""",
)
case(
    "IS201 a service that is not at the top",
    "fail",
    """
# file: backend/app/main.py
from fastapi import FastAPI
from app.disk import load
app = FastAPI()
@app.post("/x")
async def x():
    return load()
# file: backend/app/disk.py
import time
def load():
    time.sleep(1)  # !
""",
)
case(
    "IS201 in a dependency, and in a stream",
    "fail",
    """
import time
from typing import Annotated
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
app = FastAPI()
async def user():
    time.sleep(1)  # !
@app.post("/x")
async def x(user: Annotated[str, Depends(user)]):
    async def events():
        time.sleep(2)  # !
        yield b""
    return StreamingResponse(events())
""",
)
for prefix, verdict, body in (
    ("", "partial", "return request.app.state.model  # !"),
    ("", "partial", "model: object = request.state.model  # !\n    return model"),
    ("", "default: pass", "return request.app.state.model"),
    ("async ", "pass", "return request.app.state.model"),
    ("", "pass", "return connect(request.app.state.url)"),
    ("", "pass", "with request.app.state.lock:\n        return 1"),
    ("", "pass", "for row in request.app.state.rows:\n        yield row"),
):
    mark = "  # !" if "# !" in body else ""
    case(
        f"IS201 a dependency that reads: {prefix}{verdict} {body}",
        verdict,
        f"""
from typing import Annotated
from fastapi import Depends, FastAPI, Request
from database import connect
app = FastAPI()
{prefix}def get_model(request: Request):{mark}
    {body.replace("  # !", "")}
@app.post("/x")
async def x(model: Annotated[object, Depends(get_model)]):
    return 1
@app.post("/y")
async def y(model: Annotated[object, Depends(get_model)]):
    return 1
""",
    )
case(
    "IS201 a generator without async has a thread",
    "pass",
    """
import time
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
app = FastAPI()
def events():
    time.sleep(2)
    yield b""
@app.post("/x")
async def x():
    return StreamingResponse(events())
""",
)
case(
    "IS201 a method of the object that the route awaits",
    "fail",
    """
import time
from fastapi import FastAPI
app = FastAPI()
class Engine:
    async def run(self):
        return self.compute()
    def compute(self):
        time.sleep(1)  # !
engine = Engine()
@app.post("/x")
async def x():
    return await engine.run()
""",
)
case(
    "IS201 async libraries",
    "pass",
    """
import asyncio, httpx, aiofiles
from fastapi import FastAPI
app = FastAPI()
@app.post("/x")
async def x():
    await asyncio.sleep(1)
    async with aiofiles.open("x") as file:
        await file.read()
    async with httpx.AsyncClient() as client:
        await client.get("http://x")
    model_name = "größe".encode("utf-8")
    return models(tokenizer).names(model_name).decode("utf-8") + model_name.decode("latin-1")
""",
)
case(
    "IS201 a plain route takes a thread",
    "partial",
    """
from fastapi import FastAPI
app = FastAPI()
@app.post("/x")
def x():  # !
    return 1
""",
)
case(
    "IS202 taken as it comes",
    "fail",
    APP + '@app.post("/x")\nasync def x(body: dict):  # !\n    return body\n',
)
case(
    "IS202 read from the request",
    "fail",
    """
from fastapi import FastAPI, Request
app = FastAPI()
@app.post("/x")
async def x(request: Request):  # !
    return await request.json()
""",
)
case(
    "IS202 without Literal and description",
    "partial",
    APP + "class Body(BaseModel):  # !\n    model: str\n"
    '@app.post("/x")\nasync def x(body: Body):\n    return body\n',
)
case(
    "IS202 all of it, by Annotated and inheritance, from another module",
    "pass",
    """
# file: app/main.py
from typing import Annotated
from fastapi import Body, FastAPI
from . import schemas
app = FastAPI()
@app.post("/x")
async def x(body: Annotated[schemas.EmbeddingsRequest, Body()]):
    return body
# file: app/schemas/__init__.py
from .embeddings import EmbeddingsRequest
# file: app/schemas/embeddings.py
from typing import Literal
from pydantic import Field
from .base import Base
class EmbeddingsRequest(Base):
    encoding_format: Literal["float", "base64"] = "float"
    model: str = Field(description="Which model.")
# file: app/schemas/base.py
import pydantic
class Base(pydantic.BaseModel):
    pass
""",
)
case(
    "IS203 no status of 4xx",
    "fail",
    MARKED + '@app.get("/x")\nasync def x():\n    raise HTTPException(status_code=500)\n',
)
case(
    "IS203 one status for everything",
    "partial",
    MARKED + '@app.get("/x/{id}")\nasync def x(id):\n    raise HTTPException(400)\n',
)
case(
    "IS203 a cause that is lost",
    "partial",
    APP
    + """
@app.get("/x/{id}")
async def x(id):
    try:
        return int(id)
    except ValueError as error:
        raise HTTPException(status_code=400, detail=str(error))  # !
    raise HTTPException(status.HTTP_404_NOT_FOUND)
""",
)
case(
    "IS203 statuses and causes",
    "pass",
    APP
    + """
@app.get("/x/{id}")
async def x(id):
    try:
        return int(id)
    except ValueError as error:
        raise HTTPException(status_code=400, detail=str(error)) from error
    raise HTTPException(status.HTTP_404_NOT_FOUND)
""",
)
STREAM = """
async def events():
    async for token in tokens():
        yield f"data: {{token.model_dump_json()}}\\n\\n"
        await asyncio.sleep(0)
    yield "data: [DONE]\\n\\n"
@app.post("/v1/chat/completions")
async def chat():
    return {response}
"""
HEADERS = '{"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}'
case(
    "IS301 no headers",
    "fail",
    APP
    + STREAM.format(response='StreamingResponse(events(), media_type="text/event-stream")  # !'),
)
case(
    "IS301 one of two headers",
    "fail",
    APP
    + STREAM.format(
        response='StreamingResponse(events(), media_type="text/event-stream", headers={  # !\n'
        '        "Cache-Control": "no-cache"})'
    ),
)
case(
    "IS301 no media type",
    "fail",
    APP
    + """
def events():
    yield "data: {}\\n\\n"  # !
@app.post("/v1/chat/completions")
async def chat():
    return StreamingResponse(events())
""",
)
for name, response in {
    "given": f'StreamingResponse(events(), media_type="text/event-stream", headers={HEADERS})',
    "by position": f'StreamingResponse(events(), 200, {HEADERS}, "text/event-stream")',
    "from sse-starlette": "EventSourceResponse(events())",
    "with a charset": "StreamingResponse(events(), "
    f'media_type="text/event-stream; charset=utf-8", headers={HEADERS})',
    "set later": "streamed()",
}.items():
    case(
        f"IS301 headers {name}",
        "pass",
        "from sse_starlette.sse import EventSourceResponse\n"
        + APP
        + STREAM.format(response=response)
        + (
            "def streamed():\n"
            '    response = StreamingResponse(events(), media_type="text/event-stream")\n'
            '    response.headers["Cache-Control"] = "no-cache"\n'
            '    response.headers["X-Accel-Buffering"] = "no"\n'
            "    return response\n"
            if name == "set later"
            else ""
        ),
    )
case(
    "IS301 a helper and its constants in another module",
    "pass",
    """
# file: app/main.py
from fastapi import FastAPI
from app.sse import stream
app = FastAPI()
@app.post("/v1/chat/completions")
async def chat():
    return stream(x async for x in y())
# file: app/sse.py
from starlette.responses import StreamingResponse as Streaming
EVENT_STREAM = "text/event-stream"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
def stream(events):
    return Streaming(events, media_type=EVENT_STREAM, headers=HEADERS)
""",
)
case(
    "IS301 a class of one's own",
    "pass",
    """
from fastapi.responses import StreamingResponse
from fastapi import FastAPI
app = FastAPI()
class EventStream(StreamingResponse):
    media_type = "text/event-stream"
    def __init__(self, content):
        super().__init__(content, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
@app.post("/v1/chat/completions")
async def chat():
    return EventStream(x async for x in y())
""",
)
case(
    "IS302 no end, no frame, no model",
    "fail",
    APP
    + """
async def events():
    yield "hello"
@app.post("/v1/chat/completions")
async def chat():
    return StreamingResponse(events(), media_type="text/event-stream")  # !
""",
)
case(
    "IS302 chunks are dictionaries",
    "partial",
    APP
    + """
import json
async def events():
    yield f"data: {json.dumps({})}\\n\\n"
    yield "data: [DONE]\\n\\n"
@app.post("/v1/chat/completions")
async def chat():
    return StreamingResponse(events(), media_type="text/event-stream")  # !
""",
)
case(
    "IS302 chunks are dictionaries, which the intent allows",
    "default: pass",
    APP
    + """
import json
async def events():
    yield f"data: {json.dumps({})}\\n\\n"
    yield "data: [DONE]\\n\\n"
@app.post("/v1/chat/completions")
async def chat():
    return StreamingResponse(events(), media_type="text/event-stream")
""",
)
case(
    "IS302 all of it",
    "pass",
    APP + STREAM.format(response='StreamingResponse(events(), media_type="text/event-stream")'),
)
case(
    "IS303 no turn",
    "fail",
    APP
    + STREAM.replace("        await asyncio.sleep(0)\n", "").format(
        response='StreamingResponse(events(), media_type="text/event-stream")  # !'
    ),
)
for turn in ("await asyncio.sleep(0)", "await anyio.lowlevel.checkpoint()", "await sleep(0.001)"):
    case(
        f"IS303 {turn}",
        "pass",
        "import anyio.lowlevel\nfrom asyncio import sleep\n"
        + APP
        + STREAM.replace("await asyncio.sleep(0)", turn).format(
            response='StreamingResponse(events(), media_type="text/event-stream")'
        ),
    )
case(
    "IS303 a pause elsewhere is no turn",
    "fail",
    APP
    + """
async def poll():
    while True:
        await asyncio.sleep(5)
async def events():
    yield b"data: {}\\n\\n"
@app.post("/v1/chat/completions")
async def chat():
    return StreamingResponse(events(), media_type="text/event-stream")  # !
""",
)
case(
    "IS401 read whole",
    "fail",
    APP
    + """
@app.post("/v1/files")
async def upload(file: UploadFile):
    data = await file.read()  # !
""",
)
case(
    "IS401 a limit on something else",
    "fail",
    APP
    + """
@app.post("/v1/files")
async def upload(file: UploadFile = File(...)):
    data = await file.read()  # !
@app.post("/v1/chat/completions")
async def chat(max_tokens: int):
    if max_tokens > 4096:
        raise HTTPException(400)
""",
)
case(
    "IS401 too large is a 400",
    "fail",
    APP
    + """
@app.post("/v1/files")
async def upload(file: UploadFile):
    data = await file.read()  # !
    if len(data) > 1000:
        raise HTTPException(status_code=400)
""",
)
case(
    "IS401 the letter: read, compared, 413",
    "pass",
    APP
    + """
LIMIT = 1000
@app.post("/v1/files")
async def upload(file: UploadFile):
    data = await file.read()
    if len(data) > LIMIT:
        raise HTTPException(status_code=413, detail="too large")
""",
)
case(
    "IS401 in chunks",
    "pass",
    APP
    + """
async def save(file):
    received = 0
    while chunk := await file.read(65536):
        received += len(chunk)
        if received > 1000:
            raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE)
@app.post("/v1/files")
async def upload(file: UploadFile):
    await save(file)
""",
)
case(
    "IS401 by FastAPI itself",
    "pass",
    APP.replace("FastAPI()", "FastAPI(max_body_size=1000)")
    + """
@app.post("/v1/files")
async def upload(file: UploadFile):
    data = await file.read()
""",
)
case(
    "IS401 by a middleware",
    "pass",
    """
# file: main.py
from fastapi import FastAPI, UploadFile
from limits import LimitBody
app = FastAPI()
app.add_middleware(LimitBody, limit=1000)
@app.post("/v1/files")
async def upload(file: UploadFile):
    data = await file.read()
# file: limits.py
from starlette.responses import JSONResponse
class LimitBody:
    async def __call__(self, scope, receive, send):
        if int(dict(scope["headers"]).get(b"content-length", 0)) > self.limit:
            await JSONResponse({}, status_code=413)(scope, receive, send)
""",
)
case(
    "IS402 as a query",
    "fail",
    APP
    + """
@app.post("/v1/files")
async def upload(file: UploadFile, purpose: str = "assistants"):  # !
    ...
""",
)
for name, parameter in {
    "default": 'purpose: str = Form("assistants")',
    "Annotated": 'purpose: Annotated[str, Form()] = "assistants"',
    "dependency": "options: Annotated[str, Depends(options)]",
}.items():
    case(
        f"IS402 with Form as {name}",
        "pass",
        "from typing import Annotated\n"
        + APP
        + "def options(purpose: str = Form('assistants')): return purpose\n"
        f'@app.post("/v1/files")\nasync def upload(file: UploadFile, {parameter}):\n'
        '    """purpose: what it is for."""\n',
    )
case(
    "IS501 half of the fields",
    "fail",
    APP + '@app.post("/v1/embeddings")\nasync def x():  # !\n    return {"data": []}\n',
)
case(
    "IS501 all of them",
    "pass",
    APP
    + """
@app.post("/v1/embeddings")
async def x():
    return {"object": "list", "id": "1", "created": 1, "model": "m", "data": []}
""",
)
case(
    "IS502 dictionaries",
    "fail",
    APP + '@app.post("/v1/embeddings")\nasync def x():  # !\n    return {"data": []}\n',
)
case(
    "IS502 the package, in a docstring alone",
    "fail",
    APP
    + '@app.post("/v1/embeddings")\nasync def x():  # !\n'
    + '    """Like\n\n    from openai.types import CreateEmbeddingResponse\n    """\n',
)
case(
    "IS502 the client, not the types",
    "fail",
    "from openai import OpenAI\n"
    + APP
    + '@app.post("/v1/embeddings")\nasync def x():  # !\n    return {"data": []}\n',
)
for statement, name in {
    "from openai.types import CreateEmbeddingResponse": "CreateEmbeddingResponse",
    "import openai.types as ot": "ot.CreateEmbeddingResponse",
    "from openai import types": "types.CreateEmbeddingResponse",
}.items():
    case(
        f"IS502 {statement}",
        "pass",
        f'{statement}\n{APP}@app.post("/v1/embeddings")\nasync def x() -> {name}: ...\n',
    )
    case(
        f"IS502 {statement}, which the route does not use",
        "fail",
        f'{statement}\n{APP}@app.post("/v1/embeddings")\nasync def x(): ...  # !\n',
    )
case(
    "IS601 all on the application",
    "fail",
    MARKED + '@app.get("/x")\nasync def x(): ...\n@app.get("/y")\nasync def y(): ...\n',
)
case(
    "IS601 half on the application",
    "partial",
    MARKED
    + """
router = APIRouter()
app.include_router(router)
@app.get("/x")
async def x(): ...
@app.get("/y")
async def y(): ...
@router.get("/z")
async def z(): ...
""",
)
case(
    "IS601 in a factory",
    "pass",
    """
# file: app/main.py
from fastapi import FastAPI
from .routers import chat, health
def create_app():
    app = FastAPI()
    for module in (chat, health):
        app.include_router(module.router, prefix="/v1")
    return app
# file: app/routers/chat.py
from fastapi import APIRouter
router = APIRouter(prefix="/chat")
@router.post("/completions")
async def completions(): ...
# file: app/routers/health.py
import fastapi
router = fastapi.APIRouter()
@router.get("/health")
async def health(): ...
""",
)
case(
    "IS601 on an application that a function is given",
    "fail",
    """
from fastapi import FastAPI
def register_routes(server):
    @server.get("/x")
    async def x(): ...
def create():
    server = FastAPI()  # !
    register_routes(server)
    return server
""",
)
case("IS701 none", "fail", MARKED + '@app.get("/x")\nasync def x(): ...\n')
case(
    "IS701 that says nothing",
    "partial",
    APP + '@app.get("/health")\nasync def health():  # !\n    return {"status": "ok"}\n',
)
case(
    "IS701 in a helper and a model",
    "pass",
    """
# file: main.py
from fastapi import FastAPI
from state import describe
PREFIX = ""
app = FastAPI()
@app.get(f"{PREFIX}/healthz")
async def healthz():
    return describe()
# file: state.py
import os, time
from pydantic import BaseModel
class State(BaseModel):
    device: str
    loaded_models: list[str]
    timestamp: float
    pid: int
def describe() -> State:
    return State(device="cpu", loaded_models=[], timestamp=time.time(), pid=os.getpid())
""",
)
case(
    "IS702 none",
    "fail",
    MARKED + '@app.post("/v1/embeddings")\nasync def x(): ...\n',
)
case(
    "IS702 another form",
    "partial",
    APP + '@app.get("/v1/models")\nasync def models():  # !\n    return {"models": ["a"]}\n',
)
case(
    "IS702 by a prefix, and a path that is a constant",
    "pass",
    APP
    + """
MODELS = "/models"
router = APIRouter(prefix="/v1")
@router.get(MODELS)
async def models():
    return {"object": "list", "data": [
        {"id": "a", "object": "model", "created": 1, "owned_by": "us", "type": "chat"}]}
app.include_router(router)
""",
)


def write(source: str, folder: Path) -> set[tuple[str, int]]:
    """Write the files of a case; return the places that are marked."""
    parts = re.split(r"(?m)^# file: (\S+)\n", source)
    files = list(zip(parts[1::2], parts[2::2], strict=True)) or [("main.py", source)]
    marked = set()
    for name, text in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        lines = text.splitlines()
        marked |= {(name, at + 1) for at, line in enumerate(lines) if line.endswith("  # !")}
    return marked


@pytest.mark.parametrize(
    ("title", "expected", "source"), CASES, ids=[title for title, _, _ in CASES]
)
def test_rule(title: str, expected: str, source: str, tmp_path: Path) -> None:
    code = title.split()[0]
    profile, _, verdict = expected.rpartition(": ")
    marked = write(source, tmp_path)

    report = check(tmp_path, Config(Profile(profile or "strict"), frozenset({code})))

    assert report.unparsed == []
    (judgement,) = report.judgements
    found = {(finding.path.as_posix(), finding.line) for finding in judgement.findings}
    assert (judgement.verdict, found) == (verdict, marked)
