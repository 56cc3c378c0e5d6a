"""The request of POST /v1/embeddings.

https://platform.openai.com/docs/api-reference/embeddings/create
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictBool, StrictInt

from .base import APIRequest, Text

NonEmptyText = Annotated[Text, Field(min_length=1)]
Tokens = Annotated[list[StrictInt], Field(min_length=1, fail_fast=True)]

MAX_INPUTS = 2048
"""As many as OpenAI takes"""

Truncate = StrictBool | Literal["NONE", "END"]
"""As text-embeddings-inference and as Cohere spell it"""

INPUT_TYPES = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
}
"""The two sides of a search, by the names of Voyage, Cohere and NVIDIA"""


def truncates(value: Truncate | None) -> bool:
    return value is True or value == "END"


class EmbeddingsRequest(APIRequest):
    hints: ClassVar[Sequence[str]] = ("metadata", "priority", "request_id", "user")
    unsupported: ClassVar[Mapping[str, Sequence[object]]] = {
        "add_special_tokens": (True,),
        "embed_dtype": ("float32",),
        "endianness": ("native", "little"),
        "messages": (),
        "normalize": (),
        "truncate_prompt_tokens": (),
        "truncation_direction": ("Right", "right"),
    }

    model: str = Field(description="Id of the model, see GET /v1/models")
    input: (
        NonEmptyText
        | Annotated[list[NonEmptyText], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    ) = Field(description="Text, list of texts, list of token ids, or list of such lists")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="float: numbers; base64: little-endian float32"
    )
    dimensions: StrictInt | None = Field(
        None, ge=1, description="Truncate each vector to this many dimensions and normalize it"
    )
    input_type: (
        Literal["query", "search_query", "document", "passage", "search_document"] | None
    ) = Field(None, description="Prepend the model's prompt for queries or for documents")
    prompt_name: str | None = Field(
        None, description="Prepend the prompt of this name; default: the model's default prompt"
    )
    truncate: Truncate | None = Field(
        None, description="true or END: cut texts that are too long instead of refusing them"
    )

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """`input` as a list, whichever of its four forms it has."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input
