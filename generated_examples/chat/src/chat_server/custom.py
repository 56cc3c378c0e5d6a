"""Yours: the routers and models that this service has beyond the template's.

The template wrote this file once and never touches it again; `copier update` leaves it alone.
"""

from fastapi import APIRouter

from .serving.models.model import ModelSpec
from .settings import Settings

ROUTERS: list[APIRouter] = []


def models(settings: Settings) -> list[ModelSpec]:
    """Models to serve beside the configured ones. Import torch in their modules, not here."""
    return []
