"""Routes, blocking calls and evidence in the shapes that services have, each with its twin.

A case is written as in test_rules: `# !` marks the lines that the rule has to report.
"""

from pathlib import Path

import pytest

from infer_scaffold.check.checker import check
from infer_scaffold.check.config import Config
from infer_scaffold.check.judgement import Profile
from infer_scaffold.check.service import Service
from infer_scaffold.check.source import read
from tests.check.test_rules import write

HEAD = """\
import asyncio, contextlib, hashlib, multiprocessing, os, queue, shutil, threading, time
import psutil, requests, torch
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from fastapi import APIRouter, Depends, FastAPI, Form, HTTPException, Request, UploadFile, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

app = FastAPI()
"""
ROUTES: dict[str, tuple[str, set[tuple[str, str, bool]]]] = {}
CASES: list[tuple[str, str, str]] = []


def routes(title: str, wanted: set[tuple[str, str, bool]], source: str) -> None:
    """`wanted` are method, path, and whether the handler is found."""
    ROUTES[title] = source, wanted


def case(title: str, verdict: str, source: str) -> None:
    """`title` begins with the code; `verdict` may name the profile, which else is the default."""
    CASES.append((title, verdict, source))


routes(
    "a bound method",
    {("GET", "/a", True), ("POST", "/b", True)},
    """
class Api:
    def __init__(self):
        self.router = APIRouter()
        self.router.add_api_route("/a", self.a)
        self.router.add_api_route("/b", self.b, methods=["POST"])
    async def a(self): ...
    async def b(self): ...
app.include_router(Api().router)
""",
)
routes(
    "a table of paths and handlers",
    {("GET", "/a", True), ("GET", "/b", True), ("GET", "/c", True)},
    """
async def a(): ...
async def b(): ...
TABLE = [("/a", a), ("/b", b)]
for path, handler in TABLE:
    app.add_api_route(path, handler)
for path, handler in {"/c": a}.items():
    app.add_api_route(path, handler)
""",
)
routes(
    "a table that is not known",
    {("GET", "", False)},
    """
for path, handler in load_table():
    app.add_api_route(path, handler)
""",
)
routes(
    "a method of a base class",
    {("GET", "/a", True)},
    """
class Base:
    async def a(self): ...
class Api(Base):
    def mount(self, app: FastAPI):
        app.add_api_route("/a", self.a)
""",
)
routes(
    "a method of a parameter",
    {("GET", "/a", True)},
    """
class Api:
    async def a(self): ...
def mount(app: FastAPI, api: Api):
    app.add_api_route("/a", api.a)
""",
)
routes(
    "a method of a parameter without a type, by its caller",
    {("GET", "/answer", True)},
    """
class First:
    async def answer(self): ...
class Second:
    async def answer(self): ...
def mount(app, handler):
    app.add_api_route("/answer", handler.answer)
mount(app, Second())
""",
)
routes(
    "the only method of its name",
    {("GET", "/a", True)},
    """
class Api:
    async def tell(self): ...
def mount(app, api):
    app.add_api_route("/a", api.tell)
""",
)
routes(
    "a method of a local object",
    {("GET", "/a", True)},
    """
class Api:
    async def a(self): ...
def build():
    app = FastAPI()
    api = Api()
    app.add_api_route("/a", api.a)
    return app
""",
)
routes("a lambda", {("GET", "/a", False)}, 'app.add_api_route("/a", lambda: {"ok": True})\n')
routes(
    "a handler of another package",
    {("GET", "/a", False), ("POST", "/b", False)},
    """
from engine import handlers
app.add_api_route("/a", handlers.a)
app.post("/b")(handlers.b)
""",
)
routes(
    "a partial",
    {("GET", "/a", True)},
    """
from functools import partial
async def answer(size): ...
app.add_api_route("/a", partial(answer, size=1))
""",
)
routes(
    "a class-based view",
    {("GET", "/a", True), ("POST", "/a", True)},
    """
from fastapi_utils.cbv import cbv
router = APIRouter()
@cbv(router)
class View:
    @router.get("/a")
    async def read(self): ...
    @router.post("/a")
    async def write(self): ...
""",
)
routes(
    "decorators without a router",
    {("GET", "/a", True)},
    """
from classy_fastapi import Routable, get
class Api(Routable):
    @get("/a")
    async def a(self): ...
""",
)
routes(
    "an endpoint of Starlette",
    {("GET", "/a", True), ("POST", "/a", True)},
    """
from starlette.endpoints import HTTPEndpoint
from starlette.routing import Route
class View(HTTPEndpoint):
    async def get(self, request): ...
    async def post(self, request): ...
app.router.routes.append(Route("/a", View))
""",
)
routes(
    "api_route with methods",
    {("GET", "/a", True), ("DELETE", "/a", True)},
    """
@app.api_route("/a", methods=["GET", "DELETE"])
async def a(): ...
""",
)
routes(
    "WebSockets",
    {("WEBSOCKET", "/a", True), ("WEBSOCKET", "/b", True)},
    """
@app.websocket("/a")
async def a(socket: WebSocket): ...
async def b(socket: WebSocket): ...
app.add_api_websocket_route("/b", b)
""",
)
routes(
    "objects of routes",
    {("PUT", "/a", True)},
    """
from fastapi.routing import APIRoute
async def a(): ...
app.router.routes.append(APIRoute("/a", a, methods=["PUT"]))
""",
)
routes(
    "paths that are computed",
    {("GET", "/v1/a", True), ("GET", "/v1/b", True), ("GET", "", True)},
    """
PREFIX = "/v1"
@app.get(PREFIX + "/a")
async def a(): ...
@app.get(f"{PREFIX}/b")
async def b(): ...
def mount(path: str):
    @app.get(path)
    async def c(): ...
""",
)
routes(
    "a loop over paths",
    {("GET", "/a", True), ("GET", "/b", True)},
    """
async def answer(): ...
for path in ("/a", "/b"):
    app.add_api_route(path, answer)
""",
)
routes(
    "a prefix where the router is included",
    {("GET", "/v1/models", True)},
    """
router = APIRouter()
@router.get("/models")
async def models(): ...
app.include_router(router, prefix="/v1")
""",
)
routes(
    "what is no route",
    {("GET", "/a", True)},
    """
@app.get("/a")
async def a(cache: dict):
    key = "b"
    os.environ.get("/b")
    return cache.get(key) or requests.get("/c") or cache.get("/d")
@lru.get("size")
def size(): ...
""",
)


