"""The models that this service offers, none of them loaded yet."""

from . import custom
from .serving.chat.chat_model import ChatModel
from .serving.models.hub import served_id
from .serving.models.model import ModelSpec
from .settings import Settings


def configured_models(settings: Settings) -> list[ModelSpec]:
    """Raises ValueError when two models would go by one name."""
    specs = [
        ModelSpec(
            id=served_id(settings.chat_model),
            model_class=ChatModel,
            load=lambda device: ChatModel.load(
                settings.chat_model, device, settings, settings.chat_model_revision
            ),
            aliases=(settings.chat_model,),
        ),
        *custom.models(settings),
    ]
    owners: dict[str, ModelSpec] = {}
    for spec in specs:
        for name in {spec.id, *spec.aliases}:
            if name in owners:
                raise ValueError(f"Two models are called {name!r}. Give one of them another name.")
            owners[name] = spec
    return specs
