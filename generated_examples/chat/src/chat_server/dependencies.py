"""Dependencies of the routes: the objects that the lifespan creates once for the service.

They are kept in `app.state`, as not every host of ASGI apps hands the state of a lifespan to the
requests. The functions are `async def`, though they await nothing: others take a thread of a small
pool.
"""

from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from .serving.deadline import Deadline
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


SettingsDep = Annotated[Settings, Depends(get_settings)]
DeadlineDep = Annotated[Deadline, Depends(get_deadline)]
RegistryDep = Annotated[ModelRegistry, Depends(get_registry)]
