"""The service as replicas of Ray Serve: `serve run deploy/ray/serve.yaml`. See docs/scaling.md."""

import asyncio
import logging
import threading
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from .app import create_app
from .serving.http.http_metrics import MetricsServer
from .serving.http.logs import configure_logging
from .settings import Settings, misspelt

logger = logging.getLogger(__name__)

SECONDS_TO_LEAVE = 15.0
"""Time for the last event of a request whose own time is over, and for unloading the models"""

REPLICAS_OF_A_NODE = 32
"""Ports that are tried for metrics"""


def build(arguments: dict[str, str]) -> Application:
    """The application that the serve config names. What its `deployments` say comes first."""
    settings = Settings()
    return Replica.options(  # type: ignore[attr-defined]
        # Beyond it Ray holds requests back. Its default of 5 would be the size of the batch.
        max_ongoing_requests=settings.max_connections,
        # A replica that leaves gets no new requests, and each that it has ends by its own deadline,
        # a stream with an event that says so. What Ray cuts off ends without one.
        graceful_shutdown_timeout_s=settings.request_timeout_seconds + SECONDS_TO_LEAVE,
    ).bind()


class RayMiddleware:
    """The behaviour of other servers: it waits for the models, and sends one request id."""

    def __init__(self, service: FastAPI) -> None:
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sends = self.send_loaded if scope["type"] == "lifespan" else self.send_without_id
        await self.service(scope, receive, partial(sends, send))

    async def send_loaded(self, send: Send, message: Message) -> None:
        """Ray sends requests from the end of the startup on, and asks for no readiness."""
        if message["type"] == "lifespan.startup.complete":
            while self.service.state.registry.wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await send(message)

    async def send_without_id(self, send: Send, message: Message) -> None:
        """Ray's proxy adds the request's id to the answer, which has it already."""
        if message["type"] == "http.response.start":
            del MutableHeaders(scope=message)["x-request-id"]
        await send(message)


@serve.deployment
@serve.ingress()
class Replica:
    """One process of Ray with the service in it."""

    def __init__(self) -> None:
        self.settings = Settings()
        configure_logging(self.settings.log_format, self.settings.log_level)
        for sentence in misspelt():
            logger.warning(sentence)
        self.service = create_app(self.settings)
        if self.settings.metrics_port:
            self.serve_metrics()

    def __serve_build_asgi_app__(self) -> ProxyHeadersMiddleware:  # Ray calls it after __init__
        app: Any = RayMiddleware(self.service)
        return ProxyHeadersMiddleware(app, list(self.settings.forwarded_allow_ips))

    def check_health(self) -> None:
        """Ray replaces a replica for which this has failed three times, ten seconds apart."""
        registry = self.service.state.registry
        if missing := registry.dead or sorted(registry.wanted):
            raise RuntimeError(f"models that do not work: {', '.join(missing)}")

    def serve_metrics(self) -> None:
        """Takes the first port that no other replica of the node has."""
        first, metrics = self.settings.metrics_port, self.service.state.metrics
        for port in range(first, first + REPLICAS_OF_A_NODE):
            with suppress(OSError):
                server = MetricsServer(self.settings.host, port, metrics)
                threading.Thread(target=server.serve_forever, daemon=True).start()
                return
        raise RuntimeError(f"INFER_METRICS_PORT: no port from {first} on is free")
