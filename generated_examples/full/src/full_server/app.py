"""The map of the service: what it is made of, how it starts and how it stops."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from fastapi import FastAPI
from fastapi.middleware import Middleware

from . import custom
from .background import repeat
from .body import BodyMiddleware
from .dependencies import State
from .drain import Drain
from .errors import ErrorEnvelope, add_error_handlers
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
    if settings.api_keys:
        keys = [key.get_secret_value() for key in settings.api_keys]
        middleware.append(Middleware(APIKeyMiddleware, keys=keys))
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
        responses={"default": {"model": ErrorEnvelope, "description": "Any error"}},
    )
    app.state.drain = drain
    add_error_handlers(app)
    app.include_router(chat.router)
    app.include_router(embeddings.router)
    app.include_router(files.router)
    app.include_router(health.router)
    app.include_router(models.router)
    for router in custom.ROUTERS:
        app.include_router(router)
    return app
