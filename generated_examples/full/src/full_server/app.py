"""The map of the service: what it is made of, how it starts and how it stops."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.middleware import Middleware
from fastapi.security import HTTPBearer

from . import custom
from .background import repeat
from .body import BodyMiddleware
from .dependencies import State
from .drain import Drain
from .errors import add_error_handlers, documented
from .files.store import FileStore
from .middleware import APIKeyMiddleware, DrainMiddleware, RequestContextMiddleware
from .models.catalog import configured_models
from .models.device import Device
from .models.registry import ModelRegistry
from .routers import chat, embeddings, files, health, models
from .settings import DEVICES, Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """Builds the service. Every call gives an independent one: modules hold no state."""
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        device = Device(settings.device, settings.dtype, DEVICES)
        registry = ModelRegistry(configured_models(settings), device)
        file_store = FileStore(settings.files_url)
        if settings.preload:
            registry.want_all()
        tasks = [asyncio.create_task(repeat(1.0, registry.revive))]
        if settings.idle_unload_seconds:
            unload_idle = partial(registry.unload_idle, settings.idle_unload_seconds)
            tasks.append(asyncio.create_task(repeat(5.0, unload_idle)))
        tasks.append(asyncio.create_task(repeat(3600.0, file_store.sweep)))

        try:
            yield {"settings": settings, "registry": registry, "files": file_store}
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await registry.close()

    drain = Drain()
    middleware = [Middleware(RequestContextMiddleware), Middleware(DrainMiddleware, drain=drain)]
    guarded: dict[str, Any] = {}
    if settings.api_keys:
        keys = [key.get_secret_value() for key in settings.api_keys]
        middleware.append(Middleware(APIKeyMiddleware, keys=keys))
        # For the OpenAPI document: it is the middleware that asks.
        guarded["dependencies"] = [Depends(HTTPBearer(auto_error=False))]
        guarded["responses"] = documented(401)
    uploads = {"/v1/files": settings.max_upload_size + files.FORM_OVERHEAD}
    middleware.append(
        Middleware(
            BodyMiddleware,
            limit=settings.max_body_size,
            timeout_seconds=settings.body_timeout_seconds,
            uploads=uploads,
        )
    )

    app = FastAPI(
        title="full-server",
        lifespan=lifespan,
        middleware=middleware,
        # Of the layers around the routes; the routers add their own.
        responses=documented(400, 408, 413, 500, 503),
    )
    app.state.drain = drain
    add_error_handlers(app)
    app.include_router(chat.router, **guarded)
    app.include_router(embeddings.router, **guarded)
    app.include_router(files.router, **guarded)
    app.include_router(health.router)
    app.include_router(models.router, **guarded)
    for router in custom.ROUTERS:
        app.include_router(router, **guarded)
    return app
