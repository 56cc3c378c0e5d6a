"""POST /v1/embeddings"""

import asyncio
import base64
import json
from collections.abc import Iterable
from typing import Literal

from fastapi import APIRouter, Request, Response
from openai.types import CreateEmbeddingResponse
from openai.types.create_embedding_response import Usage
from openai.types.embedding import Embedding

from ..dependencies import DeadlineDep, RegistryDep
from ..schemas.embeddings import INPUT_TYPES, EmbeddingsRequest, truncates
from ..serving.embeddings.embeddings_model import Embeddings, EmbeddingsModel
from ..serving.http.disconnect import until_disconnect
from ..serving.http.errors import documented

router = APIRouter(tags=["embeddings"], responses=documented(404, 429, 504))


class EncodedEmbedding(Embedding):
    """OpenAI's type knows numbers only, though its clients ask for base64 by default."""

    embedding: list[float] | str  # type: ignore[assignment]


class EmbeddingsResponse(CreateEmbeddingResponse):
    data: list[EncodedEmbedding]  # type: ignore[assignment]


@router.post("/v1/embeddings", response_model=EmbeddingsResponse)
async def create_embeddings(
    body: EmbeddingsRequest, request: Request, registry: RegistryDep, deadline: DeadlineDep
) -> Response:
    """One vector for each input, in the order of the inputs."""
    async with registry.use(body.model, EmbeddingsModel, deadline) as model:
        work = model.embed(
            body.inputs,
            body.dimensions,
            deadline,
            prompt_name=body.prompt_name,
            input_type=INPUT_TYPES.get(body.input_type or ""),
            truncate=truncates(body.truncate),
        )
        embeddings = await until_disconnect(request, work)
    request.state.log_fields |= {"model": body.model, "prompt_tokens": embeddings.tokens}
    # In a thread: 2048 vectors of 1024 numbers are 20 MB of JSON.
    content = await asyncio.to_thread(
        render, embeddings, body.model, body.encoding_format or "float"
    )
    return Response(content, media_type="application/json")


def render(embeddings: Embeddings, model: str, encoding: Literal["float", "base64"]) -> str:
    vectors: Iterable[list[float] | str]
    if encoding == "float":
        vectors = embeddings.as_lists()
    else:
        vectors = (base64.b64encode(vector).decode() for vector in embeddings.as_bytes())
    # One at a time: a single dump would hold the GIL, and so the event loop, until its end.
    data = ",".join(
        EncodedEmbedding(object="embedding", index=index, embedding=vector).model_dump_json()
        for index, vector in enumerate(vectors)
    )
    usage = Usage(prompt_tokens=embeddings.tokens, total_tokens=embeddings.tokens)
    return (
        f'{{"object":"list","data":[{data}],'
        f'"model":{json.dumps(model)},"usage":{usage.model_dump_json()}}}'
    )
