"""Reranking: a query and documents in, how relevant each is out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from ...settings import Settings
from ..deadline import Deadline
from ..models.checkpoint import architecture, explained
from ..models.device import Device
from ..models.hub import LOADING, fetch_model
from ..models.model_errors import ContextExceeded, SourceError
from ..models.progress_bar import weights_progress
from .batched_model import THREADS, BatchedModel, slices

if TYPE_CHECKING:
    from .cross_encoder import CrossEncoder, TokenPair

RERANK_SETTING = "INFER_RERANK_MODEL"


@dataclass(frozen=True)
class Ranking:
    """Relevance of the documents of one request."""

    scores: Sequence[float]
    """One for each document, in their order"""
    tokens: int
    """Tokens computed: of the query with each document, special tokens included"""

    @property
    def order(self) -> list[int]:
        """The documents' numbers, the most relevant first."""
        return sorted(range(len(self.scores)), key=lambda index: -self.scores[index])


class RerankModel(BatchedModel):
    """A cross-encoder behind a scheduler."""

    type: ClassVar[str] = "rerank"

    def __init__(self, encoder: "CrossEncoder", settings: Settings, pass_cost: int) -> None:
        super().__init__(encoder, settings, pass_cost)
        self._encoder = encoder

    @classmethod
    def load(cls, source: str, device: Device, settings: Settings, revision: str = "") -> Self:
        """Reads the weights and starts the threads. Blocks.

        revision: commit, tag or branch on the hub; empty for the newest.
        """
        trust_remote_code = settings.trust_remote_code
        folder = fetch_model(
            source, RERANK_SETTING, revision=revision, trust_remote_code=trust_remote_code
        )
        refuse_other_task(folder)
        with LOADING, weights_progress():
            from .cross_encoder import CrossEncoder  # imports torch and transformers

            with explained(folder, RERANK_SETTING):
                encoder = CrossEncoder.load(folder, device, trust_remote_code=trust_remote_code)
            pass_cost = encoder.measure_pass_cost(THREADS)
        return cls(encoder, settings, pass_cost)

    async def rank(
        self,
        query: str,
        documents: Sequence[str],
        deadline: Deadline | None = None,
        *,
        truncate: bool = False,
    ) -> Ranking:
        """The relevance of each document to the query.

        deadline: unlimited by default. truncate: cuts pairs that are too long, at their longer side.

        Raises InvalidInput for a pair too long or with unknown tokens, Overloaded, Unavailable,
        DeadlineExceeded.
        """
        if not truncate:  # before any work, so that a refusal costs nothing
            self._check_sizes(query, documents)
        estimate = sum((len(query) + len(document)) // 4 for document in documents)
        # The method is looked up when it is called: tests replace it.
        tokenize = partial(self._tokenize, query, documents, truncate)
        rows, tokens = await self._compute(estimate, tokenize, deadline or Deadline(math.inf))
        return Ranking([row.item() for row in rows], tokens)

    def _check_sizes(self, query: str, documents: Sequence[str]) -> None:
        """Raises ContextExceeded for texts that are too long at a glance."""
        limit = self._encoder.max_length
        if too_long := self._encoder.too_long(query):
            raise ContextExceeded(limit, f"the query has {too_long}", "query")
        for index, document in enumerate(documents):
            if too_long := self._encoder.too_long(document):
                raise ContextExceeded(limit, f"document {index} has {too_long}", "documents")

    def _tokenize(self, query: str, documents: Sequence[str], truncate: bool) -> "list[TokenPair]":
        encoder, limit = self._encoder, self._encoder.max_length
        if truncate:
            query, documents = encoder.head(query), [encoder.head(each) for each in documents]
        (first,) = encoder.read([query])  # once, however many documents there are
        tokenized: list[TokenPair] = []
        for part in slices(len(documents)):
            for index, second in enumerate(encoder.read(documents[part]), part.start):
                if not truncate and (size := encoder.size(first, second)) > limit:
                    however = f"the query and document {index} have {size} tokens"
                    raise ContextExceeded(limit, however, "documents")
                pair = encoder.join(first, second)
                self._check_vocabulary(pair.ids, f"The query with document {index}", "documents")
                tokenized.append(pair)
        return tokenized


def refuse_other_task(folder: Path) -> None:
    """Raises SourceError for a model without the layer that gives scores."""
    name = architecture(folder)
    if name and not name.endswith("ForSequenceClassification"):
        raise SourceError(
            f"it is a {name} and not a cross-encoder, whose class is one for sequence classification",
            f"set {RERANK_SETTING}=<a cross-encoder>",
        )
