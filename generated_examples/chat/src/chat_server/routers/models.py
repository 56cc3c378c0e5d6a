"""GET /v1/models: what can be asked for, loaded or not."""

from typing import Literal

from fastapi import APIRouter
from openai.types import Model
from pydantic import BaseModel, Field

from ..dependencies import RegistryDep
from ..serving.http.errors import documented
from ..serving.models.model import ModelSpec

router = APIRouter(tags=["models"])


class ModelCard(Model):
    """OpenAI's model object, and what this service knows beyond it."""

    type: str = Field(description='Kind of the model: "chat", "embeddings", …')
    loaded: bool = Field(description="Whether it is in memory; false before its first use")
    parent: str | None = Field(None, description="Of an adapter: the model that it belongs to")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


def card(spec: ModelSpec, name: str, registry: RegistryDep) -> ModelCard:
    """name: its id, or that of a variant"""
    is_variant = name in spec.variants
    return ModelCard(
        id=name if is_variant else spec.id,
        object="model",
        # Stable while the service runs: clients keep models by their id and this time.
        created=registry.created,
        owned_by="local",
        type=spec.model_class.type,
        loaded=spec in registry.loaded and name not in registry.load_failures,
        parent=spec.id if is_variant else None,
    )


@router.get("/v1/models", response_model_exclude_none=True)
async def list_models(registry: RegistryDep) -> ModelList:
    """Every configured model, and its adapters."""
    names = [(spec, name) for spec in registry.specs for name in (spec.id, *spec.variants)]
    return ModelList(data=[card(spec, name, registry) for spec, name in names])


@router.get(
    "/v1/models/{model_id:path}", response_model_exclude_none=True, responses=documented(404)
)
async def retrieve_model(model_id: str, registry: RegistryDep) -> ModelCard:
    """One model. Its id may contain slashes, as hub ids do."""
    return card(registry.spec(model_id), model_id, registry)