@pytest.mark.parametrize("title", ROUTES)
def test_routes(title: str, tmp_path: Path) -> None:
    source, wanted = ROUTES[title]
    (tmp_path / "main.py").write_text(HEAD + source)

    service = Service(read(tmp_path))

    assert {
        (method, route.path, route.function is not None)
        for route in service.operations
        for method in route.methods
    } == wanted


def blocks(title: str, source: str) -> None:
    case(f"IS201 {title}", "fail", source)


def runs(title: str, source: str) -> None:
    case(f"IS201 {title}", "pass", source)


ROUTE = '@app.get("/x")\nasync def x():\n    '
blocks(
    "middleware",
    """
@app.middleware("http")
async def authorize(request, call_next):
    requests.get("http://auth")  # !
    return await call_next(request)
@app.get("/x")
async def x(): ...
""",
)
blocks(
    "middleware as a class",
    """
class Authorize:
    def __init__(self, app): self.app = app
    async def __call__(self, scope, receive, send):
        requests.get("http://auth")  # !
        await self.app(scope, receive, send)
app.add_middleware(Authorize)
@app.get("/x")
async def x(): ...
""",
)
blocks(
    "a handler of errors",
    """
@app.exception_handler(ValueError)
async def explain(request, error):
    open("errors.log", "a").write(str(error))  # !
@app.get("/x")
async def x(): ...
""",
)
blocks("a WebSocket", '@app.websocket("/x")\nasync def x(socket):\n    time.sleep(1)  # !\n')
blocks(
    "a task that the lifespan starts",
    """
async def watch():
    while True:
        time.sleep(1)  # !
@contextlib.asynccontextmanager
async def lifespan(app):
    task = asyncio.create_task(watch())
    yield
    task.cancel()
app = FastAPI(lifespan=lifespan)
@app.get("/x")
async def x(): ...
""",
)
runs(
    "the lifespan itself, before the service answers",
    """
@contextlib.asynccontextmanager
async def lifespan(app):
    app.state.model = torch.load("model.pt")
    yield
    shutil.rmtree("scratch")
app = FastAPI(lifespan=lifespan)
@app.get("/x")
async def x(): ...
""",
)
blocks(
    "four functions away",
    """
def first(): second()
def second(): third()
def third(): fourth()
def fourth(): requests.get("http://far")  # !
@app.get("/x")
async def x(): first()
""",
)
blocks(
    "an object that main makes",
    """
class Controller:
    def refresh(self):
        requests.get("http://workers")  # !
def main():
    global controller
    controller = Controller()
@app.get("/x")
async def x():
    controller.refresh()
""",
)
blocks(
    "an attribute of an object",
    """
class Engine:
    def run(self):
        time.sleep(1)  # !
class Worker:
    def __init__(self, engine: Engine):
        self.engine = engine
class Api:
    def __init__(self):
        self.worker = Worker(Engine())
    async def x(self):
        return self.worker.engine.run()
app.add_api_route("/x", Api().x)
""",
)
blocks(
    "the state of the application",
    """
class Store:
    def load(self):
        return open("x")  # !
@contextlib.asynccontextmanager
async def lifespan(app):
    app.state.store = Store()
    yield
@app.get("/x")
async def x(request: Request):
    return request.app.state.store.load()
""",
)
blocks(
    "an object from a dependency",
    """
class Store:
    def load(self):
        return open("x")  # !
async def get_store() -> Store: ...
@app.get("/x")
async def x(store=Depends(get_store)):
    return store.load()
""",
)
blocks(
    "a class whose constructor blocks",
    """
class Client:
    def __init__(self):
        self.token = requests.post("http://login")  # !
@app.get("/x")
async def x():
    return Client()
""",
)
for call in (
    'Path("x").open()',
    '(Path("x") / "y").unlink()',
    'os.makedirs("x")',
    'os.listdir("x")',
    'os.remove("x")',
    'shutil.copyfile("x", "y")',
    "psutil.cpu_percent(interval=1)",
    "psutil.cpu_percent(0.5)",
    'hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)',
    "torch.softmax(torch.zeros(3), -1)",
    "torch.nn.functional.normalize(x)",
):
    blocks(call, f"{ROUTE}return {call}  # !\n")
