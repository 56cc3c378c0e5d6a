"""The models that this service offers, none of them loaded yet."""

from collections.abc import Iterator
from functools import partial

from . import custom
from .serving.chat.chat_model import ChatModel
from .serving.embeddings.embeddings_model import EmbeddingsModel
from .serving.embeddings.rerank_model import RerankModel
from .serving.models.adapter_base import adapters_by_model
from .serving.models.model import ModelSpec
from .serving.models.model_list import check_names, listed_models, named_sources
from .settings import Settings


def configured_models(settings: Settings) -> list[ModelSpec]:
    """Raises ConfigurationError for a setting that lists no models, and for two of one name."""
    specs = [
        *chat_models(settings),
        *embeddings_models(settings),
        *rerank_models(settings),
        *custom.models(settings),
    ]
    check_names(specs)
    return specs


def chat_models(settings: Settings) -> Iterator[ModelSpec]:
    listed = listed_models("INFER_CHAT_MODEL", settings.chat_model, settings.chat_model_revision)
    sources = named_sources("INFER_CHAT_ADAPTERS", settings.chat_adapters)
    adapters = adapters_by_model(sources, [each.source for each in listed])
    for each, own in zip(listed, adapters, strict=True):
        yield ModelSpec(
            id=each.id,
            model_class=ChatModel,
            load=partial(
                ChatModel.load,
                each.source,
                settings=settings,
                revision=each.revision,
                adapters=own,
            ),
            aliases=each.aliases,
            variants=tuple(own),
        )


def embeddings_models(settings: Settings) -> Iterator[ModelSpec]:
    revisions = settings.embeddings_model_revision
    for each in listed_models("INFER_EMBEDDINGS_MODEL", settings.embeddings_model, revisions):
        yield ModelSpec(
            id=each.id,
            model_class=EmbeddingsModel,
            load=partial(
                EmbeddingsModel.load, each.source, settings=settings, revision=each.revision
            ),
            aliases=each.aliases,
        )


def rerank_models(settings: Settings) -> Iterator[ModelSpec]:
    revisions = settings.rerank_model_revision
    for each in listed_models("INFER_RERANK_MODEL", settings.rerank_model, revisions):
        yield ModelSpec(
            id=each.id,
            model_class=RerankModel,
            load=partial(RerankModel.load, each.source, settings=settings, revision=each.revision),
            aliases=each.aliases,
        )
