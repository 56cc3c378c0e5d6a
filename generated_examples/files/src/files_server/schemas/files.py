"""The bodies of /v1/files. Its requests are forms, whose fields are parameters of the routes.

https://platform.openai.com/docs/api-reference/files
"""

from typing import Literal

from openai.types import FileObject
from pydantic import BaseModel, Field

UploadPurpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]


FilePurpose = UploadPurpose | Literal["batch_output"]
"""The last is that of the files that a batch writes"""


class File(FileObject):
    """OpenAI's file object, and what this service knows beyond it."""

    purpose: FilePurpose  # type: ignore[assignment]  # theirs lacks `evals`, which they upload
    page_count: int | None = Field(
        None, description="Number of rendered pages, if convert_pdf was set"
    )


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[File]
    has_more: bool = Field(description="True if a request with after=last_id returns more files")
    first_id: str | None = None
    last_id: str | None = None