for call in (
    "psutil.cpu_percent()",
    "psutil.cpu_percent(interval=None)",
    "torch.device('cpu')",
    "torch.cuda.is_available()",
    'hashlib.sha256(b"key").hexdigest()',
    'os.environ.get("X")',
    'os.path.join("a", "b")',
    'os.path.exists("x")',
):
    runs(call, f"{ROUTE}return {call}\n")
case(
    "IS201 a look at a file, by the letter",
    "strict: fail",
    f'{ROUTE}return os.path.exists("x")  # !\n',
)
THREADS = """
pool = ThreadPoolExecutor()
lock = threading.Lock()
jobs = queue.Queue()
loop_lock = asyncio.Lock()
loop_jobs = asyncio.Queue()
def work(): ...
@app.get("/x")
async def x():
    thread = threading.Thread(target=work)
    future = pool.submit(work)
    """
for call in (
    "future.result()",
    "pool.submit(work).result()",
    "lock.acquire()",
    "jobs.get()",
    "thread.join()",
    "jobs.get(timeout=1)",
):
    blocks(call, f"{THREADS}return {call}  # !\n")
for call in (
    "await asyncio.wrap_future(future)",
    "lock.acquire(blocking=False)",
    "jobs.get(block=False)",
    "jobs.get_nowait()",
    "await loop_lock.acquire()",
    "await loop_jobs.get()",
    '", ".join([])',
    "{}.get(1)",
):
    runs(call, f"{THREADS}return {call}\n")
PIPES = """
ctx = multiprocessing.get_context("spawn")
ours, theirs = multiprocessing.Pipe()
of_context, _ = ctx.Pipe()
worker = ctx.Process(target=print)
first, second = make(), make()
class Worker:
    def __init__(self):
        self.conn, self.other = multiprocessing.Pipe()
    def ask(self):
        return self.conn.recv()  # here
@app.get("/x")
async def x():
    local, _ = multiprocessing.Pipe(duplex=False)
    """
for call in ("ours.recv()", "theirs.recv_bytes()", "of_context.recv()", "local.recv()"):
    blocks(call, f"{PIPES}return {call}  # !\n")
blocks("worker.join()", f"{PIPES}worker.join()  # !\n")
blocks("a pipe of an object", f"{PIPES}return Worker().ask()\n".replace("# here", "# !"))
for call in ("ours.poll()", "os.pipe()", "first.recv()", "await asyncio.to_thread(ours.recv)"):
    runs(call, f"{PIPES}return {call}\n")
