"""/v1/batches: files of requests that are answered when no client waits for a model."""

import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, status
from obstore.exceptions import BaseError as StoreError
from openai.types import Batch
from openai.types.batch import Errors
from openai.types.batch_error import BatchError
from openai.types.batch_request_counts import BatchRequestCounts

from ..dependencies import BatchesDep, BatchRunnerDep, FilesDep
from ..schemas.batches import BatchList, BatchRequest
from ..serving.batches.batch_errors import BatchNotFound
from ..serving.batches.batch_runner import WINDOW_SECONDS
from ..serving.batches.batch_store import BATCH_ID, BatchState, new_batch_id
from ..serving.files.file_errors import FileNotFound
from ..serving.http.errors import APIError, documented
from .files import store_failed

MAX_OPEN = 100
"""Batches of one key that have not ended"""


async def translate_batch_errors() -> AsyncIterator[None]:
    """Gives the errors of batches their status. The store knows nothing of HTTP."""
    try:
        yield
    except BatchNotFound as error:
        raise APIError(
            status.HTTP_404_NOT_FOUND, str(error), param="batch_id", code="batch_not_found"
        ) from error
    except FileNotFound as error:
        raise APIError(
            status.HTTP_404_NOT_FOUND, str(error), param="input_file_id", code="file_not_found"
        ) from error
    except StoreError as error:
        raise store_failed(error) from error


router = APIRouter(
    prefix="/v1/batches", tags=["batches"], dependencies=[Depends(translate_batch_errors)]
)


async def get_key_name(request: Request) -> str | None:
    """The name of the key, whose batches no other key sees; None in a service without keys."""
    name: str | None = getattr(request.state, "key_name", None)
    return name


KeyNameDep = Annotated[str | None, Depends(get_key_name)]


async def get_batch(batch_id: str, batches: BatchesDep, key_name: KeyNameDep) -> BatchState:
    batch = await batches.retrieve(batch_id)
    if key_name not in (None, batch.owner):
        raise BatchNotFound(f"The batch {batch_id!r} does not exist.")
    return batch


BatchStateDep = Annotated[BatchState, Depends(get_batch)]


@router.post("", response_model_exclude_none=True, responses=documented(404, 429, 507))
async def create_batch(
    body: BatchRequest,
    files: FilesDep,
    batches: BatchesDep,
    runner: BatchRunnerDep,
    key_name: KeyNameDep,
) -> Batch:
    """Begins to answer the requests in a file, one in each line."""
    file = await files.retrieve(body.input_file_id)
    if file.purpose != "batch":
        raise APIError(
            status.HTTP_400_BAD_REQUEST,
            "input_file_id: the file was not uploaded with purpose=batch",
            param="input_file_id",
            code="invalid_value",
        )
    if await batches.open_batches(key_name) >= MAX_OPEN:
        raise APIError(
            status.HTTP_429_TOO_MANY_REQUESTS,
            f"{MAX_OPEN} batches have not ended yet. Wait for one of them, or cancel it.",
            code="too_many_batches",
            headers={"Retry-After": "60"},
        )
    created = int(time.time())
    expiry = body.output_expires_after
    batch = BatchState(
        id=new_batch_id(),
        endpoint=body.endpoint,
        input_file_id=file.id,
        completion_window=body.completion_window,
        created_at=created,
        expires_at=created + WINDOW_SECONDS,
        metadata=body.metadata,
        owner=key_name,
        output_expires_after=expiry.seconds if expiry else None,
    )
    await batches.create(batch)
    runner.look_at(batch)
    return as_batch_object(batch)


@router.get("", response_model_exclude_none=True)
async def list_batches(
    batches: BatchesDep,
    key_name: KeyNameDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(pattern=f"^{BATCH_ID.pattern}$")] = None,
) -> BatchList:
    """Batches by the time when they were made, newest first. `after` is the last id of the previous
    page.
    """
    page, has_more = await batches.list_batches(limit=limit, after=after, owner=key_name)
    return BatchList(
        data=[as_batch_object(batch) for batch in page],
        has_more=has_more,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
    )


@router.get("/{batch_id}", response_model_exclude_none=True, responses=documented(404))
async def retrieve_batch(batch: BatchStateDep) -> Batch:
    """State of a batch."""
    return as_batch_object(batch)


@router.post("/{batch_id}/cancel", response_model_exclude_none=True, responses=documented(404, 507))
async def cancel_batch(
    batch: BatchStateDep, batches: BatchesDep, runner: BatchRunnerDep, key_name: KeyNameDep
) -> Batch:
    """Ends a batch early. The answers so far are kept."""
    if batch.status in ("validating", "in_progress"):
        cancelling = {"status": "cancelling", "cancelling_at": int(time.time())}
        await batches.write(batch.id, "cancelling", cancelling)
        batch = await batches.retrieve(batch.id)
        runner.look_at(batch)
    if batch.status not in ("cancelling", "cancelled") and batch.ending != "cancelled":
        raise APIError(
            status.HTTP_400_BAD_REQUEST,
            f"A batch with the status {batch.status!r} cannot be cancelled.",
            param="batch_id",
            code="invalid_value",
        )
    return as_batch_object(batch)


def as_batch_object(batch: BatchState) -> Batch:
    errors = [BatchError(**problem.model_dump()) for problem in batch.errors]
    fields = batch.model_dump(
        exclude={
            *("total", "completed", "failed", "errors"),
            *("owner", "output_expires_after", "ending", "output_id", "error_id"),
        }
    )
    return Batch(
        object="batch",
        errors=Errors(data=errors, object="list") if errors else None,
        request_counts=BatchRequestCounts(
            total=batch.total, completed=batch.completed, failed=batch.failed
        ),
        **fields,
    )
