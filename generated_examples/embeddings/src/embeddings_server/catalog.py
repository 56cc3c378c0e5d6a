"""The models that this service offers, none of them loaded yet."""

from . import custom
from .serving.embeddings.embeddings_model import EmbeddingsModel
from .serving.embeddings.rerank_model import RerankModel
from .serving.models.hub import served_id
from .serving.models.model import ModelSpec
from .settings import Settings


def configured_models(settings: Settings) -> list[ModelSpec]:
    """Raises ValueError when two models would go by one name."""
    specs = [
        ModelSpec(
            id=served_id(settings.embeddings_model),
            model_class=EmbeddingsModel,
            load=lambda device: EmbeddingsModel.load(
                settings.embeddings_model, device, settings, settings.embeddings_model_revision
            ),
            aliases=(settings.embeddings_model,),
        ),
        *custom.models(settings),
    ]
    if settings.rerank_model:
        specs.append(
            ModelSpec(
                id=served_id(settings.rerank_model),
                model_class=RerankModel,
                load=lambda device: RerankModel.load(settings.rerank_model, device, settings),
                aliases=(settings.rerank_model,),
            )
        )
    owners: dict[str, ModelSpec] = {}
    for spec in specs:
        for name in {spec.id, *spec.aliases}:
            if name in owners:
                raise ValueError(f"Two models are called {name!r}. Give one of them another name.")
            owners[name] = spec
    return specs