blocks(
    "the hash of a whole file",
    """
@app.post("/x")
async def x(file: UploadFile):
    content = await file.read()
    return hashlib.sha256(content).hexdigest()  # !
""",
)
blocks(
    "a pipeline that a stream runs over",
    """
pipe = load("tts")
@app.post("/x")
async def x():
    async def audio():
        for part in pipe("text"):  # !
            yield part
    return StreamingResponse(audio())
""",
)
blocks(
    "a model under any name",
    """
@app.post("/x")
async def x(request: Request):
    return request.app.worker.generate("x")  # !
""",
)
runs(
    "an async generator of outside, iterated inside",
    """
@app.post("/x")
async def x():
    results = engine.generate("x")
    async def events():
        async for each in results:
            yield each
    return StreamingResponse(events())
""",
)
runs(
    "a generator that is streamed as it is",
    """
@app.post("/x")
async def x():
    parts = engine.generate("x")
    return StreamingResponse(content=parts)
""",
)
runs(
    "a context manager that frees a slot, entered with others",
    """
@app.post("/x")
async def x():
    async with contextlib.AsyncExitStack() as resources:
        parts = resources.enter_context(registry.model.generate("x"))
        return StreamingResponse(parts)
""",
)
runs(
    "a context manager that frees a slot",
    """
@app.post("/x")
async def x():
    with registry.model.generate("x") as parts:
        return [part async for part in parts]
""",
)
runs(
    "an async generator that the project's own one reads",
    """
async def events(parts):
    async for each in parts:
        yield each
@app.post("/x")
async def x():
    parts = engine.generate("x")
    return Stream(events(parts))
""",
)
blocks(
    "a result that an entered object is made of",
    """
@app.post("/x")
async def x():
    answer = engine.generate("x")  # !
    with contextlib.suppress(KeyError):
        return answer["text"]
""",
)
runs(
    "an async method of a class that is known",
    """
class Engine:
    async def generate(self, text): ...
engine = Engine()
@app.post("/x")
async def x():
    first = engine.generate("x")
    return await asyncio.gather(first, engine.generate("y"))
""",
)
runs(
    "a function that its decorator sends to a thread",
    """
from threads import threaded
@threaded
def work():
    time.sleep(1)
@app.get("/x")
async def x():
    return await work()
""",
)
runs(
    "a sync dependency and a sync generator have a thread",
    """
def events():
    time.sleep(1)
    yield "data: 1"
def user():
    return requests.get("http://users").json()
@app.get("/x")
async def x(user=Depends(user)):
    return StreamingResponse(events())
""",
)
case(
    "IS201 a sync dependency that blocks, by the letter",
    "strict: partial",
    """
def user():  # !
    return requests.get("http://users").json()
@app.get("/x")
async def x(user=Depends(user)): ...
""",
)
case(
    "IS201 a sync dependency that reads, with a check, by the letter",
    "strict: partial",
    """
def model(request: Request):  # !
    found = getattr(request.app.state, "model", None)
    if found is None:
        raise HTTPException(503)
    return found
@app.get("/x")
async def x(model=Depends(model)): ...
""",
)
case(
    "IS201 the lifespan, by the letter",
    "strict: partial",
    """
@contextlib.asynccontextmanager
async def lifespan(app):
    app.state.model = torch.load("model.pt")  # !
    yield
app = FastAPI(lifespan=lifespan)
@app.get("/x")
async def x(): ...
""",
)

