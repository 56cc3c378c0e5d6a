"""GET /health, /health/live and /health/ready, for people, kubelets and load balancers."""

import os
from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter, Request, Response, status
from pydantic import BaseModel, Field

from ..dependencies import RegistryDep

router = APIRouter(prefix="/health", tags=["health"])


class LoadedModel(BaseModel):
    id: str
    engine: Literal["continuous", "sequential"] | None = Field(
        None, description="continuous: requests share a batch; sequential: one at a time"
    )
    engine_reason: str | None = Field(None, description="Why requests do not share a batch")
    attention: str | None = Field(
        None, description="Attention it computes with: flash, sdpa, eager"
    )
    attention_reason: str | None = Field(None, description="Why it computes with this attention")
    cuda_graphs: Literal["on", "off"] | None = Field(
        None, description="Whether its steps run in CUDA graphs, where requests allow it"
    )
    quantization: str | None = Field(None, description="Method that its weights are quantised with")


class Health(BaseModel):
    status: Literal["healthy", "unhealthy"]
    reason: str | None = Field(None, description="Why it is unhealthy")
    device: dict[str, str | None] = Field(description="Device and dtype, once a model was loaded")
    loaded_models: list[str]
    models: list[LoadedModel] = Field(description="Details of the loaded models")
    loading: dict[str, str] | None = Field(
        None, description="How far the models have come that are being loaded, by id"
    )
    load_failures: dict[str, str] | None = Field(
        None, description="Why models could not be loaded, by id"
    )
    timestamp: datetime
    pid: int


class Liveness(BaseModel):
    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    status: Literal["ready", "not ready"]
    reason: str | None = Field(None, description="Why it is not ready")


def why_not_ready(request: Request, registry: RegistryDep) -> str | None:
    if request.app.state.drain.draining:
        return "The service is shutting down."
    if dead := registry.dead:
        return f"Stopped working: {', '.join(dead)}."
    if registry.wanted:
        failures = registry.load_failures
        missing = [
            f"{id_} ({failures[id_]})" if id_ in failures else id_
            for id_ in sorted(registry.wanted)
        ]
        return f"Not loaded yet: {', '.join(missing)}."
    return None


@router.get("", response_model_exclude_none=True)
async def get_health(request: Request, registry: RegistryDep) -> Health:
    """Status for people and dashboards. Always a 200: the status is in the body."""
    reason = why_not_ready(request, registry)
    return Health(
        status="unhealthy" if reason else "healthy",
        reason=reason,
        device=registry.device.describe(),
        loaded_models=[spec.id for spec in registry.loaded],
        models=[
            LoadedModel.model_validate({"id": id_, **model.details})
            for id_, model in registry.models.items()
        ],
        loading=registry.loading or None,
        load_failures=registry.load_failures or None,
        timestamp=datetime.now(UTC),
        pid=os.getpid(),
    )


@router.get("/live")
async def get_liveness() -> Liveness:
    """200 while the event loop runs. A failure calls for a restart."""
    return Liveness()


@router.get(
    "/ready",
    response_model_exclude_none=True,
    responses={status.HTTP_503_SERVICE_UNAVAILABLE: {"model": Readiness}},
)
async def get_readiness(request: Request, registry: RegistryDep, response: Response) -> Readiness:
    """503 while models load, after one has died, and during the shutdown: send no requests then."""
    if reason := why_not_ready(request, registry):
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
        return Readiness(status="not ready", reason=reason)
    return Readiness(status="ready")
