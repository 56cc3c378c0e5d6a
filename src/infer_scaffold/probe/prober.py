"""Ask a running service all questions, one after the other."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import httpx2

from infer_scaffold import __version__
from infer_scaffold.errors import UserError
from infer_scaffold.probe import connections, files, health
from infer_scaffold.probe.answers import Answer, Question
from infer_scaffold.probe.catalogue import QUESTIONS
from infer_scaffold.probe.outcomes import Skip, Unmet, Verdict
from infer_scaffold.probe.sse import from_json
from infer_scaffold.probe.target import Target, broken, short

_CLEANING = 10.0  # seconds in which what was uploaded is deleted
_TRIED = 8  # models of a list that are asked what they can do


@dataclass(frozen=True)
class Options:
    """The options. `timeout` is in seconds for each whole answer, `longest` for all of them."""

    key: str | None = None
    timeout: float = 60.0
    chat_model: str | None = None
    embeddings_model: str | None = None
    pid: int | None = None
    destructive: bool = False
    longest: float = 1800.0


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
    end = asyncio.get_running_loop().time() + options.longest
    async with _target(url, options, end) as target:
        idle = connections.left_idle(target) if connections.KEEP_ALIVE in asked else nullcontext()
        try:
            async with idle:
                for question in asked:
                    answer = await _ask_until(end, question, target, options.longest)
                    answers.append(answer)
                    tell(answer)
        finally:
            with suppress(Unmet, TimeoutError):  # It may have left.
                async with asyncio.timeout(_CLEANING):
                    await files.clean(target)
    return answers


async def _ask_until(end: float, question: Question, target: Target, longest: float) -> Answer:
    """Ask while there is time. The question that is cut off fails, so that no run passes by it."""
    now = asyncio.get_running_loop().time()
    if now >= end:
        reason = f"the {longest:g} s of --max-seconds are over"
        return Answer(question, Verdict.SKIP, 0.0, reason=reason)
    try:
        async with asyncio.timeout_at(end):
            return await _ask(question, target)
    except TimeoutError:
        request = target.last.request if target.last else ""
        got = f"no end within the {longest:g} s of --max-seconds"
        return Answer(question, Verdict.FAIL, end - now, request, got, "answers in time")


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
    except Exception as error:
        # Questions read answers as they should be: one that has another form ends here.
        request, got = (target.last.request, target.last.shown) if target.last else ("", "")
        wanted = f"an answer of OpenAI's form ({type(error).__name__}: {short(str(error))})"
        return answer(Verdict.FAIL, request=request, got=got, wanted=wanted)
    return answer(Verdict.PASS)


@asynccontextmanager
async def _target(url: str, options: Options, end: float) -> AsyncIterator[Target]:
    """The service with its discovered endpoints and models."""
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
    headers = {
        "user-agent": f"infer-scaffold-probe/{__version__}",
        "accept-encoding": "identity",  # what unpacks to gigabytes arrives in no time
    }
    if options.key:
        headers["authorization"] = f"Bearer {options.key}"
    # A connection of its own for each request: one that is kept may be closed by then, as servers
    # do after a status of 500, and the next answer would seem to be missing.
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(
        base_url=root, headers=headers, timeout=options.timeout, limits=limits, trust_env=False
    ) as client:
        target = Target(client, root, "/v1", options.key, options.timeout, options.pid)
        await _discover_in_time(target, options, end)
        yield target


async def _discover_in_time(target: Target, options: Options, end: float) -> None:
    """Raise UserError if the service does not say what it offers."""
    try:
        async with asyncio.timeout_at(end):
            async with asyncio.timeout(options.timeout), target.client.stream("GET", "/"):
                pass  # The head is enough.
            await _discover(target, options)
    except (httpx2.HTTPError, UnicodeError, TimeoutError) as error:
        raise UserError(f"nothing answers at {target.url}: {broken(error)}; start it.") from None
    except Unmet as unmet:
        raise UserError(
            f"{target.url} does not say what it offers: {unmet.request} got {unmet.got}; "
            "put that right, or give it more time with --timeout."
        ) from None


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
    listing = await target.send("GET", f"{target.api}/files")
    target.has_files = listing.status == 200
    names = target.models[:_TRIED] or ["default"]
    chat = [options.chat_model] if options.chat_model else names
    target.chat_model = await _first(target, target.chat_path, chat, _chat)
    embeddings = [options.embeddings_model] if options.embeddings_model else names
    target.embeddings_model = await _first(
        target, f"{target.api}/embeddings", embeddings, lambda model: {"input": "hello"}
    )


def _ids(content: bytes) -> list[str]:
    try:
        return [str(model["id"]) for model in from_json(content)["data"]]
    except (ValueError, KeyError, TypeError):
        return []


def _chat(model: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}


async def _first(
    target: Target, path: str, models: list[str], body: Callable[[str], dict[str, Any]]
) -> str | None:
    """The first model that an endpoint answers with, if any.

    Where there is none and the service itself failed, it is asked on as if it had answered: its
    questions fail, and do not seem to be out of place.
    """
    failed = None
    for model in models:
        reply = await target.send("POST", path, {"model": model} | body(model))
        if reply.status == 200:
            return model
        if reply.status in (404, 405, 501) and await _is_absent(target, path):
            return None
        if reply.status == 429 or reply.status >= 500:
            failed = failed or model
    return failed


async def _is_absent(target: Target, path: str) -> bool:
    """Return whether the route is missing: an existing one answers an empty body differently."""
    return (await target.send("POST", path, {})).status in (404, 405, 501)