CHAT = """
@app.post("/v1/chat/completions")
async def chat(body: dict):
    return StreamingResponse(events(), media_type="text/event-stream"){mark}
"""
EVENTS = """
async def events():
    async for token in tokens():
        yield f"data: {token}\\n\\n"
"""
case(
    "IS302 an end that only a client knows",
    "partial",
    EVENTS.replace("token}", "token.model_dump_json()}")
    + CHAT.format(mark="  # !")
    + """
async def read(lines):
    async for line in lines:
        if line == "[DONE]" or line.startswith("data: [DONE]"):
            return
""",
)
case(
    "IS302 an end in another stream",
    "fail",
    EVENTS
    + CHAT.format(mark="  # !")
    + """
async def others():
    yield "data: [DONE]\\n\\n"
@app.post("/v1/notes")
async def notes():
    return StreamingResponse(others(), media_type="text/event-stream")
""",
)
case(
    "IS302 an end in a constant of another module",
    "pass",
    """
# file: main.py
"""
    + HEAD
    + """
from wire import frame, END
async def events():
    async for token in tokens():
        yield frame(token)
    yield END
"""
    + CHAT.format(mark="")
    + """
# file: wire.py
END = "data: [DONE]\\n\\n"
def frame(chunk):
    return f"data: {chunk.model_dump_json()}\\n\\n"
""",
)
case(
    "IS302 an end that a helper of the stream sends",
    "pass",
    EVENTS
    + "    async for last in ending():\n        yield last\n"
    + CHAT.format(mark="")
    + """
async def ending():
    yield "data: [DONE]\\n\\n"
""",
)
case(
    "IS302 events of another package",
    "n/a",
    """
import engine
@app.post("/v1/chat/completions")
async def chat(body: dict):
    return StreamingResponse(await engine.stream(body), media_type="text/event-stream")
""",
)
case(
    "IS302 FastAPI's own events",
    "strict: pass",
    """
from fastapi.sse import EventSourceResponse, ServerSentEvent
@app.post("/v1/chat/completions", response_class=EventSourceResponse)
async def chat(body: dict):
    async for token in tokens():
        yield token
    yield ServerSentEvent(raw_data="[DONE]")
""",
)
case(
    "IS303 FastAPI's own events",
    "strict: pass",
    """
from fastapi.sse import EventSourceResponse
@app.post("/v1/chat/completions", response_class=EventSourceResponse)
async def chat(body: dict):
    for token in model.generate():
        yield token
""",
)
case(
    "IS301 FastAPI's own events",
    "strict: pass",
    """
from fastapi.sse import EventSourceResponse
@app.post("/v1/chat/completions", response_class=EventSourceResponse)
async def chat(body: dict):
    yield {}
""",
)
POLL = """
async def poll():
    while True:
        await asyncio.sleep(0)
"""
SYNC = EVENTS.replace("async for token in tokens()", "for token in model.stream()")
case(
    "IS303 a sync source, and a turn in another task",
    "fail",
    POLL + SYNC + CHAT.format(mark="  # !"),
)
case(
    "IS303 an async source, and a turn in another task",
    "pass",
    POLL + EVENTS + CHAT.format(mark=""),
)
case(
    "IS303 an async source, by the letter",
    "strict: fail",
    POLL + EVENTS + CHAT.format(mark="  # !"),
)
case(
    "IS303 a queue",
    "pass",
    """
async def events():
    while True:
        token = await tokens.get()
        yield f"data: {token}\\n\\n"
"""
    + CHAT.format(mark=""),
)
case(
    "IS303 a loop that never waits",
    "fail",
    """
async def events():
    while not model.finished:
        yield f"data: {model.step()}\\n\\n"
"""
    + CHAT.format(mark="  # !"),
)
case(
    "IS303 a sync generator, which has a thread",
    "pass",
    """
def events():
    for token in model.stream():
        yield f"data: {token}\\n\\n"
"""
    + CHAT.format(mark=""),
)
case(
    "IS303 a list of a few events",
    "pass",
    """
async def events():
    parts = ["a", "b"]
    for part in parts:
        yield f"data: {part}\\n\\n"
    for number, part in enumerate(parts):
        yield f"data: {part}\\n\\n"
"""
    + CHAT.format(mark=""),
)
case(
    "IS401 a limit of prompts",
    "fail",
    """
@app.post("/v1/chat")
async def chat(body: dict):
    if len(body["text"]) > body["max_tokens"]:
        raise HTTPException(413, "too long")
@app.post("/v1/files")
async def upload(file: UploadFile):
    return len(await file.read())  # !
""",
)
case(
    "IS401 one of two uploads",
    "partial",
    """
@app.post("/v1/files")
async def upload(file: UploadFile):
    content = await file.read()
    if len(content) > 1000:
        raise HTTPException(413)
@app.post("/v1/images")
async def image(file: UploadFile):
    return len(await file.read())  # !
""",
)
case(
    "IS401 read by a dependency",
    "fail",
    """
async def content(file: UploadFile):
    return await file.read()  # !
@app.post("/v1/files")
async def upload(content=Depends(content)): ...
""",
)
case(
    "IS401 limited by a dependency",
    "pass",
    """
async def content(file: UploadFile):
    if file.size > 1000:
        raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return await file.read()
@app.post("/v1/files")
async def upload(content=Depends(content)): ...
""",
)
case(
    "IS401 in a form that is read",
    "fail",
    """
@app.post("/v1/files")
async def upload(request: Request):
    form = await request.form()
    return len(await form["file"].read())  # !
""",
)
case(
    "IS401 as a body",
    "fail",
    """
@app.post("/v1/audio")
async def upload(request: Request):
    return save(await request.body())  # !
""",
)
case(
    "IS401 a body that is JSON",
    "n/a",
    """
import json
@app.post("/v1/chat")
async def chat(request: Request):
    return json.loads(await request.body())
""",
)
case(
    "IS401 a form without a file",
    "n/a",
    """
@app.post("/login")
async def login(request: Request):
    form = await request.form()
    return form["user"]
""",
)
case(
    "IS401 limited by the route's own setting",
    "pass",
    """
@app.post("/v1/files", max_body_size=1000)
async def upload(file: UploadFile):
    return len(await file.read())
""",
)
case(
    "IS401 a setting that is None",
    "fail",
    """
app = FastAPI(max_body_size=None)
@app.post("/v1/files")
async def upload(file: UploadFile):
    return len(await file.read())  # !
""",
)
case(
    "IS402 fields of a form that is read",
    "pass",
    """
@app.post("/v1/files")
async def upload(request: Request):
    form = await request.form()
    content = await form["file"].read()
    return form.get("purpose")
""",
)
ANSWER = """
@app.post("/v1/chat/completions")
async def chat(body: dict):{mark}
    {body}
"""
case(
    "IS501 the package, for another service alone",
    "fail",
    "import openai\n"
    + ANSWER.format(
        mark="  # !",
        body='await openai.AsyncOpenAI().chat.completions.create()\n    return {"text": 1}',
    ),
)
case(
    "IS502 the package, for another service alone",
    "fail",
    "import openai\n"
    + ANSWER.format(
        mark="  # !",
        body='await openai.AsyncOpenAI().chat.completions.create()\n    return {"text": 1}',
    ),
)
for code in ("IS501", "IS502"):
    case(
        f"{code} an answer that is passed on",
        "pass",
        "import openai\n"
        + ANSWER.format(
            mark="",
            body="answer = await openai.AsyncOpenAI().chat.completions.create()\n    return answer",
        ),
    )
