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
    "does not apply (n/a)",
    "n/a",
    """
@app.post("/generate")
async def generate(body: dict): return {"text": "hi"}
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
    "IS702",
    "contains `data` or `list` passes",
    "pass",
    """
@app.get("/admin/models")
async def models(): return {"data": 1}
""",
)
limit(
    "IS102",
    "an attribute of such an object counts for the same attribute of any other",
    "pass",
    """
async def start(one, other):
    one.task = asyncio.create_task(work())
    other.task.cancel()
    await other.task
""",
)
limit(
    "IS201",
    "more than four functions away",
    "pass",
    """
def first(): second()
def second(): third()
def third(): fourth()
def fourth(): fifth()
def fifth(): requests.get("http://far")
@app.get("/")
async def root(): first()
""",
)
limit(
    "IS201",
    "those of an untyped container under a key",
    "pass",
    """
class Engine:
    def run(self): time.sleep(1)
engines = {}
engines["a"] = Engine()
@app.get("/")
async def root(name: str): engines[name].run()
""",
)
limit(
    "IS201",
    "Plain computation, and `with lock:`",
    "pass",
    """
lock = threading.Lock()
@app.get("/")
async def root():
    with lock:
        return sum(range(1_000_000_000))
""",
)
limit(
    "IS201",
    "`open()` of one line from `/proc` is reported as well",
    "fail",
    """
@app.get("/")
async def root(): return open("/proc/uptime").read()
""",
)
limit(
    "IS203",
    "as in `raise not_found(name)`",
    "pass",
    """
def not_found(name): return HTTPException(404, name)
@app.post("/")
async def root(body: dict):
    if body: raise HTTPException(400)
    try: work()
    except KeyError: raise not_found("x")
""",
)
limit(
    "IS302",
    "Which of several streams of one route",
    "pass",
    """
@app.post("/v1/chat/completions")
async def chat(body: dict):
    async def first():
        yield f"data: {chunk.model_dump_json()}\\n\\n"
    async def second():
        yield "data: [DONE]\\n\\n"
    events = first() if body else second()
    return StreamingResponse(events, media_type="text/event-stream")
""",
)
limit(
    "IS302",
    "Streams that another package makes",
    "n/a",
    """
@app.post("/v1/chat/completions")
async def chat(body: dict):
    return StreamingResponse(engine.stream(body), media_type="text/event-stream")
""",
)
limit("IS303", "A turn that is given in a function of another package", "fail", STREAM)
limit(
    "IS401",
    "Which size is compared",
    "pass",
    """
@app.post("/files")
async def upload(file: UploadFile, prompt: str):
    if len(prompt) > MAX_PROMPT: raise HTTPException(413)
    return len(await file.read())
""",
)
limit(
    "IS401",
    "A body that the route reads with `request.stream()`",
    "n/a",
    """
@app.post("/files")
async def upload(request: Request):
    return b"".join([part async for part in request.stream()])
""",
)
limit(
    "IS501",
    "each of the fields has to occur",
    "pass",
    """
SETTINGS = {"object": 1, "id": 2, "created": 3, "model": 4}
@app.post("/v1/chat/completions")
async def chat(body: dict): return {"text": SETTINGS}
""",
)
limit(
    "IS501",
    "they are not judged",
    "n/a",
    """
@app.post("/v1/chat/completions")
async def chat(body: dict): return await engine.chat(body)
""",
)
limit(
    "IS502",
    "one of the openai package in the code of one route",
    "pass",
    """
from openai.types import CompletionUsage
@app.post("/v1/chat/completions")
async def chat(body: dict): return CompletionUsage()
@app.post("/v1/embeddings")
async def embed(body: dict): return {}
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
