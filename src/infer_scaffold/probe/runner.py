"""Ask a running service all questions, one after the other."""

import json
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx2

from infer_scaffold import __version__
from infer_scaffold.errors import UserError
from infer_scaffold.probe import health, uploads
from infer_scaffold.probe.model import Answer, Question, Skip, Unmet, Verdict
from infer_scaffold.probe.questions import QUESTIONS
from infer_scaffold.probe.target import Target, broken, short

_TRIED = 8  # models of a list that are asked what they can do


@dataclass(frozen=True)
class Options:
    """How to ask. `timeout` is in seconds and holds for each request."""

    key: str | None = None
    timeout: float = 60.0
    chat_model: str | None = None
    embeddings_model: str | None = None
    pid: int | None = None
    destructive: bool = False


async def probe(
    url: str,
    options: Options,
    codes: Collection[str],
    tell: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
    """Ask the service at an address; `tell` gets each answer at once.

    Raises UserError if nothing answers there.
    """
    asked = [
        question
        for question in QUESTIONS
        if question.code in codes and (options.destructive or not question.destructive)
    ]
    answers = []
    async with _target(url, options) as target:
        try:
            for question in asked:
                answer = await _ask(question, target)
                answers.append(answer)
                tell(answer)
        finally:
            with suppress(Unmet):  # It may have left.
                await uploads.clean(target)
    return answers


async def _ask(question: Question, target: Target) -> Answer:
    started = time.perf_counter()

    def answer(verdict: Verdict, **more: str) -> Answer:
        return Answer(question, verdict, time.perf_counter() - started, **more)

    try:
        await question.ask(target)
    except Skip as skip:
        return answer(Verdict.SKIP, reason=str(skip))
    except Unmet as unmet:
        return answer(Verdict.FAIL, request=unmet.request, got=unmet.got, wanted=unmet.wanted)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # Questions read answers as they should be: one that has another form ends here.
        request, got = (target.last.request, target.last.shown) if target.last else ("", "")
        wanted = f"an answer of OpenAI's form ({type(error).__name__}: {short(str(error))})"
        return answer(Verdict.FAIL, request=request, got=got, wanted=wanted)
    return answer(Verdict.PASS)


@asynccontextmanager
async def _target(url: str, options: Options) -> AsyncIterator[Target]:
    """The service, once it is known what it offers."""
    try:
        address = httpx2.URL(url if "://" in url else f"http://{url}")
    except httpx2.InvalidURL as error:
        raise UserError(f"{url} is no address ({error}); give one like http://host:8000.") from None
    possible = (
        address.scheme in ("http", "https") and address.host and (address.port or 0) < 1 << 16
    )
    if not possible:
        raise UserError(f"{url} is no address; give one like http://host:8000.")
    root = str(address).rstrip("/").removesuffix("/v1")
    headers = {"user-agent": f"infer-scaffold-probe/{__version__}"}
    if options.key:
        headers["authorization"] = f"Bearer {options.key}"
    # A connection of its own for each request: one that is kept may be closed by then, as servers
    # do after a status of 500, and the next answer would seem to be missing.
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(
        base_url=root, headers=headers, timeout=options.timeout, limits=limits, trust_env=False
    ) as client:
        target = Target(client, root, "/v1", options.key, options.timeout, options.pid)
        try:
            await client.get("/")
        except httpx2.TransportError as error:
            raise UserError(f"nothing answers at {root}: {broken(error)}; start it.") from None
        await _discover(target, options)
        yield target


async def _discover(target: Target, options: Options) -> None:
    """Find the endpoints, and the models that they answer with."""
    listed = await target.send("GET", "/v1/models")
    if listed.status == 404 and (await target.send("GET", "/models")).status == 200:
        target.api = ""
        listed = await target.send("GET", "/models")
    if listed.status == 401:
        raise UserError("the service wants a key: give it with --api-key.")
    target.models = _ids(listed.content)
    found = await health.first(target, health.HEALTH)
    target.kept["health"] = found.request.split()[1] if found else None
    files = await target.send("GET", f"{target.api}/files")
    target.has_files = files.status == 200
    names = target.models[:_TRIED] or ["default"]
    chat = [options.chat_model] if options.chat_model else names
    target.chat_model = await _first(target, target.chat_path, chat, _chat)
    embeddings = [options.embeddings_model] if options.embeddings_model else names
    target.embeddings_model = await _first(
        target, f"{target.api}/embeddings", embeddings, lambda model: {"input": "hello"}
    )


def _ids(content: bytes) -> list[str]:
    try:
        return [str(model["id"]) for model in json.loads(content)["data"]]
    except (ValueError, KeyError, TypeError):
        return []


def _chat(model: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}


async def _first(
    target: Target, path: str, models: list[str], body: Callable[[str], dict[str, Any]]
) -> str | None:
    """The first model that an endpoint answers with, if any."""
    for model in models:
        reply = await target.send("POST", path, {"model": model} | body(model))
        if reply.status == 200:
            return model
        if reply.status in (404, 405, 501) and await _is_absent(target, path):
            return None
    return None


async def _is_absent(target: Target, path: str) -> bool:
    """Whether there is no such route: one that exists tells an empty body from a good one."""
    return (await target.send("POST", path, {})).status in (404, 405, 501)
