"""POST /v1/rerank"""

import uuid

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from ..dependencies import DeadlineDep, RegistryDep
from ..schemas.embeddings import truncates
from ..schemas.rerank import RerankDocument, RerankRequest
from ..serving.embeddings.rerank_model import RerankModel
from ..serving.http.disconnect import until_disconnect
from ..serving.http.errors import documented

router = APIRouter(tags=["rerank"], responses=documented(404, 429, 504))


class RerankResult(BaseModel):
    index: int = Field(description="Place of the document in the request")
    relevance_score: float = Field(description="The higher, the more relevant")
    document: RerankDocument | None = None


class RerankUsage(BaseModel):
    prompt_tokens: int = Field(description="Tokens computed: of the query with each document")
    total_tokens: int


class RerankResponse(BaseModel):
    id: str
    model: str
    results: list[RerankResult] = Field(description="The most relevant document first")
    usage: RerankUsage


@router.post("/v1/rerank", response_model_exclude_none=True)
async def create_rerank(
    body: RerankRequest, request: Request, registry: RegistryDep, deadline: DeadlineDep
) -> RerankResponse:
    """The documents, sorted by how relevant they are to the query."""
    texts = body.texts
    async with registry.use(body.model, RerankModel, deadline) as model:
        work = model.rank(body.query, texts, deadline, truncate=truncates(body.truncate))
        ranking = await until_disconnect(request, work)
    request.state.log_fields |= {"model": body.model, "prompt_tokens": ranking.tokens}
    return RerankResponse(
        id=f"rerank-{uuid.uuid4().hex}",
        model=body.model,
        results=[
            RerankResult(
                index=index,
                relevance_score=ranking.scores[index],
                document=RerankDocument(text=texts[index]) if body.return_documents else None,
            )
            for index in ranking.order[: body.top_n]
        ],
        usage=RerankUsage(prompt_tokens=ranking.tokens, total_tokens=ranking.tokens),
    )