case(
    "IS501 the fields of other answers",
    "fail",
    'SETTINGS = {"object": 1, "id": 2, "created": 3}\n'
    + ANSWER.format(mark="  # !", body='return {"text": "hi"}'),
)
case(
    "IS501 an answer of another package",
    "n/a",
    "import engine\n" + ANSWER.format(mark="", body="return await engine.chat(body)"),
)
case(
    "IS501 a type of another package",
    "n/a",
    "from engine.protocol import ChatCompletionResponse\n"
    + ANSWER.format(mark="", body="return ChatCompletionResponse(text=1)"),
)
case(
    "IS501 a handler of another package",
    "n/a",
    """
from engine import serve
app.add_api_route("/v1/chat/completions", serve.chat, methods=["POST"])
""",
)
case(
    "IS501 fields of one's own model",
    "pass",
    """
class Answer(BaseModel):
    id: str
    object: str
    created: int
    model: str
@app.post("/v1/chat/completions")
async def chat(body: dict) -> Answer: ...
""",
)
DROPS = """
class Answer(BaseModel):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
@app.post("/v1/chat/completions"{option})
async def chat(body: dict) -> Answer:
    return Answer(id="1", created=2, model="m"{given})
"""
case(
    "IS501 exclude_unset",
    "partial",
    DROPS.format(option=", response_model_exclude_unset=True", given="").replace(
        ")\nasync", ")  # !\nasync"
    ),
)
case(
    "IS501 exclude_unset of what is set",
    "pass",
    DROPS.format(option=", response_model_exclude_unset=True", given=', object="chat.completion"'),
)
case(
    "IS501 exclude_none",
    "pass",
    DROPS.format(option=", response_model_exclude_none=True", given=""),
)
for status in (
    "HTTPStatus.NOT_FOUND",
    "HTTPStatus.NOT_FOUND.value",
    "status.HTTP_404_NOT_FOUND",
    "HTTP_404_NOT_FOUND",
    "404",
):
    case(
        f"IS203 {status}",
        "pass",
        f"""
from fastapi import status
from starlette.status import HTTP_404_NOT_FOUND
@app.get("/x/{{id}}")
async def x(id):
    if not id:
        raise HTTPException(status_code=HTTPStatus.BAD_REQUEST)
    raise HTTPException(status_code={status})
""",
    )
