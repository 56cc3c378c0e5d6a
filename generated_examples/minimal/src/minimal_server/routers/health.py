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
        None, description="continuous: requests are generated together; sequential: one by one"
    )
    engine_reason: str | None = Field(None, description="Reason for the sequential engine")


class Health(BaseModel):
    status: Literal["healthy", "unhealthy"]
    reason: str | None = Field(None, description="The problem, if it is unhealthy")
    device: dict[str, str | None] = Field(description="Where models run, once one was loaded")
    loaded_models: list[str]
    models: list[LoadedModel] = Field(description="More about the loaded models")
    timestamp: datetime
    pid: int


class Liveness(BaseModel):
    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    status: Literal["ready", "not ready"]
    reason: str | None = Field(None, description="Reason why it is not ready")


def why_not_ready(request: Request, registry: RegistryDep) -> str | None:
    if request.app.state.drain.draining:
        return "The service is shutting down."
    if dead := registry.dead:
        return f"Stopped working: {', '.join(dead)}."
    if registry.wanted:
        return f"Not loaded yet: {', '.join(sorted(registry.wanted))}."
    return None


@router.get("", response_model_exclude_none=True)
async def get_health(request: Request, registry: RegistryDep) -> Health:
    """Device and models, for people and dashboards. Always a 200: the state is in the body."""
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
        timestamp=datetime.now(UTC),
        pid=os.getpid(),
    )


@router.get("/live")
async def get_liveness() -> Liveness:
    """Answers as long as the event loop runs. A failure calls for a restart."""
    return Liveness()


@router.get(
    "/ready",
    response_model_exclude_none=True,
    responses={status.HTTP_503_SERVICE_UNAVAILABLE: {"model": Readiness}},
)
async def get_readiness(request: Request, registry: RegistryDep, response: Response) -> Readiness:
    """503 while the service should get no requests: models load, died, or it shuts down."""
    if reason := why_not_ready(request, registry):
        response.status_code = status.HTTP_503_SERVICE_UNAVAILABLE
        return Readiness(status="not ready", reason=reason)
    return Readiness(status="ready")
