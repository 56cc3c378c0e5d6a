"""Dependencies of the routes: the objects that the lifespan creates once for the service.

They are kept in `app.state`, as not every host of ASGI apps hands the state of a lifespan to the
requests. The functions are `async def`, though they await nothing: others take a thread of a small
pool.
"""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from .serving.batches.batch_runner import BatchRunner
from .serving.batches.batch_store import BatchStore
from .serving.deadline import Deadline
from .serving.files.store import FileStore
from .serving.models.registry import ModelRegistry
from .settings import Settings


async def get_settings(connection: HTTPConnection) -> Settings:
    settings: Settings = connection.app.state.settings
    return settings


async def get_deadline(connection: HTTPConnection) -> Deadline:
    """Begins when the body has arrived, which has time limits of its own."""
    return Deadline(connection.app.state.settings.request_timeout_seconds)


async def get_registry(connection: HTTPConnection) -> ModelRegistry:
    registry: ModelRegistry = connection.app.state.registry
    return registry


async def get_files(connection: HTTPConnection) -> FileStore:
    files: FileStore = connection.app.state.files
    return files


async def get_batches(connection: HTTPConnection) -> BatchStore:
    batches: BatchStore = connection.app.state.batches
    return batches


async def get_batch_runner(connection: HTTPConnection) -> BatchRunner:
    runner: BatchRunner = connection.app.state.batch_runner
    return runner


SettingsDep = Annotated[Settings, Depends(get_settings)]
DeadlineDep = Annotated[Deadline, Depends(get_deadline)]
RegistryDep = Annotated[ModelRegistry, Depends(get_registry)]
FilesDep = Annotated[FileStore, Depends(get_files)]
BatchesDep = Annotated[BatchStore, Depends(get_batches)]
BatchRunnerDep = Annotated[BatchRunner, Depends(get_batch_runner)]
