"""The bodies of /v1/batches.

https://platform.openai.com/docs/api-reference/batch
"""

from typing import Annotated, Literal

from openai.types import Batch
from pydantic import BaseModel, Field, StrictInt

from .base import APIRequest, Text

BatchEndpoint = Literal[
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"
]

MAX_PAIRS = 16

Key = Annotated[Text, Field(max_length=64)]
Value = Annotated[Text, Field(max_length=512)]


class OutputExpiry(BaseModel):
    """The time when the files of a batch expire, from the time when they are written."""

    anchor: Literal["created_at"]
    seconds: StrictInt = Field(ge=3600, le=2_592_000, description="From an hour to 30 days")


class BatchRequest(APIRequest):
    input_file_id: str = Field(description="Id of a file that was uploaded with purpose=batch")
    endpoint: BatchEndpoint = Field(description="URL of all requests in the file")
    completion_window: Literal["24h"] = Field(description="Time after which the batch expires")
    metadata: dict[Key, Value] | None = Field(
        None, max_length=MAX_PAIRS, description="Notes of the client, which come back as they are"
    )
    output_expires_after: OutputExpiry | None = Field(
        None, description="Time after which the files with the answers expire"
    )


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Batch]
    has_more: bool = Field(description="True if a request with after=last_id returns more batches")
    first_id: str | None = None
    last_id: str | None = None