case(
    "IS203 statuses of one's own errors",
    "pass",
    """
class Missing(Exception):
    status_code = 404
class Wrong(HTTPException):
    def __init__(self, detail):
        super().__init__(status_code=400, detail=detail)
@app.get("/x/{id}")
async def x(id): raise Missing
""",
)
case(
    "IS203 a status that is only compared",
    "fail",
    "# file: main.py\n"
    + HEAD.replace("app = FastAPI()", "app = FastAPI()  # !")
    + """
@app.get("/x/{id}")
async def x(id):
    if requests.get("http://x").status_code == HTTPStatus.NOT_FOUND: ...
""",
)
case(
    "IS203 a subclass that loses its cause",
    "partial",
    """
class ApiError(HTTPException): ...
class NoModel(ApiError): ...
@app.get("/x/{id}")
async def x(id):
    if not id: raise HTTPException(400)
    try: return work()
    except KeyError: raise NoModel(404)  # !
""",
)
case(
    "IS203 an error in a variable that loses its cause",
    "partial",
    """
@app.get("/x/{id}")
async def x(id):
    if not id: raise HTTPException(400)
    try: return work()
    except KeyError:
        error = HTTPException(404)
        raise error  # !
""",
)
case(
    "IS203 an error that is raised again",
    "pass",
    """
@app.get("/x/{id}")
async def x(id):
    if not id: raise HTTPException(400)
    try: return work()
    except HTTPException as error: raise error
    except KeyError as error: raise HTTPException(404) from error
""",
)
case(
    "IS102 another task of the same name",
    "fail",
    """
async def other():
    task = asyncio.create_task(work())
    await task
@contextlib.asynccontextmanager
async def lifespan(app):
    task = asyncio.create_task(work())  # !
    yield
""",
)
case(
    "IS102 a task that an inner function ends",
    "pass",
    """
@contextlib.asynccontextmanager
async def lifespan(app):
    task = asyncio.create_task(work())
    async def stop():
        task.cancel()
        await task
    yield
    await stop()
""",
)
case(
    "IS102 the task of an object, ended by another of its methods",
    "pass",
    """
class Watch:
    def start(self): self.task = asyncio.create_task(work())
    async def stop(self):
        self.task.cancel()
        await self.task
""",
)
case(
    "IS102 the task of an object, ended by another class",
    "fail",
    """
class Watch:
    def start(self): self.task = asyncio.create_task(work())  # !
class Other:
    async def stop(self):
        self.task.cancel()
        await self.task
""",
)
case(
    "IS102 the result of a task that another object awaits is not its end",
    "fail",
    """
class Job:
    def start(self): self.task = asyncio.create_task(work())  # !
async def result(job: Job):
    return await job.task
""",
)
case(
    "IS102 a task that its maker keeps in a record and awaits",
    "pass",
    """
class Entry:
    task: asyncio.Task | None = None
class Registry:
    def start(self, entry: Entry):
        entry.task = asyncio.create_task(work())
    async def close(self, entry: Entry):
        await asyncio.shield(entry.task)
""",
)
case(
    "IS102 the task of an object, ended by the lifespan",
    "pass",
    """
class Job:
    def start(self): self.task = asyncio.create_task(work())
@contextlib.asynccontextmanager
async def lifespan(app):
    job = Job()
    yield
    job.task.cancel()
    await job.task
""",
)
case(
    "IS102 a task in the state of the application",
    "pass",
    """
@contextlib.asynccontextmanager
async def lifespan(app):
    app.state.task = asyncio.create_task(work())
    yield
    app.state.task.cancel()
    await app.state.task
""",
)
case(
    "IS102 a global task",
    "pass",
    """
task = None
async def start():
    global task
    task = asyncio.create_task(work())
async def stop():
    task.cancel()
    await task
""",
)
case(
    "IS701 a check of liveness alone",
    "partial",
    """
@app.get("/v2/health/live")
async def live(): return {"live": True}  # !
""".replace(
        'async def live(): return {"live": True}  # !',
        'async def live():  # !\n    return {"live": True}',
    ),
)
case(
    "IS701 a handler that is not known",
    "pass",
    """
from engine import health
app.add_api_route("/health", health.answer)
""",
)
case(
    "IS202 bodies of another package",
    "pass",
    """
from engine.protocol import ChatRequest
@app.post("/x")
async def x(body: ChatRequest): ...
""",
)
case(
    "IS202 handlers of another package",
    "pass",
    """
from engine import serve
app.add_api_route("/x", serve.x, methods=["POST"])
""",
)
for source, relayed in {"aiter_raw()": "part", "content": 'part + b"\\n\\n"'}.items():
    case(
        f"IS302 events of another server, passed on from {source}",
        "pass",
        f"""
async def events():
    async with client.stream("POST", "http://engine") as response:
        async for part in response.{source}:
            yield {relayed}
"""
        + CHAT.format(mark=""),
    )
