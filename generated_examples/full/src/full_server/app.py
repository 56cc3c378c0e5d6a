"""The map of the service: what it is made of, how it starts and how it stops."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.middleware import Middleware
from fastapi.security import HTTPBearer
from starlette.formparsers import MultiPartParser

from . import custom
from .catalog import configured_models
from .routers import (
    batches,
    chat,
    completions,
    embeddings,
    files,
    health,
    models,
    rerank,
    responses,
)
from .serving.background import repeat
from .serving.batches.batch_metrics import BatchMetrics
from .serving.batches.batch_run import RunContext
from .serving.batches.batch_runner import BatchRunner
from .serving.batches.batch_store import BatchStore
from .serving.batches.inner_app import InnerApp
from .serving.files.pdf import PdfRenderer
from .serving.files.store import FileStore
from .serving.http.api_keys import SECONDS_BETWEEN_READS, APIKeys
from .serving.http.body import BodyMiddleware
from .serving.http.docs import add_docs
from .serving.http.drain import Drain
from .serving.http.errors import add_error_handlers, documented
from .serving.http.http_metrics import HTTPMetrics, add_metrics_page
from .serving.http.middleware import (
    APIKeyMiddleware,
    CrossSiteMiddleware,
    DrainMiddleware,
    ErrorMiddleware,
    OriginMiddleware,
    RequestContextMiddleware,
    RouteMiddleware,
    TrustedHostMiddleware,
)
from .serving.http.page import add_page
from .serving.http.rate_limits import RateLimitMiddleware
from .serving.http.tracing import make_tracer
from .serving.metrics import Metrics
from .serving.models.device import Device
from .serving.models.error_responses import add_model_error_handler
from .serving.models.registry import ModelRegistry
from .settings import DEVICES, Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """Builds the service. Every call gives an independent one: modules hold no state.

    Raises ConfigurationError for settings that do not say which models to serve, KeyFileError for
    a file of keys that cannot be used.
    """
    settings = settings or Settings()
    specs = configured_models(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        device = Device(settings.device, settings.dtype, DEVICES)
        timeout = settings.request_timeout_seconds
        registry = ModelRegistry(specs, device, timeout, metrics)
        file_store = FileStore(settings.files_url)
        app.state.settings, app.state.registry = settings, registry
        app.state.files = file_store
        batch_store = BatchStore(file_store)
        batch_runner = BatchRunner(
            RunContext(
                store=batch_store,
                files=file_store,
                post=InnerApp(app).post,
                is_model=registry.has,
                is_leaving=lambda: drain.draining,
                charge=http_metrics.charge_key,
                metrics=metrics.group(BatchMetrics),
                slots=asyncio.Semaphore(settings.batch_concurrency),
                max_line=settings.max_body_size,
            )
        )
        app.state.batches, app.state.batch_runner = batch_store, batch_runner
        if settings.preload:
            registry.require_all()
        tasks = [asyncio.create_task(repeat(1.0, registry.reload_missing))]
        if settings.api_keys_file:
            tasks.append(asyncio.create_task(repeat(SECONDS_BETWEEN_READS, keys.reload)))
        if settings.idle_unload_seconds:
            unload_idle = partial(registry.unload_idle, settings.idle_unload_seconds)
            tasks.append(asyncio.create_task(repeat(5.0, unload_idle)))
        tasks.append(asyncio.create_task(repeat(3600.0, file_store.sweep)))
        if settings.batch_concurrency:
            tasks.append(asyncio.create_task(batch_runner.run()))

        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await registry.close()
            if tracer is not None:
                await tracer.close()

    drain = Drain()
    metrics = Metrics()
    http_metrics = metrics.group(HTTPMetrics)
    http_metrics.watch(drain)
    given = [key.get_secret_value() for key in settings.api_keys]
    keys = APIKeys(given, settings.api_keys_file, http_metrics.keep_keys)
    tracer = make_tracer("full-server")
    # The first is the outermost.
    middleware = [
        Middleware(
            RequestContextMiddleware,
            metrics=http_metrics,
            log_probes=settings.log_probes,
            tracer=tracer,
        )
    ]
    if settings.cors_origins:
        middleware.append(Middleware(OriginMiddleware, origins=settings.cors_origins))
    middleware.append(Middleware(ErrorMiddleware))
    if settings.trusted_hosts:
        middleware.append(Middleware(TrustedHostMiddleware, hosts=settings.trusted_hosts))
    if not settings.has_keys and "*" not in settings.cors_origins:
        middleware.append(Middleware(CrossSiteMiddleware, origins=settings.cors_origins))
    middleware += [Middleware(RouteMiddleware), Middleware(DrainMiddleware, drain=drain)]
    guarded: dict[str, Any] = {}
    if settings.has_keys:
        middleware.append(
            Middleware(
                APIKeyMiddleware,
                keys=keys,
                public_docs=settings.public_docs,
                public_metrics=settings.metrics == "open",
                public_page=settings.page,
            )
        )
        # For the OpenAPI document: it is the middleware that asks.
        guarded["dependencies"] = [Depends(HTTPBearer(auto_error=False))]
        guarded["responses"] = documented(401)
    limits = {
        "requests": settings.rate_limit_requests,
        "tokens": settings.rate_limit_tokens,
        "concurrent": settings.rate_limit_concurrent,
    }
    if any(limits.values()):
        middleware.append(Middleware(RateLimitMiddleware, **limits))
        guarded["responses"] = {**guarded.get("responses", {}), **documented(429)}
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
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Of the layers around the routes; the routers add their own.
        responses=documented(400, 408, 413, 415, 500, 503),
    )
    app.state.drain, app.state.metrics = drain, metrics
    # Starlette has one value for the process; every service sets the same.
    MultiPartParser.spool_max_size = files.SPOOL_SIZE
    app.state.pdf_renderer = PdfRenderer(settings.max_pdf_pages, settings.pdf_timeout_seconds)
    add_error_handlers(app)
    add_model_error_handler(app)
    add_docs(app)
    app.include_router(batches.router, **guarded)
    app.include_router(chat.router, **guarded)
    app.include_router(embeddings.router, **guarded)
    app.include_router(files.router, **guarded)
    app.include_router(health.router)
    app.include_router(completions.router, **guarded)
    app.include_router(responses.router, **guarded)
    app.include_router(models.router, **guarded)
    # Yours first: one of yours may have the URL of those that follow.
    for router in [*custom.ROUTERS, rerank.router]:
        app.include_router(router, **guarded)
    if settings.metrics != "off":
        add_metrics_page(app, metrics)
    if settings.page:
        add_page(app, public_pages(settings))
    return app


def public_pages(settings: Settings) -> list[str]:
    """The pages that a browser can open without a key."""
    is_open = not settings.has_keys
    pages = {
        "docs": is_open or settings.public_docs,
        "metrics": settings.metrics == "open" or (settings.metrics == "key" and is_open),
    }
    return [page for page, shown in pages.items() if shown]
