"""Health, and the list of models."""

import asyncio
import re
import uuid
from typing import Any
from urllib.parse import quote

from infer_scaffold.probe import envelope
from infer_scaffold.probe.answers import Question
from infer_scaffold.probe.outcomes import Skip
from infer_scaffold.probe.target import Reply, Target, short

HEALTH = ("/health", "/healthz", "/v1/health", "/api/health", "/status")
READY = ("/health/ready", "/ready", "/readyz", "/readiness", "/health/readiness")
LIVE = ("/health/live", "/live", "/livez", "/liveness", "/health/liveness")
_METRICS = "/metrics"
_SAMPLE = re.compile(
    r"(?P<name>[a-zA-Z_:][\w:]*)(?P<labels>\{.*\})?\s+(?P<value>\S+)(\s+-?[\d.]+)?(\s+#.*)?"
)
_OWN = ("process_", "python_")  # what counts without requests
_LOOKS = 5  # at metrics, which some services count late
_PAUSE = 0.5  # seconds between them
_FACTS = {
    "the device": r"device|cuda|gpu",
    "the loaded models": r"model",
    "a timestamp": r"time|now|date",
    "the process id": r"pid|process",
}


async def first(target: Target, paths: tuple[str, ...]) -> Reply | None:
    """Return the answer of the first path that there is."""
    for path in paths:
        reply = await target.send("GET", path)
        if reply.status not in (404, 405):
            return reply
    return None


async def _health(target: Target) -> None:
    reply = await first(target, HEALTH)
    if reply is None:
        nothing = await target.send("GET", HEALTH[0])
        raise nothing.unmet("a health endpoint")
    reply.require(200)
    body = reply.json()
    if not isinstance(body, dict):
        raise reply.unmet("a JSON object")
    names = " ".join(_names(body)).lower()
    missing = [fact for fact, pattern in _FACTS.items() if not re.search(pattern, names)]
    if missing:
        raise reply.unmet(f"{', '.join(missing)} as well")


def _names(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(name for each in value.values() for name in _names(each))]
    return []


async def _ready(target: Target) -> None:
    for paths, what in ((LIVE, "lives"), (READY, "takes requests")):
        reply = await first(target, paths)
        if reply is None:
            nothing = await target.send("GET", paths[0])
            raise nothing.unmet(f"an endpoint that says whether the process {what}")
        reply.require(200)


async def _models(target: Target) -> None:
    from openai.types import Model
    from pydantic import ValidationError

    reply = (await target.send("GET", f"{target.api}/models")).require(200)
    body = reply.json()
    models = body.get("data") if isinstance(body, dict) else None
    if body.get("object") != "list" if isinstance(body, dict) else True:
        raise reply.unmet('{"object": "list", "data": [...]}')
    if not isinstance(models, list):
        raise reply.unmet('{"object": "list", "data": [...]}')
    for model in models:
        try:
            Model.model_validate(model, strict=True)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(map(str, problem["loc"]))
            raise reply.unmet(f"openai.types' Model ({place}: {problem['msg']})") from None
    await asyncio.sleep(1.1)  # `created` is in seconds
    if (await target.send("GET", f"{target.api}/models")).json() != body:
        raise reply.unmet("the same list a second later", "another one, as by its created")


async def _model(target: Target) -> None:
    if not target.models:
        raise Skip("no model is listed")
    listed = (await target.send("GET", f"{target.api}/models")).require(200).json()["data"]
    for model in listed[:3]:
        reply = await target.send("GET", f"{target.api}/models/{quote(model['id'], safe='/')}")
        if reply.require(200).json() != model:
            raise reply.unmet("the model as it is in the list")
    unknown = await target.send("GET", f"{target.api}/models/no-such-model")
    envelope.require(unknown, 404)


async def _metrics(target: Target) -> None:
    before = await target.send("GET", _METRICS)
    is_page = "text/html" in before.headers.get("content-type", "")
    if before.status in (401, 403, 404, 405, 501) or is_page:
        raise Skip(f"there are no metrics at {_METRICS}, or not for this key")
    counters = _counters(before.require(200))
    unknown = f"no-such-{uuid.uuid4().hex}"
    await target.send("GET", f"{target.api}/{unknown}")
    if target.chat_model is not None:
        await target.send("POST", target.chat_path, target.chat(max_tokens=1))
    for _ in range(_LOOKS):
        after = await target.send("GET", _METRICS)
        grown = _counters(after.require(200))
        if any(value > counters.get(name, 0.0) for name, value in grown.items()):
            break
        await asyncio.sleep(_PAUSE)
    else:
        raise after.unmet("a counter that grows with requests", f"{len(grown)} counters as before")
    if unknown in after.text:
        wanted = "labels of a bounded number: each path that does not exist is kept for ever"
        raise after.unmet(wanted, f"a label with the path {unknown}")


def _counters(reply: Reply) -> dict[str, float]:
    """The counters of a text of metrics, those of the process itself aside.

    Raises Unmet for a text that Prometheus does not read.
    """
    kind = reply.headers.get("content-type", "nothing")
    if not kind.startswith(("text/plain", "application/openmetrics-text")):
        raise reply.unmet("content-type: text/plain; version=0.0.4", f"content-type: {kind}")
    found = {}
    for line in reply.text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        sample = _SAMPLE.fullmatch(line.strip())
        try:
            value = float(sample["value"]) if sample else None
        except ValueError:
            value = None
        if sample is None or value is None:
            raise reply.unmet("lines of a name, labels and a number", f"the line {short(line)!r}")
        if sample["name"].endswith(("_total", "_count")) and not sample["name"].startswith(_OWN):
            found[f"{sample['name']}{sample['labels'] or ''}"] = value
    return found


QUESTIONS = (
    Question("IS701", "health", "Health says device, models, time and process.", _health),
    Question("IS701", "live-and-ready", "Liveness and readiness are asked apart.", _ready),
    Question("IS701", "metrics", "Metrics are Prometheus's text, and count requests.", _metrics),
    Question("IS702", "models", "The models are OpenAI's list, and stay the same.", _models),
    Question("IS702", "model", "Each model is found under its name, and no other.", _model),
)
