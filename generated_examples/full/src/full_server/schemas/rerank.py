"""The request of POST /v1/rerank, as Cohere and Jina have it.

https://docs.cohere.com/v1/reference/rerank
https://api.jina.ai/redoc#tag/rerank
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from .base import APIRequest, Text
from .embeddings import MAX_INPUTS, NonEmptyText, Truncate


class RerankDocument(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: Text


class RerankRequest(APIRequest):
    hints: ClassVar[Sequence[str]] = ("metadata", "priority", "request_id", "user")
    unsupported: ClassVar[Mapping[str, Sequence[object]]] = {
        "instruction": (),
        "max_chunks_per_doc": (),
        "max_tokens_per_doc": (),
        "rank_fields": (["text"],),
        "raw_scores": (False,),
        "return_text": (False,),
        "texts": (),
        "truncate_prompt_tokens": (),
        "truncation_direction": ("Right", "right"),
    }

    model: str = Field(description="Id of the model, see GET /v1/models")
    query: NonEmptyText = Field(description="What the documents are compared with")
    documents: Annotated[
        list[Text | RerankDocument], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)
    ] = Field(description="Texts, or objects with a text")
    top_n: StrictInt | None = Field(
        None, ge=1, description="Return this many of the most relevant documents; default: all"
    )
    return_documents: StrictBool | None = Field(
        None, description="Return the texts of the documents as well"
    )
    truncate: Truncate | None = Field(
        None,
        description="true or END: cut the query and documents that are too long together, instead "
        "of refusing them",
    )

    @property
    def texts(self) -> list[str]:
        return [each if isinstance(each, str) else each.text for each in self.documents]
