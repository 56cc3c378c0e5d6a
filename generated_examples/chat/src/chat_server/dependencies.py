"""What the lifespan creates once and the routes ask for."""

from typing import Annotated, TypedDict

from fastapi import Depends, Request

from .models.registry import ModelRegistry
from .settings import Settings


class State(TypedDict):
    """The state of the running service, `request.state` in a route."""

    settings: Settings
    registry: ModelRegistry


def get_settings(request: Request) -> Settings:
    settings: Settings = request.state.settings
    return settings


def get_registry(request: Request) -> ModelRegistry:
    registry: ModelRegistry = request.state.registry
    return registry


SettingsDep = Annotated[Settings, Depends(get_settings)]
RegistryDep = Annotated[ModelRegistry, Depends(get_registry)]
