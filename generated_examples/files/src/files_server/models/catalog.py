"""The models that this service offers, none of them loaded yet."""

from .. import custom
from ..settings import Settings
from .base import ModelSpec


def configured_models(settings: Settings) -> list[ModelSpec]:
    """Raises ValueError when two models would go by one name."""
    specs = [
        *custom.models(settings),
    ]
    ids = [spec.id for spec in specs]
    for id_ in ids:
        if ids.count(id_) > 1:
            raise ValueError(f"Two models are called {id_!r}. Rename one of the folders.")
    return specs
