"""The request of POST /v1/embeddings.

https://platform.openai.com/docs/api-reference/embeddings/create
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictInt

from .base import APIRequest, Text

NonEmptyText = Annotated[Text, Field(min_length=1)]
Tokens = Annotated[list[StrictInt], Field(min_length=1, fail_fast=True)]

MAX_INPUTS = 2048
"""As many as OpenAI takes"""


class EmbeddingsRequest(APIRequest):
    hints: ClassVar[Sequence[str]] = ("metadata", "priority", "request_id", "user")
    unsupported: ClassVar[Mapping[str, Sequence[object]]] = {
        "add_special_tokens": (True,),
        "embed_dtype": ("float32",),
        "endianness": ("native", "little"),
        "input_type": (),
        "messages": (),
        "normalize": (),
        "prompt_name": (),
        "truncate": (False,),
        "truncate_prompt_tokens": (),
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

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """`input` as a list, whichever of its four forms it has."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input
