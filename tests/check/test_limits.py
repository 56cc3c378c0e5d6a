"""The limits of rules that their pages name: a limit that is gone has to leave its page.

A case has words of the page, and code that the rule judges as these words say.
"""

from pathlib import Path

import pytest

from infer_scaffold.check.checker import check
from infer_scaffold.check.config import Config
from infer_scaffold.check.judgement import Profile
from infer_scaffold.checklist import BY_CODE

HEAD = """\
import asyncio, contextlib, threading, time
import requests
from fastapi import APIRouter, FastAPI, Form, HTTPException, Request, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

app = FastAPI()
"""
STREAM = """
@app.post("/v1/chat/completions")
async def chat(body: dict):
    async def events():
        async for token in queue():
            yield "data: {}\\n\\n"
    return StreamingResponse(
        events(),
        media_type="text/event-stream",
        headers={"Cache-Control": "public", "X-Accel-Buffering": "yes"},
    )
"""
CASES: list[tuple[str, str, str, str]] = []


def limit(code: str, words: str, verdict: str, source: str) -> None:
    CASES.append((code, words, verdict, source))


limit(
    "IS101",
    "`model = load_model()` at the top of a module passes",
    "pass",
    """
model = load_model()
@contextlib.asynccontextmanager
async def lifespan(app):
    yield
    await close()
app = FastAPI(lifespan=lifespan)
""",
)
limit(
    "IS101",
    "Any statement counts",
    "pass",
    """
@contextlib.asynccontextmanager
async def lifespan(app):
    app.state.model = load_model()
    yield
    stopped = True
app = FastAPI(lifespan=lifespan)
""",
)
limit(
    "IS102",
    "that is awaited in one function covers a variable",
    "pass",
    """
async def other():
    task = asyncio.create_task(work())
    await task
@contextlib.asynccontextmanager
async def lifespan(app):
    task = asyncio.create_task(work())
    yield
""",
)
limit(
    "IS102",
    "Threads, processes",
    "n/a",
    """
@app.get("/")
async def root():
    threading.Thread(target=work).start()
""",
)
limit(
    "IS102",
    "Whether CancelledError is suppressed",
    "pass",
    """
@contextlib.asynccontextmanager
async def lifespan(app):
    task = asyncio.create_task(work())
    yield
    task.cancel()
    await task
""",
)
limit(
    "IS201",
    "middleware",
    "pass",
    """
@app.middleware("http")
async def authorize(request, call_next):
    requests.get("http://auth")
    return await call_next(request)
@app.get("/")
async def root(): return 1
""",
)
limit(
    "IS201",
    "WebSocket handlers",
    "pass",
    """
@app.websocket("/ws")
async def talk(websocket):
    time.sleep(1)
@app.get("/")
async def root(): return 1
""",
)
limit(
    "IS201",
    "background tasks",
    "pass",
    """
async def watch():
    while True: time.sleep(1)
@app.get("/")
async def root(): return 1
""",
)
limit(
    "IS201",
    "more than two functions away",
    "pass",
    """
def first(): second()
def second(): third()
def third(): requests.get("http://far")
@app.get("/")
async def root(): first()
""",
)
limit(
    "IS201",
    "`lock.acquire()`, `future.result()`, `Path.open()`, most of `os`",
    "pass",
    """
import os
from pathlib import Path
lock = threading.Lock()
@app.get("/")
async def root():
    lock.acquire()
    pool.submit(work).result()
    os.listdir(".")
    return Path("x").open()
""",
)
limit(
    "IS201",
    "Models under other names",
    "pass",
    """
@app.get("/")
async def root():
    return app.worker.generate("x")
""",
)
limit(
    "IS201",
    "Routes that are registered as bound methods",
    "pass",
    """
class API:
    def __init__(self):
        self.router = APIRouter()
        self.router.add_api_route("/slow", self.slow)
    async def slow(self): time.sleep(1)
@app.get("/")
async def root(): return 1
app.include_router(API().router)
""",
)
limit(
    "IS201",
    "`results = engine.generate(prompt)`",
    "fail",
    """
@app.post("/")
async def root(prompt: str):
    results = engine.generate(prompt)
    async def events():
        async for each in results: yield each
    return StreamingResponse(events())
""",
)
limit(
    "IS202",
    "One Literal and one description among all models",
    "pass",
    """
from typing import Literal
class Described(BaseModel):
    kind: Literal["a", "b"] = Field(description="Which kind")
class Bare(BaseModel):
    text: str
@app.post("/a")
async def a(body: Described): return 1
@app.post("/b")
async def b(body: Bare): return await Request.json()
""",
)
limit(
    "IS203",
    "Whether a status fits its error",
    "pass",
    """
@app.post("/")
async def root(body: dict):
    if body: raise HTTPException(418)
    if not body: raise HTTPException(404)
    raise HTTPException(500, "your request is wrong")
""",
)
limit(
    "IS203",
    "`HTTPStatus.NOT_FOUND`",
    "fail",
    """
from http import HTTPStatus
@app.post("/")
async def root(body: dict):
    if body: raise HTTPException(status_code=HTTPStatus.BAD_REQUEST)
    raise HTTPException(status_code=HTTPStatus.NOT_FOUND)
""",
)
limit(
    "IS203",
    "the class has another name than `HTTPException`",
    "pass",
    """
class NoSuchPage(HTTPException): ...
@app.post("/")
async def root(body: dict):
    if body: raise HTTPException(400)
    try: work()
    except KeyError: raise NoSuchPage(404)
""",
)
limit("IS301", "The values of the headers", "pass", STREAM)
limit(
    "IS301",
    "A media type that is computed",
    "n/a",
    """
@app.post("/")
async def root():
    kind = "text/" + "event-stream"
    return StreamingResponse(events(), media_type=kind)
""",
)
limit(
    "IS302",
    "in a client of another service",
    "pass",
    STREAM
    + """
def read(line, chunk: BaseModel):
    if line != "[DONE]": chunk.model_dump_json()
""",
)
limit(
    "IS303",
    "one in a background task, too",
    "pass",
    STREAM
    + """
async def poll():
    while True: await asyncio.sleep(0.01)
""",
)
limit("IS303", "streams that wait for each token anyway", "fail", STREAM)
limit(
    "IS401",
    "for a prompt as well",
    "pass",
    """
@app.post("/chat")
async def chat(body: dict):
    if len(body["text"]) > body["max_tokens"]: raise HTTPException(413)
@app.post("/files")
async def upload(file: UploadFile): return len(await file.read())
""",
)
limit(
    "IS401",
    "`request.form()`, `request.body()`",
    "n/a",
    """
@app.post("/files")
async def upload(request: Request):
    form = await request.form()
    return len(await request.body()) + len(await form["file"].read())
""",
)
limit(
    "IS401",
    "Whether the size is compared before the file is in memory",
    "pass",
    """
@app.post("/files")
async def upload(file: UploadFile):
    content = await file.read()
    if len(content) > MAX_SIZE: raise HTTPException(413)
""",
)
limit(
    "IS402",
    "one Form field in one upload route is enough",
    "pass",
    """
@app.post("/files")
async def upload(file: UploadFile, purpose: str = Form()): ...
@app.post("/images")
async def draw(file: UploadFile, size: int = 1): ...
""",
)
limit(
    "IS501",
    "even if it only calls another service with it",
    "pass",
    """
import openai
@app.post("/v1/chat/completions")
async def chat(body: dict): return {"text": "hi"}
""",
)
limit(
    "IS501",
    "somewhere in the service",
    "pass",
    """
SETTINGS = {"object": 1, "id": 2, "created": 3, "model": 4}
@app.post("/v1/chat/completions")
async def chat(body: dict): return {"text": "hi"}
""",
)
limit(
    "IS501",
    "does not apply (n/a)",
    "n/a",
    """
@app.post("/generate")
async def generate(body: dict): return {"text": "hi"}
""",
)
limit(
    "IS502",
    "any import of the openai package counts",
    "pass",
    """
import openai
@app.post("/v1/chat/completions")
async def chat(body: dict): return {"text": "hi"}
""",
)
limit(
    "IS601",
    "one router with everything passes",
    "pass",
    """
router = APIRouter()
@router.post("/generate")
async def generate(body: dict): ...
@router.get("/health")
async def health(): ...
app.include_router(router)
""",
)
limit(
    "IS701",
    "Whether what it says is true",
    "pass",
    """
@app.get("/health")
async def health(): return {"device": "?", "models": 0, "time": 0, "pid": 1}
""",
)
limit(
    "IS701",
    "A service with `/health/live` alone is reported",
    "fail",
    """
@app.get("/health/live")
async def live(): return {"device": "?", "models": 0, "time": 0, "pid": 1}
""",
)
limit(
    "IS702",
    "contains `data` or `list` passes",
    "pass",
    """
@app.get("/admin/models")
async def models(): return {"data": 1}
""",
)


@pytest.mark.parametrize(
    ("code", "words", "verdict", "source"), CASES, ids=[f"{c[0]} {c[1]}" for c in CASES]
)
def test_a_limit_that_a_page_names(
    code: str, words: str, verdict: str, source: str, tmp_path: Path
) -> None:
    section = BY_CODE[code].page.partition("## What the rule does not see\n")[2]
    section = section.partition("\n## ")[0]
    assert words in " ".join(section.split())

    (tmp_path / "main.py").write_text(HEAD + source)
    (judgement,) = check(tmp_path, Config(Profile.STRICT, frozenset({code}))).judgements
    assert judgement.verdict == verdict
