"""Discovery: the endpoints of a service, the models that they answer with, and what fails."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from infer_scaffold.probe import health
from infer_scaffold.probe.answers import Question
from infer_scaffold.probe.outcomes import CannotBeAsked, Unmet
from infer_scaffold.probe.sse import from_json
from infer_scaffold.probe.target import Reply, Target

_TRIED = 8  # models of a list that are asked what they can do
_ABSENT = (404, 405, 501)  # what a service answers that has no such endpoint
_PAUSE = 1.0  # seconds before an endpoint that failed is asked again
_LONGEST_PAUSE = 5.0  # where the service says with Retry-After how long to wait
_HINTS = {
    "chat": "an answer; --chat-model names another model, --timeout gives a late one more time",
    "embeddings": "an answer; --embeddings-model names another model, --timeout gives more time",
    "files": "status 200, or 404 where there are no files",
}

Body = Callable[[str], dict[str, Any]]


@dataclass(frozen=True)
class _Found:
    """The model that an endpoint answers with; one that fails has a failure as well.

    `refused` is the answer of an endpoint that takes none of the models.
    """

    model: str | None = None
    failure: Unmet | None = None
    pause: float = _PAUSE
    refused: Unmet | None = None

    @property
    def answers(self) -> str | None:
        """The model, if it answers."""
        return self.model if self.failure is None else None


async def discover(target: Target, chat: str | None, embeddings: str | None) -> None:
    """Find the endpoints, and the models that they answer with.

    `chat` and `embeddings` are models to ask instead of those that are listed. Raises
    CannotBeAsked if nothing answers, or nothing without a key.
    """
    await _reach(target)
    answered = [await _list_models(target), await _find_health(target), await _find_files(target)]
    names = target.models[:_TRIED] or ["default"]
    chat_path, path = target.chat_path, f"{target.api}/embeddings"
    talk = await _first(target, chat_path, [chat] if chat else names, _chat_body)
    embed = await _first(target, path, [embeddings] if embeddings else names, _embeddings_body)
    if talk.failure and embed.failure and not any(answered):
        raise CannotBeAsked(
            f"{target.url} answers no request in full: {talk.failure.request} got "
            f"{talk.failure.got}; put that right, or give it more time with --timeout."
        )
    # One model answers one kind of request: that it refuses the other is no fault.
    is_single = len(names) == 1
    target.chat_model = await _settle(
        target, "chat", chat_path, talk, _chat_body, is_for_other=is_single and embed.answers
    )
    target.embeddings_model = await _settle(
        target, "embeddings", path, embed, _embeddings_body, is_for_other=is_single and talk.answers
    )


async def _reach(target: Target) -> None:
    """Raise CannotBeAsked if no answer begins, neither here nor to the list of models."""
    for path in ("/", "/v1/models"):
        try:
            async with (
                target.waiting(f"GET {path}", f"GET {path}", "an answer"),
                target.client.stream("GET", path),
            ):
                return  # The head is enough.
        except Unmet as unmet:
            got = unmet.got
    raise CannotBeAsked(
        f"nothing answers at {target.url}: {got}; start it, or give it more time with --timeout."
    )


async def _list_models(target: Target) -> bool:
    """List the models. Returns whether there was an answer."""
    try:
        listed = await target.send("GET", "/v1/models")
        if listed.status == 404 and (await target.send("GET", "/models")).status == 200:
            target.api = ""
            listed = await target.send("GET", "/models")
    except Unmet:
        return False  # The question about the list asks again, and fails.
    if listed.status == 401:
        raise CannotBeAsked("the service wants a key: give it with --api-key.")
    target.models = _ids(listed.content)
    return True


def _ids(content: bytes) -> list[str]:
    try:
        return [str(model["id"]) for model in from_json(content)["data"]]
    except (ValueError, KeyError, TypeError):
        return []


async def _find_health(target: Target) -> bool:
    """Find the first health endpoint. Returns whether there was an answer."""
    try:
        found = await health.first(target, health.HEALTH)
    except Unmet:
        return False  # The question about health asks again, and fails.
    target.kept["health"] = found.request.split()[1] if found else None
    return True


async def _find_files(target: Target) -> bool:
    """Find the endpoint for files. Returns whether there was an answer."""
    path = f"{target.api}/files"
    failure = await _listing(target, path)
    if failure is not None:
        target.failed["files"] = failure
        await asyncio.sleep(_PAUSE)
        if await _listing(target, path) is not None:
            target.has_files = False
            target.reasons["files"] = "files fail, which `files-answer` tells"
    return failure is None or target.has_files


async def _listing(target: Target, path: str) -> Unmet | None:
    """List the files. Returns what failed."""
    try:
        reply = await target.send("GET", path)
        is_page = "text/html" in reply.headers.get("content-type", "")
        target.has_files = reply.status not in _ABSENT and not is_page
        if target.has_files:
            reply.require(200)
    except Unmet as unmet:
        return unmet
    return None


def _chat_body(model: str) -> dict[str, Any]:
    message = {"role": "user", "content": "Hello"}
    return {"model": model, "messages": [message], "max_tokens": 1}


def _embeddings_body(model: str) -> dict[str, Any]:
    return {"model": model, "input": "hello"}


async def _first(target: Target, path: str, models: list[str], body: Body) -> _Found:
    """The first model that an endpoint answers with, else the first that fails."""
    failed, refused = None, None
    for model in models:
        try:
            reply = await target.send("POST", path, body(model))
            if reply.status in _ABSENT and await _is_absent(target, path):
                return _Found()
        except Unmet as unmet:
            return failed or _Found(model, unmet)  # Such waits are not made for every model.
        if reply.status == 200:
            return _Found(model)
        if reply.status == 401:
            raise CannotBeAsked(f"the service wants a key for {path}: give it with --api-key.")
        other = reply.unmet("status 200")
        if reply.status == 429 or reply.status >= 500:
            failed = failed or _Found(model, other, _pause(reply))
        else:
            refused = refused or other
    return failed or _Found(refused=refused)


async def _is_absent(target: Target, path: str) -> bool:
    """Return whether the route is missing: an existing one answers an empty body differently."""
    return (await target.send("POST", path, {})).status in _ABSENT


def _pause(reply: Reply) -> float:
    """The seconds until an endpoint that failed is asked again."""
    said = reply.headers.get("retry-after", "")
    return min(float(said), _LONGEST_PAUSE) if said.isdigit() else _PAUSE


async def _settle(
    target: Target, name: str, path: str, found: _Found, body: Body, *, is_for_other: object
) -> str | None:
    """Return the model to ask, and keep what failed and why nothing is asked.

    An endpoint that failed once is asked again: only its first answer may have been late.
    """
    if found.failure is not None and found.model is not None:
        target.failed[name] = found.failure
        await asyncio.sleep(found.pause)
        try:
            (await target.send("POST", path, body(found.model))).require(200)
        except Unmet:
            target.reasons[name] = f"{name} fails, which `{name}-answer` tells"
            return None
    elif found.refused is not None and is_for_other:
        target.reasons[name] = f"the only model is for another endpoint: {found.refused.got}"
    elif found.refused is not None:
        target.failed[name] = found.refused
        target.reasons[name] = f"{name} refuses every model, which `{name}-answer` tells"
    return found.model


def _answer(name: str) -> Callable[[Target], Awaitable[None]]:
    """Ask what the discovery has seen of an endpoint."""

    async def ask(target: Target) -> None:
        if (failure := target.failed.get(name)) is not None:
            raise Unmet(failure.request, failure.got, _HINTS[name])
        match name:
            case "chat":
                target.chat()
            case "embeddings":
                target.embed("hello")
            case _:
                target.require_files()

    return ask


QUESTIONS = (
    Question("IS501", "chat-answer", "Chat answers a first small request.", _answer("chat")),
    Question(
        "IS501",
        "embeddings-answer",
        "Embeddings answer a first small request.",
        _answer("embeddings"),
    ),
    Question("IS501", "files-answer", "Files are listed at a first request.", _answer("files")),
)
