"""The models that this service offers, none of them loaded yet."""

from . import custom
from .serving.models.model import ModelSpec
from .settings import Settings


def configured_models(settings: Settings) -> list[ModelSpec]:
    """Raises ValueError when two models would go by one name."""
    specs = [
        *custom.models(settings),
    ]
    owners: dict[str, ModelSpec] = {}
    for spec in specs:
        for name in {spec.id, *spec.aliases}:
            if name in owners:
                raise ValueError(f"Two models are called {name!r}. Give one of them another name.")
            owners[name] = spec
    return specs
