"""The models that this service offers, none of them loaded yet."""

from . import custom
from .serving.models.model import ModelSpec
from .serving.models.model_list import check_names
from .settings import Settings


def configured_models(settings: Settings) -> list[ModelSpec]:
    """Raises ConfigurationError for a setting that lists no models, and for two of one name."""
    specs = [
        *custom.models(settings),
    ]
    check_names(specs)
    return specs
