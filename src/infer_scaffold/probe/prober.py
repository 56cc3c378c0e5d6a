"""Ask a running service all questions, one after the other."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass

import httpx2

from infer_scaffold import __version__
from infer_scaffold.errors import UserError
from infer_scaffold.probe import connections, discovery, files
from infer_scaffold.probe.answers import Answer, Question
from infer_scaffold.probe.catalogue import QUESTIONS
from infer_scaffold.probe.outcomes import CannotBeAsked, Skip, Unmet, Unprepared, Verdict
from infer_scaffold.probe.patience import Patience
from infer_scaffold.probe.target import Target, short

_CLEANING = 10.0  # seconds in which what was uploaded is deleted


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
    origin: str | None = None
    silence: float | None = None

    @property
    def least_silence(self) -> float:
        """The seconds that a connection is left idle at least, where `silence` does not say."""
        if self.silence is not None:
            return self.silence
        return connections.POOLED if self.destructive else connections.LEAST


@dataclass(frozen=True)
class Step:
    """One step of a run: what is asked now, and how many questions have been asked."""

    name: str
    done: int
    total: int


async def probe(
    url: str,
    options: Options,
    codes: Collection[str],
    watch: Callable[[Step], None] = lambda step: None,
) -> list[Answer]:
    """Ask the service at an address; `watch` gets each step before it is taken.

    Whether its endpoints answer is asked whatever the codes are, and told where they do not.
    Raises CannotBeAsked if no question can be asked.
    """
    asked = [
        question
        for question in QUESTIONS
        if (question.code in codes or question in discovery.QUESTIONS)
        and (options.destructive or not question.destructive)
    ]
    answers: list[Answer] = []
    end = asyncio.get_running_loop().time() + options.longest
    watch(Step("the endpoints", 0, len(asked)))
    async with _target(url, options, end) as target:
        idle = connections.left_idle(target) if connections.KEEP_ALIVE in asked else nullcontext()
        try:
            async with idle:
                for question in asked:
                    watch(Step(question.name, len(answers), len(asked)))
                    answers.append(await _ask_until(end, question, target, options.longest))
        finally:
            with suppress(Exception):  # It may have left, and answer anything.
                async with asyncio.timeout(_CLEANING):
                    await files.clean(target)
    return [answer for answer in answers if answer.question.code in codes or answer.is_unwanted]


async def _ask_until(end: float, question: Question, target: Target, longest: float) -> Answer:
    """Ask while there is time. The question that is cut off fails, so that no run passes by it."""
    now = asyncio.get_running_loop().time()
    if now >= end:
        reason = f"the {longest:g} s of --max-seconds are over"
        return Answer(question, Verdict.ERROR, 0.0, reason=reason)
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
    except Unprepared as failure:
        return answer(Verdict.ERROR, reason=str(failure))
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
        target = Target(
            client,
            root,
            "/v1",
            options.key,
            Patience(options.timeout),
            options.pid,
            options.origin,
            options.least_silence,
        )
        await _discover_in_time(target, options, end)
        yield target


async def _discover_in_time(target: Target, options: Options, end: float) -> None:
    """Raise CannotBeAsked if the service does not say what it offers, whatever it answers."""
    try:
        async with asyncio.timeout_at(end):
            await discovery.discover(target, options.chat_model, options.embeddings_model)
    except CannotBeAsked:
        raise
    except TimeoutError:
        got = f"no end within the {options.longest:g} s of --max-seconds"
        raise CannotBeAsked(f"{target.url} does not say what it offers: {got}.") from None
    except Exception as error:
        # The answers are those of a stranger: what they bring about is nobody's traceback.
        request, got = (target.last.request, target.last.shown) if target.last else ("", "")
        raise CannotBeAsked(
            f"{target.url} does not say what it offers: {request} got {got} "
            f"({type(error).__name__}: {short(str(error))}); put that right."
        ) from None