case(
    "IS303 a loop of another stream of the route",
    "pass",
    """
async def others():
    for token in model.stream():
        yield token
"""
    + EVENTS
    + """
@app.post("/v1/chat/completions")
async def chat(body: dict):
    if body:
        return StreamingResponse(events(), media_type="text/event-stream")
    return [part async for part in others()]
""",
)
runs(
    "an attribute of a class that holds what is async",
    """
class Engine:
    async def generate(self, text): ...
class Shared:
    engine: Engine = None
@app.post("/x")
async def x():
    made = []
    first = Shared.engine.generate("x")
    made.append(first)
    return made
""",
)
runs(
    "an executor that is left",
    """
@app.post("/x")
async def x():
    pool = ThreadPoolExecutor()
    pool.shutdown(wait=False)
""",
)
case(
    "IS202 a user is no body",
    "pass",
    """
from typing import Any, Literal
class Body(BaseModel):
    kind: Literal["a"] = Field(description="Which.")
from pydantic import Field
@app.post("/x")
async def x(body: Body, user: Any = Depends(user)): ...
""",
)
case(
    "IS201 a part of a result is sent",
    "fail",
    """
@app.websocket("/x")
async def x(socket: WebSocket):
    result = app.state.stt_model.transcribe("a.wav")  # !
    await socket.send_json({"text": result.text})
""",
)
case(
    "IS201 a result is sent as it is",
    "fail",
    """
@app.websocket("/x")
async def x(socket: WebSocket):
    result = app.state.stt_model.transcribe("a.wav")  # !
    await socket.send_text(result)
""",
)
case(
    "IS201 a result goes into a model of the answer",
    "fail",
    """
class TextResponse(BaseModel):
    text: str
@app.post("/x")
async def x():
    result = app.state.llm_engine.generate("a")  # !
    return TextResponse(text=result)
""",
)
case(
    "IS201 a result goes into a response without a stream",
    "fail",
    """
@app.post("/x")
async def x():
    result = app.state.llm_engine.generate("a")  # !
    return JSONResponse(content=result)
""",
)
case(
    "IS201 an async stream is passed on to a coroutine",
    "pass",
    """
@app.post("/x")
async def x():
    parts = app.state.llm_engine.generate("a")
    return await collect(parts)
async def collect(parts):
    return [each async for each in parts]
""",
)
case(
    "IS201 the methods of a stream are awaited",
    "pass",
    """
@app.post("/x")
async def x():
    parts = app.state.llm_engine.generate("a")
    return await asyncio.wait_for(parts.get_final(), 5)
""",
)
case(
    "IS201 a predictor is called",
    "fail",
    """
@app.post("/x")
async def x():
    predictor = make()
    return [each for each in predictor("a")]  # !
""",
)
case(
    "IS201 the method of a base class, which subclasses implement",
    "fail",
    """
class Engine:
    async def chat(self):
        raise NotImplementedError
class Local(Engine):
    async def chat(self):
        time.sleep(1)  # !
class Remote(Engine):
    async def chat(self):
        await asyncio.sleep(1)
class Chat:
    def __init__(self, engine: Engine):
        self.engine = engine
    async def answer(self):
        return await self.engine.chat()
chat = Chat(pick())
@app.post("/x")
async def x():
    return await chat.answer()
""",
)
case(
    "IS201 an override of a method that works",
    "pass",
    """
class Engine:
    async def chat(self):
        return await asyncio.sleep(1)
class Unused(Engine):
    async def chat(self):
        time.sleep(1)
@app.post("/x")
async def x(engine: Engine):
    return await engine.chat()
""",
)
case(
    "IS303 what was awaited is there",
    "pass",
    """
async def events():
    rows = await load()
    for row in rows:
        yield f"data: {row}\\n\\n"
    async for row in changes():
        yield f"data: {row}\\n\\n"
@app.get("/x")
async def x():
    return StreamingResponse(events(), media_type="text/event-stream")
""",
)
case(
    "IS303 what a thread gave may be a generator",
    "fail",
    """
async def events():
    tokens = await asyncio.to_thread(start)
    for token in tokens:
        yield f"data: {token}\\n\\n"
@app.get("/x")
async def x():
    return StreamingResponse(events(), media_type="text/event-stream")  # !
""",
)
case(
    "IS502 speech alone, which no type describes",
    "n/a",
    """
@app.post("/v1/audio/speech")
async def x(text: str):
    return StreamingResponse(speak(text), media_type="audio/wav")
""",
)
case(
    "IS502 speech beside chat",
    "fail",
    """
@app.post("/v1/audio/speech")
async def x(text: str):
    return StreamingResponse(speak(text), media_type="audio/wav")
@app.post("/v1/chat/completions")
async def y(text: str):  # !
    return {"object": "chat.completion"}
""",
)
case(
    "IS201 an item of a dictionary that the lifespan fills",
    "fail",
    """
models = {}
@contextlib.asynccontextmanager
async def lifespan(app):
    from transformers import pipeline
    models["asr"] = pipeline("automatic-speech-recognition")
    models["label"] = "x"
    yield
    models.clear()
app = FastAPI(lifespan=lifespan)
@app.post("/x")
async def x(text: str):
    models["label"](text)
    return models["asr"](text)  # !
@app.post("/y")
async def y(models: dict, text: str):
    return models["asr"](text)
""",
)


@pytest.mark.parametrize(("title", "expected", "source"), CASES, ids=[case[0] for case in CASES])
def test_shape(title: str, expected: str, source: str, tmp_path: Path) -> None:
    profile, _, verdict = expected.rpartition(": ")
    marked = write(source if "# file:" in source else HEAD + source, tmp_path)

    config = Config(Profile(profile or "default"), frozenset({title.split()[0]}))
    report = check(tmp_path, config)

    assert report.unparsed == []
    (judgement,) = report.judgements
    found = {(finding.path.as_posix(), finding.line) for finding in judgement.findings}
    assert (judgement.verdict, found) == (verdict, marked)
